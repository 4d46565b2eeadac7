from http.cookies import SimpleCookie

import pytest

from ckptdb.web.gate import Gate, Rules, secret_base

TOKEN = "s3cret"
BASE = secret_base(TOKEN, 8001)
OPEN = Rules(
    hosts=frozenset({"login3:8001"}), token=None, base="/", page_policy="page", table_policy="t"
)
LOCKED = Rules(
    hosts=frozenset({"login3:8001"}), token=TOKEN, base=BASE, page_policy="page", table_policy="t"
)


def run(coroutine):
    """Run what never has to wait; Playwright's loop may hold this thread."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def inside(scope, receive, send):
    """Stands for what is behind the gate; says which method reached it."""
    headers = [(b"x-frame-options", b"ALLOWALL"), (b"Cache-Control", b"public")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": f"inside by {scope['method']}".encode()})


GATES = {rules.token: Gate(inside, rules) for rules in (OPEN, LOCKED)}


def knock(rules, path="/", *, method="GET", host="localhost:8001", **headers):
    """Return status, headers and body."""
    path, _, query = path.partition("?")
    hosts = [host] if isinstance(host, str) else host
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", name.encode()) for name in hosts]
        + [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip
    sent = []

    async def send(message):
        sent.append(message)

    run(GATES[rules.token](scope, None, send))
    answered = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, b"".join(m.get("body", b"") for m in sent[1:]).decode()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8001",
        "LOCALHOST:9000",
        "127.0.0.1:8001",
        "[::1]:8001",
        "login3:8001",
    ],
)
def test_its_own_names_are_known(host):
    assert knock(OPEN, host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8001", "localhost.evil.example", "login3", "login3:80",
        "login3:8002", "127.0.0.1.nip.io", "127.0.0.2", "localhost:8001@evil", "localhost:", "",
        "[::1", "localhost:8001 ", "localhost:999999", [], ["localhost", "localhost"],
    ],
)  # fmt: skip
def test_no_other_name_is(host):
    status, _, body = knock(OPEN, host=host)

    assert (status, "inside" in body) == (403, False)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"])
def test_what_is_not_a_question_is_refused(method):
    status, headers, body = knock(OPEN, method=method)

    assert (status, headers["allow"], "inside" in body) == (405, "GET, HEAD", False)


def test_head_is_get_without_the_body():
    status, _, body = knock(OPEN, method="HEAD")

    assert (status, body) == (200, "")


@pytest.mark.parametrize("path", ["/", "/catalog", "/catalog.json?sql=select+1", "/-/plugins.json"])
def test_without_the_token_nobody_enters(path):
    status, _, body = knock(LOCKED, path)

    assert (status, "inside" in body) == (403, False)


@pytest.mark.parametrize("token", ["", "S3cret", "s3cret ", "s3cre", "é", "s3cret%00"])
def test_another_token_does_not_help(token):
    status, headers, _ = knock(LOCKED, f"/?token={token}")

    assert (status, "set-cookie" in headers) == (403, False)


def test_the_token_is_exchanged_for_a_cookie_and_gone_from_the_address():
    status, headers, _ = knock(LOCKED, f"/catalog?sql=select+1&token={TOKEN}&x=")
    cookie = headers["set-cookie"]

    assert (status, headers["location"]) == (303, f"{BASE}catalog?sql=select+1&x=")
    assert cookie.endswith(f"; Path={BASE}; HttpOnly; SameSite=Strict")
    assert TOKEN not in cookie
    (morsel,) = SimpleCookie(cookie).values()
    assert knock(LOCKED, BASE, cookie=f"a=b; {morsel.key}={morsel.value}")[0] == 200
    assert knock(LOCKED, BASE, cookie=f"{morsel.key}={TOKEN}")[0] == 403
    assert knock(LOCKED, BASE, cookie=f"other={morsel.value}")[0] == 403


def test_the_token_also_leads_from_an_address_that_has_been_kept_to_the_same():
    headers = knock(LOCKED, f"{BASE}catalog?sql=select+1&token={TOKEN}")[1]

    assert headers["location"] == f"{BASE}catalog?sql=select+1"


@pytest.mark.parametrize("path", ["//evil.example/x", "/\\evil.example/x", "/\\/evil.example/x"])
def test_the_token_leads_to_no_other_machine(path):
    headers = knock(LOCKED, f"{path}?token={TOKEN}")[1]

    assert headers["location"] == f"{BASE}evil.example/x"


@pytest.mark.parametrize("cookie", ["", ";;;", "ckptdb-8001", "ckptdb-8001=\xff", 'a="b'])
def test_a_broken_cookie_is_no_cookie(cookie):
    assert knock(LOCKED, BASE, cookie=cookie)[0] == 403


@pytest.mark.parametrize("others", ['a={"x":1}', "theme=dark mode", 'b=\xff,"; =;; c', "a[]=1"])
def test_a_cookie_of_another_server_on_this_machine_hides_none_of_ours(others):
    ticket = knock(LOCKED, f"/?token={TOKEN}")[1]["set-cookie"].partition(";")[0]

    assert knock(LOCKED, BASE, cookie=f"{others}; {ticket}")[0] == 200
    assert knock(LOCKED, BASE, cookie=f"{ticket};{others}")[0] == 200
    assert knock(LOCKED, BASE, cookie=f"{others}; x{ticket}")[0] == 403


def test_scripts_show_the_token_in_a_header():
    assert knock(LOCKED, authorization=f"Bearer {TOKEN}")[0] == 200
    assert knock(LOCKED, authorization="Bearer other")[0] == 403
    assert knock(LOCKED, authorization=f"Basic {TOKEN}")[0] == 403


def test_a_foreign_name_learns_nothing_about_the_token():
    right = knock(LOCKED, f"/?token={TOKEN}", host="evil.example")

    assert right == knock(LOCKED, "/?token=wrong", host="evil.example")


@pytest.mark.parametrize("path", ["/-/auth-token", "/-/threads", "/-/permissions", "/-/logout"])
def test_what_is_for_those_who_run_a_datasette_is_not_here(path):
    assert knock(OPEN, path)[0] == 404


@pytest.mark.parametrize("path", ["/-/plugins.json", "/-/static/app.css", "/-/ckptdb/page.js"])
def test_what_the_pages_need_is(path):
    assert knock(OPEN, path)[0] == 200


@pytest.mark.parametrize(
    "answer",
    [
        knock(OPEN), knock(OPEN, method="POST"), knock(OPEN, host="evil"), knock(LOCKED),
        knock(LOCKED, f"/?token={TOKEN}"), knock(OPEN, "/-/threads"),
    ],
    ids=["page", "POST", "foreign", "no token", "token", "private"],
)  # fmt: skip
def test_every_answer_tells_the_browser_what_it_may_not_do(answer):
    headers = answer[1]

    assert headers["content-security-policy"] in ("page", "t")
    assert headers["x-frame-options"] == "DENY"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_only_scripts_and_styles_may_be_kept():
    assert knock(OPEN, "/-/ckptdb/page.js")[1]["cache-control"] == "public"
    assert knock(OPEN, "/catalog")[1]["content-security-policy"] == "t"


def test_there_is_no_websocket():
    sent = []

    async def send(message):
        sent.append(message)

    run(Gate(inside, OPEN)({"type": "websocket", "headers": []}, None, send))

    assert sent == [{"type": "websocket.close", "code": 1008}]


BROWSER = {"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}
"""One that says no more, as all do over plain HTTP to another machine."""


def test_where_browsers_say_nothing_the_secret_directory_and_the_cookie_are_both_asked_for():
    ticket = knock(LOCKED, f"/?token={TOKEN}")[1]["set-cookie"].partition(";")[0]
    sql = "catalog.json?sql=select+1"

    assert knock(LOCKED, BASE + sql, cookie=ticket, **BROWSER)[0] == 200
    assert knock(LOCKED, f"/{sql}", cookie=ticket, **BROWSER)[0] == 403
    assert knock(LOCKED, BASE + sql, **BROWSER)[0] == 403
    assert knock(LOCKED, BASE + sql, cookie=ticket, referer="http://login3:9/", **BROWSER)[0] == 403


def test_a_link_with_the_token_is_followed_by_the_page_not_by_a_redirection():
    status, headers, body = knock(LOCKED, f"/?token={TOKEN}", referer="http://wiki/", **BROWSER)

    assert (status, headers["refresh"]) == (200, f"0; url={BASE}")
    assert f'<a href="{BASE}">' in body
    assert knock(LOCKED, "/?token=wrong", referer="http://wiki/", **BROWSER)[0] == 403


def test_a_large_body_comes_in_parts():
    sent = []

    async def large(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ab" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"c"})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
    run(Gate(large, OPEN)(scope, None, send))

    assert [len(message["body"]) for message in sent[1:]] == [65536, 65536, 65536, 3392, 1]
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * 4 + [False]
    assert b"".join(message["body"] for message in sent[1:]) == b"ab" * 100_000 + b"c"


def test_no_cookie_of_another_server_reaches_what_is_inside():
    seen = []

    async def look(scope, receive, send):
        seen.extend(scope["headers"])

    headers = [(b"host", b"localhost"), (b"Cookie", b"ds_actor=x"), (b"cookie", b"a=b")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    run(Gate(look, OPEN)(scope, None, None))

    assert seen == [(b"host", b"localhost")]


def test_an_address_may_be_only_so_long():
    assert knock(OPEN, f"/catalog?sql={'x' * 70_000}")[0] == 414

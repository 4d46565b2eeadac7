"""Pages of other sites, and other people's servers on the same machine, against the served page."""

import contextlib
import json
import re
import threading
from http.cookiejar import CookieJar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener, urlopen

import pytest
from tests.support.planting import plant
from tests.support.serving import serving

SLOW = "with recursive c(x) as (select 1 union all select x+1 from c) select count(*) from c"

# Every question of a visitor opens the catalog anew: who opens nothing asks nothing.
COUNTS_OPENINGS = """
import os, sys

def count(event, arguments):
    if event == "sqlite3.connect":
        with open(os.environ["OPENINGS"], "ab") as file:
            file.write(b".")

sys.addaudithook(count)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("tree") / "results")


@pytest.fixture(scope="module")
def counted(tree, tmp_path_factory):
    """A server that counts how often it opens a catalog, and so do its processes."""
    home = tmp_path_factory.mktemp("counted")
    (home / "site").mkdir()
    (home / "site" / "sitecustomize.py").write_text(COUNTS_OPENINGS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(home / "site"))
        patched.setenv("OPENINGS", str(home / "openings"))
        with serving(tree, home=home) as served:
            served.openings = lambda: (home / "openings").stat().st_size
            yield served


@pytest.fixture(scope="module")
def locked(tree, tmp_path_factory):
    """A server with a token."""
    with serving(tree, "--token", "auto", home=tmp_path_factory.mktemp("locked")) as served:
        yield served


@pytest.fixture
def page(chromium):
    """A browser that has not been anywhere."""
    with contextlib.closing(chromium.new_context()) as context:
        yield context.new_page()


def ask(address, *, method="GET", data=None, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        request = Request(address, method=method, data=data, headers=named)
        with urlopen(request, timeout=30) as answer:
            return answer.status
    except HTTPError as error:
        with error:
            return error.code


class Neighbour(BaseHTTPRequestHandler):
    """Somebody else's server on this machine; keeps what browsers send to it."""

    sent = []  # noqa: RUF012  # one for each server, see `neighbour`

    def do_GET(self):
        self.sent.append((self.path, self.headers.get("Cookie", "")))
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>other</title><body>")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def neighbour():
    handler = type("Handler", (Neighbour,), {"sent": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield handler, server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


# --- a page of another site -----------------------------------------------------------------------

TRIES = """async (targets) => {
    const settle = (make, target) => new Promise((resolve) => {
        const element = make(target);
        element.onload = element.onerror = () => resolve();
        document.body.append(element);
        setTimeout(resolve, 1500);  // some of them say nothing when they are refused
    });
    const make = (tag, attribute, more = {}) => (target) =>
        Object.assign(document.createElement(tag), { [attribute]: target, ...more });
    const form = (method) => (target) => {
        const frame = Object.assign(document.createElement("iframe"), { name: method });
        document.body.append(frame);
        const sent = Object.assign(document.createElement("form"),
            { action: target, method, target: method });
        const field = Object.assign(document.createElement("input"), { name: "sql" });
        field.value = "select 1";
        sent.append(field);
        document.body.append(sent);
        sent.submit();
        return frame;
    };
    const fetched = (options) => (target) => fetch(target, options).catch(() => null);
    for (const target of targets) {
        await Promise.all([
            fetched({ mode: "no-cors" })(target),
            fetched({ mode: "no-cors", credentials: "include" })(target),
            fetched({ mode: "no-cors", method: "HEAD" })(target),
            fetched({ mode: "no-cors", method: "POST", body: "sql=select 1" })(target),
            fetched({ mode: "cors" })(target),
            fetched({ mode: "cors", headers: { "x-mine": "1" } })(target),
            navigator.sendBeacon(target, "x"),
            settle(make("img", "src"), target),
            settle(make("script", "src"), target),
            settle(make("iframe", "src"), target),
            settle(make("object", "data"), target),
            settle(make("embed", "src"), target),
            settle(make("video", "src"), target),
            settle(make("link", "href", { rel: "stylesheet" }), target),
            settle(make("link", "href", { rel: "prefetch" }), target),
            settle(make("link", "href", { rel: "preload", as: "fetch" }), target),
            settle(make("link", "href", { rel: "modulepreload" }), target),
            settle(form("get"), target),
            settle(form("post"), target),
            new Promise((resolve) => {
                const socket = new WebSocket(target.replace("http", "ws"));
                socket.onerror = socket.onclose = resolve;
            }),
        ]);
    }
}"""


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"], ids=["other port", "other host"])
def test_no_page_of_another_site_makes_the_server_ask_anything(counted, page, name):
    served, openings, context = counted, counted.openings, page.context
    with neighbour() as (_, port):
        asked, answered = [], []
        context.on("request", lambda request: asked.append(request.url))
        context.on("response", lambda response: answered.append((response.url, response.status)))
        page.goto(f"http://{name}:{port}/")
        before = openings()
        page.evaluate(TRIES, [f"{served.base}/catalog.json?sql={quote(SLOW)}"])
        with context.expect_page() as opened:
            page.evaluate("target => void open(target)", f"{served.base}/catalog?sql=select+1")
        opened.value.wait_for_load_state()
        assert "A page of another site has asked for this" in opened.value.inner_text("body")
        page.goto(f"http://{name}:{port}/")
        page.evaluate("to => void (location = to)", f"{served.base}/?sql=select+1")
        page.wait_for_url(f"{served.base}/**")

        assert openings() == before
        assert len([url for url in asked if url.startswith(served.base)]) > 15
        told = {status for url, status in answered if url.startswith(served.base)}
        assert told <= {403, 405}


def test_a_link_of_another_site_leads_to_the_page_itself(counted, page):
    served, openings = counted, counted.openings
    with neighbour() as (_, port):
        page.goto(f"http://localhost:{port}/")
        before = openings()
        page.evaluate("to => void (location = to)", f"{served.base}/")
        page.wait_for_selector("body[data-drawn]")

        assert openings() > before  # so that they are counted
        before = openings()
        page.get_by_role("link", name="SQL").click()
        page.wait_for_url(f"{served.base}/catalog?sql=**")
        page.locator("table td").first.wait_for()
        assert openings() > before + 1


def test_a_link_of_another_site_that_has_the_token_lets_in(locked, page):
    with neighbour() as (_, port):
        page.goto(f"http://localhost:{port}/")
        page.evaluate("to => void (location = to)", locked.address)
        page.wait_for_selector("body[data-drawn]")

        assert re.fullmatch(rf"{locked.base}/[0-9a-f]{{32}}/", page.url)


CROSS = {"Sec_Fetch_Site": "cross-site"}
VISIT = {"Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
FIREFOX_80 = {"User_Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:80.0) Gecko/20100101 Firefox/80.0"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("headers", "path", "expected"),
    [
        (CROSS, "/", 403),
        (CROSS, "/catalog", 403),
        (CROSS | VISIT, "/", 200),
        (CROSS | VISIT, "/catalog", 403),
        (CROSS | VISIT, "/catalog.json?sql=select+1", 403),
        (CROSS | VISIT, "/?sql=select+1", 403),
        (CROSS | VISIT, "/-/ckptdb/page.js", 403),
        (CROSS | VISIT | {"Sec_Purpose": "prefetch"}, "/", 403),
        (CROSS | VISIT | {"Sec_Fetch_Dest": "iframe"}, "/", 403),
        (CROSS | VISIT | {"Sec_Fetch_Mode": "no-cors"}, "/", 403),
        ({"Sec_Fetch_Site": "same-site"}, "/catalog", 403),
        ({"Sec_Fetch_Site": "SAME-ORIGIN"}, "/catalog", 403),
        ({"Sec_Fetch_Site": ""}, "/catalog", 403),
        ({"Sec_Fetch_Site": "same-origin"}, "/catalog", 200),
        ({"Sec_Fetch_Site": "none"} | VISIT, "/catalog.json?sql=select+1", 200),
        ({}, "/catalog.json?sql=select+1", 200),
        ({"Origin": "http://evil.example"}, "/catalog.json?sql=select+1", 403),
        ({"Origin": "null"}, "/catalog.json?sql=select+1", 403),
        ({"Referer": "http://127.0.0.1:1/page"}, "/catalog.json?sql=select+1", 403),
        ({"Referer": "http://[/"}, "/catalog.json?sql=select+1", 403),
        (FIREFOX_80, "/catalog.json?sql=select+1", 403),
        (FIREFOX_80, "/", 403),
    ],
)
def test_what_a_request_says_of_its_origin_decides(tree_server, headers, path, expected):
    assert ask(f"{tree_server.base}{path}", **headers) == expected


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "POST", "PUT"])
def test_no_other_method_gets_around_it(tree_server, method):
    path = f"{tree_server.base}/catalog.json?sql=select+1"

    assert ask(path, method=method, **CROSS, **VISIT) in (403, 405)


def test_an_old_browser_is_told_what_to_do(tree_server):
    request = Request(tree_server.base, headers={"User-Agent": FIREFOX_80["User_Agent"]})
    with pytest.raises(HTTPError) as told:
        urlopen(request, timeout=30)
    with told.value as answer:
        assert "`ckptdb serve --token auto`" in answer.read().decode()


@pytest.mark.parametrize("path", ["//evil.example/", "/%5Cevil.example/", "/x/", "///a/?b=c"])
def test_no_address_leads_to_another_machine(tree_server, path):
    opener = build_opener(HTTPCookieProcessor(CookieJar()))
    with pytest.raises(HTTPError) as told:
        opener.open(f"{tree_server.base}{path}", timeout=30)
    with told.value as answer:
        assert urlsplit(answer.url).netloc == urlsplit(tree_server.base).netloc


@pytest.fixture(scope="module")
def tree_server(tree, tmp_path_factory):
    with serving(tree, home=tmp_path_factory.mktemp("server")) as served:
        yield served


# --- cookies --------------------------------------------------------------------------------------


def test_no_server_on_another_port_is_sent_our_cookie(locked, page):
    with neighbour() as (other, port):
        page.goto(locked.address)
        page.wait_for_selector("body[data-drawn]")
        assert [cookie["httpOnly"] for cookie in page.context.cookies()] == [True]
        for path in ("/", "/catalog", "/x/catalog"):
            page.goto(f"http://127.0.0.1:{port}{path}")
            assert page.evaluate("document.cookie") == ""

        assert {cookies for _, cookies in other.sent} == {""}


@pytest.mark.slow
def test_a_cookie_lets_in_nowhere_else(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("CKPTDB_TOKEN", "the same")
    jar = CookieJar()
    opener = build_opener(HTTPCookieProcessor(jar))
    with serving(tree, home=tmp_path) as served:
        with opener.open(served.address, timeout=30) as answer:
            path = urlsplit(answer.url).path
        (cookie,) = jar
        shown = f"{cookie.name}={cookie.value}"
        assert ask(f"{served.base}{path}", Cookie=shown) == 200
        assert ask(f"{served.base}/", Cookie=shown) == 403  # where any page may send a browser
    with serving(tree, home=tmp_path) as served, opener.open(served.address, timeout=30) as answer:
        path = urlsplit(answer.url).path
        assert ask(f"{served.base}{path}", Cookie=shown) == 403
        assert len({cookie.name for cookie in jar}) == 2


def test_very_many_and_large_cookies_of_other_servers_are_no_obstacle(locked, page):
    # Cookies know no ports: these are of another server on this machine.
    planted = {"value": "x" * 4000, "url": "http://127.0.0.1:9/"}
    page.context.add_cookies([{"name": f"c{number}", **planted} for number in range(170)])
    page.goto(locked.address)
    page.wait_for_selector("body[data-drawn]")
    page.get_by_role("link", name="Tables").click()
    page.get_by_role("link", name="metrics", exact=True).click()

    page.locator("table.rows-and-columns td").first.wait_for()


def test_cookies_for_datasette_are_neither_read_nor_written(tree_server):
    request = Request(f"{tree_server.base}/catalog/runs.json?_shape=arrays")
    request.add_header("Cookie", 'ds_messages="broken\\; ds_actor=x; ds_csrftoken=y; =;;')
    with urlopen(request, timeout=30) as answer:
        assert answer.headers["set-cookie"] is None
        assert json.loads(answer.read())["rows"]

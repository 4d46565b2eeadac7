"""The server as its user starts it: a process, asked over HTTP and by a browser."""

import csv
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from html import unescape
from pathlib import Path
from shutil import copytree
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import pytest
from tests.support.planting import HOSTILE_RUNS, plant, save
from tests.support.serving import serving

from ckptdb import Registry
from ckptdb.errors import NotServable
from ckptdb.web.serve import AUTO, NO_TOKEN, open_door

pytestmark = pytest.mark.slow

CKPTDB = Path(sys.executable).with_name("ckptdb")
ENDLESS = "with recursive c(x) as (select 1 union all select x+1 from c) select count(*) from c"


def ask(address, *, method="GET", data=None, **headers):
    """Return status and text."""
    request = Request(address, method=method, data=data, headers=headers)
    try:
        with urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def ask_sql(base, sql):
    status, text = ask(f"{base}/catalog.json?_shape=arrays&sql={quote(sql)}")
    return status, json.loads(text)


def test_the_plugins_are_exactly_ours(server):
    listed = json.loads(ask(f"{server.base}/-/plugins.json")[1])

    assert [plugin["name"] for plugin in listed] == ["ckptdb"]


def test_no_other_plugin_is_even_imported(tree, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "nosy-1.0.dist-info").mkdir(parents=True)
    (site / "nosy-1.0.dist-info" / "METADATA").write_text("Name: nosy\nVersion: 1.0\n")
    (site / "nosy-1.0.dist-info" / "entry_points.txt").write_text("[datasette]\nnosy = nosy\n")
    (site / "nosy.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()")
    monkeypatch.setenv("PYTHONPATH", str(site))
    with serving(tree, home=tmp_path) as served:
        assert "nosy" not in ask(f"{served.base}/-/plugins.json?all=1")[1]
    assert not (tmp_path / "seen").exists()

    subprocess.run([sys.executable, "-c", "import datasette.app"], check=True)
    assert (tmp_path / "seen").exists()  # any other Datasette has it


def test_a_name_that_is_not_its_own_is_refused(server):
    assert ask(server.base, Host="evil.example")[0] == 403
    assert ask(server.base, Host="localhost")[0] == 200


@pytest.mark.parametrize("path", ["/", "/catalog", "/catalog/runs", "/-/messages"])
def test_post_is_refused(server, path):
    assert ask(f"{server.base}{path}", method="POST", data=b"x=1")[0] == 405


@pytest.mark.parametrize(
    "sql",
    [
        "delete from runs", "insert into runs (uuid) values ('x')", "update runs set name = 'x'",
        "drop table runs", "create temp table t (x)", "attach database '/etc/passwd' as p",
        "pragma journal_mode = delete", "vacuum into '/tmp/x'", "begin immediate",
        "with x as (select 1) delete from runs",
        "with x as (select 1) insert into runs (uuid, name, directory) select 'u', 'n', 'd' from x",
        "select load_extension('x')", "select 1; delete from runs",
        "select * from pragma_journal_mode('delete')", "select writefile('/tmp/x', 'y')",
    ],
)  # fmt: skip
def test_sql_that_writes_or_reaches_out_is_refused(server, tree, sql):
    before = (tree / ".ckptdb" / "catalog.db").read_bytes()
    status, answer = ask_sql(server.base, sql)

    assert (status, answer["ok"]) == (400, False)
    assert (tree / ".ckptdb" / "catalog.db").read_bytes() == before


def test_endless_sql_is_cut(server):
    status, answer = ask_sql(server.base, ENDLESS)

    assert status == 400
    assert answer["error"] == "The query was stopped: it ran for too long. Narrow it."


def test_endless_answers_are_cut(server):
    rows = "with recursive c(x) as (select 1 union all select x+1 from c) select x from c"
    status, answer = ask_sql(server.base, rows)
    assert (status, len(answer["rows"]), answer["truncated"]) == (200, 1000, True)

    large = f"select hex(zeroblob(7000000)) from ({rows} limit 200)"
    assert ask_sql(server.base, large)[0] == 400
    assert ask_sql(server.base, "select length(zeroblob(20000000))")[0] == 400


def test_what_is_wrong_with_a_query_is_said_without_its_running(server):
    status, text = ask(f"{server.base}/catalog?sql=select+%3Cscript%3Ealert(1)%3C/script%3E")

    assert status == 400
    assert "<script>alert(1)" not in text


@pytest.mark.parametrize(
    "path",
    [
        "metrics.json?_timelimit=abc", "metrics.json?_through=zz", "metrics.json?_through=[]",
        'metrics.json?_through={"table":1}', "metrics.json?_facet={", "metrics.json?_facet={}",
        "metrics.json?_facet_size=²", "metrics.json?_facetx=1", "metrics/1.json",
        "runs.json?id__in=[", "runs.json?id__in=[[1]]", "runs.json?id__gt=99999999999999999999",
        "runs.json?id__in=" + "[" * 20_000, "run_summary.json?_next=zz", "runs.csv?id__in=[",
        "runs.json?_json_infinity=2",
    ],
)  # fmt: skip
def test_an_address_that_makes_no_sense_is_quoted_and_nothing_is_logged(server, path):
    quoted = quote(path, safe="/?=")
    status, text = ask(f"{server.base}/catalog/{quoted}")

    assert status == 400
    assert f"This address cannot be understood: /catalog/{path}"[:200] in unescape(
        json.loads(text)["error"] if ".json" in path else text
    )
    assert server.log.read_text() == ""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/metrics.json?_sort=zz", "Cannot sort table by zz"),
        ("/runs.json?_where=1;drop", "You can only execute one statement at a time."),
        ("/runs.json?_where=:x", "You did not supply a value for binding parameter :x."),
        ("/runs.json?_where=nosuch", "no such column: nosuch"),
        ("/metrics.json?_facet=nosuch", "no such column: nosuch"),
        ("/runs.json?nosuch__in=1", "no such column: nosuch"),
        (".json?sql=select+nosuch+from+runs", "no such column: nosuch"),
        (".json?sql=select+zeroblob(20000000)", "string or blob too big"),
        (".csv?sql=selec", "Statement must be a SELECT"),
        (".csv", "This address cannot be understood: /catalog.csv"),
        (f".csv?sql={quote(ENDLESS)}", "The query was stopped: it ran for too long. Narrow it."),
    ],
)
def test_a_question_that_is_wrong_is_told_so_and_nothing_is_logged(server, path, told):
    status, text = ask(f"{server.base}/catalog{path}")

    assert status == 400
    assert told in text
    assert server.log.read_text() == ""


def test_what_is_wrong_here_is_a_bug_and_stands_in_the_log(tmp_path):
    root = plant(tmp_path / "results")
    catalog = sqlite3.connect(root / ".ckptdb" / "catalog.db")
    with catalog:
        catalog.execute("UPDATE checkpoints SET path = x'00' WHERE status <> 'tmp'")
    catalog.close()
    with serving(root, home=tmp_path) as served:
        assert ask(f"{served.base}/?_timelimit=abc")[0] == 500
        assert "TypeError" in served.log.read_text()
        os.truncate(served.log, 0)  # or `serving` would take exception


@pytest.mark.parametrize(
    "path", ["/catalog.db", "/_internal", "/_internal.json?sql=select+1", "/_memory", "/nothing"]
)
def test_there_is_nothing_else_to_be_had(server, path):
    assert ask(f"{server.base}{path}")[0] in (403, 404)


def test_the_tables_show_what_the_catalog_holds(server, tree):
    status, answer = ask_sql(server.base, "select name from runs order by name")
    assert (status, answer["rows"]) == (200, [["down"], ["plain"], ["up"]])

    _, answer = ask_sql(server.base, "select abspath(path) from leaderboard where run = 'up'")
    assert answer["rows"][0] == [f"{tree}/up/step_2"]


@pytest.mark.parametrize("path", ["/-/ckptdb/page.js", "/-/ckptdb/plotly.min.js"])
def test_scripts_come_packed_and_may_be_kept(server, path):
    request = Request(f"{server.base}{path}", headers={"Accept-Encoding": "gzip"})
    with urlopen(request, timeout=30) as answer:
        packed = answer.read()
        assert answer.headers["content-encoding"] == "gzip"
        assert "immutable" in answer.headers["cache-control"]
    assert len(packed) < len(ask(f"{server.base}{path}")[1]) / 2


def test_what_is_saved_while_the_page_is_open_appears_on_reload(tmp_path, look):
    root = plant(tmp_path / "results")
    with serving(root, home=tmp_path) as served:
        seen = look(served.address)
        assert seen.page.get_by_role("button", name=f"{root}/up/step_9").count() == 0

        metrics = {"val:acc": 0.99}
        save(root / "up", 9, metrics, metric_name="val:acc", higher_is_better=True)
        seen.page.reload()
        seen.page.wait_for_selector("body[data-drawn]")
        assert seen.page.get_by_role("button", name=f"{root}/up/step_9").count() == 2

        with Registry.open(root) as registry:
            registry.remove([9], run="up")
        seen.page.reload()
        seen.page.wait_for_selector("body[data-drawn]")
        assert seen.page.get_by_role("button", name=f"{root}/up/step_9").count() == 0
        assert "by hand" in seen.page.inner_text("section[aria-labelledby=h-deletions]")


def test_of_a_run_the_catalog_is_brought_up_to_date_once_and_then_only_read(tmp_path):
    root = plant(tmp_path / "results")
    run, file = root / "plain", root / ".ckptdb" / "catalog.db"
    copytree(run / "step_5", run / "step_6")
    with serving(run, home=tmp_path) as served:
        before = file.read_bytes()
        assert f"{run}/step_6" in ask(served.base)[1]

        copytree(run / "step_5", run / "step_7")
        assert f"{run}/step_7" not in ask(served.base)[1]
        assert file.read_bytes() == before
        save(run, 8, {"note": "no numbers"})
        assert f"{run}/step_8" in ask(served.base)[1]


def test_pages_stay_whole_while_a_training_writes(tmp_path):
    root = plant(tmp_path / "results")
    with serving(root, home=tmp_path) as served:
        for step in range(50, 70):
            save(root / "down", step, {"val:loss": 1.0}, metric_name="val:loss", keep_top_k=2)
            for path in (
                "",
                "/catalog/checkpoints",
                "/catalog.json?sql=select+1+from+metrics",
            ):
                status, text = ask(f"{served.base}{path}")
                assert status == 200, text


def test_a_catalog_that_is_locked_is_told_in_one_sentence_and_then_answers_again(tmp_path):
    root = plant(tmp_path / "results")
    with serving(root, home=tmp_path) as served:
        writer = sqlite3.connect(root / ".ckptdb" / "catalog.db", isolation_level=None)
        writer.execute("BEGIN EXCLUSIVE")
        told = [ask(f"{served.base}{path}") for path in ("", "/catalog/runs", "/catalog/runs.json")]
        writer.execute("ROLLBACK")
        writer.close()

        assert [status for status, _ in told] == [503] * 3
        assert all("is locked by another process; try again shortly." in text for _, text in told)
        assert ask(served.base)[0] == 200
        assert ask(f"{served.base}/catalog/runs")[0] == 200


DIES_WRITING = """
import os, signal, sqlite3, sys

writer = sqlite3.connect(sys.argv[1], isolation_level=None)
writer.execute("PRAGMA cache_size = 1")
writer.execute("BEGIN IMMEDIATE")
row = "INSERT INTO runs (uuid, name, directory) VALUES (?, hex(zeroblob(1000)), '.')"
writer.executemany(row, [(str(number),) for number in range(200)])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("path", ["", "/catalog/runs.json?_shape=arrays"], ids=["page", "table"])
def test_what_a_dying_writer_has_left_is_undone_and_not_shown(tmp_path, path):
    root = plant(tmp_path / "results")
    file = root / ".ckptdb" / "catalog.db"
    with serving(root, home=tmp_path) as served:
        subprocess.run([sys.executable, "-c", DIES_WRITING, file], check=False)
        assert file.with_name("catalog.db-journal").stat().st_size > 0
        status, text = ask(f"{served.base}{path}")

    assert status == 200
    assert "3030303030" not in text


def test_a_catalog_that_is_built_anew_is_the_one_that_is_shown(tmp_path):
    root = plant(tmp_path / "results")
    with serving(root, home=tmp_path) as served:
        assert ask(f"{served.base}/catalog/runs")[0] == 200
        (root / ".ckptdb" / "catalog.db").unlink()
        status, text = ask(f"{served.base}/catalog/runs.json")
        assert (status, "No catalog" in text) == (503, True)

        with Registry.open(root) as registry:
            registry.reconcile()
        save(root / "new", 1, {"val:loss": 1.0}, metric_name="val:loss")
        assert "new" in ask(served.base)[1]
        status, answer = ask_sql(served.base, "select name from runs order by name")
        assert (status, answer["rows"]) == (200, [["down"], ["new"], ["plain"], ["up"]])


@pytest.mark.parametrize(
    "path",
    [
        "/catalog/runs", "/catalog/checkpoints", "/catalog/metrics?_facet=name",
        "/catalog/deletions", "/catalog/metrics?name__contains=%E2%80%AE",
        "/catalog/runs?_sort=name&name__contains=<", "/catalog?sql=select+*+from+leaderboard",
        "/catalog?sql=select+name+as+%22%3Cimg+src=x+onerror=alert(9)%3E%22+from+runs",
        "/catalog/runs/1", "/catalog",
    ],
)  # fmt: skip
def test_hostile_names_are_text_in_tables(hostile_server, look, path):
    seen = look(f"{hostile_server.base}{path}", drawn=False)

    assert not {"\x1b", "\x07", "\u202e"} & set(seen.page.inner_text("td, body"))
    harm = "td img, td script, td svg, [onerror], a[href^=javascript]"
    assert seen.page.locator(harm).count() == 0


def test_the_page_of_hostile_names_is_calm(hostile_server, look):
    seen = look(hostile_server.address)

    assert seen.page.locator("main img, [onerror]").count() == 0
    assert seen.page.get_by_text("<img src=x onerror=alert(1)>").count() >= 2


def test_no_text_in_csv_is_a_formula(hostile_server):
    for path in ("/catalog/runs.csv", "/catalog.csv?sql=select+name,+id,+-1.5+from+runs"):
        cells = list(csv.reader(io.StringIO(ask(f"{hostile_server.base}{path}")[1])))
        flat = [cell for row in cells for cell in row]
        assert "'=HYPERLINK(1)" in flat
        assert not [cell for cell in flat if re.match(r"[=+@]|-[^\d]", cell)]
    assert "-1.5" in flat
    assert len(cells) == 1 + len(HOSTILE_RUNS) + 1


@pytest.fixture(scope="module")
def hostile_server(hostile, tmp_path_factory):
    with serving(hostile, home=tmp_path_factory.mktemp("server")) as served:
        yield served


# --- the token ----------------------------------------------------------------------------------


def test_with_a_token_the_printed_address_opens_the_page_and_no_other_does(tree, tmp_path, look):
    with serving(tree, "--token", "auto", home=tmp_path) as served:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", served.address)
        assert ask(served.base)[0] == 403
        assert ask(f"{served.base}/catalog/runs.csv")[0] == 403
        token = served.address.partition("=")[2]
        assert ask(f"{served.base}/catalog/runs.csv", Authorization=f"Bearer {token}")[0] == 200

        seen = look(served.address)
        assert re.fullmatch(rf"{served.base}/[0-9a-f]{{32}}/", seen.page.url)
        at = seen.page.url
        seen.page.get_by_role("link", name="Tables").click()
        assert seen.page.url == f"{at}catalog"
        seen.page.get_by_role("link", name="metrics", exact=True).click()
        assert seen.page.url == f"{at}catalog/metrics"
        assert seen.page.evaluate("document.cookie") == ""


def test_the_token_may_come_from_the_environment_where_no_neighbour_sees_it(
    tree, tmp_path, monkeypatch
):
    monkeypatch.setenv("CKPTDB_TOKEN", "known")
    with serving(tree, home=tmp_path) as served:
        assert served.address.endswith("/?token=known")
        assert ask(served.base)[0] == 403


def test_any_token_may_stand_in_the_address():
    with open_door("127.0.0.1", 0, "a&b=c #d") as door:
        assert door.address.endswith("/?token=a%26b%3Dc%20%23d")


def test_an_empty_token_in_the_environment_is_none(monkeypatch, tree, tmp_path):
    monkeypatch.setenv("CKPTDB_TOKEN", "")
    with serving(tree, "--no-token", home=tmp_path) as served:
        assert served.address == f"{served.base}/"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_whoever_can_be_reached_from_elsewhere_asks_for_a_token(host):
    with open_door(host, 0, None) as door:
        assert door.token is not None
        assert not re.search(r"0\.0\.0\.0|::", door.address)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "login3"])
def test_nobody_lets_in_everybody_who_can_reach_it_from_elsewhere(host):
    with pytest.raises(NotServable, match="from other machines"), open_door(host, 0, NO_TOKEN):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_on_the_loopback_a_token_is_a_choice(host):
    with open_door(host, 0, None) as door:
        assert door.token is None
    with open_door(host, 0, NO_TOKEN, shared="ann may log in to this machine") as door:
        assert door.token is None
    with open_door(host, 0, None, shared="ann may log in to this machine") as door:
        assert door.token is not None
    with open_door(host, 0, AUTO) as door:
        assert door.token is not None


# --- beginning and ending -----------------------------------------------------------------------


def test_a_run_or_anything_inside_it_may_be_named(tree, tmp_path):
    with serving(tree / "up" / "step_2", home=tmp_path) as served:
        assert re.search(r"<title>Checkpoints · .*/up</title>", ask(served.base)[1])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_told_to(tree, tmp_path, how):
    with serving(tree, home=tmp_path) as served:
        served.process.send_signal(how)
        code = served.process.wait(timeout=30)

    assert code in (0, -how)
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.parametrize(
    "signals",
    [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT] * 2, [signal.SIGINT] * 3],
    ids=["Ctrl-C", "kill", "Ctrl-C twice", "Ctrl-C three times"],
)
def test_it_ends_also_while_a_question_waits_inside_sqlite(tmp_path, signals):
    root = plant(tmp_path / "results")
    with (
        serving(root, home=tmp_path) as served,
        closing(sqlite3.connect(root / ".ckptdb" / "catalog.db", isolation_level=None)) as writer,
        socket.create_connection(urlsplit(served.base).netloc.split(":")) as visitor,
    ):
        writer.execute("BEGIN EXCLUSIVE")  # a question waits five seconds for it
        visitor.sendall(b"GET /catalog/runs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(0.5)
        for how in signals:
            served.process.send_signal(how)
            time.sleep(0.2)
        code = served.process.wait(timeout=2.5)

    assert code in (0, -signals[0])
    assert served.log.read_text() == ""


def test_a_port_that_is_taken_ends_with_a_sentence():
    with (
        open_door("127.0.0.1", 0, None) as door,
        pytest.raises(NotServable, match="see --port"),
        open_door("127.0.0.1", door.port, None),
    ):
        pass


@pytest.mark.parametrize("host", ["nosuch.invalid", "::zz", "192.0.2.1", "two..dots"])
def test_a_host_that_is_not_here_ends_with_a_sentence(host):
    with pytest.raises(NotServable, match=r"see --host\.") as told, open_door(host, 0, None):
        pass

    assert "while attempting" not in str(told.value)


@pytest.mark.parametrize(
    ("place", "code", "told"),
    [
        (".", 10, "No catalog and no checkpoints at "),
        ("missing", 10, "There is no directory "),
        ("nemo", 10, "There is no catalog at "),
        ("sqlite://", 1, "is not a SQLite file; `ckptdb report` shows any catalog."),
    ],
)
def test_what_cannot_be_served_is_said(tmp_path, place, code, told):
    (tmp_path / "nemo" / "step_1").mkdir(parents=True)
    (tmp_path / "nemo" / "step_1" / "training_info.json").write_text("{}")
    os.mkdir(tmp_path / "empty")
    where = tmp_path / "empty" if place == "." else place
    done = subprocess.run(
        [CKPTDB, "serve", where, "--port", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr

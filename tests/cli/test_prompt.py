"""The prompt of `ckptdb sql`, on a real terminal, with prompt_toolkit and without."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.terminal import Terminal

from ckptdb.cli.prompt import history_file, is_complete

WITHOUT = (
    "import sys; sys.modules['prompt_toolkit'] = None;"
    "from ckptdb.cli.main import main; main(sys.argv[1:])"
)
ENDLESS = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM t) SELECT COUNT(*) FROM t;"


@pytest.fixture
def state(tmp_path):
    return tmp_path / "state"


@pytest.fixture(params=["prompt_toolkit", "readline"])
def prompt(request, root, state):
    """Open the prompt at the root; it is ready to be typed to."""
    program = ["-m", "ckptdb"] if request.param == "prompt_toolkit" else ["-c", WITHOUT]

    def open_it(*options):
        # Without coverage in it, whose lock an interrupt out of the blue would leave taken.
        inherited = {name: "" for name in os.environ if name.startswith("COV")}
        terminal = Terminal(
            [sys.executable, *program, "sql", *options],
            cwd=root,
            env=inherited | {"XDG_STATE_HOME": str(state)},
        )
        terminal.wait_for("ckptdb>")
        return terminal

    return open_it


@pytest.mark.slow
def test_it_answers_until_ctrl_d(prompt, state, root):
    before = sorted(root.rglob("*"))
    with prompt() as terminal:
        terminal.type("SELECT run, step FROM leaderboard WHERE rank = 1 AND run = 'beta';\r")
        terminal.wait_for("beta     5\n", "ckptdb>")
        terminal.type("\x04")
        assert terminal.wait() == 0
    assert "read-only; .help lists the commands" in terminal.text
    assert sorted(root.rglob("*")) == before


@pytest.mark.slow
def test_a_query_may_take_several_lines(prompt):
    with prompt("-o", "csv") as terminal:
        terminal.type("SELECT 6 *\r")
        terminal.wait_for("...>")
        terminal.type("7 AS answer;\r")
        terminal.wait_for("answer\n42\n", "ckptdb>")
        terminal.type("SELECT 'a;\r")
        terminal.wait_for("...>")
        terminal.type("b' AS x\r")
        terminal.wait_for("...>")
        terminal.type("\r")
        # On a terminal one cell is one line, as whoever has named something may have begun another.
        terminal.wait_for("x\na;\\nb")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "why"),
    [
        ("DELETE FROM runs;", "it would delete from runs"),
        ("ATTACH 'x.db' AS x;", "it would open another file"),
        ("PRAGMA journal_mode = WAL;", "PRAGMA journal_mode is not one that only reads"),
        ("CREATE TEMP TABLE t (x);", "it would change the schema"),
        ("SELECT 1; DELETE FROM runs;", "it holds more than one statement"),
    ],
)
def test_what_would_write_is_refused_and_the_prompt_goes_on(prompt, root, query, why):
    before = (root / ".ckptdb" / "catalog.db").read_bytes()
    with prompt() as terminal:
        terminal.type(f"{query}\r")
        terminal.wait_for(f"The query was refused: {why}", "ckptdb>")
        terminal.type("SELECT 6 * 7;\r")
        terminal.wait_for("42")
    assert (root / ".ckptdb" / "catalog.db").read_bytes() == before
    assert not (root / "x.db").exists()


@pytest.mark.slow
def test_a_query_without_end_is_stopped(prompt):
    with prompt("--timeout", "0.2") as terminal:
        terminal.type(f"{ENDLESS}\r")
        terminal.wait_for("The query was stopped after 0.2 s", "ckptdb>")


@pytest.mark.slow
def test_ctrl_c_cancels_the_query_and_the_line_and_nothing_else(prompt):
    with prompt("--timeout", "600") as terminal:
        terminal.type(f"{ENDLESS}\r")
        terminal.wait_for("FROM t;\n")
        terminal.interrupt_until("Stopped.")
        terminal.wait_for("ckptdb>")
        terminal.type("SELECT half a line")
        terminal.wait_for("half a line")
        terminal.type_until("\x03", "ckptdb>")
        terminal.type("SELECT 6 * 7;\r")
        terminal.wait_for("42")


@pytest.mark.slow
def test_a_fault_is_marked(prompt):
    with prompt() as terminal:
        terminal.type("SELECT nix FROM runs;\r")
        terminal.wait_for("no such column: nix", "       ^^^\n")


@pytest.mark.slow
def test_commands_begin_with_a_dot(prompt):
    with prompt() as terminal:
        terminal.type(".help\r")
        terminal.wait_for("Ctrl-C cancels", "ckptdb>")
        terminal.type(".schema disk_usage\r")
        terminal.wait_for("e.g. SELECT run, bytes_on_disk", "ckptdb>")
        terminal.type(".schema nix\r")
        terminal.wait_for("No table or view is called 'nix'", "ckptdb>")
        terminal.type(".mode json\r")
        terminal.wait_for(".mode json\n", "ckptdb>")
        terminal.type(".mode\r")
        terminal.wait_for("json\n", "ckptdb>")
        terminal.type("SELECT 6 * 7 AS x;\r")
        terminal.wait_for('"x": 42', "ckptdb>")
        terminal.type(".mode nix\r")
        terminal.wait_for("There is no form nix; choose table, json", "ckptdb>")
        terminal.type(".nix\r")
        terminal.wait_for("There is no command .nix", "ckptdb>")
        terminal.type(".quit\r")
        assert terminal.wait() == 0


@pytest.mark.slow
def test_tab_completes_keywords_tables_columns_and_runs(prompt):
    with prompt("-o", "csv") as terminal:
        terminal.type("SEL\t")
        terminal.wait_for("SELECT")
        terminal.type(" step FROM leaderb\t")
        terminal.wait_for("leaderboard")
        terminal.type(" WHERE ran\t")
        terminal.wait_for("rank")
        terminal.type(" = 1 AND run = 'be\t")
        terminal.wait_for("beta'")
        terminal.type(";\r")
        terminal.wait_for("step\n5\n")


@pytest.mark.slow
def test_what_was_typed_is_there_the_next_time_and_for_nobody_else(prompt, state):
    with prompt() as terminal:
        terminal.type("SELECT 6 * 7 AS once;\r")
        terminal.wait_for("42\n", "ckptdb>")
        terminal.type("\x04")
        assert terminal.wait() == 0
    file = state / "ckptdb" / "sql_history"
    assert "SELECT 6 * 7 AS once;" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with prompt() as terminal:
        terminal.type("\x1b[A")  # up
        terminal.wait_for("AS once;")
        terminal.type("\r")
        terminal.wait_for("42")


@pytest.mark.slow
def test_parameters_count_in_the_prompt_too(prompt):
    with prompt("-p", "x=41") as terminal:
        terminal.type("SELECT :x + 1;\r")
        terminal.wait_for("42")


@pytest.mark.slow
def test_where_history_cannot_be_kept_there_is_none(prompt, state):
    state.write_text("a file where a folder should be")
    with prompt() as terminal:
        terminal.type("SELECT 6 * 7;\r")
        terminal.wait_for("42")


def test_without_a_home_there_is_no_history(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert history_file() is None


@pytest.mark.slow
def test_bytes_that_are_no_text_are_one_sentence_and_the_prompt_goes_on(prompt):
    with prompt() as terminal:
        terminal.type("SELECT '\udcff';\r")
        terminal.wait_for("no UTF-8", "ckptdb>")
        terminal.type("SELECT 6 * 7;\r")
        terminal.wait_for("42")


@pytest.mark.slow
def test_bytes_are_answered_in_every_form_and_the_prompt_goes_on(prompt):
    with prompt("-o", "json") as terminal:
        terminal.type("SELECT x'ff' AS b;\r")
        terminal.wait_for('"b": "ff"', "ckptdb>")


def test_a_relative_state_directory_counts_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    assert history_file() == tmp_path / ".local" / "state" / "ckptdb" / "sql_history"


@pytest.mark.slow
def test_into_a_pipe_there_is_no_prompt(root):
    parent, child = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "ckptdb", "sql"],
        cwd=root, stdin=child, capture_output=True, text=True, check=False,
    )  # fmt: skip
    os.close(parent)
    os.close(child)
    assert done.returncode == 2
    assert "Pass a query" in done.stderr


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        ("SELECT 1", False), ("SELECT 1;", True), ("SELECT 1; ", True), ("SELECT ';", False),
        ("SELECT 1 -- ;", False), ("SELECT 1\n", True), ("", True), (".help", True),
    ],
)  # fmt: skip
def test_a_statement_ends_with_a_semicolon_or_an_empty_line(text, complete):
    assert is_complete(text) is complete

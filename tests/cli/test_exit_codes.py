"""One test for each exit code, with the sentence that is printed."""

import os
import sqlite3
import subprocess
import sys

import pytest

LOCK_CATALOG = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""

LOCK_RUN = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Start another process that holds a lock until the test ends."""
    started = []

    def hold(program, path):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout.readline() == b"locked\n"

    yield hold
    for process in started:
        process.communicate()


def test_0_when_everything_is_fine(ckptdb, root):
    assert ckptdb("check", cwd=root).code == 0


def test_1_for_an_error(ckptdb, root):
    answer = ckptdb("best", "--run", "gamma", cwd=root)
    assert answer.code == 1
    assert answer.err == ("ckptdb: No run is called 'gamma'; known runs: alpha, beta, nemo.\n")


def test_2_for_wrong_usage(ckptdb, root):
    answer = ckptdb("show", "minus one", cwd=root)
    assert answer.code == 2
    assert "'minus one' is not a valid integer" in answer.err


def test_3_when_drift_is_found(ckptdb, root, write_nemo):
    write_nemo(root / "nemo", 3, {"val:loss": 1.0})
    answer = ckptdb("check", cwd=root)
    assert answer.code == 3
    assert answer.out.endswith("1 difference(s) found.\n")


def test_4_when_only_part_could_be_done(ckptdb, root):
    (root / "alpha" / ".ckptdb" / "run.json").unlink()
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 4
    assert answer.err == (
        f"ckptdb: {root}/alpha has lost its .ckptdb/run.json; nothing of it is recorded as "
        "deleted. Mount or restore it, or `ckptdb forget` the run.\n"
    )


def test_10_where_there_is_no_catalog(ckptdb, tmp_path):
    (tmp_path / "empty").mkdir()
    for command in (["ls"], ["best"], ["sql", "SELECT 1"], ["db", "path"], ["forget", "x"]):
        answer = ckptdb(*command, cwd=tmp_path / "empty")
        assert answer.code == 10
        assert answer.err == (
            f"ckptdb: No catalog and no checkpoints at {tmp_path}/empty; change into a run or a "
            "root, name one with -C, or mark one with `ckptdb init`.\n"
        )


def test_10_says_which_directory_is_not_there(ckptdb, tmp_path):
    for command in (["-C", "gone", "ls"], ["reconcile", "gone"], ["init", "gone"]):
        (tmp_path / "run" / "step_1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "step_1" / "training_info.json").write_text("{}")
        answer = ckptdb(*command, cwd=tmp_path)
        assert answer.code == 10
        assert answer.err == (
            f"ckptdb: There is no directory {tmp_path}/gone; name a run or a root.\n"
        )


@pytest.mark.parametrize("command", ["check", "reconcile"])
def test_10_where_there_is_nothing_to_compare(ckptdb, tmp_path, command):
    (tmp_path / "empty").mkdir()
    assert ckptdb(command, cwd=tmp_path / "empty").code == 10
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("command", ["path", "status", "upgrade"])
def test_10_where_runs_have_no_catalog_yet(ckptdb, tmp_path, write_nemo, command):
    write_nemo(tmp_path / "run", 1, {"loss": 1.0})
    answer = ckptdb("db", command, cwd=tmp_path)
    assert answer.code == 10
    assert answer.out == ""
    assert answer.err == (
        f"ckptdb: There is no catalog at {tmp_path} yet; the first save or `ckptdb reconcile` "
        "makes it.\n"
    )


@pytest.mark.slow
def test_11_when_the_catalog_is_locked(ckptdb, root, holder):
    file = root / ".ckptdb" / "catalog.db"
    holder(LOCK_CATALOG, file)
    answer = ckptdb("ls", cwd=root)
    assert answer.code == 11
    assert answer.err == (
        f"ckptdb: The catalog {file} is locked by another process; try again shortly.\n"
    )


def test_11_when_the_run_is_locked(ckptdb, root, holder, monkeypatch):
    lock = root / "alpha" / ".ckptdb" / "lock"
    holder(LOCK_RUN, lock)
    monkeypatch.setattr("ckptdb.disk.lock.TIMEOUT_SECONDS", 0.1)
    answer = ckptdb("pin", "1", cwd=root / "alpha")
    assert answer.code == 11
    assert answer.err == (
        f"ckptdb: {lock} stayed locked for 0.1 s by another process; try again when it is done.\n"
    )


def test_12_when_the_catalog_is_newer(ckptdb, root):
    file = root / ".ckptdb" / "catalog.db"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE ckptdb_version SET version_num = '9999'")
    connection.close()
    before = file.read_bytes()
    for command in (["ls"], ["reconcile"], ["pin", "1", "--run", "alpha"], ["db", "upgrade"]):
        answer = ckptdb(*command, cwd=root)
        assert answer.code == 12
        assert answer.err == (
            f"ckptdb: The catalog {file} is at revision 9999, which this version of ckptdb does "
            "not know; upgrade ckptdb, nothing was changed.\n"
        )
    assert file.read_bytes() == before


def test_12_when_the_database_is_not_ours(ckptdb, root, tmp_path):
    file = tmp_path / "other.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()
    for command in (["ls"], ["reconcile"]):
        answer = ckptdb("--catalog", file, *command, cwd=root)
        assert answer.code == 12
        assert answer.err == (
            f"ckptdb: {file} is a database of another application; choose another file with "
            "--catalog, nothing was changed.\n"
        )


def test_an_error_of_the_system_is_one_sentence(ckptdb, root):
    (root / "alpha" / ".ckptdb" / "lock").unlink()
    (root / "alpha" / ".ckptdb" / "lock").mkdir()
    answer = ckptdb("pin", "1", cwd=root / "alpha")
    assert answer.code == 1
    assert answer.err.count("\n") == 1
    assert str(root / "alpha" / ".ckptdb" / "lock") in answer.err


def test_debug_shows_where_an_error_comes_from(ckptdb, root):
    answer = ckptdb("--debug", "best", "--run", "gamma", cwd=root)
    assert answer.code == 1
    assert "Traceback" in answer.err


def test_a_bug_is_one_sentence_too(ckptdb, root, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("ckptdb.registry.Registry.latest", broken)
    answer = ckptdb("latest", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: This is a bug in ckptdb (ZeroDivisionError('oops')); run again with --debug "
        "and report it.\n"
    )


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(root):
    command = f"{sys.executable} -m ckptdb ls --all -o jsonl | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, check=True)
    assert done.stdout.count(b"\n") == 1
    assert done.stderr == b""


def test_an_interrupt_ends_quietly(ckptdb, root, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptdb.registry.Registry.latest", interrupted)
    answer = ckptdb("latest", cwd=root)
    assert answer.code == 1
    assert answer.err.strip() == "Stopped."


def test_the_version_is_printed(ckptdb):
    answer = ckptdb("--version")
    assert answer.code == 0
    assert answer.out.startswith("ckptdb, version 0.")


@pytest.mark.slow
def test_warnings_are_one_line_on_standard_error(ckptdb, root, holder):
    holder(LOCK_CATALOG, root / ".ckptdb" / "catalog.db")
    answer = ckptdb("db", "status", cwd=root)
    assert answer.code == 1
    assert "is locked by another process" in answer.out
    assert os.environ.get("NO_COLOR") is None or "\x1b" not in answer.out


@pytest.mark.slow
@pytest.mark.parametrize("command", [("diff", "1", "2"), ("plot",)])
def test_what_the_encoding_of_a_terminal_lacks_is_no_error(root, command):
    done = subprocess.run(
        [sys.executable, "-m", "ckptdb", *command],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        cwd=root / "alpha", capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    expected = b"0.5  \\u2192  0.2" if command[0] == "diff" else b"+----"
    assert expected in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "why"),
    [("nodir/x.html", "the folder {0}/nodir does not exist"), ("a" * 255, "File name too long")],
)
def test_a_report_that_cannot_be_written_is_named_as_asked_for(ckptdb, root, file, why):
    answer = ckptdb("-C", root, "report", "-o", file)
    assert answer.code == 1
    why = why.format(root)
    assert answer.err == f"ckptdb: {root}/{file} cannot be written: {why}.\n"

"""The laboratory itself: what it finds in the plain way of saving, and that it strikes at all."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import replay, report, shim
from lab.report import Row
from tests.support.requirements import needs_compiler

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


def laboratory(*arguments):
    return subprocess.run(
        [sys.executable, str(HERE), *arguments], capture_output=True, text=True, check=False
    )


@needs_compiler
@pytest.mark.parametrize("harness", ["kills", "faults", "power"])
def test_a_few_points_of_each_harness_hold(harness):
    done = laboratory("--smoke", "--only", harness, "--seed", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| {harness}" in done.stdout


def test_fewer_points_than_are_promised_do_not_hold():
    rows = [
        Row("kills", struck=9_999),
        Row("kills while recovering", struck=500),
        Row("faults EIO", struck=4_000),
        Row("faults EROFS", struck=1_000),
        Row("control: crowd", struck=1),
    ]
    assert report.too_few(rows, "ci") == ["kills (9,999 of 10,000 points)"]
    assert report.too_few(rows, "smoke") == []
    rows = [Row("fuzz names", struck=1_999_999), Row("cuts xfs", struck=5_000)]
    assert report.too_few(rows, "exhaustive") == ["fuzz (1,999,999 of 2,000,000 points)"]


def with_shim(code: str, root: Path) -> subprocess.CompletedProcess[str]:
    begin = f"import sys; sys.path.insert(0, {str(HERE)!r})\nfrom lab import shim\n"
    begin += f"from lab.shim import Strike\nfrom pathlib import Path\nroot = Path({str(root)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code], env=shim.environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@needs_compiler
def test_the_shim_kills_before_the_operation_it_was_told(tmp_path):
    done = with_shim(
        "with shim.armed(root, Strike(action=shim.KILL, at=3)):\n"
        "    for name in 'abcde': (root / name).mkdir()\n",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@needs_compiler
def test_the_shim_sees_what_sqlite_does(tmp_path):
    done = with_shim(
        "import sqlite3\n"
        "with shim.armed(root, Strike(action=shim.FAIL, at=1, code=28, persistent=True,\n"
        "                             classes=shim.GROWING)) as armed:\n"
        "    try: sqlite3.connect(root / 'db').execute('CREATE TABLE t (a)')\n"
        "    except sqlite3.OperationalError as error: print(error, armed.struck > 0)\n",
        tmp_path,
    )
    assert done.stdout == "unable to open database file True\n", done.stderr


@needs_compiler
def test_the_shim_fails_only_what_it_watches(tmp_path):
    (tmp_path / "in").mkdir()
    done = with_shim(
        "with shim.armed(root / 'in', Strike(action=shim.FAIL, at=1, code=5, persistent=True)):\n"
        "    (root / 'out').mkdir()\n"
        "    try: (root / 'in' / 'side').mkdir()\n"
        "    except OSError as error: print(error.errno)\n",
        tmp_path,
    )
    assert done.stdout == "5\n", done.stderr
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


def states(tmp_path, code: str) -> set[frozenset[tuple[str, bytes | None]]]:
    """Return the states that a cut at any moment of some code may leave."""
    trace_file = tmp_path / "trace"
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    before, nodes = replay.Disk.read(root)
    done = with_shim(
        f"import os\ntrace = os.open({str(trace_file)!r}, os.O_CREAT | os.O_WRONLY)\n"
        f"with shim.armed(root, Strike(trace=trace)):\n{code}",
        root,
    )
    assert done.returncode == 0, done.stderr
    trace = replay.Trace(root, before, nodes, trace_file.read_text().splitlines())
    assert trace.end.state(lambda _: False) == replay.Disk.read(root)[0].state(lambda _: False)
    found = replay.cuts(trace, replay.random.Random(1), lambda _: False, most=1000)
    return {frozenset(state.items()) for _, _, state in found}


REPLACED = """
    with open(root / 'new', 'wb') as file:
        file.write(b'new')
        {flush}
    os.rename(root / 'new', root / 'old')
"""


@needs_compiler
def test_a_rename_may_come_before_the_bytes(tmp_path):
    possible = states(tmp_path, REPLACED.format(flush="pass"))
    assert frozenset({("old", b"")}) in possible


@needs_compiler
def test_a_flush_before_the_rename_rules_that_out(tmp_path):
    possible = states(tmp_path, REPLACED.format(flush="file.flush(); os.fsync(file.fileno())"))
    assert frozenset({("old", b"")}) not in possible
    assert {frozenset({("old", b"old")}), frozenset({("old", b"new")})} <= possible


def test_a_row_holds_only_when_all_was_struck_and_nothing_found():
    assert Row("kills", points=3, struck=3).holds
    assert not Row("kills", points=3, struck=2).holds
    assert not Row("kills").holds
    assert not Row("kills", points=3, struck=3, lost=1).holds
    assert Row("control: kills", points=3, struck=3, lost=1).holds
    assert not Row("control: kills", points=3, struck=3).holds


def test_the_shards_of_a_harness_add_up():
    rows = report.merged([Row("a", points=1, struck=1), Row("b"), Row("a", points=2, struck=1)])
    assert [(row.harness, row.points, row.struck) for row in rows] == [("a", 3, 2), ("b", 0, 0)]

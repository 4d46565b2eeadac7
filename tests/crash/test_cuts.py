"""Real power cuts strike wherever they are aimed, find nothing, and find the plain way guilty."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lab import cuts, mounts, outage, shim
from lab.report import NOT_TRIED, Row
from tests.support import requirements
from tests.support.requirements import needs_compiler, needs_root

pytestmark = pytest.mark.slow

CRASH = Path(__file__).parent


def skip(reason):
    requirements.skip(
        requirements.MKFS if "there is no mkfs" in reason else requirements.MOUNTING, reason
    )


@pytest.fixture(scope="module")
def rows():
    command = [sys.executable, CRASH, "--only=cuts", "--smoke", "--shard=0/1"]
    done = subprocess.run(
        command, env=shim.environment(), capture_output=True, text=True, check=True
    )
    if NOT_TRIED in done.stderr:
        skip(done.stderr)
    return [Row.from_json(line) for line in done.stdout.splitlines()]


@needs_root
@needs_compiler
def test_every_cut_strikes_and_nothing_is_lost(rows):
    found = [row for row in rows if not row.is_control]
    assert [row.harness for row in found] == [f"cuts {kind.name}" for kind in mounts.KINDS]
    assert [failure for row in found for failure in row.failures] == []
    assert all(row.struck == row.points > 0 for row in found)
    assert all(row.holds for row in found)


@needs_root
@needs_compiler
def test_the_plain_way_loses_its_checkpoints_under_the_same_cuts(rows):
    (plain,) = (row for row in rows if row.is_control)
    assert plain.struck == plain.points
    assert plain.lost > 0
    assert plain.half_visible > 0
    assert any("nothing else is whole" in failure for failure in plain.failures)


@pytest.fixture(params=mounts.KINDS, ids=lambda kind: kind.name)
def disk(request, tmp_path):
    try:
        with mounts.mounted(request.param, tmp_path) as disk:
            yield disk
    except mounts.CannotMount as reason:
        skip(str(reason))


def cut_after(disk, work, *, foreign):
    row = Row("a cut")
    told = outage.cut(disk, row, "here", work, foreign=foreign)
    assert (row.points, row.struck, row.failures) == (1, 1, [])
    return told


@needs_root
def test_only_what_was_flushed_outlives_a_cut(disk):
    def work(tell):
        for name in ("flushed", "unflushed"):
            with (disk.path / name).open("wb") as file:
                file.write(b"content")
                file.flush()
                if name == "flushed":
                    os.fsync(file.fileno())
        tell(done="both")

    assert cut_after(disk, work, foreign=False) == [{"done": "both"}]
    assert (disk.path / "flushed").read_bytes() == b"content"
    assert not (disk.path / "unflushed").exists()


@needs_root
def test_the_flush_of_another_keeps_names_and_not_their_bytes(disk):
    cut_after(disk, lambda _: (disk.path / "file").write_bytes(b"content"), foreign=True)
    assert (disk.path / "file").read_bytes() == b""


@needs_root
def test_a_process_that_ends_before_the_cut_counts_as_not_struck(disk):
    row = Row("a cut")
    assert outage.cut(disk, row, "here", lambda _: os._exit(3), foreign=False) is None
    assert (row.points, row.struck) == (1, 0)
    assert not row.holds


def test_a_stopped_process_is_killed_after_what_it_told():
    def work(tell):
        tell(number=1)
        os.kill(os.getpid(), signal.SIGSTOP)
        tell(number=2)

    seen = []
    assert outage.in_child(work, lambda: seen.append("stopped")) == (
        signal.SIGKILL, [{"number": 1}]
    )  # fmt: skip
    assert seen == ["stopped"]


@pytest.fixture
def as_somebody(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_nothing_is_tried_where_nobody_may_mount(as_somebody, capsys):
    assert list(cuts.run("smoke", seed=1, shard=0, shards=1)) == []
    assert capsys.readouterr().err.splitlines() == [
        f"{NOT_TRIED}cuts of {kind.name}: only root can mount file systems."
        for kind in mounts.KINDS
    ]


@pytest.fixture
def laboratory():
    spec = importlib.util.spec_from_file_location("laboratory", CRASH / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_compiler
@pytest.mark.parametrize(
    ("reasons", "code", "said"),
    [(["cuts of xfs: there is no mkfs.xfs."], 0, "\nNot tried: cuts of xfs"), ([], 1, "cuts")],
    ids=["said why", "in silence"],
)
def test_a_harness_without_rows_has_to_say_why(
    laboratory, monkeypatch, capsys, reasons, code, said
):
    monkeypatch.setattr(laboratory, "_run_shard", lambda *_: ([], reasons, ""))
    assert laboratory.main(["--only=cuts", "--smoke", "--jobs=1"]) == code
    assert said in capsys.readouterr().out

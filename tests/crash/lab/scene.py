"""A run with three good checkpoints and something bad, and what has to hold of it."""

from __future__ import annotations

import ctypes
import io
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk import root_marker

GOOD = {2: 0.25, 4: 0.125, 6: 0.5}
BEST, LATEST, BAD = 4, 6, 9
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Said:
    """What the command line ended with and printed."""

    code: int
    out: str
    err: str


def ckptdb(*arguments: object) -> Said:
    """Run a command line in this process; it may say what it likes, but not how it failed."""
    out, err, shown = _stream(), _stream(), warnings.showwarning
    code: object = None
    try:
        with warnings.catch_warnings(), redirect_stdout(out), redirect_stderr(err):
            warnings.simplefilter("always")
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    finally:
        warnings.showwarning = shown
    printed = [os.fsdecode(stream.buffer.getvalue()) for stream in (out, err)]
    said = Said(code if isinstance(code, int) else 0, *printed)
    assert "Traceback" not in said.err + said.out, said
    assert "bug in ckptdb" not in said.err, said
    return said


def _stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", "surrogateescape", write_through=True)


def make_manager(run: Path, **options: object) -> CheckpointManager:
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    return CheckpointManager(config)


def save(run: Path, step: int, loss: float, **options: object) -> Path:
    """Save one checkpoint the way a loop does."""
    with make_manager(run, **options) as manager:
        with manager.save(step, {LOSS: loss}, config={"lr": 0.1}) as folder:
            (folder / "model.bin").write_bytes(b"m" * 100)
        return folder.with_name(f"step_{step}")


def build(root: Path) -> Path:
    """Make a root with one run of three good checkpoints, indexed and no longer fresh."""
    root.mkdir()
    root_marker.mark_root(root)
    run = root / "run"
    for step, loss in GOOD.items():
        save(run, step, loss)
    settle(run)
    with Registry.open(root) as registry:
        registry.reconcile()
    return run


def settle(run: Path) -> None:
    """Let everything be a minute old, so that stamps and fingerprints prove something."""
    aged = time.time() - 60
    for path in (*run.rglob("*"), run):
        os.utime(path, (aged, aged), follow_symlinks=False)


def add(run: Path, spoil: Callable[[Path], object], *, ours: bool) -> Path:
    """Put a checkpoint into the run that would be best and latest, and spoil it."""
    folder = run / f"step_{BAD}"
    if ours:
        save(run, BAD, 0.001)
    else:
        shutil.copytree(run / f"step_{LATEST}", folder)
        (folder / "manifest.json").unlink()
        (folder / "training_info.json").write_text(json.dumps({LOSS: 0.001}))
    spoil(folder)
    return folder


def snapshot(top: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Return what must not change by looking: kind and mode, size, mtime and content."""
    found = {}
    for path in sorted((top, *top.rglob("*"))):
        stat = path.lstat()
        content = b""
        if path.is_file() and not path.is_symlink() and stat.st_size < 100_000:
            content = path.read_bytes()
        size = 0 if path.is_dir() else stat.st_size
        found[str(path.relative_to(top))] = (stat.st_mode, size, stat.st_mtime_ns, content)
    return found


def check_answers(run: Path, *, best: int, latest: int) -> None:
    """Everybody who is asked says the same."""
    with make_manager(run) as manager, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of checkpoints without the metric
        assert manager.get_best_checkpoint_path() == str(run / f"step_{best}")
        assert manager.get_latest_checkpoint_path() == str(run / f"step_{latest}")
    for command, step in (("best", best), ("latest", latest)):
        said = ckptdb("-C", run, command)
        assert (said.code, said.out.strip()) == (0, str(run / f"step_{step}")), said


def check_untrusted(run: Path, problem: str, *, drift: bool = False) -> None:
    """The bad checkpoint is reported with its problem, kept, and counted by nobody."""
    bad = run / f"step_{BAD}"
    before = snapshot(bad)
    check_answers(run, best=BEST, latest=LATEST)
    first = ckptdb("-C", run, "reconcile")
    assert (first.code, first.err) == (3, ""), first
    for command in ("reconcile", "check"):
        said = ckptdb("-C", run, command)
        assert (said.code, said.err) == (3, ""), said
        assert f"step {BAD}: unreadable: " in said.out, said
        assert problem in said.out, said
        assert f": 1 unreadable ({run.name} step {BAD})." in said.out, said
    listed = {row["step"]: row for row in json.loads(ckptdb("-C", run, "ls", "-o", "json").out)}
    assert set(listed) == {*GOOD, BAD}
    assert problem in listed[BAD]["problem"]
    assert all(listed[step]["problem"] is None for step in GOOD)
    check_answers(run, best=BEST, latest=LATEST)
    top = json.loads(ckptdb("-C", run, "top", 9, "-o", "json").out)
    assert [row["step"] for row in top] == [4, 2, 6]
    check_retention(run, kept=[4, 2, 20])
    assert snapshot(bad) == before


def check_retention(run: Path, *, kept: list[int]) -> None:
    """A save prunes the good ones as if the bad one did not exist, and does not touch it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(run, 20, 0.75, keep_top_k=2)
    assert {path.name for path in run.glob("step_*")} == {f"step_{s}" for s in (*kept, BAD)}
    with Registry.open(run) as registry:
        assert not registry.reconcile().blocked
        gone = registry.checkpoints(status="deleted")
        # Under another uuid the bad one may be: without its manifest it is another checkpoint.
        assert {cp.step for cp in gone} - {BAD} == {*GOOD, 20} - set(kept)


# --- without the powers of root ------------------------------------------------------------------

_OVERRIDES = (1 << 1) | (1 << 2) | (1 << 3)  # DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@contextmanager
def powerless() -> Iterator[None]:
    """Let file modes bind this thread, also when it is root's."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(0x20080522, 0), (_Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0
    before = data[0].effective
    data[0].effective = before & ~_OVERRIDES
    assert libc.capset(ctypes.byref(header), data) == 0
    try:
        yield
    finally:
        data[0].effective = before
        assert libc.capset(ctypes.byref(header), data) == 0

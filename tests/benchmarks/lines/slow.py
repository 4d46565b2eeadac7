"""Reconciling where every call takes a millisecond, against one call at a time."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.benchmarks import child, trees
from tests.benchmarks.results import Findings, duration, faster, unmeasured
from tests.benchmarks.sizes import Size

_SOURCE = Path(__file__).parents[1] / "slow.c"
_MICROSECONDS = 1000


def measure(size: Size, scratch: Path) -> Findings:
    """Read the same run in both ways through a library that slows down each call."""
    what = f"reconcile from nothing, {size.slow:,} checkpoints, 1 ms a call"
    library = _build(scratch)
    if library is None:
        return Findings(rows=[unmeasured(what, "≥ 10×", "there is no C compiler")])
    run = scratch / "slow"
    trees.write_run(run, size.slow)
    environment = {
        "LD_PRELOAD": str(library),
        "CKPTDB_SLOW": str(run),
        "CKPTDB_SLOW_MICROSECONDS": str(_MICROSECONDS),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    one = child.call("reading.floor", run, scratch / "slow.db", environment=environment)
    ours = child.call("reading.ours", run, scratch / "ours.db", environment=environment)
    assert int(ours["checkpoints"]) == size.slow
    # Two names looked at, two files opened, read and closed.
    assert one["seconds"] > 8 * size.slow * _MICROSECONDS / 1e6, "nothing was slowed down"
    shutil.rmtree(run)
    ways = {"ckptdb": ours, "one call at a time": one}
    seconds = {way: found["seconds"] for way, found in ways.items()}
    calls = {way: round(found["calls"] / size.slow) for way, found in ways.items()}
    row = faster(
        f"{what}, against one call at a time", 10.0, one["seconds"] / ours["seconds"],
        note=f"{duration(ours['seconds'])} against {duration(one['seconds'])}; "
        f"{calls['ckptdb']} calls a checkpoint against {calls['one call at a time']}",
        medians=seconds,
    )  # fmt: skip
    return Findings(rows=[row], counts={f"calls a checkpoint, {k}": n for k, n in calls.items()})


def _build(scratch: Path) -> Path | None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    library = scratch / "slow.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-o",
        str(library),
        str(_SOURCE),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return library

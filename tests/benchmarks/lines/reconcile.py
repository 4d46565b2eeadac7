"""Reconciling a run from nothing, and one that has not changed."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks import child, trees
from tests.benchmarks.results import Findings, Row, at_most, duration
from tests.benchmarks.sizes import Size

_LIMIT_MB = 150
_MB = 1e6


def measure(size: Size, scratch: Path) -> Findings:
    """Reconcile in fresh processes, in turns with the floor."""
    run = scratch / "tree"
    trees.write_run(run, size.tree)
    nothing: dict[str, list[Mapping[str, float]]] = {"ckptdb": [], "floor": []}
    unchanged: dict[str, list[Mapping[str, float]]] = {"ckptdb": [], "floor": []}
    for number in range(3):
        catalog, tables = scratch / f"catalog-{number}.db", scratch / f"tables-{number}.db"
        nothing["ckptdb"].append(child.call("reading.ours", run, catalog))
        nothing["floor"].append(child.call("reading.floor", run, tables))
        unchanged["ckptdb"].append(child.call("reading.ours", run, catalog))
        unchanged["floor"].append(child.call("reading.floor_unchanged", run, tables))
    shutil.rmtree(run)
    stored = int(nothing["ckptdb"][0]["checkpoints"])
    assert stored == size.tree
    counts = {"reconciled": stored, "progress told": int(nothing["ckptdb"][0]["progress"])}
    return Findings(rows=list(_judge(nothing, unchanged, size)), counts=counts)


def _judge(
    nothing: Mapping[str, list[Mapping[str, float]]],
    unchanged: Mapping[str, list[Mapping[str, float]]],
    size: Size,
) -> Iterator[Row]:
    found = _medians(nothing, "seconds")
    yield at_most(
        f"reconcile from nothing, {size.tree:,} checkpoints, against the floor", 1.5,
        found["ckptdb"] / found["floor"],
        note=f"{duration(found['ckptdb'])} against {duration(found['floor'])}", medians=found,
    )  # fmt: skip
    grown = _medians(nothing, "growth_bytes")
    told = int(nothing["ckptdb"][0]["progress"])
    yield Row(
        what=f"reconcile from nothing, {size.tree:,} checkpoints, peak memory growth",
        target=f"≤ {_LIMIT_MB} MB",
        measured=f"{grown['ckptdb'] / _MB:,.0f} MB",
        verdict="met" if grown["ckptdb"] <= _LIMIT_MB * _MB else "missed",
        note=f"progress is told {told:,} times; "
        f"the floor, which keeps all rows until it stores them: {grown['floor'] / _MB:,.0f} MB",
        medians={f"{way}, bytes": value for way, value in grown.items()},
    )
    found = _medians(unchanged, "seconds")
    yield at_most(
        f"reconcile with nothing changed, {size.tree:,} checkpoints, against the floor", 1.3,
        found["ckptdb"] / found["floor"],
        note=f"{duration(found['ckptdb'])} against {duration(found['floor'])}", medians=found,
    )  # fmt: skip


def _medians(found: Mapping[str, list[Mapping[str, float]]], what: str) -> dict[str, float]:
    return {way: statistics.median(one[what] for one in taken) for way, taken in found.items()}

"""Questions to a catalog of very many checkpoints, and how large it is."""

from __future__ import annotations

import gc
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from tests.benchmarks import large
from tests.benchmarks.large import Large
from tests.benchmarks.results import Findings, Row, times, within
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians
from tests.benchmarks.trees import METRIC

from ckptdb import Registry

_BY_RUN = ("disk_usage", "config_values", "config_changes")
_HISTORY = ("metric_history", "checkpoint_history", "deletions", "saves", "lineage")


def measure(size: Size, scratch: Path) -> Findings:
    """Ask through `Registry`, on a catalog that nobody has analysed."""
    root = scratch / "large"
    root.mkdir()
    made = large.build(root, checkpoints=size.catalog, runs=size.runs)
    gc.collect()
    with closing(sqlite3.connect(made.file)) as raw:
        analysed = raw.execute("SELECT * FROM sqlite_master WHERE name LIKE 'sqlite_stat%'")
        assert not analysed.fetchall()
    size_bytes = made.file.stat().st_size
    run = f"run-{size.runs // 2:03}"
    with Registry.open(root) as registry:
        _check(registry, made, run)
        asked = _questions(registry, run)
        found = {
            what: medians({"ckptdb": Way(ask)}, rounds=size.rounds, seconds=size.seconds / 3)
            for what, (ask, _) in asked.items()
        }
    shutil.rmtree(root)
    scale = f"{made.checkpoints:,} checkpoints × {len(large.METRICS)} metrics"
    rows = [
        within(f"{what}, {scale}", asked[what][1], taken["ckptdb"], medians=taken)
        for what, taken in found.items()
    ]
    rows.append(_size(made, size_bytes))
    return Findings(
        rows=rows, counts={"catalog bytes a checkpoint": size_bytes // made.checkpoints}
    )


def _questions(registry: Registry, run: str) -> Mapping[str, tuple[Callable[[], object], float]]:
    def ask(sql: str, **parameters: object) -> Callable[[], object]:
        return partial(registry.query, sql, parameters, limit=None)

    return {
        "top 10 of all": (partial(registry.top, 10, METRIC, mode="min"), 1e-3),
        "top 10 of a run": (partial(registry.top, 10, METRIC, mode="min", run=run), 1e-3),
        "best of every run": (registry.best_of_runs, 50e-3),
        "leaderboard of a run": (ask("SELECT * FROM leaderboard WHERE run = :run", run=run), 5e-3),
        "run_summary of a run": (ask("SELECT * FROM run_summary WHERE run = :run", run=run), 5e-3),
        "disk_usage of a run": (ask("SELECT * FROM disk_usage WHERE run = :run", run=run), 5e-3),
        "config_values of a run": (
            ask("SELECT * FROM config_values WHERE run = :run", run=run),
            5e-3,
        ),
        "config_changes of a run": (
            ask("SELECT * FROM config_changes WHERE run = :run", run=run),
            5e-3,
        ),
        # Of history, what somebody looks at: there is no limit to how much of it there is.
        **{
            f"{view} of a run, its last 100": (
                ask(
                    f"SELECT * FROM {view} WHERE run_id = :run ORDER BY step DESC LIMIT 100",
                    run=_id_of(registry, run),
                ),
                5e-3,
            )
            for view in _HISTORY
        },
        **{f"{view}, whole": (ask(f"SELECT * FROM {view}"), 2.0) for view in _BY_RUN},
        **{
            f"{view}, the first 100,000": (ask(f"SELECT * FROM {view} LIMIT 100000"), 2.0)
            for view in _HISTORY
        },
        "leaderboard, whole": (ask("SELECT * FROM leaderboard"), 2.0),
        "run_summary, whole": (ask("SELECT * FROM run_summary"), 2.0),
    }


def _id_of(registry: Registry, run: str) -> int:
    ((found,),) = registry.query("SELECT id FROM runs WHERE name = :run", {"run": run}).rows
    return int(found)


def _check(registry: Registry, made: Large, run: str) -> None:
    value, step = made.best[run]
    found = registry.top(10, METRIC, mode="min", run=run)
    assert (found[0].metrics[METRIC], found[0].step, len(found)) == (value, step, 10)
    best = {checkpoint.run: checkpoint.step for checkpoint in registry.best_of_runs()}
    assert best == {name: step for name, (_, step) in made.best.items()}
    (least,) = {min(made.best.values())}
    assert registry.top(1, METRIC, mode="min")[0].metrics[METRIC] == least[0]


def _size(made: Large, size_bytes: int) -> Row:
    ratio = size_bytes / made.information_bytes
    each, least = size_bytes / made.checkpoints, made.information_bytes / made.checkpoints
    return Row(
        what=f"catalog size, {made.checkpoints:,} checkpoints, against the information in it",
        target="≤ 1.5×",
        measured=times(ratio),
        verdict="met" if ratio <= 1.5 else "missed",
        note=f"{each:,.0f} bytes a checkpoint, of which {least:,.0f} are values",
        medians={"catalog, bytes a checkpoint": each, "values, bytes a checkpoint": least},
    )

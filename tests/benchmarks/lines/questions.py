"""Best, latest and top ten of a run that has not changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.benchmarks import plain, trees
from tests.benchmarks.floors import Asked
from tests.benchmarks.results import Findings, Row, Series, at_most, duration, faster
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians
from tests.benchmarks.trees import METRIC

from ckptdb import CheckpointManager, Registry

QUESTIONS = ("best", "latest", "top 10")
_Ask = Mapping[str, Callable[[], object]]
_Medians = Mapping[str, Mapping[str, float]]


def measure(size: Size, scratch: Path) -> Findings:
    """Ask at every size, then beside much that is gone."""
    by_count: dict[int, _Medians] = {}
    for count in size.kept:
        run = scratch / f"kept-{count}"
        trees.write_run(run, count)
        by_count[count] = _ask(run, size)
        shutil.rmtree(run)
    run = scratch / "history"
    trees.write_history(run, live=5, deleted=size.history)
    history = _ask(run, size)
    with Registry.open(run) as registry:
        gone = registry.checkpoints(status="deleted")
        assert len(gone) == size.history, "the history was not taken for one"
    shutil.rmtree(run)
    rows = [row for what in QUESTIONS for row in _judge(what, by_count, history[what], size)]
    return Findings(rows=rows, series=list(_series(by_count)))


def _ask(run: Path, size: Size) -> _Medians:
    trees.index(run)
    count = sum(name.startswith("step_") for name in _names(run))
    with _ours(run) as ours, _floor(run) as floor:
        scan: _Ask = {
            "best": partial(plain.best, run, METRIC),
            "latest": partial(plain.latest, run),
            "top 10": partial(plain.top, run, METRIC, 10),
        }
        _check(ours, floor, scan)
        found = {
            what: medians(
                {"ckptdb": Way(ours[what]), "floor": Way(floor[what])},
                rounds=10 * size.rounds,
                seconds=size.seconds / 6,
                most=500,
            )
            for what in QUESTIONS
        }
        # In turns of their own: this one would empty the processor's caches between the others.
        for what in QUESTIONS:
            rounds = size.rounds if count < 50_000 else 3
            ways = {"scan": Way(scan[what])}
            found[what] |= medians(ways, rounds=rounds, seconds=size.seconds / 6)
    return found


@contextmanager
def _ours(run: Path) -> Iterator[_Ask]:
    manager: CheckpointManager = trees.manager(run)
    with manager:
        yield {
            "best": manager.get_best_checkpoint_path,
            "latest": manager.get_latest_checkpoint_path,
            "top 10": partial(manager.get_top_checkpoint_paths, 10),
        }


@contextmanager
def _floor(run: Path) -> Iterator[_Ask]:
    file = run.with_name("floor.db")
    history = plain.load_history(run)
    asked = Asked(run, file, ((step, info[METRIC]) for step, _, info in history))
    try:
        yield {"best": asked.best, "latest": asked.latest, "top 10": asked.top}
    finally:
        asked.close()
        file.unlink()


def _check(ours: _Ask, floor: _Ask, scan: _Ask) -> None:
    for what in QUESTIONS:
        assert ours[what]() == floor[what]() == scan[what](), what


def _judge(
    what: str, by_count: Mapping[int, _Medians], history: Mapping[str, float], size: Size
) -> Iterator[Row]:
    found = {count: by_count[count][what] for count in by_count}
    ratios = {count: m["ckptdb"] / m["floor"] for count, m in found.items()}
    worst = max(ratios, key=ratios.__getitem__)
    few, many = min(found), max(found)
    yield at_most(
        f"{what}, N = {few:,} … {many:,}, against the floor", 2.0, ratios[worst],
        note=f"worst, at N = {worst:,}: {duration(found[worst]['ckptdb'])}",
        medians=_flat(found),
    )  # fmt: skip
    yield at_most(
        f"{what}, N = {many:,} against N = {few:,}", 1.3,
        found[many]["ckptdb"] / found[few]["ckptdb"],
        medians={str(count): m["ckptdb"] for count, m in found.items()},
    )  # fmt: skip
    yield at_most(
        f"{what}, {size.history:,} deleted beside 5 live, against the floor", 2.0,
        history["ckptdb"] / history["floor"],
        note=f"{history['ckptdb'] / found[few]['ckptdb']:.2f}× of N = {few:,}", medians=history,
    )  # fmt: skip
    gains = {count: m["scan"] / m["ckptdb"] for count, m in found.items()}
    least = min(gains, key=gains.__getitem__)
    yield faster(
        f"{what}, N = {few:,} … {many:,}, against scan-and-parse", 1.0, gains[least],
        note=f"least, at N = {least:,}",
        medians=_flat(found),
    )  # fmt: skip
    large = min(many, 10_000)
    limit = 1000.0 * large / 10_000
    yield faster(
        f"{what}, N = {large:,}, against scan-and-parse", limit, gains[large],
        note="" if large == 10_000 else "1,000× at N = 10,000, in proportion",
        medians=found[large],
    )  # fmt: skip


def _flat(found: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    return {f"{name} N={count}": s for count, m in found.items() for name, s in m.items()}


def _series(by_count: Mapping[int, _Medians]) -> Iterator[Series]:
    for what in QUESTIONS:
        for way in ("ckptdb", "floor", "scan"):
            points = {count: found[what][way] for count, found in by_count.items()}
            yield Series(panel=what, way=way, points=points)


def _names(run: Path) -> list[str]:
    return [path.name for path in run.iterdir()]

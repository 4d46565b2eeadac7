"""Reading the snapshot for the report and the page.

It takes a few queries over all runs, however many there are; details are read only of the
checkpoints that are drawn.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from ckptdb.catalog import trust
from ckptdb.core.downsample import downsample
from ckptdb.core.ranking import rank_key
from ckptdb.core.records import Run, Status
from ckptdb.core.times import seconds, utc
from ckptdb.registry import Registry
from ckptdb.web.snapshot import DeletedCheckpoint, Point, RunSnapshot, Saves, Snapshot

NUMBERS: Final = 120_000
"""Approximate number of values in the page, shared among points and their metrics."""

FEWEST_POINTS, MOST_POINTS = 1_200, 8_000
DELETIONS: Final = 200
"""Deletions that are listed, the newest."""

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_WIDTHS: Final = (
    *(n * _MINUTE for n in (1, 5, 15, 30)), *(n * _HOUR for n in (1, 3, 6, 12)),
    *(n * _DAY for n in (1, 2, 7, 30, 91, 365)),
)  # fmt: skip
_MOST_BARS: Final = 60


def catch_up(registry: Registry) -> None:
    """Bring the catalog up to date with the run that was opened, or with what it has not seen."""
    if registry.run is not None:
        registry.latest()  # compares the run with its directory first
    else:
        registry.runs()


def take_snapshot(registry: Registry, *, now: float | None = None) -> Snapshot:
    """Read the snapshot of the runs at or below what was opened; changes nothing.

    Args:
        registry: The opened registry.
        now: POSIX timestamp; None for the current time.
    """
    found = _Reading(registry)
    everything = [row for rows in found.rows.values() for row in rows]
    every, saves = _saves(everything)
    return Snapshot(
        where=str(registry.directory or registry.location.base or registry.location),
        made_at=utc(time.time() if now is None else now),
        runs=found.runs(),
        metric=found.metric,
        metrics=found.metrics,
        saves=saves,
        saves_every_seconds=every,
        deletions=found.deletions(),
        freed_bytes=sum(row.size_bytes or 0 for row in everything if row.status == "deleted"),
    )


class _Row(NamedTuple):
    """Columns of a checkpoint that decide whether it is drawn."""

    run_id: int
    id: int
    step: int
    status: Status
    trusted: int
    pinned: int
    at: str
    size_bytes: int | None
    value: float | None
    has_metric: int


_SUMMARY: Final = """
SELECT run_id, uuid, final, tmp, deleted, problems, bytes_on_disk, last_activity FROM run_summary
"""

_ROWS: Final = """
SELECT c.run_id, c.id, c.step, c.status,
       CASE WHEN {undoubted} THEN 1 ELSE 0 END, c.pinned,
       COALESCE(c.finalized_at, c.created_at), c.size_bytes, m.value,
       CASE WHEN m.name IS NULL THEN 0 ELSE 1 END
FROM runs r
JOIN checkpoints c ON c.run_id = r.id
LEFT JOIN metrics m ON m.checkpoint_id = c.id AND m.name = r.metric_name
WHERE r.id IN ({runs})
ORDER BY c.run_id, c.step, c.id
"""

# Of every metric of every run, where it was lowest and highest. CROSS JOIN makes SQLite go through
# the metrics and look the two up: the other way round it would search for each.
_EXTREMES: Final = """
WITH ends AS (
    SELECT run_id, name, MIN(value) AS low, MAX(value) AS high
    FROM metrics WHERE run_id IN ({runs}) AND value IS NOT NULL GROUP BY run_id, name
)
SELECT m.run_id, m.name, MIN(m.checkpoint_id)
FROM metrics m
CROSS JOIN ends e
WHERE m.run_id = e.run_id AND m.name = e.name AND m.value IN (e.low, e.high)
GROUP BY m.run_id, m.name, m.value
"""

_DETAILS: Final = """
SELECT id, path, deleted_reason, COALESCE(problem, 'rejected: ' || rejected)
FROM checkpoints WHERE id IN ({ids})
"""

_VALUES: Final = """
SELECT checkpoint_id, name, value FROM metrics
WHERE checkpoint_id IN ({ids}) AND value IS NOT NULL
ORDER BY checkpoint_id, name
"""

_DELETIONS: Final = """
SELECT run_id, step, deleted_at, deleted_reason, size_bytes FROM deletions
WHERE run_id IN ({runs}) ORDER BY deleted_at DESC, run_id, step DESC LIMIT {deletions}
"""


class _Reading:
    """The queries, in the order in which each needs the answers before it."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ids = ""
        here = registry.runs()
        self._runs = {run.uuid: run for run in here}
        self._summary = {row[0]: row for row in self._query(_SUMMARY) if row[1] in self._runs}
        self._ids = ", ".join(str(int(run_id)) for run_id in self._summary) or "0"
        self.rows: dict[int, list[_Row]] = defaultdict(list)
        for row in map(_Row._make, self._query(_ROWS)):
            self.rows[row.run_id].append(row)
        own = Counter(run.metric_name for run in here if run.metric_name is not None)
        # The name decides between equals, so that the page does not change by itself.
        self.metric = min(own, key=lambda name: (-own[name], name)) if own else None
        extremes = self._query(_EXTREMES)
        names = {str(name) for _, name, _ in extremes}
        first = dict.fromkeys(own, 1) | {self.metric: 0}
        self.metrics = tuple(sorted(names, key=lambda name: (first.get(name, 2), name)))
        room = NUMBERS // (len(names) + 5)
        self._room = min(max(room, FEWEST_POINTS), MOST_POINTS)
        # Where there are very many metrics, the peaks of all would leave no room for curves.
        few = len(extremes) * 2 <= self._room
        self._extremes = {row_id for _, _, row_id in extremes} if few else set[int]()

    def runs(self) -> tuple[RunSnapshot, ...]:
        """Return the runs, by name."""
        room = self._room // max(len(self._runs), 1)
        chosen = {run_id: self._choose(rows, room) for run_id, rows in self.rows.items()}
        points = self._points([row for rows in chosen.values() for row in rows])
        called = Counter(run.name for run in self._runs.values())
        by_uuid = {row[1]: row for row in self._summary.values()}
        found = []
        for uuid, run in self._runs.items():
            if uuid not in by_uuid:
                continue  # forgotten since the runs were listed
            run_id, _, final, tmp, deleted, problems, size, activity = by_uuid[uuid]
            rows = self.rows[run_id]
            best, latest = _best(rows, run), _latest(rows)
            found.append(
                RunSnapshot(
                    run=run,
                    label=run.name if called[run.name] == 1 else f"{run.name} ({run.directory})",
                    final=final,
                    tmp=tmp,
                    deleted=deleted,
                    problems=problems,
                    bytes_on_disk=size,
                    last_activity=activity,
                    best=points.get(best.id) if best else None,
                    latest=points.get(latest.id) if latest else None,
                    points=tuple(points[r.id] for r in chosen.get(run_id, ()) if r.id in points),
                    total=len(rows),
                    not_finite=sum(r.has_metric and r.value is None for r in _trusted(rows)),
                )
            )
        return tuple(found)

    def deletions(self) -> tuple[DeletedCheckpoint, ...]:
        """Return the newest deletions, the newest first."""
        names = {run_id: self._runs[row[1]].name for run_id, row in self._summary.items()}
        return tuple(
            DeletedCheckpoint(run=names[run_id], step=step, at=at, reason=reason, size_bytes=size)
            for run_id, step, at, reason, size in self._query(_DELETIONS)
        )

    def _choose(self, rows: Sequence[_Row], room: int) -> list[_Row]:
        run = self._runs[self._summary[rows[0].run_id][1]]
        outstanding = {row.id for row in (_best(rows, run), _latest(rows)) if row}
        outstanding |= {row.id for row in rows if row.pinned or row.id in self._extremes}
        outstanding |= {rows[0].id, rows[-1].id}
        live = [row for row in rows if row.status != "deleted"]
        gone = [row for row in rows if row.status == "deleted"]
        # What is kept counts more than what is gone, but must not hide where a curve came from.
        for_live = room - min(len(gone), room // 4)
        for some, space in ((live, for_live), (gone, room - min(len(live), for_live))):
            outstanding |= {some[i].id for i in downsample([row.value for row in some], space)}
        return [row for row in rows if row.id in outstanding]

    def _points(self, rows: Sequence[_Row]) -> dict[int, Point]:
        ids = [row.id for row in rows]
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for row_id, name, value in self._query_in_parts(_VALUES, ids):
            values[row_id][str(name)] = value
        details = {row[0]: row[1:] for row in self._query_in_parts(_DETAILS, ids)}
        found = {}
        for row in rows:
            if row.id not in details:
                continue  # forgotten since the rows were listed
            path, reason, problem = details[row.id]
            run = self._runs[self._summary[row.run_id][1]]
            found[row.id] = Point(
                step=row.step,
                status=row.status,
                at=row.at,
                path=run.directory / path.rpartition("/")[2],
                size_bytes=row.size_bytes,
                metrics=values[row.id],
                reason=reason,
                problem=problem,
                pinned=bool(row.pinned),
            )
        return found

    def _query(self, sql: str, **parts: str) -> tuple[tuple[Any, ...], ...]:
        # Only numbers are put into the text: lists of them, which no parameter can be.
        known = {"deletions": DELETIONS, "undoubted": trust.undoubted("c")}
        filled = sql.format(runs=self._ids, **known, **parts)
        return self._registry.query_here(filled).rows

    def _query_in_parts(self, sql: str, ids: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        for start in range(0, len(ids), 2_000):
            some = ", ".join(map(str, ids[start : start + 2_000]))
            yield from self._query(sql, ids=some)


def _trusted(rows: Sequence[_Row]) -> list[_Row]:
    return [row for row in rows if row.status == "final" and row.trusted]


def _best(rows: Sequence[_Row], run: Run) -> _Row | None:
    if run.metric_name is None:
        return _latest(rows)
    ranked = [row for row in _trusted(rows) if row.value is not None]
    return min(ranked, key=lambda row: rank_key(row.value, row.step, run.mode), default=None)


def _latest(rows: Sequence[_Row]) -> _Row | None:
    return max(_trusted(rows), key=lambda row: row.step, default=None)


def _saves(rows: Sequence[_Row]) -> tuple[int, tuple[Saves, ...]]:
    """Return the length of a period, and the periods with a save."""
    times = [(seconds(row.at), row.status) for row in rows if row.status != "tmp"]
    known = [(second, status) for second, status in times if second is not None]
    if not known:
        return _HOUR, ()
    span = max(known)[0] - min(known)[0]
    every = next((width for width in _WIDTHS if span / width < _MOST_BARS), _WIDTHS[-1])
    counts = Counter((second // every * every, status) for second, status in known)
    return every, tuple(
        Saves(utc(since), counts[since, "final"], counts[since, "deleted"])
        for since in sorted({since for since, _ in counts})
    )

"""What retention is told of a run's live checkpoints: no more than its rules ask for."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from ckptdb.catalog import driver
from ckptdb.catalog.statements import (
    ANCESTORS_OF_LIVE,
    BELOW,
    CANDIDATES,
    LIVE_TAGS,
    RESUMED,
    VALUES,
)
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.metrics import TRAINING_INFO
from ckptdb.core.ranking import Mode


@dataclass(slots=True)
class _Known:
    values: dict[str, float] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    tags: set[str] = field(default_factory=set)


def find(
    connection: Connection,
    run_id: int,
    wanted: Wanted,
    matches: Mapping[str, Container[str]],
) -> tuple[Candidate, ...]:
    """Return a run's live, trusted checkpoints by step.

    Args:
        connection: To the catalog.
        run_id: The run.
        wanted: What has to be known of them.
        matches: By condition, the uuids of those for which it holds.
    """
    of_run = {"run_id": run_id}
    rows = connection.execute(CANDIDATES, of_run).all()
    resumed = {row.uuid: row.resumed_at for row in connection.execute(RESUMED, of_run)}
    ancestors: Container[str] = ()
    if wanted.ancestors and resumed:
        ancestors = {uuid for (uuid,) in connection.execute(ANCESTORS_OF_LIVE, of_run)}
    known: dict[int, _Known] = {row.id: _Known() for row in rows}
    nobody = _Known()  # of what has come or gone between two questions
    if wanted.metrics:
        asked = {"run_id": run_id, "names": list(wanted.metrics)}
        for row_id, name, value, source in connection.execute(VALUES, asked):
            of = known.get(row_id, nobody)
            if value is not None:
                of.values[name] = value
            if source != TRAINING_INFO:
                of.late.add(name)
    if wanted.tags:
        for row_id, name in connection.execute(LIVE_TAGS, of_run):
            known.get(row_id, nobody).tags.add(name)
    found = tuple(_candidate(row, known[row.id]) for row in rows)
    if not matches and not resumed:
        return found
    return tuple(
        replace(
            candidate,
            matches=frozenset(text for text, uuids in matches.items() if candidate.uuid in uuids),
            resumed_at=resumed.get(candidate.uuid),
            ancestor=candidate.uuid in resumed and candidate.uuid in ancestors,
        )
        for candidate in found
    )


def find_below(
    connection: Connection, run_id: int, metric: str, mode: Mode, best: int
) -> tuple[Candidate, ...]:
    """Return what of a run ranks below its ``best`` best checkpoints, the worst first."""
    given = {"run_id": run_id, "name": metric, "best": best}
    found = []
    for *row, value, source in driver.ask(connection, BELOW[mode], given):
        late = set() if source == TRAINING_INFO else {metric}
        found.append(_candidate(row, _Known({metric: value}, late)))
    return tuple(found)


def _candidate(row: Sequence[Any], known: _Known) -> Candidate:
    _, step, uuid, pinned, size_bytes, finalized_at = row
    return Candidate(
        step,
        uuid,
        known.values,
        bool(pinned),
        size_bytes,
        finalized_at,
        frozenset(known.late),
        frozenset(known.tags),
    )

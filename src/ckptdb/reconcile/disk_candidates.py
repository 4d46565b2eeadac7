"""What a rule deletes, decided by the files of a run: a catalog may be wrong, or be made so."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import (
    NO_ANNOTATIONS,
    Annotations,
    Checkpoint,
)
from ckptdb.disk import manifest
from ckptdb.disk.scan import Observation
from ckptdb.reconcile import index_run


def find_damaged(catalog: Catalog, known: IndexedRun) -> frozenset[str]:
    """Return the uuids of the checkpoints that a catalog says to be damaged."""
    problems = catalog.recorded(known, history=False).problems
    return frozenset(uuid for uuid, why in problems.items() if manifest.find_damage(why))


def find_candidates(
    observed: Observation, wanted: Wanted, base: Path | None
) -> tuple[Candidate, ...]:
    """Return the live, trusted checkpoints of a run, as its catalog would if it were true."""
    if wanted.conditions or wanted.ancestors:
        return _ask(observed.identity.run.directory, wanted, base)
    said = observed.facts.annotations if observed.facts else {}
    return tuple(
        as_candidate(checkpoint, said.get(checkpoint.uuid, NO_ANNOTATIONS), wanted)
        for _, checkpoint in sorted(observed.finals.items())
        if checkpoint is not None
        and checkpoint.problem is None
        and said.get(checkpoint.uuid, NO_ANNOTATIONS).rejected is None
    )


def as_candidate(checkpoint: Checkpoint, said: Annotations, wanted: Wanted) -> Candidate:
    """Return a live, trusted checkpoint as retention sees it."""
    late = {metric.name: metric.value for metric in said.late}
    values = {**checkpoint.metrics, **late} if late else checkpoint.metrics
    return Candidate(
        checkpoint.step,
        checkpoint.uuid,
        {name: value for name in wanted.metrics if (value := values.get(name)) is not None},
        said.pinned,
        checkpoint.size_bytes,
        checkpoint.finalized_at,
        frozenset(name for name in wanted.metrics if name in late),
        frozenset(name for name, _ in said.tags) if wanted.tags else frozenset(),
        resumed_at=max((one.resumed_at for one in said.resumptions), default=None),
    )


def _ask(directory: Path, wanted: Wanted, base: Path | None) -> tuple[Candidate, ...]:
    """Ask an index in memory that is made of nothing but a run's files: conditions are SQL.

    Args:
        directory: The run.
        wanted: What is asked.
        base: What paths are relative to, as a condition may name them.
    """
    with closing(Database.in_memory(base)) as database:
        index = Catalog(database)
        report = index_run(index, directory, depth="changes", locked=True)
        seen = None if report.uuid is None else index.find_run(report.uuid)
        return () if seen is None else index.candidates(seen.id, wanted)

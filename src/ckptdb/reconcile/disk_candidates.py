"""Candidates of retention by the files of a run, compared with those of its catalog.

A deletion by rule is decided by the files: a catalog may be wrong, or be made so. SQLite has no
checksums.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.observed import Observation
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import (
    NO_ANNOTATIONS,
    Annotations,
    Checkpoint,
    is_trusted,
)
from ckptdb.disk import identity, journal
from ckptdb.disk.observation import ReadFiles
from ckptdb.reconcile.fallback import index_in_memory

_SHORT_BYTES = 1_000_000
"""A journal up to this size is read at every comparison."""


@dataclass(frozen=True, slots=True)
class FileCandidates:
    """Live, trusted checkpoints of a run by its files.

    Attributes:
        found: The checkpoints, by step.
        damaged: uuids of checkpoints that the catalog calls damaged; their files may not show it
            at once.
    """

    found: tuple[Candidate, ...]
    damaged: frozenset[str]

    @property
    def sound(self) -> tuple[Candidate, ...]:
        """The checkpoints that the catalog does not call damaged."""
        return tuple(one for one in self.found if one.uuid not in self.damaged)


def read_candidates(
    catalog: Catalog, run: IndexedRun, observed: Observation, wanted: Wanted
) -> FileCandidates:
    """Return what the files of a run say may be judged.

    Args:
        catalog: The catalog that knows the run.
        run: The run.
        observed: An observation of all its files, without errors.
        wanted: Facts that the rules ask for.
    """
    found = find_candidates(observed, wanted, catalog.database.location.base)
    return FileCandidates(found, find_damaged(catalog, run))


def compare_candidates(
    catalog: Catalog,
    directory: Path,
    files: ReadFiles,
    wanted: Wanted,
    indexed: Sequence[Candidate],
) -> FileCandidates | None:
    """Return what the files of a run say now of candidates that the catalog knows.

    A long journal is not read where it is safe to do without: pins, and from which checkpoint
    training was resumed, are then taken from the catalog, and are read in the journal once more
    before anything goes.

    Args:
        catalog: The catalog that knows the run.
        directory: The run.
        files: Files of the run that were read before.
        wanted: Facts that the rules ask for.
        indexed: Candidates from the catalog.

    Returns:
        None when the catalog does not know the run, or the files cannot be read now.

    Raises:
        OSError: The directory itself cannot be read.
    """
    run = catalog.runs.find(identity.identify(directory).run.uuid)
    if run is None:
        return None
    damaged = find_damaged(catalog, run)
    published = files.find_published()
    if published is None:
        return None
    by_uuid = {cp.uuid: cp for cp in published if cp.problem is None}
    is_same = by_uuid.keys() - damaged == {candidate.uuid for candidate in indexed}
    if not is_same or _needs_journal(directory, wanted, indexed):
        observed = files.observe()
        if observed.errors:
            return None
        found = find_candidates(observed, wanted, catalog.database.location.base)
        return FileCandidates(found, damaged)
    found = tuple(
        replace(
            as_candidate(by_uuid[candidate.uuid], NO_ANNOTATIONS, wanted),
            pinned=candidate.pinned,
            resumed_at=candidate.resumed_at,
        )
        for candidate in indexed
    )
    return FileCandidates(found, damaged)


def _needs_journal(directory: Path, wanted: Wanted, indexed: Sequence[Candidate]) -> bool:
    if wanted.tags or wanted.conditions or wanted.ancestors or any(one.late for one in indexed):
        return True
    return journal.size(directory) <= _SHORT_BYTES


def find_damaged(catalog: Catalog, run: IndexedRun) -> frozenset[str]:
    """Return the uuids of the checkpoints that a catalog calls damaged."""
    problems = catalog.recorded.run(run, history=False).problems
    return frozenset(uuid for uuid, problem in problems.items() if problem.is_damage)


def find_candidates(
    observed: Observation, wanted: Wanted, base: Path | None
) -> tuple[Candidate, ...]:
    """Return the live, trusted checkpoints of a run, as an exact catalog would."""
    if wanted.conditions or wanted.ancestors:
        return _query_in_memory(observed.identity.run.directory, wanted, base)
    annotations = observed.facts.annotations if observed.facts else {}
    return tuple(
        as_candidate(checkpoint, annotations.get(checkpoint.uuid, NO_ANNOTATIONS), wanted)
        for _, checkpoint in sorted(observed.finals.items())
        if checkpoint is not None
        and is_trusted(
            checkpoint.status,
            has_problem=checkpoint.problem is not None,
            is_rejected=annotations.get(checkpoint.uuid, NO_ANNOTATIONS).rejected is not None,
        )
    )


def as_candidate(checkpoint: Checkpoint, annotations: Annotations, wanted: Wanted) -> Candidate:
    """Return a live, trusted checkpoint as retention sees it."""
    late = {metric.name: metric.value for metric in annotations.late}
    values = {**checkpoint.metrics, **late} if late else checkpoint.metrics
    return Candidate(
        checkpoint.step,
        checkpoint.uuid,
        {name: value for name in wanted.metrics if (value := values.get(name)) is not None},
        annotations.pinned,
        checkpoint.size_bytes,
        checkpoint.finalized_at,
        frozenset(name for name in wanted.metrics if name in late),
        frozenset(name for name, _ in annotations.tags) if wanted.tags else frozenset(),
        resumed_at=max((one.resumed_at for one in annotations.resumptions), default=None),
    )


def _query_in_memory(directory: Path, wanted: Wanted, base: Path | None) -> tuple[Candidate, ...]:
    """Query an index in memory that is built from the run's files alone: conditions are SQL.

    Args:
        directory: The run.
        wanted: Facts that the rules ask for.
        base: Directory that paths are relative to, because a condition may name them.
    """
    index, report = index_in_memory(directory, base, locked=True)
    with closing(index.database):
        run = None if report.uuid is None else index.runs.find(report.uuid)
        return () if run is None else index.candidates.of_run(run.id, wanted)

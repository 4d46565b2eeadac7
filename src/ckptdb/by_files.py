"""What a rule deletes, decided by the files of a run: a catalog may be wrong, or be made so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ckptdb import upkeep
from ckptdb.catalog.candidates import Candidate, Wanted
from ckptdb.catalog.catalog import Catalog, Seen
from ckptdb.catalog.engine import Database
from ckptdb.disk import manifest, scan
from ckptdb.disk.scan import Known, Observation, ReadFiles
from ckptdb.errors import CatalogError, RunChanged
from ckptdb.reconcile import index_run
from ckptdb.records import NO_ANNOTATIONS, Annotations, Checkpoint, Run
from ckptdb.retention import Policy
from ckptdb.upkeep import Judged


def judge(policy: Policy, catalog: Catalog, known: Seen) -> Judged:
    """Say what a retention policy deletes in a run by its files.

    Args:
        policy: Its metric may be None for the run's own.
        catalog: Already reconciled with the run. Of what it says only one thing counts: which
            checkpoints are damaged, since their files do not tell at once. Those stay.
        known: The run in that catalog.

    Raises:
        UnknownDirection: The best are to be kept, and there is no metric to rank by.
        UnknownMetric: The best are to be kept, and no checkpoint has that metric.
        OSError: The run cannot be read.
    """
    if not policy.has_limit:
        return Judged(known.run)
    directory, base = known.run.directory, catalog.database.location.base
    files = ReadFiles(directory)
    observed = files.observe()
    run = observed.identity.run
    policy = upkeep.judged_by_its_own(policy, run)
    if observed.errors:
        return Judged(run)  # what cannot be seen whole is not judged
    candidates = find_candidates(observed, policy.wanted, base)
    upkeep.refuse_to_guess(catalog, known, policy, candidates)
    damaged = find_damaged(catalog, known)
    planned = upkeep.judge(run, policy, candidates, damaged=damaged)
    read = Known({cp.step: (cp.uuid, cp.fingerprint) for cp in observed.finals.values() if cp})
    sound = [candidate for candidate in candidates if candidate.uuid not in damaged]
    says_so = _says(catalog, known, run, policy.wanted, sound)
    # Who has changed the run meanwhile may not have told the catalog yet.
    is_same = known.stamp == str(observed.stamp) == str(scan.find_stamp(directory))
    differs = is_same and not says_so
    if not planned.gone:
        return Judged(run, planned, read, differs=differs)

    def confirm(leaving: Collection[str]) -> None:
        """Judge again, under the run's lock."""
        now = files.observe()
        who = now.identity.run
        if now.errors or (who.uuid, who.ranked_by) != (run.uuid, run.ranked_by):
            raise RunChanged(directory)
        found = find_candidates(now, policy.wanted, base)
        again = upkeep.judge(run, policy, found, damaged=damaged)
        if not set(leaving) <= {decision.uuid for decision in again.gone}:
            raise RunChanged(directory)

    return Judged(run, planned, read, confirm, differs=differs)


def _says(
    catalog: Catalog, known: Seen, run: Run, wanted: Wanted, judged: Sequence[Candidate]
) -> bool:
    """Tell whether a catalog, which may hold anything, says of a run what its files say."""
    if replace(known.run, config=None) != replace(run, config=None):
        return False
    try:
        return catalog.candidates(known.id, wanted) == tuple(judged)
    except (CatalogError, ValueError, TypeError):
        return False  # SQLite has no checksums, and no types


def find_damaged(catalog: Catalog, known: Seen) -> frozenset[str]:
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

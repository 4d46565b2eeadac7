"""What a rule deletes, decided by the files of a run: a catalog may be wrong, or be made so."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import (
    Run,
)
from ckptdb.disk import scan
from ckptdb.disk.scan import KnownFingerprints, ReadFiles
from ckptdb.errors import CatalogError, RunChanged
from ckptdb.reconcile import disk_candidates
from ckptdb.registry import gc
from ckptdb.registry.gc import JudgedRun
from ckptdb.retention import Policy


def judge_by_files(policy: Policy, catalog: Catalog, known: IndexedRun) -> JudgedRun:
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
        return JudgedRun(known.run)
    directory, base = known.run.directory, catalog.database.location.base
    files = ReadFiles(directory)
    observed = files.observe()
    run = observed.identity.run
    policy = gc.judged_by_its_own(policy, run)
    if observed.errors:
        return JudgedRun(run)  # what cannot be seen whole is not judged
    candidates = disk_candidates.find_candidates(observed, policy.wanted, base)
    gc.refuse_to_guess(catalog, known, policy, candidates)
    damaged = disk_candidates.find_damaged(catalog, known)
    planned = gc.judge(run, policy, candidates, damaged=damaged)
    read = KnownFingerprints(
        {cp.step: (cp.uuid, cp.fingerprint) for cp in observed.finals.values() if cp}
    )
    sound = [candidate for candidate in candidates if candidate.uuid not in damaged]
    says_so = _says(catalog, known, run, policy.wanted, sound)
    # Who has changed the run meanwhile may not have told the catalog yet.
    is_same = known.stamp == str(observed.stamp) == str(scan.find_stamp(directory))
    differs = is_same and not says_so
    if not planned.gone:
        return JudgedRun(run, planned, read, differs=differs)

    def confirm(leaving: Collection[str]) -> None:
        """Judge again, under the run's lock."""
        now = files.observe()
        who = now.identity.run
        if now.errors or (who.uuid, who.ranked_by) != (run.uuid, run.ranked_by):
            raise RunChanged(directory)
        found = disk_candidates.find_candidates(now, policy.wanted, base)
        again = gc.judge(run, policy, found, damaged=damaged)
        if not set(leaving) <= {decision.uuid for decision in again.gone}:
            raise RunChanged(directory)

    return JudgedRun(run, planned, read, confirm, differs=differs)


def _says(
    catalog: Catalog, known: IndexedRun, run: Run, wanted: Wanted, judged: Sequence[Candidate]
) -> bool:
    """Tell whether a catalog, which may hold anything, says of a run what its files say."""
    if replace(known.run, config=None) != replace(run, config=None):
        return False
    try:
        return catalog.candidates(known.id, wanted) == tuple(judged)
    except (CatalogError, ValueError, TypeError):
        return False  # SQLite has no checksums, and no types

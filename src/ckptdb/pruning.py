"""What a manager prunes: chosen by the index, and only where the files say the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ckptdb.catalog.catalog import Candidate, Catalog
from ckptdb.disk import info, names
from ckptdb.disk.publish import Doomed
from ckptdb.errors import UnreadableInfo
from ckptdb.index import RunIndex
from ckptdb.records import metrics_of
from ckptdb.retention import Decision, Policy, decide

_COMPARED = 1000


def choose(
    index: RunIndex, directory: Path, policy: Policy, *, exclude_latest: bool
) -> tuple[Doomed, ...]:
    """Return the checkpoints of a run that no retention rule keeps.

    Args:
        index: Of that run.
        directory: The run.
        policy: The rules.
        exclude_latest: Always keep the highest step.
    """
    if not policy.has_limit:
        return ()

    def judge(catalog: Catalog, run_id: int, _: Any) -> tuple[Decision, ...]:
        if policy.keeps_all(catalog.count_live(run_id)):
            return ()
        candidates = catalog.candidates(run_id, policy.metric)
        return decide(candidates, policy, exclude_latest=exclude_latest)

    def judge_by_files(catalog: Catalog, run_id: int, _: Any) -> tuple[Decision, ...] | None:
        candidates = catalog.candidates(run_id, policy.metric)
        decisions = decide(candidates, policy, exclude_latest=exclude_latest)
        doomed = {decision.step for decision in decisions if not decision.keep}
        agree = _agree_with_files(directory, policy.metric, candidates, doomed)
        return decisions if agree else None

    # A stamp that only we advanced may hide what somebody did by hand in between. It is
    # good enough to see that nothing has to go, not to choose what goes.
    nothing: tuple[Decision, ...] = ()
    if all(d.keep for d in index.ask(judge, nothing=nothing, trust_own=True)):
        return ()
    none: tuple[Decision, ...] | None = ()
    decisions = index.ask(judge_by_files, nothing=none)
    if decisions is None:
        index.read_again()
        decisions = index.ask(judge_by_files, nothing=none)
    # Files that still say something else are being changed at this moment: next time.
    return tuple(Doomed(d.step, d.uuid, d.reason) for d in decisions or () if not d.keep)


def _agree_with_files(
    directory: Path, metric: str | None, candidates: Sequence[Candidate], doomed: set[int]
) -> bool:
    """Whether what is about to be judged by the index is what the files say.

    SQLite has no checksums: a flipped bit may turn the best checkpoint into the worst.
    """
    if metric is None or not doomed:
        return True
    # Those that go are all read; of the others as many as cost less than the save itself.
    kept = [c for c in candidates if c.step not in doomed][:_COMPARED]
    for candidate in (*(c for c in candidates if c.step in doomed), *kept):
        path = directory / names.final_name(candidate.step)
        with suppress(UnreadableInfo):  # what cannot be read has been found by the listing
            value = metrics_of(info.load_info(path)[0]).get(metric)
            if value != candidate.value and not candidate.late:
                return False
    return True

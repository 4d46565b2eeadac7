"""Garbage collection of one run: carry out what was judged, and remove what crashes left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ckptdb.core.observed import Tmp
from ckptdb.core.records import Run
from ckptdb.disk import identity, liveness, manifest, observation, read_trash
from ckptdb.disk.journal_pins import Pins
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Confirm
from ckptdb.errors import DeletionIncomplete, NotDeleted, RunChanged
from ckptdb.registry.gc_result import CollectedLeftover, GcResult, SparedSave
from ckptdb.registry.judge import JudgedRun
from ckptdb.retention import RetentionPlan
from ckptdb.retention.reasons import DeletionFailed, Protected
from ckptdb.training import deletions


def collect(
    publisher: Publisher, judged: JudgedRun, *, dry_run: bool, empty_trash: bool = False
) -> GcResult:
    """Carry out the plan of a judged run, and remove what crashes left behind.

    Args:
        publisher: Publisher of the run.
        judged: The run and its plan; without a plan only leftovers are removed.
        dry_run: Change nothing; only report what would go.
        empty_trash: Also remove checkpoints that can still be undeleted.
    """
    observed = observation.observe(publisher.directory, judged.known, may_touch=not dry_run)
    planned = judged.plan
    pinned = Pins(identity.hidden(publisher.directory)).find()
    unfinished = [tmp for tmp in observed.tmps.values() if tmp.abandoned]
    kept = pinned | observed.leased
    # A checkpoint that could not be moved into the trash is deleted where it stands.
    in_place = [left for left in observed.trash if left.path.parent == publisher.directory]
    listed = (*read_trash.list_trash(publisher.directory), *in_place)
    trash = [left for left in listed if left.uuid not in kept]
    retired = [left for left in trash if empty_trash or left in observed.trash]
    waiting = tuple(
        _leftover(left.path, left.step, "can be undeleted") for left in trash if left not in retired
    )
    spared = [_spared(tmp) for tmp in observed.tmps.values() if not (tmp.abandoned or tmp.fate)]
    leftovers = [
        *(_leftover(tmp.checkpoint.path, tmp.checkpoint.step, "unfinished save")
          for tmp in unfinished),
        *(_leftover(left.path, left.step, "retired") for left in retired),
    ]  # fmt: skip
    attempt = _Attempt(publisher)
    if not dry_run:
        _make_space(publisher)
        for left in in_place:
            with attempt.at(left.step, left.path):
                publisher.finish_deletion(left)
        for tmp in unfinished:
            # Another process may have begun to save that step again, or gone on with it.
            path, uuid = tmp.checkpoint.path, tmp.checkpoint.uuid
            reason = "discarded: left unfinished, removed by gc"
            with attempt.at(tmp.checkpoint.step, path):
                if not publisher.discard(path, reason=reason, uuid=uuid).gone:
                    leftovers = [left for left in leftovers if left.path != path]
        if empty_trash and publisher.trash_ttl_seconds:
            with attempt.at():
                publisher.empty_trash(everything=True, unidentified=True)
            empty_trash = False  # checkpoints that go from here on can be undeleted for a time
        planned = attempt.retire(planned, confirm=judged.confirm)
        with attempt.at():
            publisher.empty_trash(everything=empty_trash, unidentified=empty_trash)
    return GcResult(
        judged.run.name,
        publisher.directory,
        planned,
        tuple(leftovers),
        not dry_run,
        waiting,
        publisher.trash_ttl_seconds,
        tuple(attempt.failed),
        tuple(spared),
    )


def remove(
    run: Run,
    publisher: Publisher,
    planned: RetentionPlan,
    *,
    force: bool,
    dry_run: bool,
) -> GcResult:
    """Carry out a plan of `judge_by_hand`.

    Args:
        run: The run.
        publisher: Publisher of the run.
        planned: The plan.
        force: Also delete checkpoints that are pinned or leased by now.
        dry_run: Change nothing; only report what would go.
    """
    attempt = _Attempt(publisher)
    if not dry_run:
        _make_space(publisher)
        planned = attempt.retire(planned, force=force, by_hand=True)
        with attempt.at():
            publisher.empty_trash()
    return GcResult(
        run.name,
        publisher.directory,
        planned,
        (),
        not dry_run,
        trash_ttl_seconds=publisher.trash_ttl_seconds,
        failed=tuple(attempt.failed),
    )


def _make_space(publisher: Publisher) -> None:
    # A full disk takes no record before bytes are free, and emptying the trash needs no record.
    with suppress(OSError):  # it is tried again in the end, and raises then
        publisher.empty_trash()


class _Attempt:
    """An attempt to delete in a run, which goes on when some of it fails.

    Attributes:
        failed: Checkpoints and leftovers that did not go, or have bytes left.
    """

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self.failed: list[NotDeleted] = []

    @contextmanager
    def at(self, step: int | None = None, left: Path | None = None) -> Iterator[None]:
        """Collect an error instead of raising it; ``left`` is the path that was to be removed."""
        try:
            yield
        except DeletionIncomplete as error:
            self.failed += error.failed
        except OSError as error:
            self.failed.append(NotDeleted(self._publisher.directory, step, error, left))

    def retire(
        self,
        planned: RetentionPlan,
        *,
        force: bool = False,
        by_hand: bool = False,
        confirm: Confirm | None = None,
    ) -> RetentionPlan:
        """Retire the checkpoints of a plan that go; return the plan as it was carried out."""
        if not planned.gone:
            return planned
        try:
            retired = deletions.retire(
                self._publisher,
                planned.gone,
                force=force,
                by_hand=by_hand,
                checked=True,
                confirm=confirm,
            )
            gone = {cp.uuid for cp in retired.gone}
        except DeletionIncomplete as error:
            self.failed += error.failed
            gone = {cp.uuid for cp in error.done.gone}
        except RunChanged as error:
            self.failed.append(NotDeleted(self._publisher.directory, None, error))
            gone = set()
        if gone.issuperset(decision.uuid for decision in planned.gone):
            return planned
        causes = {
            one.step: DeletionFailed(str(one.cause)) for one in self.failed if one.left is None
        }
        decisions = tuple(
            decision
            if decision.keep or decision.uuid in gone
            else replace(
                decision, keep=True, because=causes.get(decision.step, Protected("changed"))
            )
            for decision in planned.decisions
        )
        return replace(planned, decisions=decisions, after=None)


def _spared(tmp: Tmp) -> SparedSave:
    why = liveness.describe(tmp.writer, tmp.life)
    if tmp.blocked:
        why = "complete, its name is taken; move that away, then `ckptdb reconcile` publishes it"
    return SparedSave(tmp.checkpoint.path, tmp.checkpoint.step, tmp.life, why)


def _leftover(path: Path, step: int, kind: str) -> CollectedLeftover:
    try:
        sizes = manifest.list_files(path)
    except FileNotFoundError:
        sizes = {}  # another process removes it at the same time
    return CollectedLeftover(path, step, kind, sum(sizes.values()))

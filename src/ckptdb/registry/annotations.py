"""Annotations of checkpoints: late metrics, pins, notes, tags, rejections; on disk first."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptdb.core import warnings
from ckptdb.core.facts import Fact
from ckptdb.core.metrics import TRAINING_INFO, metrics_of
from ckptdb.core.recorded import IndexedRun
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import (
    identity,
    names,
    read_trash,
    training_info,
)
from ckptdb.disk.publish import Publisher
from ckptdb.errors import (
    CheckpointGone,
    InvalidAnnotation,
    JournalInDoubt,
    NothingLost,
)
from ckptdb.reconcile.run import reconcile_run
from ckptdb.registry.opened import PathLike
from ckptdb.registry.tree import Tree


class AnnotationMethods(Tree):
    """Methods of `Registry` that write facts into journals; the catalog follows."""

    def log_metrics(
        self,
        run: PathLike | None,
        step: int,
        values: Mapping[str, Any],
        *,
        source: str,
        uuid: str | None = None,
    ) -> Checkpoint:
        """Record metrics measured after the save; on disk first. Best and top-k see them.

        Args:
            run: Name, path or uuid prefix; None for the run that was opened.
            step: Step of a live or deleted checkpoint.
            values: Numbers by name; scalars of numpy and torch too. A value that is not
                finite is recorded and never ranked.
            source: Who measured it, e.g. ``"lm-eval"``.
            uuid: The checkpoint that was measured, in case the step was saved again meanwhile;
                None for the one that is there now.

        Raises:
            InvalidAnnotation: A value is no number, or the source no text.
            UnknownCheckpoint: There never was such a checkpoint.
            RunNotHere: The run's directory is not there, or is another's.
        """
        plain = training_info.plain_numbers(values)
        if set(metrics_of(plain)) != set(plain) or not plain:
            wrong = sorted(map(repr, set(plain) - set(metrics_of(plain)))) or ["no value"]
            raise InvalidAnnotation(f"metrics must be numbers by name, not {', '.join(wrong)}")
        _check_text("source", source)
        if source == TRAINING_INFO:
            raise InvalidAnnotation(f"{TRAINING_INFO!r} is the source of the save itself")
        numbers = metrics_of(plain)
        details = [{"name": n, "value": v, "source": source} for n, v in numbers.items()]
        return self._annotate(run, step, [("metric", detail) for detail in details], uuid=uuid)

    def pin(self, run: PathLike | None, step: int, *, note: str | None = None) -> Checkpoint:
        """Pin a checkpoint, with an optional note: no retention rule deletes it.

        Raises:
            CheckpointGone: It was deleted, and its bytes are gone.
        """
        seen = self._run_names.get(run)
        found = self._get_at(seen, step)
        Publisher(seen.run.directory, of=seen.run).must_be_here()
        left = {leftover.uuid for leftover in read_trash.list_trash(seen.run.directory)}
        if found.status == "deleted" and found.uuid not in left:
            raise CheckpointGone(seen.run.name, found.step, found.deleted_reason)
        facts: list[tuple[str, dict[str, Any]]] = [("pin", {})]
        if note is not None:
            _check_text("note", note)
            facts.append(("note", {"text": note}))
        return self._record(seen, found, facts)

    def unpin(self, run: PathLike | None, step: int) -> Checkpoint:
        """Remove a pin: retention decides about the checkpoint again."""
        seen = self._run_names.get(run)
        found = self._record(seen, self._get_at(seen, step), [("unpin", {})])
        if found.status == "deleted":
            # It was replaced while pinned; its bytes were kept in the trash until now.
            try:
                Publisher(seen.run.directory, of=seen.run).empty_trash()
            except JournalInDoubt as error:
                warnings.warn(str(error))
        return found

    def tag(self, run: PathLike | None, step: int, name: str) -> Checkpoint:
        """Add a tag to a checkpoint."""
        _check_text("tag", name)
        return self._annotate(run, step, [("tag", {"name": name})])

    def untag(self, run: PathLike | None, step: int, name: str) -> Checkpoint:
        """Remove a tag; nothing changes when the checkpoint has no such tag."""
        return self._annotate(run, step, [("untag", {"name": name})])

    def reject(self, run: PathLike | None, step: int, reason: str) -> Checkpoint:
        """Reject a checkpoint: it is kept and reported, but neither best, latest nor counted."""
        _check_text("reason", reason)
        return self._annotate(run, step, [("rejected", {"reason": reason})])

    def unreject(self, run: PathLike | None, step: int) -> Checkpoint:
        """Undo a rejection."""
        return self._annotate(run, step, [("unrejected", {})])

    def accept_loss(
        self, run: PathLike | None, steps: Iterable[int] | None = None
    ) -> tuple[Checkpoint, ...]:
        """Accept that checkpoints vanished from disk, so that they are no drift any more.

        Their history stays. A checkpoint that is put back counts again.

        Args:
            run: Name, path or uuid prefix; None for the run that was opened.
            steps: Steps of lost checkpoints, accepted all or none; None for all that are lost.

        Returns:
            The lost checkpoints.

        Raises:
            NothingLost: Nothing of a step is recorded as lost.
            RunNotHere: The run's directory is not there, or is another run's.
        """
        wanted = None if steps is None else [names.as_step(step) for step in steps]
        seen = self._run_names.get(run)
        directory = seen.run.directory
        Publisher(directory, of=seen.run).must_be_here()
        # A loss may not have been recorded in the journal yet.
        reconcile_run(self._catalogs.get_for_writing(), directory, depth="changes")
        facts = read_trash.read_facts(identity.identify(directory))
        lost = sorted((facts.gone[uuid] for uuid in facts.lost), key=lambda end: end.step)
        there_are = {end.step for end in lost}
        for step in wanted or ():
            if step not in there_are:
                raise NothingLost(seen.run.name, step)
        accepted = [end for end in lost if wanted is None or end.step in wanted]
        if accepted:
            at = utc(time.time())
            Publisher(directory, of=seen.run).record(
                [Fact(at, "accepted", end.uuid) for end in accepted]
            )
            self._healing.index_changes([directory])
        return tuple(accepted)

    def _annotate(
        self,
        run: PathLike | None,
        step: int,
        facts: Sequence[tuple[str, dict[str, Any]]],
        *,
        uuid: str | None = None,
    ) -> Checkpoint:
        seen = self._run_names.get(run)
        return self._record(seen, self._get_at(seen, step, uuid=uuid), facts)

    def _record(
        self, seen: IndexedRun, found: Checkpoint, facts: Sequence[tuple[str, dict[str, Any]]]
    ) -> Checkpoint:
        at = utc(time.time())
        lines = [Fact(at, kind, found.uuid, details) for kind, details in facts]
        Publisher(seen.run.directory, of=seen.run).record(lines)
        if not self._healing.index_changes([seen.run.directory]):
            return found
        # By uuid: another save may have taken the step meanwhile.
        recorded = self._catalog().checkpoints.list_all(run_id=seen.id, steps=[found.step])
        return next((checkpoint for checkpoint in recorded if checkpoint.uuid == found.uuid), found)


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise InvalidAnnotation(f"a {what} must be a line of printable text, not {text!r}")

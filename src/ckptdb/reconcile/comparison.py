"""Disk and index of one run, side by side. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptdb.core.observed import Observation
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import Checkpoint, is_derived
from ckptdb.disk import names
from ckptdb.reconcile import missing_facts
from ckptdb.reconcile.missing_facts import MissingFacts


class Comparison:
    """Disk and index of one run, and what several kinds of difference depend on.

    Args:
        observed: Everything on disk, or everything that the index did not have yet.
        recorded: Everything in the index; with history whenever ``observed.facts`` is there.
    """

    def __init__(self, observed: Observation, recorded: RecordedRun) -> None:
        self.observed = observed
        self.recorded = recorded

    def get_uuid(self, step: int) -> str:
        """Return the uuid of what is published at a step."""
        checkpoint = self.observed.finals[step]
        return checkpoint.uuid if checkpoint else self.recorded.finals[step][0]

    @cached_property
    def published(self) -> set[str]:
        """The uuids of what is published."""
        return {self.get_uuid(step) for step in self.observed.finals}

    @cached_property
    def here(self) -> set[str]:
        """The uuids of what is on disk, except for a tmp whose content was replaced."""
        tmps = self.observed.tmps.values()
        return self.published | {tmp.checkpoint.uuid for tmp in tmps if tmp.fate != "trash"}

    @cached_property
    def missing(self) -> dict[str, MissingFacts]:
        """By uuid, the facts that the journal lacks and the index knows."""
        return missing_facts.find_missing(self.observed, self.recorded, self.here)

    @cached_property
    def doubt(self) -> str | None:
        """Why the journal is no reason to delete anything, in words; None if it is."""
        return missing_facts.explain_doubt(self.observed, self.recorded, self.missing)

    @cached_property
    def known(self) -> set[str]:
        """The uuids of which the index will have a row."""
        gone = set(self.observed.facts.gone) if self.observed.facts else set()
        return self.here | gone | set(self.recorded.gone)

    @cached_property
    def unclear_steps(self) -> set[int | None]:
        """Steps where an unreadable or unnamed directory may be the checkpoint that is missing."""
        unreadable = {find_any_step(name) for name in self.observed.unreadable}
        olds = (old.step for old in self.observed.olds)
        return unreadable | {step for step in olds if step not in self.observed.finals}

    def may_be_edited(self, uuid: str, step: int) -> bool:
        """Tell whether what is published at a step may be a checkpoint with other metadata.

        Without a manifest that can be read, a checkpoint is known by its training_info.json.
        """
        if step not in self.observed.finals:
            return False
        return is_derived(uuid) or is_derived(self.get_uuid(step))


def find_any_step(name: str) -> int | None:
    """Return the step of a published or staged checkpoint's name."""
    step = names.find_final_step(name)
    return names.find_tmp_step(name) if step is None else step


def is_same_record(known: Checkpoint, found: Checkpoint, recorded: RecordedRun) -> bool:
    """Tell whether the index's record of a checkpoint is what was found, parents aside."""
    if known.path != found.path and recorded.indexed:
        # That the run has moved is a difference of the run, and moves all paths with it.
        known = _move(known, recorded.indexed.run.directory, found.path.parent)
    # A late value hides the one that came with the checkpoint.
    return _get_content(known, known.late) == _get_content(found, known.late)


def _move(known: Checkpoint, before: Path, now: Path) -> Checkpoint:
    """Return a checkpoint with the path that it has once its run has moved."""
    if not known.path.is_relative_to(before):
        return known
    return replace(known, path=now / known.path.relative_to(before))


def _get_content(checkpoint: Checkpoint, late: Container[str]) -> tuple[Any, ...]:
    own = {k: v for k, v in checkpoint.metrics.items() if k not in late}
    return (
        checkpoint.step, checkpoint.path, checkpoint.created_at, checkpoint.finalized_at,
        checkpoint.size_bytes, checkpoint.file_count, checkpoint.problem, checkpoint.problem_kind,
        checkpoint.info, own,
        checkpoint.deleted_at, checkpoint.deleted_kind, checkpoint.deleted_reason,
    )  # fmt: skip

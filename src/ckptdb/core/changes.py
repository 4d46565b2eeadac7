"""Changes of one run that the index stores in one transaction. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ckptdb.core.records import Annotations, Checkpoint, Run


@dataclass(frozen=True, slots=True)
class Child:
    """A checkpoint that may have been stored before its parent; fingerprint as in its record."""

    uuid: str
    parent: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Changes of one run.

    Attributes:
        run: Inserted, or its columns updated; the uuid decides which row is meant.
        checkpoints: Their present state, live or deleted. Their annotations are left as they are.
        children: Stored before, to be linked to parents that may have come since.
        annotations: By uuid, all annotations of a checkpoint.
        config: New configuration of the run, empty when it has none; None leaves it.
        config_step: The step it was saved with; it counts only if no live step is higher. Without
            a configuration: the step of the stored one, if that is known.
        stamp: The directory's stamp at a listing that has just confirmed the index.
        stamp_verified: Whether that listing was made late enough to be sure.
        stamp_moved: Stamp before and after a writer's own changes; stored only if the index has
            the former.
        without_parent: The uuids of checkpoints without a parent that have one in the index.
        repair_copies: Also rewrite the values that metrics and resumptions copy from their
            checkpoint.
    """

    run: Run
    checkpoints: Sequence[Checkpoint] = ()
    children: Sequence[Child] = ()
    annotations: Mapping[str, Annotations] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_step: int | None = None
    stamp: str | None = None
    stamp_verified: bool = True
    stamp_moved: tuple[str, str] | None = None
    without_parent: Sequence[str] = ()
    repair_copies: bool = False

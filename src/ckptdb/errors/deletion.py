"""Errors about deleting checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ckptdb.errors.base import CkptdbError
from ckptdb.errors.text import listed


class RunsNotNamed(CkptdbError, ValueError):
    """A deletion would touch several runs, and the command names none."""

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__(
            f"This would delete in several runs: {listed(map(str, runs))}; name those that are "
            "meant (--run RUN, which may be repeated), or pass --all-runs. Nothing was deleted."
        )


class DeletionNotConfirmed(CkptdbError):
    """A deletion would touch several runs, and nobody is there to confirm it."""

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__(
            f"This would delete in several runs: {listed(map(str, runs))}; pass --yes to do so "
            "without being asked (`--dry-run` says what would go). Nothing was deleted."
        )


class PlanChanged(CkptdbError):
    """A deletion would remove other checkpoints than its plan lists."""

    def __init__(self, runs: Sequence[str]) -> None:
        named = ", ".join(map(repr, runs)) or "the runs that were planned for"
        super().__init__(
            f"What would go from {named} is not what was planned: something has changed since. "
            "Nothing went; look at a new plan (`--dry-run`, `plan_retention()`) and decide again."
        )


class RunChanged(CkptdbError):
    """A run has changed since its deletions were decided."""

    def __init__(self, run: Path) -> None:
        super().__init__(
            f"{run} has changed since it was judged: by its files something else would go now. "
            "Nothing of it was deleted; run `ckptdb gc` again"
        )


class JournalInDoubt(CkptdbError):
    """The journal of a run is damaged or contradicts the catalog: nothing may be deleted."""

    def __init__(self, run: Path, why: str) -> None:
        super().__init__(
            f"Nothing is deleted in {run}: {why}; `ckptdb reconcile {run}` says what can be "
            "restored, and does it."
        )
        self.why = why


@dataclass(frozen=True, slots=True)
class NotDeleted:
    """A checkpoint that was not deleted, or not completely.

    Attributes:
        run: Its directory.
        step: The checkpoint's; None when something went wrong for the run as a whole.
        error: Why.
        left: Where bytes of it are left, though it counts as deleted; None when it is untouched.
    """

    JSON_KEYS: ClassVar = {"step": "step", "cause": "cause", "left": "left"}

    run: Path
    step: int | None
    error: Exception
    left: Path | None = None

    @property
    def cause(self) -> str:
        """The error in words, without what kind of error it is."""
        name, why = getattr(self.error, "filename", None), getattr(self.error, "strerror", None)
        return f"{name}: {why}" if name and why else str(why or self.error)


class DeletionIncomplete(CkptdbError, OSError):
    """A deletion failed in whole or in part; the message lists what is left.

    Attributes:
        gone: By run, the steps that are out of sight, those with bytes left included.
        failed: What is not gone, or not wholly.
        removed: How many leftovers (unfinished saves, bytes of what was deleted before) went.
        done: What would have been returned, had nothing failed.
    """

    def __init__(
        self,
        gone: Mapping[Path, Sequence[int]],
        failed: Sequence[NotDeleted],
        done: Any = None,
        *,
        removed: int = 0,
    ) -> None:
        self.removed = removed
        self.gone = {run: tuple(steps) for run, steps in gone.items() if steps}
        self.failed = tuple(failed)
        self.done = done
        head = "Not everything was deleted" if self.is_partial else "Nothing was deleted"
        runs = dict.fromkeys((*self.gone, *(one.run for one in self.failed)))
        message = f"{head}. " + " ".join(f"{run}: {self._describe(run)}." for run in runs)
        if removed:
            message += f" Leftovers that were removed: {removed}."
        if any(one.left for one in self.failed):
            message += " When that is mended, `ckptdb gc` removes what is left."
        super().__init__(message)
        self.errno = next((e.errno for e in self._errors if e.errno), None)

    @property
    def is_partial(self) -> bool:
        """Whether anything is gone or out of sight."""
        return bool(self.gone or self.removed) or any(one.left for one in self.failed)

    @property
    def _errors(self) -> list[OSError]:
        return [one.error for one in self.failed if isinstance(one.error, OSError)]

    def _describe(self, run: Path) -> str:
        failed = [one for one in self.failed if one.run == run]
        left = {one.step: one.left for one in failed if one.left is not None}
        untouched = [one.step for one in failed if one.left is None and one.step is not None]
        parts = [_of_steps([s for s in self.gone.get(run, ()) if s not in left], "gone")]
        if left:
            where = ", ".join(str(path) for path in left.values())
            parts.append(f"{_of_steps(list(left), 'out of sight')}, with bytes left in {where}")
        parts.append(_of_steps(untouched, "untouched"))
        causes = "; ".join(dict.fromkeys(one.cause for one in failed))
        parts_text = "; ".join(part for part in parts if part)
        return f"{parts_text} ({causes})" if parts_text and causes else parts_text or causes


def _of_steps(steps: Sequence[int | None], are: str) -> str:
    if not steps:
        return ""
    named = ", ".join(map(str, steps))
    return f"step {named} is {are}" if len(steps) == 1 else f"steps {named} are {are}"


class NotUndeleted(CkptdbError):
    """A deleted checkpoint cannot be restored."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} was not undeleted: {why}. Only what was deleted with a trash_ttl that has not "
            "passed, and whose step is free, can come back."
        )


class PinnedCheckpoint(CkptdbError):
    """A pinned checkpoint is deleted only by force."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Step {step} of {run!r} is pinned; `ckptdb unpin {step} --run {run}` first, "
            "or pass --force."
        )


class LinkedCheckpoint(CkptdbError):
    """A checkpoint behind a symlink is never deleted."""

    def __init__(self, path: Path, target: str) -> None:
        super().__init__(
            f"{path} is a link to {target}, and nothing is deleted through a link: remove the link "
            "and what it leads to by hand, then `ckptdb reconcile`. Nothing was deleted."
        )


class LeasedCheckpoint(CkptdbError):
    """A checkpoint with an evaluator's lease is deleted only by force."""

    def __init__(self, run: str, step: int, who: str) -> None:
        super().__init__(
            f"Step {step} of {run!r} is leased for {who}; wait until that is done, or pass --force."
        )

"""Parents of new checkpoints: the checkpoint that training continues from, safe from prunes.

A loop continues from the checkpoint that `resume` has returned, or that it has loaded by hand. The
prune after a save must delete neither that checkpoint nor the save itself, whatever their rank:
where higher steps exist already, a rule that keeps the newest or the best would delete them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import warnings
from ckptdb.core.text import some_steps
from ckptdb.disk import checkpoint_identity, identity, names, run_listing
from ckptdb.training import load_history
from ckptdb.training.index import RunIndex
from ckptdb.training.load_history import LoadedCheckpoint

_JUST_SAVED: Final = "just saved"
_CONTINUED: Final = "this process continues from it"
_MOST_ABOVE: Final = 100_000


class ParentTracker:
    """Follows the line of training of one manager.

    Args:
        directory: The run.
        index: Index of the run.
    """

    def __init__(self, directory: Path, index: RunIndex) -> None:
        self._directory = directory
        self._index = index
        self._parent: str | None = None
        self._begun = self._went_back_at = 0
        self._open: dict[Path, int] = {}
        self._parents: dict[Path, str | None] = {}
        self._saved: str | None = None
        self._resumed: str | None = None
        self._last_step: int | None = None
        self._highest: int | None = None
        self._has_warned = self._has_looked = False

    def note_look(self) -> None:
        """Note that the loop queries the checkpoints of the run."""
        if not self._has_looked:
            self._has_looked = True
            load_history.note_look(self._directory)

    # --- events -------------------------------------------------------------------------

    def resume_from(self, uuid: str | None) -> None:
        """Note the uuid of the checkpoint that training continues from; None for a fresh start."""
        self._parent = self._resumed = uuid

    def begin(self, path: Path, step: int) -> None:
        """Note that a save is staged; its parent is the checkpoint that was loaded last, if any."""
        self._begun += 1
        # A later load is what training continues from only where the steps have gone back.
        goes_back = self._last_step is None or step <= self._last_step
        pending = load_history.find(self._directory).pending
        if pending is not None and goes_back:
            # Saves that are still being finalized keep their parents.
            self._parents |= dict.fromkeys(self._open.keys() - self._parents.keys(), self._parent)
            self._parent, self._went_back_at = self._find_uuid(pending), self._begun
        load_history.note_save(self._directory, has_gone_back=goes_back)
        self._open[path] = self._begun
        self._last_step = step
        self._highest = max(step, -1 if self._highest is None else self._highest)

    def find_parent(self, path: Path) -> str | None:
        """Return the uuid of the parent of a staged checkpoint."""
        return self._parents.get(path, self._parent)

    def publish(self, path: Path, uuid: str) -> None:
        """Note that a save is published: the next one continues from it."""
        self._saved = uuid
        if self._open.get(path, self._begun) >= self._went_back_at:
            self._parent = uuid
        self.discard(path)

    def discard(self, path: Path) -> None:
        """Note that a save has ended."""
        self._open.pop(path, None)
        self._parents.pop(path, None)

    # --- protection ---------------------------------------------------------------------

    def find_in_use(self, *, with_saved: bool) -> dict[str, str]:
        """Return the checkpoints that no prune of this manager deletes: the use of each, by uuid.

        Args:
            with_saved: Also the checkpoint that was saved last.
        """
        known = load_history.find(self._directory)
        ones = [*known.base, *(known.loaded if self._last_step is None else known.loaded[-1:])]
        ones += [] if known.weights is None else [known.weights]
        uuids = [self._find_uuid(one) for one in ones]
        in_use = {uuid: _CONTINUED for uuid in (*uuids, self._resumed) if uuid is not None}
        if with_saved and self._saved is not None:
            in_use[self._saved] = _JUST_SAVED
        return in_use

    def _find_uuid(self, one: LoadedCheckpoint) -> str | None:
        if one.uuid is not None:
            return one.uuid
        # Without a manifest its uuid is derived from the run's, as that is by now.
        with suppress(OSError):
            path = self._directory / names.final_name(one.step)
            if path.lstat().st_ino == one.inode:
                return checkpoint_identity.find_uuid(
                    identity.identify(self._directory), path, one.step
                )
        return None

    # --- warnings -----------------------------------------------------------------------

    def warn_before(self, step: int) -> None:
        """Warn once, before a save, of checkpoints that the loop may not expect.

        These are checkpoints of another process, at the first save of a process that has not
        queried the run; and steps above the one that is saved.
        """
        others: Sequence[int] = ()
        if self._highest is None:
            with suppress(OSError):
                listed = run_listing.list_finals(self._directory)
                self._highest = max((step for step, _ in listed), default=-1)
                # A directory of somebody's that is called so is no checkpoint.
                others = [] if self._is_known() else [
                    step for step, path in listed if os.path.lexists(f"{path}/{names.INFO}")
                ]  # fmt: skip
        is_below = self._highest is not None and step < self._highest
        above = self._find_above(step) if is_below and not self._has_warned else ()
        if is_below and not self._has_warned:
            self._highest = max(above, default=step)
        self._has_warned = self._has_warned or bool(above)
        if others or above:
            warnings.warn(_warning(self._directory, step, others, above))

    def _is_known(self) -> bool:
        known = load_history.find(self._directory)
        return self._has_looked or known.has_looked or known.has_saved

    def _find_above(self, step: int) -> list[int]:
        """Return the steps above that count: rejected or damaged checkpoints do not."""

        def find(catalog: Catalog, run_id: int, _: object) -> tuple[int, ...]:
            return catalog.ranking.newest_steps(run_id, _MOST_ABOVE)

        nothing: tuple[int, ...] = ()
        newest = self._index.query(find, nothing=nothing, trust_own=True)
        return sorted(other for other in newest if other > step)


def _warning(run: Path, step: int, others: Sequence[int], above: Sequence[int]) -> str:
    """Return a warning.

    Args:
        run: The directory.
        step: What is saved.
        others: What is there of another process.
        above: What of it is above that step.
    """
    facts, ways = [], []
    if others:
        count = "a checkpoint" if len(others) == 1 else f"{len(others)} checkpoints"
        facts.append(
            f"{run} holds {count} of another process ({some_steps(others)}), and this one has not "
            "asked for any: what it saves replaces what is there of the same step."
        )
        ways.append("to go on with that training, begin with resume()")
    if above:
        them = "it" if len(above) == 1 else "them"
        facts.append(
            f"Step {step} is saved below {some_steps(above)}{'' if others else f' of {run}'}: the "
            f"latest is still step {above[-1]}, and retention counts {them}, too."
        )
        ways.append(
            f"to go on from here, put {them} aside (`ckptdb reject STEP REASON`, or reject() of "
            "the manager)"
        )
    advice = "; ".join([*ways, "to start afresh, use another checkpoint_dir."])
    return " ".join([*facts, advice[0].upper() + advice[1:]])

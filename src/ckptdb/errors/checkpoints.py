"""Errors about checkpoints: which one is meant, and what its files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ckptdb.errors.base import CkptdbError


class UnknownCheckpoint(CkptdbError, LookupError):
    """The run has no checkpoint at that step."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Run {run!r} has no checkpoint at step {step}; `ckptdb ls {run}` lists them."
        )


class NotACheckpoint(CkptdbError, ValueError):
    """A text does not name a checkpoint."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} names no checkpoint; pass STEP, RUN:STEP or the path of a step_N directory."
        )


class NothingToChoose(CkptdbError, LookupError):
    """No checkpoint can be the best or the latest.

    Args:
        where: The condition that was to hold, for none of those that there are.
        lacking: Metrics of which no checkpoint, of those for which it holds, has finite values.
    """

    def __init__(self, where: str | None = None, *, lacking: Sequence[str] = ()) -> None:
        if lacking:
            what = "a finite value" if len(lacking) == 1 else "finite values"
            met = "" if where is None else f" for which {where!r} holds"
            of = " and ".join(map(repr, lacking))
            message = f"No checkpoint{met} has {what} of {of}; `ckptdb ls` lists what there is."
        elif where is None:
            message = "There is no checkpoint to choose from; see `ckptdb ls --all`."
        else:
            message = f"{where!r} holds for no checkpoint; `ckptdb top` lists what there is."
        super().__init__(message)


class CheckpointGone(CkptdbError, LookupError):
    """A deleted checkpoint cannot be pinned or kept any more."""

    def __init__(self, run: str, step: int, reason: str | None) -> None:
        super().__init__(
            f"Step {step} of {run!r} cannot be kept any more: {reason or 'deleted'}; "
            "nothing of it is left."
        )


class PathTaken(CkptdbError, LookupError):
    """The requested checkpoint is gone, and another checkpoint has its path now."""

    def __init__(self, was: str, now: str, instead: str) -> None:
        super().__init__(
            f"{was}; {now} has its path now, so that no path is printed (-o json prints all "
            f"there is to know); {instead}."
        )


class NothingLost(CkptdbError, LookupError):
    """No loss of that checkpoint is recorded, so that none can be accepted."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Step {step} of {run!r} is not recorded as lost; `ckptdb check` lists what is."
        )


class UnreadableInfo(CkptdbError, ValueError):
    """A training_info.json, manifest.json or run.json cannot be read or parsed."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}.")
        self.path = path
        self.why = why


class Untrustworthy(CkptdbError):
    """A checkpoint has a problem; it is kept and reported."""

    def __init__(self, where: Path, why: str) -> None:
        super().__init__(f"{where} cannot be trusted: {why}. `ckptdb verify` looks at every file.")


class NoCheckpointHere(CkptdbError, FileNotFoundError):
    """A directory to publish or to read is not a checkpoint."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}.")


class ConfigChanged(CkptdbError, ValueError):
    """The configuration differs from the one that the checkpoint was saved with.

    Attributes:
        changes: What differs, one line each; nothing where that is not known.
        what: The sentence, without advice.
    """

    _most_changes = 20

    def __init__(self, path: Path, changes: Sequence[str]) -> None:
        more = len(changes) - self._most_changes
        text = "; ".join(changes[: self._most_changes]) + (f"; and {more} more" if more > 0 else "")
        self.what = f"The configuration is not the one that {path} was saved with: {text}."
        super().__init__(self.what)
        self.changes = tuple(changes)


class ConfigNotComparable(ConfigChanged):
    """The configuration cannot be compared with the one of the checkpoint."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, ())
        self.what = f"Whether the configuration has changed since {path} cannot be told: {why}."
        self.args = (f"{self.what} Mend that, or pass on_change='warn' to go on all the same.",)

"""Errors about saving and publishing a checkpoint."""

from __future__ import annotations

import errno
from os import PathLike
from pathlib import Path

from ckptdb.errors.base import CkptdbError
from ckptdb.errors.text import human_bytes


class SaveFailed(CkptdbError, OSError):
    """A checkpoint could not be made durable; older ones are untouched."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        super().__init__(
            f"{path} was not published: {cause}. Older checkpoints are untouched; "
            "free space or check the disk, then save again."
        )


class ReplacedInPart(CkptdbError, OSError):
    """A new checkpoint waits for its name until the one it replaces is removed."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        super().__init__(
            f"{path} is complete and has not its final name yet, while the checkpoint that it "
            f"replaces is being removed: {cause}. The next save or `ckptdb reconcile` publishes it."
        )


class NotEnoughSpace(CkptdbError, OSError):
    """A checkpoint would not fit on the disk; nothing of it was written."""

    def __init__(self, run: Path, step: int, *, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"There is no space for step {step}: recent checkpoints of {run} take up to "
            f"{human_bytes(needed_bytes)}, and {human_bytes(free_bytes)} are free there with the "
            "trash emptied; nothing was written. Free some (`ckptdb gc` shows what could go) and "
            "save again, or pass check_space=False if this one takes less."
        )
        self.errno = errno.ENOSPC
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes


class StepTaken(CkptdbError, FileExistsError):
    """Another file or directory has the name of the checkpoint to be saved."""

    def __init__(self, path: Path, why: str = "") -> None:
        """Write the sentence; ``why`` says what it is, when that is known."""
        is_what = f" ({why})" if why else ""
        super().__init__(
            f"{path} exists and is not a checkpoint directory{is_what}; move it away and save "
            "again."
        )


class StepInUse(CkptdbError):
    """Another process writes the same step, or may do so."""

    def __init__(self, path: Path, holder: str, *, is_sure: bool = True) -> None:
        if is_sure:
            super().__init__(
                f"{path} is being written by {holder}; one process publishes for a run, "
                "stop the other one first."
            )
        else:
            super().__init__(
                f"{path} was begun by {holder}, which cannot be asked from here whether it still "
                "writes; stop it, then remove the directory, and save again."
            )


class Obstructed(CkptdbError, OSError):
    """A file of ckptdb has a wrong type, owner or link count, and is not used.

    Attributes:
        why: What is wrong with it, as the end of a sentence.
    """

    def __init__(self, path: str | PathLike[str], why: str, code: int) -> None:
        super().__init__(code, why, str(path))
        self.why = why

    def __str__(self) -> str:
        return (
            f"{self.filename} {self.why}: it was left alone, and so was what it leads to. Find out "
            "who put it there, move it away and run this again."
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

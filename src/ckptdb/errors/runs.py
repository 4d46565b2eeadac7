"""Errors about runs: names, locks and processes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ckptdb.errors.base import CkptdbError


class UnknownRun(CkptdbError, LookupError):
    """No run has that name, path or uuid."""

    def __init__(self, run: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known))
        hint = f"known runs: {names}" if names else "the catalog holds no run"
        super().__init__(f"No run is called {run!r}; {hint}.")


class RunOutside(CkptdbError, LookupError):
    """A row of the catalog has a directory outside the root of the command."""

    def __init__(self, run: str, directory: Path, catalog: str) -> None:
        super().__init__(
            f"{catalog} has the run {run!r} at {directory}, which is not below its root: nothing "
            "was looked at or changed there. Point the command at that directory itself (-C DIR "
            "--catalog FILE), or drop the row with `ckptdb forget`."
        )


class AmbiguousRun(CkptdbError, LookupError):
    """Several runs match a name or a uuid prefix."""

    def __init__(self, run: str | None, candidates: Iterable[str]) -> None:
        what = "Several runs are here" if run is None else f"{run!r} means several runs"
        super().__init__(f"{what}; name one by path or uuid: {', '.join(candidates)}.")


class NoRuns(CkptdbError, LookupError):
    """The catalog holds no run, and the command needs one."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"The catalog {where} holds no run yet; save a checkpoint, or `ckptdb reconcile`."
        )


class NoRunsBelow(NoRuns):
    """No run lies at or below the directory of a command that names no run."""

    def __init__(self, directory: Path, catalog: str, *, indexed: bool) -> None:
        """Write the sentence; ``indexed`` when there is none on the disk, either."""
        if indexed:
            message = (
                f"No run of the catalog {catalog} lies at or below {directory}; "
                "name one with --run, or change into a directory that has some."
            )
        else:
            message = (
                f"The runs at or below {directory} are not in the catalog {catalog} yet; "
                "`ckptdb reconcile` brings them into it."
            )
        CkptdbError.__init__(self, message)


class RunNotHere(CkptdbError, FileNotFoundError):
    """The run to be changed is not in its directory."""

    def __init__(self, run: str, directory: Path, why: str) -> None:
        super().__init__(
            f"Nothing was changed: the run {run!r} is not at {directory}, {why}. Mount or restore "
            "it there, or run `ckptdb reconcile` when it was moved."
        )


class RunInUse(CkptdbError):
    """Another process saves into the run."""

    def __init__(self, run: Path, holder: str) -> None:
        super().__init__(
            f"{run} is being trained by {holder}; stop it, use another checkpoint_dir, or pass "
            "exclusive=False to save beside it."
        )


class RunLocked(CkptdbError, TimeoutError):
    """The lock of a run was not released in time."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(
            f"{path} stayed locked for {seconds:g} s by another process; try again when it is done."
        )


class LockForbidden(CkptdbError, PermissionError):
    """The lock of a run cannot be opened by a user who may write the run."""

    def __init__(self, path: Path, owner: str) -> None:
        """Write the sentence; ``owner`` is whose it is."""
        super().__init__(
            f"{path} cannot be opened by this user, who may write its directory. The next save of "
            f"{owner}, whose it is, gives it the permissions of the directory, and so does `chmod`."
        )

"""Everything that ckptdb raises on purpose.

Each class takes facts and writes one sentence: what happened, where, what to do next.
`CkptdbError` is never raised itself; catch it to catch them all.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ckptdb.errors.text import clean, human_bytes


class CkptdbError(Exception):
    """Base of every error of this package; only its descendants are raised.

    Its sentence names what others have named, and is printed by whoever catches it, or by Python:
    nothing in it is for a terminal to obey.
    """

    def __str__(self) -> str:
        return clean(super().__str__())


def _listed(texts: Iterable[str], *, most: int = 10) -> str:
    """Return texts one after the other, the first of very many."""
    found = list(texts)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


# --- what the caller passed -------------------------------------------------------------


class InvalidConfig(CkptdbError, ValueError):
    """The manager's configuration is wrong; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("The checkpointing config is not usable: " + "; ".join(faults) + ".")


class ChecksumsUnavailable(CkptdbError, ImportError):
    """Checksums were asked for, and the library that makes them is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "Checksums need the package xxhash: pip install 'ckptdb[checksums]', or do without."
        )


class InvalidPolicy(CkptdbError, ValueError):
    """A retention policy makes no sense; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(f"The retention policy is not usable: {'; '.join(faults)}.")
        self.faults = tuple(faults)


class InvalidChoice(CkptdbError, ValueError):
    """A value is none of those that there are."""

    def __init__(self, what: str, value: object, choices: Sequence[str]) -> None:
        *first, last = map(repr, choices)
        super().__init__(f"{what} must be {', '.join(first)} or {last}, not {value!r}.")


class InvalidWatch(CkptdbError, ValueError):
    """Checkpoints cannot be watched like that; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(f"Nothing is watched: {'; '.join(faults)}.")


class InvalidStep(CkptdbError, ValueError):
    """A step is not an integer from 0 to 2**63 - 1."""

    def __init__(self, step: object) -> None:
        super().__init__(
            f"{step!r} is not a step: pass a whole number from 0 to 9223372036854775807."
        )


class SignalsElsewhere(CkptdbError, RuntimeError):
    """Signals were to be waited for in a thread that Python does not let do that."""

    def __init__(self, signals: Sequence[str]) -> None:
        super().__init__(
            f"save_on_signals ({', '.join(signals)}) works in the main thread only; call "
            "should_save there first, or leave save_on_signals out."
        )


class UnwritableInfo(CkptdbError, TypeError):
    """training_info or the run's configuration holds values no file can keep."""

    def __init__(self, what: str, faults: Sequence[str]) -> None:
        super().__init__(
            f"{what} cannot be written: {'; '.join(faults)}. "
            "Pass numbers, strings, lists and mappings; nothing was saved."
        )


class UnknownMetric(CkptdbError, LookupError):
    """No checkpoint has the metric that was asked for.

    Attributes:
        known: Metrics that checkpoints have, by name.
    """

    def __init__(self, metric: str, known: Iterable[str], *, run: str | None = None) -> None:
        self.metric = metric
        self.known = tuple(sorted(known))
        names = ", ".join(self.known)
        hint = f"known metrics: {names}" if names else "no checkpoint has any metric"
        where = "" if run is None else f" of {run!r}"
        super().__init__(f"No checkpoint{where} has the metric {metric!r}; {hint}.")


class UnknownDirection(CkptdbError, ValueError):
    """It is not known whether a metric is better high or low."""

    def __init__(self, metric: str | None, *, run: str | None = None) -> None:
        if metric is None:
            what = "" if run is None else f" {run!r}"
            message = f"No metric to rank{what} by: name one (--metric NAME --mode min|max)."
        else:
            message = f"Say whether {metric!r} is better low or high (--mode min|max)."
        super().__init__(message)


class NothingFinite(UnknownMetric):
    """Some checkpoint has the metric, but none of those asked for a value that can be ranked.

    Attributes:
        steps: By run, the steps at which it is NaN or infinite, as far as they were looked for.
    """

    def __init__(
        self,
        metric: str,
        runs: Sequence[str] | Mapping[str, Sequence[int]],
        *,
        known: Iterable[str] = (),
    ) -> None:
        super().__init__(metric, known)
        self.steps = dict(runs) if isinstance(runs, Mapping) else {}
        of = ", ".join(f"{run!r}{_at_steps(self.steps.get(run, ()))}" for run in runs)
        hint = f"; known metrics: {', '.join(self.known)}" if self.known else ""
        where = f" of {of}" if of else ""
        said = f"No checkpoint{where} has a finite value of the metric {metric!r}{hint}."
        self.args = (said,)


class MetricGone(UnknownMetric):
    """Checkpoints have had the metric, and none of those that count."""

    def __init__(self, metric: str, runs: Sequence[str], known: Iterable[str]) -> None:
        super().__init__(metric, known)
        of = f" of {_listed(map(repr, runs))}" if runs else ""
        others = [name for name in self.known if name != metric]
        hint = f"; other metrics: {', '.join(others)}" if others else ""
        said = (
            f"No live checkpoint{of} has a value of the metric {metric!r}: those that have it are "
            f"deleted, rejected or damaged (`ckptdb best --ever` ranks deleted ones){hint}."
        )
        self.args = (said,)


def _at_steps(steps: Sequence[int]) -> str:
    if not steps:
        return ""
    more = ", …" if len(steps) > 10 else ""  # noqa: PLR2004  # a line
    return f" (NaN or infinite at step(s) {', '.join(map(str, steps[:10]))}{more})"


class MetricNotChosen(CkptdbError, ValueError):
    """The metric to draw was not named, and the runs do not agree on one."""

    def __init__(self, metrics: Iterable[str | None]) -> None:
        own = ", ".join(sorted(map(str, metrics)))
        why = f"are judged by several ({own})" if own else "have none of their own"
        super().__init__(f"The runs here {why}; name a metric: `ckptdb plot METRIC`.")


class InvalidCondition(CkptdbError, ValueError):
    """What was demanded of checkpoints is not one SQL expression over what they have."""

    def __init__(self, condition: str, why: str) -> None:
        super().__init__(f"The condition {condition!r} cannot be used: {why}.")


class UnknownName(InvalidCondition, LookupError):
    """A condition names what is neither a column nor a metric."""

    def __init__(
        self, condition: str, name: str, columns: Iterable[str], metrics: Iterable[str]
    ) -> None:
        known = ", ".join(metrics)
        metric = f"a metric ({known})" if known else "a metric, of which there is none"
        super().__init__(
            condition, f"{name!r} is neither a column ({', '.join(columns)}) nor {metric}"
        )


class InvalidTime(CkptdbError, ValueError):
    """A text is no point in time."""

    def __init__(self, text: object) -> None:
        super().__init__(
            f"{text!r} is no time: write it like 2026-11-22T16:00:00Z (in UTC when it does not "
            "say where) or '2 hours ago'."
        )


class UnknownRun(CkptdbError, LookupError):
    """No run goes by that name, path or uuid."""

    def __init__(self, run: str, known: Iterable[str]) -> None:
        names = ", ".join(sorted(known))
        hint = f"known runs: {names}" if names else "the catalog holds no run"
        super().__init__(f"No run is called {run!r}; {hint}.")


class RunOutside(CkptdbError, LookupError):
    """A row of the catalog leads outside of what a command was pointed at."""

    def __init__(self, run: str, directory: Path, catalog: str) -> None:
        super().__init__(
            f"{catalog} has the run {run!r} at {directory}, which is not below its root: nothing "
            "was looked at or changed there. Point the command at that directory itself (-C DIR "
            "--catalog FILE), or drop the row with `ckptdb forget`."
        )


class AmbiguousRun(CkptdbError, LookupError):
    """Several runs go by that name or uuid prefix."""

    def __init__(self, run: str | None, candidates: Iterable[str]) -> None:
        what = "Several runs are here" if run is None else f"{run!r} means several runs"
        super().__init__(f"{what}; name one by path or uuid: {', '.join(candidates)}.")


class NoRuns(CkptdbError, LookupError):
    """A run was needed, and the catalog holds none."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"The catalog {where} holds no run yet; save a checkpoint, or `ckptdb reconcile`."
        )


class PathTaken(CkptdbError, LookupError):
    """What was asked for is gone, and its path is that of another checkpoint now."""

    def __init__(self, was: str, now: str, instead: str) -> None:
        super().__init__(
            f"{was}; {now} has its path now, so that no path is printed (-o json prints all "
            f"there is to know); {instead}."
        )


class NoRunsBelow(NoRuns):
    """What names no run was asked where none is."""

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


class RunsNotNamed(CkptdbError, ValueError):
    """Several runs would be deleted from, and nobody has said which."""

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__(
            f"This would delete in several runs: {_listed(map(str, runs))}; name those that are "
            "meant (--run RUN, which may be repeated), or pass --all-runs. Nothing was deleted."
        )


class DeletionNotConfirmed(CkptdbError):
    """Several runs would be deleted from, and nobody is there to be asked."""

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__(
            f"This would delete in several runs: {_listed(map(str, runs))}; pass --yes to do so "
            "without being asked (`--dry-run` says what would go). Nothing was deleted."
        )


class NothingToChoose(CkptdbError, LookupError):
    """The best or the latest was asked for, and no checkpoint is it.

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


class UnknownCheckpoint(CkptdbError, LookupError):
    """The run has no checkpoint at that step."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Run {run!r} has no checkpoint at step {step}; `ckptdb ls {run}` lists them."
        )


class NotACheckpoint(CkptdbError, ValueError):
    """What was named cannot be a checkpoint."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text!r} names no checkpoint; pass STEP, RUN:STEP or the path of a step_N directory."
        )


class CheckpointGone(CkptdbError, LookupError):
    """A deleted checkpoint was to be kept."""

    def __init__(self, run: str, step: int, reason: str | None) -> None:
        super().__init__(
            f"Step {step} of {run!r} cannot be kept any more: {reason or 'deleted'}; "
            "nothing of it is left."
        )


class PlanChanged(CkptdbError):
    """What would go is not what was planned."""

    def __init__(self, runs: Sequence[str]) -> None:
        named = ", ".join(map(repr, runs)) or "the runs that were planned for"
        super().__init__(
            f"What would go from {named} is not what was planned: something has changed since. "
            "Nothing went; look at a new plan (`--dry-run`, `plan_retention()`) and decide again."
        )


class RunChanged(CkptdbError):
    """A run has changed since it was judged what goes from it."""

    def __init__(self, run: Path) -> None:
        super().__init__(
            f"{run} has changed since it was judged: by its files something else would go now. "
            "Nothing of it was deleted; run `ckptdb gc` again"
        )


@dataclass(frozen=True, slots=True)
class NotDeleted:
    """What was to be deleted and was not, or not wholly.

    Attributes:
        run: Its directory.
        step: The checkpoint's; None when something went wrong for the run as a whole.
        error: Why.
        left: Where bytes of it are left, though it counts as deleted; None when it is untouched.
    """

    run: Path
    step: int | None
    error: Exception
    left: Path | None = None

    @property
    def cause(self) -> str:
        """The error in words, without what kind of error it is."""
        name, why = getattr(self.error, "filename", None), getattr(self.error, "strerror", None)
        return f"{name}: {why}" if name and why else str(why or self.error)

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        left = None if self.left is None else str(self.left)
        return {"step": self.step, "cause": self.cause, "left": left}


class DeletionIncomplete(CkptdbError, OSError):
    """Of what was to be deleted, something was not, or not wholly; the message says what.

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
        told = "; ".join(part for part in parts if part)
        return f"{told} ({causes})" if told and causes else told or causes


def _of_steps(steps: Sequence[int | None], are: str) -> str:
    if not steps:
        return ""
    named = ", ".join(map(str, steps))
    return f"step {named} is {are}" if len(steps) == 1 else f"steps {named} are {are}"


class NotUndeleted(CkptdbError):
    """A deleted checkpoint cannot come back."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(
            f"{path} was not undeleted: {why}. Only what was deleted with a trash_ttl that has not "
            "passed, and whose step is free, can come back."
        )


class PinnedCheckpoint(CkptdbError):
    """A pinned checkpoint was to be removed."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Step {step} of {run!r} is pinned; `ckptdb unpin {step} --run {run}` first, "
            "or pass --force."
        )


class LinkedCheckpoint(CkptdbError):
    """A checkpoint behind a symlink was to be removed."""

    def __init__(self, path: Path, target: str) -> None:
        super().__init__(
            f"{path} is a link to {target}, and nothing is deleted through a link: remove the link "
            "and what it leads to by hand, then `ckptdb reconcile`. Nothing was deleted."
        )


class LeasedCheckpoint(CkptdbError):
    """A checkpoint that is being evaluated was to be removed."""

    def __init__(self, run: str, step: int, who: str) -> None:
        super().__init__(
            f"Step {step} of {run!r} is leased for {who}; wait until that is done, or pass --force."
        )


class JournalInDoubt(CkptdbError):
    """A run's journal is damaged, or a catalog knows more: nothing may be deleted by it."""

    def __init__(self, run: Path, why: str) -> None:
        super().__init__(
            f"Nothing is deleted in {run}: {why}; `ckptdb reconcile {run}` says what can be "
            "restored, and does it."
        )
        self.why = why


class NothingLost(CkptdbError, LookupError):
    """A loss was to be accepted that nobody has recorded."""

    def __init__(self, run: str, step: int) -> None:
        super().__init__(
            f"Step {step} of {run!r} is not recorded as lost; `ckptdb check` lists what is."
        )


class NotServable(CkptdbError):
    """The page cannot be served as asked."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The page cannot be served: {why}.")


# --- what is on disk --------------------------------------------------------------------


class UnreadableInfo(CkptdbError, ValueError):
    """A training_info.json, manifest.json or run.json cannot be trusted."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}.")
        self.path = path
        self.why = why


class Untrustworthy(CkptdbError):
    """A checkpoint was found that cannot be trusted; it is kept and reported."""

    def __init__(self, where: Path, why: str) -> None:
        super().__init__(f"{where} cannot be trusted: {why}. `ckptdb verify` looks at every file.")


class NoCheckpointHere(CkptdbError, FileNotFoundError):
    """A directory that should be published or read is not a checkpoint."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} {why}.")


class ConfigChanged(CkptdbError, ValueError):
    """Training would continue with another configuration than the checkpoint was saved with.

    Attributes:
        changes: What differs, one line each; nothing where that is not known.
        what: The sentence, without advice.
    """

    _told = 20

    def __init__(self, path: Path, changes: Sequence[str]) -> None:
        more = len(changes) - self._told
        shown = "; ".join(changes[: self._told]) + (f"; and {more} more" if more > 0 else "")
        self.what = f"The configuration is not the one that {path} was saved with: {shown}."
        super().__init__(self.what)
        self.changes = tuple(changes)


class ConfigNotComparable(ConfigChanged):
    """Whether training would continue with another configuration cannot be told."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(path, ())
        self.what = f"Whether the configuration has changed since {path} cannot be told: {why}."
        self.args = (f"{self.what} Mend that, or pass on_change='warn' to go on all the same.",)


class Obstructed(CkptdbError, OSError):
    """Something of ours is not what it should be, or not of somebody who may write there.

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


class StepTaken(CkptdbError, FileExistsError):
    """Something that is not a checkpoint stands where a checkpoint must go."""

    def __init__(self, path: Path, why: str = "") -> None:
        """Write the sentence; ``why`` says what it is, when that is known."""
        is_what = f" ({why})" if why else ""
        super().__init__(
            f"{path} exists and is not a checkpoint directory{is_what}; move it away and save "
            "again."
        )


class StepInUse(CkptdbError):
    """Another process is writing the same step, or may be."""

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


class RunInUse(CkptdbError):
    """Another process saves into the run."""

    def __init__(self, run: Path, holder: str) -> None:
        super().__init__(
            f"{run} is being trained by {holder}; stop it, use another checkpoint_dir, or pass "
            "exclusive=False to save beside it."
        )


class RunLocked(CkptdbError, TimeoutError):
    """The run's lock stayed taken."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(
            f"{path} stayed locked for {seconds:g} s by another process; try again when it is done."
        )


class LockForbidden(CkptdbError, PermissionError):
    """The lock of a run is not open to somebody who may write there."""

    def __init__(self, path: Path, owner: str) -> None:
        """Write the sentence; ``owner`` is whose it is."""
        super().__init__(
            f"{path} cannot be opened by this user, who may write its directory. The next save of "
            f"{owner}, whose it is, gives it the permissions of the directory, and so does `chmod`."
        )


class SaveFailed(CkptdbError, OSError):
    """A checkpoint could not be made durable; older ones are untouched."""

    def __init__(self, path: Path, cause: BaseException) -> None:
        super().__init__(
            f"{path} was not published: {cause}. Older checkpoints are untouched; "
            "free space or check the disk, then save again."
        )


class ReplacedInPart(CkptdbError, OSError):
    """A checkpoint that cannot be moved is being removed, and the new one has not its name yet."""

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


class RunNotHere(CkptdbError, FileNotFoundError):
    """A run was to be changed that is not in its directory."""

    def __init__(self, run: str, directory: Path, why: str) -> None:
        super().__init__(
            f"Nothing was changed: the run {run!r} is not at {directory}, {why}. Mount or restore "
            "it there, or run `ckptdb reconcile` when it was moved."
        )


# --- the index --------------------------------------------------------------------------


class CatalogError(CkptdbError):
    """The catalog cannot be used; raised only through its descendants."""


class CatalogMissing(CatalogError, FileNotFoundError):
    """There is no catalog where one was looked for, and nothing to make one of."""

    sentence = (
        "No catalog and no checkpoints at {where}; change into a run or a root, "
        "name one with -C, or mark one with `ckptdb init`."
    )

    def __init__(self, where: Path | str, **facts: str) -> None:
        super().__init__(self.sentence.format(where=where, **facts))


class RootRefused(CatalogError):
    """A directory is marked as a root by somebody whose mark does not count."""

    def __init__(self, root: Path, owner: str, why: str) -> None:
        super().__init__(
            f"{root} is marked as a root by {owner}, {why}: its catalog is not used. Name another "
            "one with --catalog, catalog= or CKPTDB_CATALOG, or let a common group write to "
            f"{root}/.ckptdb and nobody else."
        )


class DirectoryMissing(CatalogMissing):
    """There is no such directory."""

    sentence = "There is no directory {where}; name a run or a root."


class CatalogNotBegun(CatalogMissing):
    """There are runs, and no catalog of them yet."""

    sentence = "There is no catalog at {where} yet; the first save or `ckptdb reconcile` makes it."


class RootsBelow(CatalogMissing):
    """All runs below a directory belong to roots that are below it, too."""

    sentence = (
        "The runs below {where} have catalogs of their own at {roots}; "
        "change into one of these, or name it with -C."
    )

    def __init__(self, where: Path, roots: Iterable[Path]) -> None:
        super().__init__(where, roots=", ".join(map(str, roots)))


class CatalogLocked(CatalogError, TimeoutError):
    """Another process kept the catalog locked."""

    def __init__(self, where: str) -> None:
        super().__init__(f"The catalog {where} is locked by another process; try again shortly.")


class CatalogBroken(CatalogError):
    """The catalog file is damaged or is no database."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"The catalog {where} is not readable ({why}); "
            "`ckptdb reconcile` sets it aside and rebuilds it from the checkpoints."
        )


class CatalogTampered(CatalogBroken):
    """The catalog holds what ckptdb never puts there, and what could run by itself."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, f"it holds {what}, which ckptdb never puts there")


class CatalogUnusable(CatalogError):
    """The catalog cannot be opened or written: permissions, space, a bad address."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"The catalog {where} cannot be used: {why}.")


class CatalogReadOnly(CatalogUnusable):
    """The catalog may be read but not written."""

    def __init__(self, where: str, why: str = "") -> None:
        """Write the sentence; ``why`` says what is wrong, when it is more than permissions."""
        read_only = "it is read-only here; make it writable or choose another one"
        super().__init__(where, why or read_only)


class CatalogOutdated(CatalogError):
    """The catalog was made by an older version of ckptdb."""

    def __init__(self, where: str, revision: str) -> None:
        super().__init__(
            f"The catalog {where} is at the older revision {revision}; run `ckptdb db upgrade`."
        )


class CatalogTooNew(CatalogError):
    """The catalog was made by a newer version of ckptdb."""

    def __init__(self, where: str, revision: str) -> None:
        super().__init__(
            f"The catalog {where} is at revision {revision}, which this version of ckptdb "
            "does not know; upgrade ckptdb, nothing was changed."
        )


class CatalogForeign(CatalogError):
    """The database belongs to another application."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} is a database of another application; choose another file "
            "with --catalog, nothing was changed."
        )


class QueryRefused(CkptdbError):
    """The SQL would write, or reach outside the catalog."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The query was refused: {why}. Only SELECT and WITH are answered.")
        self.why = why


class QueryFailed(CkptdbError, ValueError):
    """The SQL is wrong.

    Attributes:
        excerpt: Its lines that may be at fault, with marks below; empty when nobody knows.
    """

    def __init__(self, why: str, *, where: str = "", excerpt: str = "") -> None:
        """Write the sentence; ``where`` is like ``"line 1, column 8"``."""
        at = f" at {where}" if where else ""
        super().__init__(f"The query failed{at}: {why}. `ckptdb schema` lists tables and columns.")
        self.why = why
        self.excerpt = excerpt


class FileUnusable(CkptdbError):
    """A file cannot be read or written that was named for a query or a report."""

    def __init__(self, path: Path, how: str, why: str) -> None:
        super().__init__(f"{path} cannot be {how}: {why}.")


class UnknownRelation(CkptdbError, LookupError):
    """No table or view is called so."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"No table or view is called {name!r}; there are {', '.join(known)}.")


class ParameterMissing(CkptdbError, LookupError):
    """The SQL has a parameter that was given no value."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The query asks for :{name}; pass -p {name}=...")


class QueryTimeout(CkptdbError, TimeoutError):
    """The SQL ran longer than it may."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"The query was stopped after {seconds:g} s; narrow it, or raise --timeout."
        )
        self.why = f"it was stopped after {seconds:g} s"


class QueryTooLarge(CkptdbError):
    """The SQL takes more memory or disk than it may, or its answer is longer than it may be."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The query was stopped: {why}; ask for fewer columns or rows.")
        self.why = why


class LibraryMissing(CkptdbError, ImportError):
    """Something needs libraries that are not installed."""

    def __init__(self, what: str, libraries: str, install: str) -> None:
        super().__init__(
            f"{what} needs {libraries}, not installed here: `pip install '{install}'`."
        )


class IndexStale(CatalogError):
    """The index holds another checkpoint where a new one is to be recorded."""

    def __init__(self, steps: Sequence[int]) -> None:
        low, high = min(steps), max(steps)
        where = f"step {low}" if low == high else f"one of the steps {low} to {high}"
        super().__init__(
            f"The catalog holds another checkpoint at {where}; "
            "`ckptdb reconcile` compares it with the disk."
        )


class InvalidAnnotation(CkptdbError, ValueError):
    """A tag, note, source or late metric cannot be recorded."""

    def __init__(self, why: str) -> None:
        super().__init__(f"Nothing was recorded: {why}.")

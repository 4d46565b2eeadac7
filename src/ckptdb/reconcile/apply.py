"""Looking at runs, comparing them with the index, and carrying the plan out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.statements import TAKEN
from ckptdb.catalog.store import Changes, Child
from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.recorded import IndexedRun, RecordedRun
from ckptdb.core.records import Checkpoint, Run
from ckptdb.disk import identity, scan
from ckptdb.disk.publish import Publisher
from ckptdb.disk.scan import KnownFingerprints, Listing, Observation, Stamp
from ckptdb.errors import CkptdbError
from ckptdb.reconcile import doubt
from ckptdb.reconcile import locked as under_lock
from ckptdb.reconcile.batch import BatchReader
from ckptdb.reconcile.locked import bury, held, held_to_look
from ckptdb.reconcile.plan import (
    OF_A_RUN,
    OF_THE_JOURNAL,
    REPAIRS,
    Action,
    ReconcilePlan,
    find_missing,
    keep_damage,
    plan,
    unwritten,
)
from ckptdb.reconcile.repairs import Completing, Finishing
from ckptdb.reconcile.run_location import find_whereabouts

ReconcileDepth = Literal["changes", "files", "full"]
"""How much is looked at again: only what the stamp and the fingerprints say is new; what every
checkpoint and the whole journal say, whatever the index says of them; or every file of every
checkpoint besides."""

_PREFIX = 8
"""So many characters of a uuid are shown to call a run by."""
_ROUNDS = 3
"""Repairs of one kind can uncover another (an old one put back lets a tmp be published)."""


@dataclass(frozen=True, slots=True)
class RunReport(JsonRecord):
    """What reconciling one run found, and whether it was carried out.

    Attributes:
        blocked: Why some of it could not be done, or None.
        run_id: The run in the catalog, None when it is not there.
        verified: The stamp for which the catalog is now known to be exact.
        doubt: Why nothing of it may be deleted now, in words: its journal is damaged, or the
            catalog contradicts it.
        uuid: The run's.
        journal_aside: Where its damaged journal is kept.
        is_unfinished: Whether something is left to do in its directory that only whoever acts on
            the run may do: removals, and lines of the journal.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "run": "name",
        "directory": "directory",
        "applied": "applied",
        "blocked": "blocked",
        "doubt": "doubt",
        "journal_aside": "journal_aside",
        "actions": "actions",
    }

    directory: Path
    name: str
    actions: tuple[Action, ...]
    blocked: str | None = None
    applied: bool = False
    run_id: int | None = None
    verified: Stamp | None = None
    doubt: str | None = None
    uuid: str | None = None
    journal_aside: Path | None = None
    is_unfinished: bool = False

    @property
    def has_drift(self) -> bool:
        """Disk and index differed, or a checkpoint is lost or cannot be trusted."""
        return any(action.is_drift for action in self.actions)

    @property
    def has_changes(self) -> bool:
        """Disk and index differed: applying changes something."""
        return any(action.is_change for action in self.actions)

    @property
    def lasting(self) -> tuple[Action, ...]:
        """What only a person can settle: checkpoints that are lost or cannot be trusted."""
        return tuple(action for action in self.actions if action.is_lasting)


@dataclass(frozen=True, slots=True)
class ReconcileReport(JsonRecord):
    """What reconciling a tree found.

    Attributes:
        missing: Runs that the catalog has below the tree and that are not there.
        replaced: Runs whose directory below the tree is another run's by now.
        strays: How many rows of the catalog belong to no run or checkpoint that there is; removed.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "drift": "has_drift",
        "not_verifiable": "not_verifiable",
        "counts": "counts",
        "blocked": "blocked",
        "replaced": "replaced",
        "set_aside": "set_aside",
        "strays": "strays",
        "runs": "runs",
    }

    runs: tuple[RunReport, ...]
    missing: tuple[Path, ...] = ()
    replaced: tuple[Run, ...] = ()
    set_aside: Path | None = None
    checkpoints: int = 0
    seconds: float = 0.0
    strays: int = 0

    @property
    def not_verifiable(self) -> int:
        """Of how many checkpoints the files could not be compared, where that was asked."""
        return sum(a.kind == "not verifiable" for run in self.runs for a in run.actions)

    @property
    def has_drift(self) -> bool:
        """Disk and index differed somewhere, or a checkpoint is lost or cannot be trusted."""
        return bool(self.strays) or any(run.has_drift for run in self.runs)

    @property
    def has_changes(self) -> bool:
        """Disk and index differed somewhere: applying changes something."""
        return bool(self.strays) or any(run.has_changes for run in self.runs)

    @property
    def has_lasting(self) -> bool:
        """Something is left that only a person can settle."""
        return any(run.lasting for run in self.runs)

    @property
    def counts(self) -> dict[str, int]:
        """How many differences there are, and how many checkpoints of each kind are not well."""
        actions = [action for run in self.runs for action in run.actions]
        kinds = Counter("lost" if a.is_lost else a.kind for a in actions)
        return {
            "differences": self.strays + sum(action.is_change for action in actions),
            **{kind: kinds[kind] for kind in ("lost", "damaged", "unreadable", "rejected")},
        }

    @property
    def history(self) -> tuple[str, ...]:
        """Which runs only the catalog has, because others took their directories; a line each."""
        return tuple(
            f"{run.directory} is another run's by now; what was there before is history, and is "
            f"called {run.uuid[:_PREFIX]} (`ckptdb ls {run.uuid[:_PREFIX]} --all`, `ckptdb forget "
            f"{run.uuid[:_PREFIX]}`)"
            for run in self.replaced
        )

    @property
    def blocked(self) -> tuple[str, ...]:
        """What could not be done, one sentence each."""
        gone = (
            f"{path} is not there; its history is kept until it is back or `ckptdb forget {path}`"
            for path in self.missing
        )
        return (*(run.blocked for run in self.runs if run.blocked), *gone)


def reconcile_tree(
    catalog: Catalog,
    top: Path,
    *,
    depth: ReconcileDepth = "files",
    dry_run: bool = False,
    on_run: Callable[[Path], None] | None = None,
    on_checkpoint: Callable[[], None] | None = None,
) -> ReconcileReport:
    """Reconcile every run at or below ``top``.

    Args:
        catalog: The index to bring up to date.
        top: A run, a root, or any directory between.
        depth: How much is looked at again.
        dry_run: Only say what would be done.
        on_run: Called before each run, for a progress bar.
        on_checkpoint: Called after each checkpoint.
    """
    started = time.monotonic()
    count = 0
    strays = catalog.count_strays()
    if strays and not dry_run:
        catalog.remove_strays()

    def counted() -> None:
        nonlocal count
        count += 1
        if on_checkpoint:
            on_checkpoint()

    reports: dict[Path, RunReport] = {}
    look = partial(
        reconcile_run, catalog, depth=depth, dry_run=dry_run, on_checkpoint=counted, settle=True
    )
    with_known = _with_known(scan.list_runs(top), catalog, top, reports)
    for directory, listing in _moved_first(with_known, catalog):
        if on_run:
            on_run(directory)
        reports[directory] = look(directory, listing=listing)
    if any(action.kind == "moved run" for run in reports.values() for action in run.actions):
        # What seemed to have lost its run.json may be another run, begun where one moved away.
        again = [directory for directory, report in reports.items() if report.blocked]
        reports |= {directory: look(directory) for directory in again}
    # One that has moved is not missing where it was.
    found = {report.uuid for report in reports.values()}
    known = (seen.run.directory for seen in catalog.runs() if seen.run.uuid not in found)
    missing = tuple(
        d for d in known if d.is_relative_to(top) and (".." in d.parts or not d.is_dir())
    )
    replaced = _find_replaced(catalog, top, reports)
    seconds = time.monotonic() - started
    return ReconcileReport(
        tuple(reports.values()),
        missing,
        replaced,
        checkpoints=count,
        seconds=seconds,
        strays=strays,
    )


def _find_replaced(catalog: Catalog, top: Path, reports: Iterable[Path]) -> tuple[Run, ...]:
    """Return the runs of the index whose directory holds another one, and that are nowhere."""
    here = set[str]()
    for directory in reports:
        with suppress(OSError):
            here.add(identity.identify(directory).run.uuid)
    return tuple(
        seen.run
        for seen in catalog.runs()
        if seen.run.uuid not in here
        and seen.run.directory.is_relative_to(top)
        and ".." not in seen.run.directory.parts
        and find_whereabouts(catalog, seen.run.uuid, seen.run.directory) == "replaced"
    )


def _with_known(
    found: Iterator[Listing], catalog: Catalog, top: Path, done: Mapping[Path, object]
) -> Iterator[tuple[Path, Listing | None]]:
    for listing in found:
        yield listing.directory, listing
    # A run behind a symlink, or emptied, is not found by looking; the catalog remembers it.
    for seen in catalog.runs():
        directory = seen.run.directory
        if ".." in directory.parts or directory in done:
            continue  # such a row of the catalog leads anywhere
        if directory.is_relative_to(top) and directory.is_dir():
            yield directory, None


def _moved_first(
    found: Iterator[tuple[Path, Listing | None]], catalog: Catalog
) -> Iterator[tuple[Path, Listing | None]]:
    """Yield last what stands where another run was: that one may be found elsewhere before."""
    there = {seen.run.directory: seen.run.uuid for seen in catalog.runs()}
    others: dict[Path, None] = {}  # the catalog names once more what has not been looked at
    for directory, listing in found:
        if there.get(directory) in (None, identity.identify(directory).run.uuid):
            yield directory, listing
        else:
            others[directory] = None
    yield from ((directory, None) for directory in others)


def reconcile_run(
    catalog: Catalog,
    directory: Path,
    *,
    depth: ReconcileDepth = "files",
    dry_run: bool = False,
    assume: bool = False,
    publisher: Publisher | None = None,
    on_checkpoint: Callable[[], None] | None = None,
    listing: Listing | None = None,
    settle: bool = False,
) -> RunReport:
    """Compare one run with the index, make the index true, and finish what is half done.

    For those who act on the run: what a crash interrupted on disk is finished, removals included,
    and what vanished is written to the journal. Whoever only asks takes `index_run`.

    Args:
        catalog: The index.
        directory: The run, absolute.
        depth: How much is looked at again.
        dry_run: Only say what would be done.
        assume: Store the stamp even if it is too young to be sure, marked as not verified.
        publisher: Does the repairs, with its durability and metric.
        on_checkpoint: Called after each checkpoint that was looked at.
        listing: Of the directory, when it has just been made.
        settle: Also restore what a damaged journal does not tell and the index knows. Without,
            what either of them says stands, and nothing of the run may be deleted.

    Raises:
        OSError: The directory cannot be read at all.
    """
    repairs = None if dry_run else Finishing(publisher or Publisher(directory))
    how = _How(depth, repairs, assume, store=not dry_run, settle=settle)
    return _reconcile(catalog, directory, how, on_checkpoint, listing)


def index_run(
    catalog: Catalog,
    directory: Path,
    *,
    depth: ReconcileDepth = "files",
    assume: bool = False,
    completing: Completing | None = None,
    listing: Listing | None = None,
    locked: bool = False,
) -> RunReport:
    """Bring the index to what is on disk in one run, and change nothing there.

    What has vanished the index then knows; whoever acts on the run writes it to the journal.

    Args:
        catalog: The index.
        directory: The run, absolute.
        depth: How much is looked at again.
        assume: See `reconcile_run`.
        completing: Publishes what a crash left complete, which is all that may be changed; None
            not even that.
        listing: Of the directory, when it has just been made.
        locked: The caller holds the run's lock.

    Raises:
        OSError: The directory cannot be read at all.
    """
    return _reconcile(
        catalog, directory, _How(depth, completing, assume, locked=locked), None, listing
    )


def _reconcile(
    catalog: Catalog,
    directory: Path,
    how: _How,
    on_checkpoint: Callable[[], None] | None,
    listing: Listing | None,
) -> RunReport:
    # What is taken in takes the lock itself.
    look = _look(catalog, directory, how, on_checkpoint, take_in=not how.locked, listing=listing)
    if isinstance(look, RunReport):
        return look
    if how.settle and how.finishing and look.plan.doubt is not None:
        return _settle(catalog, look, how, how.finishing)
    if not how.store or not (_worth_it(look, how) or _is_new_copy(look, how)):
        return _report(directory, look)
    catalog.database.ensure_sound()
    done: list[Action] = []
    blocked: list[str] = []
    if how.repairs is not None:
        done, blocked = _repair(how.repairs, catalog, look)
    return _index(catalog, look, how, (done, blocked))


@dataclass(frozen=True, slots=True)
class _How:
    """How a run is reconciled; ``repairs`` is all that may change it, None when nothing may."""

    depth: ReconcileDepth
    repairs: Completing | None = None
    assume: bool = False
    store: bool = True
    settle: bool = False
    locked: bool = False

    @property
    def finishing(self) -> Finishing | None:
        """What may do everything, if that is allowed."""
        return self.repairs if isinstance(self.repairs, Finishing) else None

    @property
    def writes(self) -> bool:
        """Whether the journal may be written to."""
        return self.finishing is not None

    @property
    def tells_all(self) -> bool:
        """Whether also what only the journal lacks is a difference: to be written, or named."""
        return self.writes or not self.store


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at a run found; ``taken`` and ``children`` are of what is stored already."""

    observation: Observation
    recorded: RecordedRun
    plan: ReconcilePlan
    taken: tuple[Action, ...] = ()
    children: tuple[Child, ...] = ()

    @property
    def actions(self) -> tuple[Action, ...]:
        """All differences, the run's own first."""
        planned = self.plan.actions
        if any(action.kind == "moved run" for action in planned):
            # Of what it was taken for while another run stood where it was, that says enough.
            planned = tuple(a for a in planned if not self._was_only_moved(a))
        if not self.taken:
            return planned
        head = tuple(a for a in planned if a.kind in OF_A_RUN)
        return (*head, *self.taken, *(a for a in planned if a.kind not in OF_A_RUN))

    def _was_only_moved(self, action: Action) -> bool:
        gone = self.recorded.gone.get(action.uuid or "")
        return action.kind == "reappeared" and gone is not None and gone[1] == TAKEN

    @property
    def has_changes(self) -> bool:
        """Whether there is, or was, anything to learn for the index or to do on disk."""
        return bool(self.taken) or self.plan.has_changes


def _look(
    catalog: Catalog,
    directory: Path,
    how: _How,
    on_checkpoint: Callable[[], None] | None = None,
    before: Observation | None = None,
    *,
    take_in: bool = False,
    listing: Listing | None = None,
) -> _Look | RunReport:
    who = identity.identify(directory)
    seen, blocked = _find_seen(catalog, who)
    if blocked:
        return RunReport(directory, directory.name, (), blocked=blocked)
    # The second time the journal is always read; and who writes to it has to know what it lacks.
    history = how.depth != "changes" or before is not None or how.writes
    recorded = catalog.recorded(seen, history=history)
    intake = BatchReader(
        catalog, who, recorded, how.depth == "full", how.store, how.writes, history
    )
    observed = scan.observe(
        directory,
        _known(recorded, how, before),
        verify=how.depth == "full",
        on_checkpoint=on_checkpoint,
        take=intake.take if take_in else None,
        listing=listing,
    )
    if intake.finals:
        recorded = intake.completed()
    if before:
        observed = _completed(observed, before)
    if observed.facts is not None and not history:
        # What is live stays as the observation was told.
        told = catalog.recorded(recorded.indexed, history=True)
        recorded = replace(recorded, gone=told.gone, annotations=told.annotations)
        if find_missing(observed, recorded):
            # Perhaps only because somebody has written it down since, and told the index.
            with suppress(OSError):
                observed = replace(observed, facts=scan.read_facts(who))
    recorded = replace(recorded, records=_contents(catalog, observed, recorded, how.depth))
    if how.depth != "changes" and recorded.indexed is not None:
        recorded = replace(recorded, inconsistent=catalog.find_inconsistent(recorded.indexed.id))
    if recorded.problems:
        full = how.depth == "full"
        kept = {
            step: cp
            and keep_damage(cp, recorded, sizes_verified=full and step not in observed.doubts)
            for step, cp in observed.finals.items()
        }
        observed = replace(observed, finals=kept)
    found = plan(observed, recorded)
    if not how.tells_all:
        ended = [a for a in found.actions if a.kind == "vanished" and _is_gone(a.checkpoint)]
        found = replace(found, actions=tuple(a for a in found.actions if a not in ended))
    if not how.settle and found.doubt is not None:
        actions = tuple(a for a in found.actions if a.kind not in OF_THE_JOURNAL)
        found = replace(found, actions=actions)
    return _Look(observed, recorded, found, tuple(intake.actions), tuple(intake.children))


def _is_gone(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.status == "deleted"


def _find_seen(catalog: Catalog, who: identity.Identity) -> tuple[IndexedRun | None, str | None]:
    seen = catalog.find_run(who.run.uuid)
    # A uuid derived from the path comes back without the run.json that made it permanent.
    if seen and (seen.run.created_at is None or (who.marked and not who.problem)):
        return seen, None
    there = seen or catalog.find_run_at(who.run.directory)
    # A run that ckptdb never wrote to has no run.json to lose, and is named after its path.
    unwritten = there is not None and there.run.created_at is None and not who.marked
    if there is None or unwritten or (who.marked and not who.problem):
        copied = there is not None and there.run.uuid == who.run.forked_from
        return (there if copied else None), None
    if who.problem:
        return None, f"{who.problem} Nothing of this run was changed; restore the file"
    return None, (
        f"{who.run.directory} has lost its .ckptdb/run.json; nothing of it is recorded as "
        "deleted. Mount or restore it, or `ckptdb forget` the run"
    )


def _known(recorded: RecordedRun, how: _How, before: Observation | None) -> KnownFingerprints:
    if before is not None:
        read = {
            step: (checkpoint.uuid, checkpoint.fingerprint)
            for step, checkpoint in before.finals.items()
            if checkpoint
        }
        return KnownFingerprints({**recorded.finals, **read}, config=True)
    seen = recorded.indexed
    if how.depth != "changes" or seen is None:
        return (
            KnownFingerprints()
        )  # what the index holds may be wrong, and then so may be its fingerprints
    journal_bytes = None
    if not how.writes and seen.stamp is not None:
        with suppress(ValueError):  # SQLite has no checksums; then the journal is read again
            journal_bytes = Stamp.parse(seen.stamp).journal_bytes
    config = seen.run.config
    return KnownFingerprints(
        recorded.finals, journal_bytes, config=config is not None, configless=config == {}
    )


def _completed(observed: Observation, before: Observation) -> Observation:
    """Fill in what the second look, under the lock, did not have to read again."""
    finals = {
        step: before.finals.get(step) if checkpoint is None else checkpoint
        for step, checkpoint in observed.finals.items()
    }
    config = before.config if observed.config is None else observed.config
    doubts = {step: why for step, why in before.doubts.items() if observed.finals.get(step) is None}
    return replace(observed, finals=finals, config=config, doubts=doubts | dict(observed.doubts))


def _contents(
    catalog: Catalog, observed: Observation, recorded: RecordedRun, depth: ReconcileDepth
) -> dict[str, Checkpoint]:
    if recorded.indexed is None:
        return {}
    read = {step for step, checkpoint in observed.finals.items() if checkpoint}
    missing = {step for step in recorded.finals if step not in observed.finals}
    tmps = set(recorded.tmps.values())
    steps = sorted((read & set(recorded.finals)) | missing | tmps)
    lost = unwritten(recorded, observed.facts) if observed.facts else set()
    lost.update(uuid for uuid in find_missing(observed, recorded) if uuid in recorded.gone)
    if depth != "changes" and observed.facts:
        lost.update(observed.facts.gone.keys() & recorded.gone.keys())
    return catalog.contents(recorded.indexed.id, steps=steps, gone=sorted(lost))


def _worth_it(look: _Look, how: _How) -> bool:
    seen, config = look.recorded.indexed, look.plan.config
    if look.plan.doubt is not None:
        # It is looked at again as long as that is not settled: there is no more to store.
        return look.has_changes or (how.writes and _is_to_be_told(look))
    # That there is no configuration is remembered along with something else.
    if look.has_changes or config or (config is not None and seen and seen.run.config):
        return True
    # Nothing differs: all there is to store is that this has been seen.
    if seen is None or look.observation.unsure:
        return False
    same = seen.stamp == str(look.observation.stamp)
    if look.observation.settled:
        # Something was written into a checkpoint that nothing depends on, such as its checksums.
        return not (same and seen.verified) or bool(_settled(look))
    return how.assume and not same


def _is_new_copy(look: _Look, how: _How) -> bool:
    """Whether it is a copy that would be a stranger again once it is moved."""
    who = look.observation.identity
    copied = who.marked and not who.recorded and not who.problem
    # A question is no reason to write into a run.
    return copied and how.writes and how.depth != "changes"


def _report(directory: Path, look: _Look) -> RunReport:
    seen, stamp = look.recorded.indexed, look.observation.stamp
    exact = seen and seen.verified and seen.stamp == str(stamp) and not look.has_changes
    return RunReport(
        directory,
        directory.name,
        tuple(action.told() for action in look.actions),
        look.plan.blocked,
        run_id=seen.id if seen else None,
        verified=stamp if exact and look.observation.settled and not look.plan.doubt else None,
        doubt=look.plan.doubt,
        uuid=look.observation.identity.run.uuid,
        is_unfinished=_is_unfinished(look),
    )


def _is_unfinished(look: _Look) -> bool:
    """Whether something is left to do in a run that not everybody may do."""
    kinds = {action.kind for action in look.plan.actions}
    # Whether something in the trash has to stay there is not known without the journal.
    return bool(look.observation.trash or kinds & {*REPAIRS, "vanished"}) or _is_to_be_told(look)


def _is_to_be_told(look: _Look) -> bool:
    """Whether the index contradicts a journal that does not say so yet."""
    facts = look.observation.facts
    untold = facts is not None and facts.damage is None and facts.contradicted is None
    return look.plan.doubt is not None and untold


# --- carrying out -----------------------------------------------------------------------


def _repair(repairs: Completing, catalog: Catalog, look: _Look) -> tuple[list[Action], list[str]]:
    done: list[Action] = []
    blocked: list[str] = []
    directory = repairs.directory
    actions = [action for action in look.plan.actions if repairs.may_repair(action)]
    for _ in range(_ROUNDS):
        before = len(done)
        for action in actions:
            try:
                if repairs.repair(action):
                    done.append(action)
            except (OSError, CkptdbError) as error:
                blocked.append(f"{directory}: {error}")
        if blocked or len(done) == before:
            break
        # With the journal: what a repair has put into the trash is to be removed in the next round.
        again = _look(catalog, directory, _How("files", repairs))
        if isinstance(again, RunReport):
            break
        look = again
        actions = [action for action in look.plan.actions if repairs.may_repair(action)]
    return done, blocked


def _settle(catalog: Catalog, first: _Look, how: _How, finishing: Finishing) -> RunReport:
    """Restore what the journal does not tell and the index knows, then go on as ever."""
    directory = first.observation.identity.run.directory
    again = partial(
        _reconcile, catalog, directory, _How(how.depth, finishing, how.assume), None, None
    )
    aside: Path | None = None
    actions: tuple[Action, ...] = ()
    try:
        with held(directory):
            look = _look(catalog, directory, replace(how, depth="files"), before=first.observation)
            if isinstance(look, RunReport):
                return look
            actions = tuple(a for a in look.plan.actions if a.kind in OF_THE_JOURNAL)
            facts = look.observation.facts
            if actions and facts is not None:
                aside = under_lock.settle(
                    directory,
                    actions,
                    is_damaged=facts.damage is not None,
                    longest_bytes=doubt.find_longest_bytes(look.observation, look.recorded),
                )
    except OSError as error:
        report = again()
        why = f"{directory}: its journal cannot be restored ({error.strerror}); {first.plan.doubt}"
        blocked = "; ".join(filter(None, (report.blocked, why)))
        return replace(report, blocked=blocked)
    report = again()
    done = (*first.taken, *(action.told() for action in actions))
    return replace(report, actions=(*done, *report.actions), journal_aside=aside, applied=True)


def _index(
    catalog: Catalog,
    first: _Look,
    how: _How,
    repaired: tuple[list[Action], list[str]],
) -> RunReport:
    directory = first.observation.identity.run.directory
    done, blocked = repaired
    vanished = any(action.kind == "vanished" for action in first.plan.actions)
    unrecorded = vanished and not first.observation.identity.recorded
    if how.finishing and (unrecorded or _is_new_copy(first, how)):
        with suppress(OSError):  # then nothing can be appended to its journal either
            how.finishing.establish()
    with _hold(directory, how):
        # Between the first look and the lock a trainer may have published or retired.
        look: _Look | RunReport = first
        if not _is_still_true(catalog, first):
            look = _look(catalog, directory, how, before=first.observation)
        if isinstance(look, RunReport):
            return look
        if how.writes and _is_to_be_told(look) and look.plan.doubt is not None:
            short = doubt.is_short(look.observation, look.recorded)
            with suppress(OSError):  # then nothing can be deleted either
                under_lock.doubt(directory, look.plan.doubt, short=short)
        gone = [action for action in look.plan.actions if action.kind == "vanished"]
        back = [a for a in look.plan.actions if a.kind == "reappeared" and _was_ended(look, a)]
        stored = [a.checkpoint for a in look.plan.actions if a.checkpoint and a.kind != "vanished"]
        try:
            ended = bury(directory, gone, back, writes=how.writes)
        except OSError as error:
            # The index may not know what no line in the journal could rebuild.
            blocked.append(f"{directory}: deletions cannot be recorded ({error.strerror})")
            ended, kept = [], {action.step for action in gone}
            stored = [checkpoint for checkpoint in stored if checkpoint.step not in kept]
        changes = Changes(
            run=look.observation.identity.run,
            checkpoints=(*stored, *ended, *_settled(look)),
            children=first.children,
            annotations={
                action.uuid: action.annotations
                for action in look.plan.actions
                if action.uuid and action.annotations is not None
            },
            config=look.plan.config,
            without_parent=_find_parentless(look, stored) if how.depth != "changes" else (),
            correct=bool(look.recorded.inconsistent),
        )
        unsettled = blocked or look.plan.blocked or look.plan.doubt
        stamp = None if unsettled else _find_seen_stamp(directory, look)
        sure = look.observation.settled and not look.observation.unsure
        changes = _with_stamp(changes, look, how, stamp)
        run_id = catalog.apply(changes)
    if look is not first:
        look = replace(look, taken=first.taken)
    shown = (*done, *(action for action in look.actions if action.kind not in REPAIRS))
    reasons = [*blocked, *([look.plan.blocked] if look.plan.blocked else [])]
    return RunReport(
        directory,
        directory.name,
        tuple(action.told() for action in shown),
        "; ".join(reasons) or None,
        applied=True,
        run_id=run_id,
        verified=stamp if sure else None,
        doubt=look.plan.doubt,
        uuid=look.observation.identity.run.uuid,
        is_unfinished=not how.writes and _is_unfinished(look),
    )


def _hold(directory: Path, how: _How) -> AbstractContextManager[None]:
    if how.locked:
        return nullcontext()
    return held(directory) if how.writes else held_to_look(directory)


def _find_parentless(look: _Look, stored: Sequence[Checkpoint]) -> list[str]:
    known = look.recorded.records
    return [
        cp.uuid
        for cp in stored
        if cp.parent is None and cp.status != "tmp" and cp.uuid in known and known[cp.uuid].parent
    ]


def _was_ended(look: _Look, action: Action) -> bool:
    """Whether the journal has the end of what is back; else only the index thought it gone."""
    facts = look.observation.facts
    return facts is None or action.uuid in facts.gone


def _is_still_true(catalog: Catalog, look: _Look) -> bool:
    """Whether another look would be sure to show the same.

    The stamp says so of the directory, once it is settled, and the run's row of the index. A
    first look that found no new checkpoint has not read the journal, which decides why one is
    missing.
    """
    observed = look.observation
    if not observed.settled or (look.plan.has_changes and observed.facts is None):
        return False
    directory = observed.identity.run.directory
    return (
        scan.find_stamp(directory) == observed.stamp
        and identity.identify(directory) == observed.identity
        and catalog.find_run(observed.identity.run.uuid) == look.recorded.indexed
    )


def _settled(look: _Look) -> list[Checkpoint]:
    """Checkpoints that were too fresh to trust their fingerprint, and now are not."""
    acted = {action.uuid for action in look.plan.actions if action.checkpoint}
    known = dict(look.recorded.finals.values())
    return [
        checkpoint
        for checkpoint in look.observation.finals.values()
        if checkpoint
        and checkpoint.uuid in known
        and checkpoint.uuid not in acted
        and checkpoint.fingerprint != known[checkpoint.uuid]
    ]


def _with_stamp(changes: Changes, look: _Look, how: _How, stamp: Stamp | None) -> Changes:
    """Let changes say what the index now stands for, as far as that is known."""
    observed = look.observation
    if look.plan.doubt is not None:
        return changes  # the stamp that is stored tells how long the journal was
    if observed.unsure:
        # It may become readable without moving the stamp: the next question looks again.
        return replace(changes, seen="", verified=False)
    if stamp is None:
        return changes
    if observed.settled or how.assume:
        return replace(changes, seen=str(stamp), verified=observed.settled)
    if observed.facts is None or not stamp.journal_bytes:
        return changes
    # Too young to stand for the directory, it stands for the journal: from now on one that is
    # shorter has lost what the index knows.
    before = Stamp(0, 0, 0)
    with suppress(ValueError):  # SQLite has no checksums
        before = Stamp.parse((look.recorded.indexed and look.recorded.indexed.stamp) or str(before))
    known = replace(before, journal_bytes=stamp.journal_bytes)
    return replace(changes, seen=str(known), verified=False)


def _find_seen_stamp(directory: Path, look: _Look) -> Stamp | None:
    """Return the stamp that the index now stands for, unless somebody came in between."""
    observed = look.observation.stamp
    now = scan.find_stamp(directory)
    # Our own lines in the journal are in it; nobody else writes there while we hold the lock.
    same = now and (now.mtime_ns, now.links) == (observed.mtime_ns, observed.links)
    return now if same else None

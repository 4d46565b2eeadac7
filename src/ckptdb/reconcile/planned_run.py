"""Planning one run: read from disk and from the index, then compared by the pure plan."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.changes import Child
from ckptdb.core.observed import Identity, KnownFingerprints, Observation
from ckptdb.core.recorded import IndexedRun, RecordedRun
from ckptdb.core.records import Checkpoint
from ckptdb.core.stamp import Stamp
from ckptdb.disk import identity, observation, read_trash
from ckptdb.disk.run_listing import Listing
from ckptdb.reconcile.action import OF_A_RUN, OF_THE_JOURNAL, REPAIRS, Action
from ckptdb.reconcile.batch import BatchReader
from ckptdb.reconcile.freshness import is_exact
from ckptdb.reconcile.options import Options, ReconcileDepth
from ckptdb.reconcile.plan import ReconcilePlan, find_missing, plan
from ckptdb.reconcile.plan_gone import find_unjournaled
from ckptdb.reconcile.plan_published import keep_damage
from ckptdb.reconcile.report import RunReport


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """Run as observed on disk and recorded in the index, and the plan made of both.

    Attributes:
        stored: Differences that the index has learnt already, batch by batch.
        children: Checkpoints of these batches whose parent was not in the index yet.
    """

    observation: Observation
    recorded: RecordedRun
    plan: ReconcilePlan
    stored: tuple[Action, ...] = ()
    children: tuple[Child, ...] = ()

    @property
    def directory(self) -> Path:
        """The run's directory."""
        return self.observation.identity.run.directory

    @property
    def actions(self) -> tuple[Action, ...]:
        """All differences, the run's own first."""
        planned = self.plan.actions
        if any(action.kind == "moved run" for action in planned):
            # The run seemed gone while another one stood in its place: "moved" says enough.
            planned = tuple(a for a in planned if not self._was_only_moved(a))
        if not self.stored:
            return planned
        head = tuple(a for a in planned if a.kind in OF_A_RUN)
        return (*head, *self.stored, *(a for a in planned if a.kind not in OF_A_RUN))

    def _was_only_moved(self, action: Action) -> bool:
        gone = self.recorded.gone.get(action.uuid or "")
        return action.kind == "reappeared" and gone is not None and gone.kind == "displaced"

    @property
    def has_changes(self) -> bool:
        """Whether there is, or was, anything to store in the index or to do on disk."""
        return bool(self.stored) or self.plan.has_changes

    @property
    def is_unfinished(self) -> bool:
        """Whether work is left in the run that only those who act on it may do."""
        kinds = {action.kind for action in self.plan.actions}
        # Without the journal it is unknown whether something in the trash has to stay there.
        left = bool(self.observation.trash or kinds & {*REPAIRS, "vanished"})
        return left or self.has_unrecorded_contradiction

    @property
    def has_unrecorded_contradiction(self) -> bool:
        """Whether the index contradicts a journal that does not record it yet."""
        facts = self.observation.facts
        unrecorded = facts is not None and facts.damage is None and facts.contradicted is None
        return self.plan.doubt is not None and unrecorded

    def report(self) -> RunReport:
        """Return what was found, with nothing carried out."""
        indexed, stamp = self.recorded.indexed, self.observation.stamp
        exact = is_exact(indexed, stamp) and not self.has_changes
        return RunReport(
            self.directory,
            self.directory.name,
            tuple(action.without_record() for action in self.actions),
            self.plan.blocked,
            run_id=indexed.id if indexed else None,
            verified=stamp if exact and self.observation.settled and not self.plan.doubt else None,
            doubt=self.plan.doubt,
            uuid=self.observation.identity.run.uuid,
            is_unfinished=self.is_unfinished,
        )


def plan_run(
    catalog: Catalog,
    directory: Path,
    options: Options,
    on_checkpoint: Callable[[], None] | None = None,
    before: Observation | None = None,
    *,
    in_batches: bool = False,
    listing: Listing | None = None,
) -> PlannedRun | RunReport:
    """Read a run from disk and from the index, and plan what makes them equal.

    Args:
        catalog: The index.
        directory: The run, absolute.
        options: Of reconciling it.
        on_checkpoint: Called after each checkpoint that was read.
        before: An earlier observation; only what has changed since is read again.
        in_batches: Store what can be compared on its own batch by batch.
        listing: Of the directory, when it has just been made.

    Returns:
        The plan, or the report of a run that cannot be compared at all.
    """
    who = identity.identify(directory)
    indexed, blocked = _find_indexed(catalog, who)
    if blocked:
        return RunReport(directory, directory.name, (), blocked=blocked)
    # The second time the journal is always read, and before a line is written to it.
    history = options.depth != "changes" or before is not None or options.writes_journal
    recorded = catalog.recorded.run(indexed, history=history)
    batches = BatchReader(catalog, who, recorded, options, history=history)
    observed = observation.observe(
        directory,
        _find_known(recorded, options, before),
        verify=options.depth == "full",
        on_checkpoint=on_checkpoint,
        take=batches.take if in_batches else None,
        listing=listing,
    )
    if batches.finals:
        recorded = batches.read_recorded()
    if before:
        observed = _add_before(observed, before)
    if observed.facts is not None and not history:
        observed, recorded = _add_history(catalog, observed, recorded)
    recorded = _add_records(catalog, observed, recorded, options.depth)
    observed = _keep_all_damage(observed, recorded, options.depth)
    return PlannedRun(
        observed,
        recorded,
        _plan(observed, recorded, options),
        tuple(batches.actions),
        tuple(batches.children),
    )


def _plan(observed: Observation, recorded: RecordedRun, options: Options) -> ReconcilePlan:
    """Plan only what these options include."""
    found = plan(observed, recorded)
    actions = found.actions
    if not options.includes_journal_gaps:
        actions = tuple(a for a in actions if a.kind != "vanished" or not _has_ended(a.checkpoint))
    if not options.restore and found.doubt is not None:
        actions = tuple(a for a in actions if a.kind not in OF_THE_JOURNAL)
    return replace(found, actions=actions)


def _has_ended(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.status == "deleted"


def _find_indexed(catalog: Catalog, who: Identity) -> tuple[IndexedRun | None, str | None]:
    """Return the row of the run in a directory, or why the two cannot be compared."""
    indexed = catalog.runs.find(who.run.uuid)
    is_certain = who.marked and not who.problem
    # A uuid derived from the path comes back without the run.json that made it permanent.
    if indexed and (indexed.run.created_at is None or is_certain):
        return indexed, None
    there = indexed or catalog.runs.find_at(who.run.directory)
    # A run that ckptdb never wrote to has no run.json to lose, and is named after its path.
    never_written = there is not None and there.run.created_at is None and not who.marked
    if there is None or never_written or is_certain:
        copied = there is not None and there.run.uuid == who.run.forked_from
        return (there if copied else None), None
    if who.problem:
        return None, f"{who.problem} Nothing of this run was changed; restore the file"
    return None, (
        f"{who.run.directory} has lost its .ckptdb/run.json; nothing of it is recorded as "
        "deleted. Mount or restore it, or `ckptdb forget` the run"
    )


def _find_known(
    recorded: RecordedRun, options: Options, before: Observation | None
) -> KnownFingerprints:
    """Return what need not be read from disk again."""
    if before is not None:
        read = {
            step: (checkpoint.uuid, checkpoint.fingerprint)
            for step, checkpoint in before.finals.items()
            if checkpoint
        }
        return KnownFingerprints({**recorded.finals, **read}, config=True)
    indexed = recorded.indexed
    if options.depth != "changes" or indexed is None:
        # The index may be wrong, and then so may be its fingerprints.
        return KnownFingerprints()
    journal_bytes = None
    if not options.writes_journal and indexed.stamp is not None:
        with suppress(ValueError):  # SQLite has no checksums; then the journal is read again
            journal_bytes = Stamp.parse(indexed.stamp).journal_bytes
    config = indexed.run.config
    return KnownFingerprints(
        recorded.finals, journal_bytes, config=config is not None, configless=config == {}
    )


def _add_before(observed: Observation, before: Observation) -> Observation:
    """Add what the second observation, under the lock, did not have to read again."""
    finals = {
        step: before.finals.get(step) if checkpoint is None else checkpoint
        for step, checkpoint in observed.finals.items()
    }
    config = before.config if observed.config is None else observed.config
    doubts = {step: why for step, why in before.doubts.items() if observed.finals.get(step) is None}
    return replace(observed, finals=finals, config=config, doubts=doubts | dict(observed.doubts))


def _add_history(
    catalog: Catalog, observed: Observation, recorded: RecordedRun
) -> tuple[Observation, RecordedRun]:
    """Add the index's history, as the journal had to be read after all."""
    # The live rows stay those that the observation was based on.
    history = catalog.recorded.run(recorded.indexed, history=True)
    recorded = replace(recorded, gone=history.gone, annotations=history.annotations)
    if find_missing(observed, recorded):
        # Perhaps only because another process has written both since.
        with suppress(OSError):
            facts = read_trash.read_facts(observed.identity)
            observed = replace(observed, facts=facts)
    return observed, recorded


def _add_records(
    catalog: Catalog, observed: Observation, recorded: RecordedRun, depth: ReconcileDepth
) -> RecordedRun:
    """Add the whole records of the checkpoints that have to be compared."""
    if recorded.indexed is None:
        return replace(recorded, records={})
    run_id = recorded.indexed.id
    read = {step for step, checkpoint in observed.finals.items() if checkpoint}
    missing = {step for step in recorded.finals if step not in observed.finals}
    tmps = set(recorded.tmps.values())
    steps = sorted((read & set(recorded.finals)) | missing | tmps)
    gone = find_unjournaled(recorded, observed.facts) if observed.facts else set()
    gone.update(uuid for uuid in find_missing(observed, recorded) if uuid in recorded.gone)
    if depth != "changes" and observed.facts:
        gone.update(observed.facts.gone.keys() & recorded.gone.keys())
    recorded = replace(
        recorded, records=catalog.recorded.records(run_id, steps=steps, gone=sorted(gone))
    )
    if depth == "changes":
        return recorded
    return replace(recorded, inconsistent=catalog.recorded.inconsistent(run_id))


def _keep_all_damage(
    observed: Observation, recorded: RecordedRun, depth: ReconcileDepth
) -> Observation:
    if not recorded.problems:
        return observed
    full = depth == "full"
    finals = {
        step: cp and keep_damage(cp, recorded, sizes_verified=full and step not in observed.doubts)
        for step, cp in observed.finals.items()
    }
    return replace(observed, finals=finals)

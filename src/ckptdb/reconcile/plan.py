"""The plan of reconciling one run: observed × recorded → actions. Pure: touches nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ckptdb.core.observed import Identity, Observation
from ckptdb.core.recorded import IndexedRun, RecordedRun
from ckptdb.core.records import NO_ANNOTATIONS
from ckptdb.reconcile import missing_facts
from ckptdb.reconcile.action import OF_THE_JOURNAL, Action
from ckptdb.reconcile.comparison import Comparison
from ckptdb.reconcile.plan_gone import plan_gone
from ckptdb.reconcile.plan_published import plan_published
from ckptdb.reconcile.plan_unpublished import plan_leftovers, plan_tmps


@dataclass(frozen=True, slots=True)
class ReconcilePlan:
    """All differences of one run.

    Attributes:
        blocked: Why nothing that is missing may be recorded as deleted, or None.
        config: The run's configuration when the index has to store it.
        doubt: Why the journal is no reason to delete anything, in words; None if it is.
    """

    actions: tuple[Action, ...]
    blocked: str | None = None
    config: Mapping[str, Any] | None = None
    doubt: str | None = None

    @property
    def has_changes(self) -> bool:
        """Whether applying would change anything."""
        return any(action.is_change for action in self.actions)


def plan(observed: Observation, recorded: RecordedRun) -> ReconcilePlan:
    """Compare one run on disk with the index.

    Args:
        observed: Everything on disk, or everything that the index did not have yet.
        recorded: Everything in the index; with history whenever ``observed.facts`` is there.
    """
    both = Comparison(observed, recorded)
    blocked = _find_blocked(observed, recorded)
    actions = [
        *_plan_run(observed, recorded),
        *_plan_journal(both),
        *plan_published(both),
        *plan_tmps(both),
        *plan_gone(both),
        *_plan_inconsistent(recorded),
        *_plan_annotations(both),
        *plan_leftovers(both),
        *(Action("foreign", f"{name} is no checkpoint; left alone") for name in observed.foreign),
    ]
    if blocked:
        # Another checkpoint at its step proves that one is gone; its absence alone does not.
        actions = [a for a in actions if a.kind != "vanished" or a.step in observed.finals]
    config, changed = _plan_config(observed, recorded, actions)
    return ReconcilePlan((*actions, *changed), blocked, config, both.doubt)


def _plan_config(
    observed: Observation, recorded: RecordedRun, actions: Iterable[Action]
) -> tuple[Mapping[str, Any] | None, tuple[Action, ...]]:
    """Return the configuration that the index has to store, and the difference if it is one."""
    config = observed.config
    known = recorded.indexed.run.config if recorded.indexed else None
    if any(_ends_checkpoint(action) for action in actions):
        # With what ended the index forgets the configuration, should it have come from there.
        return (known if config is None else config), ()
    if known == config:
        return None, ()
    if config is not None and (known or config) and not any(a.is_change for a in actions):
        # With a checkpoint that comes or goes, it does too; by itself it does not.
        what = f"{observed.identity.run.directory} has another configuration than the catalog says"
        return config, (Action("changed run", what),)
    return config, ()


def _ends_checkpoint(action: Action) -> bool:
    if action.checkpoint is None or action.kind in OF_THE_JOURNAL:
        return False
    return action.kind == "vanished" or action.checkpoint.status == "deleted"


def find_missing(
    observed: Observation, recorded: RecordedRun
) -> dict[str, missing_facts.MissingFacts]:
    """Return by uuid the facts that the journal lacks and the index knows."""
    return Comparison(observed, recorded).missing


def _find_blocked(observed: Observation, recorded: RecordedRun) -> str | None:
    directory = observed.identity.run.directory
    empty = not observed.finals and not observed.tmps and not observed.unreadable
    if empty and recorded.finals and not observed.identity.marked:
        # Exactly what the mount point of an unmounted volume looks like.
        return (
            f"{directory} holds no checkpoint any more; nothing of it is recorded as deleted. "
            "Mount or restore it, or `ckptdb forget` the run"
        )
    if not observed.errors:
        return None
    more = f" and {len(observed.errors) - 1} more" if len(observed.errors) > 1 else ""
    return (
        f"{observed.errors[0]}{more}; nothing missing is recorded as deleted until it can be read"
    )


def _plan_run(observed: Observation, recorded: RecordedRun) -> Iterator[Action]:
    if recorded.indexed or observed.identity.marked or observed.finals or observed.tmps:
        yield from compare_run(observed.identity, recorded.indexed)


def compare_run(who: Identity, indexed: IndexedRun | None) -> Iterator[Action]:
    """Compare a run's identity on disk with its row in the index."""
    run = who.run
    if indexed is None:
        yield Action("new run", f"{run.directory} is new to the catalog")
    elif indexed.run.directory != run.directory:
        yield Action("moved run", f"{indexed.run.directory} is now {run.directory}")
    elif replace(indexed.run, config=None) != run:
        what = (
            "was copied, and is a run of its own now"
            if run.forked_from == indexed.run.uuid
            else "says another metric or name than the catalog"
        )
        yield Action("changed run", f"{run.directory} {what}")


def _plan_journal(both: Comparison) -> Iterator[Action]:
    """Return the damage of the journal, and what of it the index can restore."""
    observed, recorded = both.observed, both.recorded
    damage = observed.facts.damage if observed.facts else None
    if damage is not None:
        what = (
            f"{damage}; what can be read becomes the journal, with what the catalog knows, and the "
            "damaged one is kept beside it. Pins, tags, rejections, late metrics and history that "
            "nothing else tells are lost"
        )
        yield Action("damaged journal", what)
    elif both.doubt is not None and not both.missing:
        yield Action("contradicted", f"{both.doubt}; nothing of it has to be restored")
    steps = missing_facts.find_steps(observed, recorded) if both.missing else {}
    for uuid, missing in sorted(both.missing.items(), key=lambda item: steps.get(item[0], -1)):
        named = ", ".join(missing.names())
        what = f"the catalog knows {named} that its journal does not; written to the journal"
        ended = recorded.records.get(uuid) if missing.ended else None
        yield Action("contradicted", what, steps.get(uuid), ended, uuid, missing=missing)


def _plan_inconsistent(recorded: RecordedRun) -> Iterator[Action]:
    """Return checkpoints of which two tables of the index say different things."""
    for uuid, step in recorded.inconsistent.items():
        yield Action("changed", "the catalog ranks it by what is not its own", step, uuid=uuid)


def _plan_annotations(both: Comparison) -> Iterator[Action]:
    if both.observed.facts is None:
        return
    journaled, known = both.observed.facts.annotations, both.recorded.annotations
    for uuid in {*journaled, *known}:
        now = journaled.get(uuid, NO_ANNOTATIONS)
        now = missing_facts.merge(now, both.missing.get(uuid))
        if uuid in both.known and now != known.get(uuid, NO_ANNOTATIONS):
            what = "what was added to it differs from the journal"
            yield Action("annotated", what, uuid=uuid, annotations=now)

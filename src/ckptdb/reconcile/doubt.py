"""Where the index knows of a run what its journal does not tell. Pure: touches nothing.

The journal only grows, and a fact is written there before the index hears of it. An index that
knows less is behind, and follows. One that knows of a pin, a tag, a rejection or an end of which no
line tells, neither that it was done nor that it was undone, contradicts the journal: lines of that
are lost. Until a person has it settled, what either of them holds fast stands.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import NO_ANNOTATIONS, Annotations
from ckptdb.core.times import seconds
from ckptdb.disk.scan import Observation, Stamp

_NAMED: Final = 3
"""How many contradictions are told in a sentence."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What the index knows of a checkpoint and the journal does not tell.

    Attributes:
        annotations: Of what people added.
        ended: Whether that it is gone.
    """

    annotations: Annotations = NO_ANNOTATIONS
    ended: bool = False

    def names(self) -> Iterator[str]:
        """Name each fact."""
        said = self.annotations
        if said.pinned:
            yield "a pin"
        if said.rejected is not None:
            yield "a rejection"
        if said.notes is not None:
            yield "a note"
        yield from (f"the tag {name!r}" for name, _ in said.tags)
        yield from (f"the late metric {metric.name!r}" for metric in said.late)
        if said.resumptions:
            yield "a resumption"
        if self.ended:
            yield "the end"


def find_missing(
    observed: Observation, recorded: RecordedRun, here: Collection[str]
) -> dict[str, Missing]:
    """Return by uuid what the index knows and the journal does not tell.

    Args:
        observed: With what the journal says; else nothing is missing.
        recorded: With history, asked for before the journal was read.
        here: uuids of what is on disk.
    """
    facts = observed.facts
    if facts is None or _is_begun_anew(observed, recorded):
        return {}
    # A journal that has lost lines may have lost any: then what is known counts more than the rest.
    is_cut = facts.damage is not None or is_short(observed, recorded)
    found: dict[str, Missing] = {}
    for uuid, known in recorded.annotations.items():
        told = facts.annotations.get(uuid, NO_ANNOTATIONS)
        lines = frozenset[str]() if is_cut else facts.told.get(uuid, frozenset[str]())
        missing = NO_ANNOTATIONS if told == known else _find_untold(known, told, lines)
        if missing != NO_ANNOTATIONS:
            found[uuid] = Missing(missing)
    for uuid in recorded.gone.keys() - facts.gone.keys() - set(here):
        # That something has vanished may be known to those who may not write it down.
        has_vanished = (recorded.gone[uuid][1] or "").startswith("vanished")
        # What was told to a journal that went with the whole folder is not missing in this one.
        is_older = (recorded.gone[uuid][0] or "") < (observed.identity.run.created_at or "")
        if not has_vanished and not is_older and (is_cut or "gone" not in facts.told.get(uuid, ())):
            found[uuid] = replace(found.get(uuid, Missing()), ended=True)
    return found


def _find_untold(known: Annotations, told: Annotations, lines: Collection[str]) -> Annotations:
    tags, late = dict(told.tags), {metric.name: metric for metric in told.late}
    return Annotations(
        pinned=known.pinned and not told.pinned and "pin" not in lines,
        notes=known.notes if told.notes is None and "note" not in lines else None,
        tags=tuple(
            (name, at) for name, at in known.tags if name not in tags and f"tag {name}" not in lines
        ),
        late=tuple(
            metric
            for metric in known.late
            if f"metric {metric.name}" not in lines
            and (metric.name not in late or late[metric.name].reported_at < metric.reported_at)
        ),
        rejected=known.rejected if told.rejected is None and "rejected" not in lines else None,
        resumptions=tuple(sorted(set(known.resumptions) - set(told.resumptions))),
    )


def is_short(observed: Observation, recorded: RecordedRun) -> bool:
    """Whether the index has seen a journal that was longer, and that nobody has settled."""
    facts, seen = observed.facts, recorded.indexed
    if facts is None or seen is None or _is_begun_anew(observed, recorded):
        return False
    if facts.is_short:
        return True
    now_bytes = observed.stamp.journal_bytes
    if _is_older(seen.stamp, observed.identity.run.created_at):
        return False
    return now_bytes >= 0 and _find_bytes(seen.stamp) > max(now_bytes, facts.settled_bytes)


def _is_older(stamp: str | None, created_at: str | None) -> bool:
    """Whether a stamp is from before the run was begun that is there now."""
    begun = seconds(created_at)
    with suppress(ValueError, TypeError):
        return begun is not None and Stamp.parse(stamp or "").mtime_ns < begun * 1e9
    return False


def _is_begun_anew(observed: Observation, recorded: RecordedRun) -> bool:
    """Whether the run was removed with all that was ours, and begun again in its place."""
    seen = recorded.indexed
    return seen is not None and seen.run.created_at != observed.identity.run.created_at


def find_longest_bytes(observed: Observation, recorded: RecordedRun) -> int:
    """Return how long the journal was at most, as far as anybody here knows."""
    known = _find_bytes(recorded.indexed.stamp) if recorded.indexed else 0
    settled = observed.facts.settled_bytes if observed.facts else 0
    return max(known, settled, observed.stamp.journal_bytes)


def _find_bytes(stamp: str | None) -> int:
    with suppress(ValueError, TypeError):  # SQLite has no checksums
        return Stamp.parse(stamp or "").journal_bytes
    return 0


def tell(
    observed: Observation, recorded: RecordedRun, missing: Mapping[str, Missing]
) -> str | None:
    """Return why nothing may be deleted now, in words; None if it may."""
    facts = observed.facts
    if facts is None:
        return None
    named = [
        f"{name} of {checkpoint}"
        for uuid, checkpoint in sorted(_name(observed, recorded, missing))
        for name in missing[uuid].names()
    ]
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        return f"the catalog knows {', '.join(named[:_NAMED])}{more} that its journal does not"
    if facts.damage is not None:
        return str(facts.damage)
    if is_short(observed, recorded):
        return "its journal is shorter than the catalog has seen it"
    return facts.contradicted


def find_steps(observed: Observation, recorded: RecordedRun) -> dict[str, int]:
    """Return by uuid the step of what is known of."""
    gone = observed.facts.gone.values() if observed.facts else ()
    return {
        **{checkpoint.uuid: checkpoint.step for checkpoint in gone},
        **{checkpoint.uuid: checkpoint.step for checkpoint in recorded.records.values()},
        **recorded.tmps,
        **{uuid: step for step, (uuid, _) in recorded.finals.items()},
    }


def _name(
    observed: Observation, recorded: RecordedRun, missing: Mapping[str, Missing]
) -> Iterator[tuple[str, str]]:
    if missing:
        steps = find_steps(observed, recorded)
        for uuid in missing:
            yield uuid, f"step {steps[uuid]}" if uuid in steps else f"the checkpoint {uuid[:8]}"


def standing(told: Annotations, missing: Missing | None) -> Annotations:
    """Return what counts until it is settled: what the journal tells, and what is missing there."""
    if missing is None or missing.annotations == NO_ANNOTATIONS:
        return told
    lost = missing.annotations
    late = {m.name: m for m in (*told.late, *lost.late)}
    return Annotations(
        pinned=told.pinned or lost.pinned,
        notes=told.notes if lost.notes is None else lost.notes,
        tags=tuple(sorted({**dict(lost.tags), **dict(told.tags)}.items())),
        late=tuple(late[name] for name in sorted(late)),
        rejected=told.rejected if lost.rejected is None else lost.rejected,
        resumptions=tuple(sorted({*told.resumptions, *lost.resumptions})),
    )

"""Facts that the index knows and the journal lacks. Pure: touches nothing.

The journal only grows, and a fact is written there before it is written to the index. An index
that knows less is behind, and follows. An index that knows of a pin, a tag, a rejection or an end
that no line of the journal records, neither as done nor as undone, contradicts the journal: lines
are lost. Until a person runs `ckptdb reconcile`, the facts of both count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from ckptdb.core.observed import Observation
from ckptdb.core.recorded import RecordedRun
from ckptdb.core.records import NO_ANNOTATIONS, Annotations
from ckptdb.core.stamp import Stamp
from ckptdb.core.times import seconds

_NAMED: Final = 3
"""Number of facts that a sentence names."""


@dataclass(frozen=True, slots=True)
class MissingFacts:
    """Facts of a checkpoint that the index knows and the journal lacks.

    Attributes:
        annotations: Facts that people added.
        ended: Whether the checkpoint's end is one of the facts.
    """

    annotations: Annotations = NO_ANNOTATIONS
    ended: bool = False

    def names(self) -> Iterator[str]:
        """Name each fact."""
        annotations = self.annotations
        if annotations.pinned:
            yield "a pin"
        if annotations.rejected is not None:
            yield "a rejection"
        if annotations.notes is not None:
            yield "a note"
        yield from (f"the tag {name!r}" for name, _ in annotations.tags)
        yield from (f"the late metric {metric.name!r}" for metric in annotations.late)
        if annotations.resumptions:
            yield "a resumption"
        if self.ended:
            yield "the end"


def find_missing(
    observed: Observation, recorded: RecordedRun, here: Collection[str]
) -> dict[str, MissingFacts]:
    """Return by uuid the facts that the index knows and the journal lacks.

    Args:
        observed: With the journal's facts; without them nothing is missing.
        recorded: With history, read before the journal was.
        here: The uuids of what is on disk.
    """
    facts = observed.facts
    if facts is None or _is_begun_anew(observed, recorded):
        return {}
    # A journal that has lost lines may have lost any of them: then no remaining line proves that a
    # fact was undone.
    is_cut = facts.damage is not None or is_short(observed, recorded)
    found: dict[str, MissingFacts] = {}
    for uuid, known in recorded.annotations.items():
        journaled = facts.annotations.get(uuid, NO_ANNOTATIONS)
        lines = frozenset[str]() if is_cut else facts.keys.get(uuid, frozenset[str]())
        missing = NO_ANNOTATIONS if journaled == known else _subtract(known, journaled, lines)
        if missing != NO_ANNOTATIONS:
            found[uuid] = MissingFacts(missing)
    for uuid in recorded.gone.keys() - facts.gone.keys() - set(here):
        # A process that may not write the journal records in the index alone what vanished.
        has_vanished = recorded.gone[uuid].has_vanished
        # A fact of a journal that went with the whole folder is not missing in this one.
        is_older = (recorded.gone[uuid].at or "") < (observed.identity.run.created_at or "")
        if not has_vanished and not is_older and (is_cut or "gone" not in facts.keys.get(uuid, ())):
            found[uuid] = replace(found.get(uuid, MissingFacts()), ended=True)
    return found


def _subtract(known: Annotations, journaled: Annotations, lines: Collection[str]) -> Annotations:
    """Return the annotations that the index knows and the journal lacks.

    Args:
        known: The index's.
        journaled: The journal's.
        lines: The facts that some line of the journal is about, even if it undoes them.
    """
    tags, late = dict(journaled.tags), {metric.name: metric for metric in journaled.late}
    return Annotations(
        pinned=known.pinned and not journaled.pinned and "pin" not in lines,
        notes=known.notes if journaled.notes is None and "note" not in lines else None,
        tags=tuple(
            (name, at) for name, at in known.tags if name not in tags and f"tag {name}" not in lines
        ),
        late=tuple(
            metric
            for metric in known.late
            if f"metric {metric.name}" not in lines
            and (metric.name not in late or late[metric.name].reported_at < metric.reported_at)
        ),
        rejected=known.rejected if journaled.rejected is None and "rejected" not in lines else None,
        resumptions=tuple(sorted(set(known.resumptions) - set(journaled.resumptions))),
    )


def is_short(observed: Observation, recorded: RecordedRun) -> bool:
    """Tell whether the index has seen a longer journal, and nobody has accepted the loss."""
    facts, indexed = observed.facts, recorded.indexed
    if facts is None or indexed is None or _is_begun_anew(observed, recorded):
        return False
    if facts.is_short:
        return True
    now_bytes = observed.stamp.journal_bytes
    if _is_older(indexed.stamp, observed.identity.run.created_at):
        return False
    return now_bytes >= 0 and _parse_bytes(indexed.stamp) > max(now_bytes, facts.settled_bytes)


def _is_older(stamp: str | None, created_at: str | None) -> bool:
    """Tell whether a stamp is older than the run that is there now."""
    begun = seconds(created_at)
    with suppress(ValueError, TypeError):
        return begun is not None and Stamp.parse(stamp or "").mtime_ns < begun * 1e9
    return False


def _is_begun_anew(observed: Observation, recorded: RecordedRun) -> bool:
    """Tell whether the run was removed, `.ckptdb` included, and begun again in its place."""
    indexed = recorded.indexed
    return indexed is not None and indexed.run.created_at != observed.identity.run.created_at


def find_longest_bytes(observed: Observation, recorded: RecordedRun) -> int:
    """Return the greatest length of the journal that the run, its journal or the index records."""
    known = _parse_bytes(recorded.indexed.stamp) if recorded.indexed else 0
    settled = observed.facts.settled_bytes if observed.facts else 0
    return max(known, settled, observed.stamp.journal_bytes)


def _parse_bytes(stamp: str | None) -> int:
    """Return the journal's length in a stamp; 0 when the stamp is unreadable."""
    with suppress(ValueError, TypeError):  # SQLite has no checksums
        return Stamp.parse(stamp or "").journal_bytes
    return 0


def explain_doubt(
    observed: Observation, recorded: RecordedRun, missing: Mapping[str, MissingFacts]
) -> str | None:
    """Return why the journal is no reason to delete anything, in words; None if it is."""
    facts = observed.facts
    if facts is None:
        return None
    named = [
        f"{name} of {checkpoint}"
        for uuid, checkpoint in sorted(_name_checkpoints(observed, recorded, missing))
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
    """Return by uuid the step of every checkpoint that journal or index know."""
    gone = observed.facts.gone.values() if observed.facts else ()
    return {
        **{checkpoint.uuid: checkpoint.step for checkpoint in gone},
        **{checkpoint.uuid: checkpoint.step for checkpoint in recorded.records.values()},
        **recorded.tmps,
        **{uuid: step for step, (uuid, _) in recorded.finals.items()},
    }


def _name_checkpoints(
    observed: Observation, recorded: RecordedRun, missing: Mapping[str, MissingFacts]
) -> Iterator[tuple[str, str]]:
    if missing:
        steps = find_steps(observed, recorded)
        for uuid in missing:
            yield uuid, f"step {steps[uuid]}" if uuid in steps else f"the checkpoint {uuid[:8]}"


def merge(journaled: Annotations, missing: MissingFacts | None) -> Annotations:
    """Return the annotations that count: those of the journal, and those that it lacks."""
    if missing is None or missing.annotations == NO_ANNOTATIONS:
        return journaled
    lost = missing.annotations
    late = {m.name: m for m in (*journaled.late, *lost.late)}
    return Annotations(
        pinned=journaled.pinned or lost.pinned,
        notes=journaled.notes if lost.notes is None else lost.notes,
        tags=tuple(sorted({**dict(lost.tags), **dict(journaled.tags)}.items())),
        late=tuple(late[name] for name in sorted(late)),
        rejected=journaled.rejected if lost.rejected is None else lost.rejected,
        resumptions=tuple(sorted({*journaled.resumptions, *lost.resumptions})),
    )

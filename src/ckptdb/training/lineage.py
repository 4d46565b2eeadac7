"""Which line of training a run was on last: by the parents of its checkpoints, or by their times.

Pure. A line is a checkpoint with its ancestors. Training that goes back and saves lower steps
begins another line beside the older one, whose steps may stay the highest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ckptdb.core.records import LineMember
from ckptdb.core.times import seconds

Line = tuple[LineMember, ...]


def find_line(members: Iterable[LineMember]) -> Line:
    """Return the line that training was on last, the newest first; what of it is gone, too.

    It is the one of the highest step, unless a line of ckptdb's own is known to be later: by
    parents, by a step of it that replaced one of the other's, or because all of it was begun after
    the other was ended. What has no manifest says nothing of its parent.

    Args:
        members: Every checkpoint of the run that is or was published.
    """
    known = {member.id: member for member in members}
    live = [member for member in known.values() if member.is_live]
    highest = max((m for m in live if m.is_trusted), key=lambda m: m.step, default=None)
    if highest is None:
        return ()
    tips = [_line(tip, known) for tip in _tips(live, known)]
    line, passed = _line(highest, known), {highest.id}
    while True:
        later = [other for other in tips if other[0].id not in passed and _is_later(other, line)]
        if not later:
            return line
        line = max(later, key=lambda other: (seconds(other[0].finalized_at) or 0, other[0].step))
        passed.add(line[0].id)


def _line(tip: LineMember, known: Mapping[int, LineMember]) -> Line:
    found = {tip.id: tip}
    parent = known.get(tip.parent_id) if tip.parent_id is not None else None
    while parent is not None and parent.id not in found:  # manifests of other hands may circle
        found[parent.id] = parent
        parent = known.get(parent.parent_id) if parent.parent_id is not None else None
    return tuple(found.values())


def _tips(live: Sequence[LineMember], known: Mapping[int, LineMember]) -> list[LineMember]:
    """Return the live checkpoints with a manifest that no other live one descends from."""
    ancestors: set[int] = set()
    for member in live:
        parent_id = member.parent_id
        while parent_id is not None and parent_id not in ancestors:
            ancestors.add(parent_id)
            parent_id = known[parent_id].parent_id if parent_id in known else None
    return [member for member in live if member.has_manifest and member.id not in ancestors]


def _is_later(other: Line, line: Line) -> bool:
    """Whether training was on ``other`` after it had been on ``line``."""
    ids, other_ids = {m.id for m in line}, {m.id for m in other}
    if line[0].id in other_ids:
        return True
    branch = [member for member in other if member.id not in ids and member.has_manifest]
    if not branch:
        return False
    replaced = {member.step for member in line if member.is_replaced}
    if any(member.step in replaced and not member.is_replaced for member in branch):
        return True
    replaced = {member.step for member in branch if member.is_replaced}
    if any(m.step in replaced and not m.is_replaced for m in line if m.id not in other_ids):
        return False
    if not other[0].is_trusted and other[0].step > line[0].step:
        return False  # put aside, to go on below: that is no line to follow, whatever the clock
    began, ended = seconds(branch[-1].created_at), seconds(line[0].finalized_at)
    return began is not None and ended is not None and began >= ended

"""Which line of training a run was on last: histories, and the line that follows from them."""

from dataclasses import dataclass

import pytest

from ckptdb.core.records import LineMember
from ckptdb.training.lineage import find_line


@dataclass(frozen=True)
class One:
    """A checkpoint as a table says it: saved within an hour, by the clock of whoever saved it."""

    name: str
    hour: int
    parent: str = ""
    state: str = "live"  # or "rejected", "deleted", "replaced"
    by: str = "ckptdb"


def members(history):
    ids = {one.name: number for number, one in enumerate(history)}
    return [
        LineMember(
            id=ids[one.name],
            uuid=one.name,
            step=int(one.name.rstrip("'")),
            parent_id=ids.get(one.parent),
            created_at=f"2026-01-01T{one.hour:02}:00:00.000Z",
            finalized_at=f"2026-01-01T{one.hour:02}:30:00.000Z",
            is_live=one.state in ("live", "rejected"),
            is_trusted=one.state == "live",
            has_manifest=one.by == "ckptdb",
            is_replaced=one.state == "replaced",
        )
        for one in history
    ]


def nemo(name, hour):
    return One(name, hour, by="NeMo-RL")


UP = [One("1", 1), One("2", 2, "1"), One("3", 3, "2")]

HISTORIES = {
    "nothing": ([], ""),
    "one": ([One("5", 1)], "5"),
    "straight on": (UP, "3 2 1"),
    "straight on, pruned": (
        [One("1", 1), One("2", 2, "1", "deleted"), One("3", 3, "2")],
        "3 2 1",
    ),
    "only what NeMo-RL has saved": ([nemo("1", 3), nemo("2", 2), nemo("3", 1)], "3"),
    "back to the first": ([*UP, One("1'", 4, "1")], "1' 1"),
    "back to the first, and further": (
        [*UP, One("1'", 4, "1"), One("2'", 5, "1'")],
        "2' 1' 1",
    ),
    "back and beyond": ([*UP, One("4", 5, "1")], "4 1"),
    "back twice": ([*UP, One("2'", 4, "1"), One("1'", 5, "1")], "1' 1"),
    "back, then on from the highest again": (
        [*UP, One("2'", 4, "1"), One("4", 5, "3")],
        "4 3 2 1",
    ),
    "back from a highest that is gone": (
        [*UP, One("5", 4, "3", "deleted"), One("2'", 5, "1")],
        "2' 1",
    ),
    "lower again within a process": ([*UP, One("2'", 1, "3")], "2' 3 2 1"),
    "afresh in a directory used again": ([*UP, One("0", 5), One("1'", 6, "0")], "1' 0"),
    "afresh above": ([*UP, One("5", 5)], "5"),
    "loaded unseen, straight on": ([*UP, One("4", 4), One("5", 5, "4")], "5 4"),
    "another node's clock is behind": ([*UP, One("4", 1, "3"), One("5", 2, "4")], "5 4 3 2 1"),
    "clock set back within a process": (
        [One("1", 5), One("2", 6, "1"), One("3", 1, "2"), One("4", 2, "3")],
        "4 3 2 1",
    ),
    "clock set back below the highest": (
        [*UP, One("1'", 8, "1"), One("2'", 4, "1'")],
        "2' 1' 1",
    ),
    "lines that overlap: clocks prove nothing": (
        [One("1", 1), One("2", 6, "1"), One("5", 3)],
        "5",
    ),
    "replaced with the clock set back": (
        [One("1", 5), One("2", 6, "1", "replaced"), One("3", 7, "2"), One("2'", 2, "1")],
        "2' 1",
    ),
    "replaced, and replaced again": (
        [
            One("1", 1),
            One("2", 2, "1", "replaced"),
            One("3", 3, "2", "replaced"),
            One("2'", 4, "1"),
            One("3'", 5, "2'"),
        ],
        "3' 2' 1",
    ),
    "the highest was rejected": ([*UP[:2], One("3", 3, "2", "rejected")], "3 2 1"),
    "beside a rejected one": (
        [One("1", 1), One("3", 2, "1", "rejected"), One("2", 3, "1")],
        "2 1",
    ),
    "beside a rejected one, clock set back": (
        [One("1", 5), One("3", 6, "1", "rejected"), One("2", 2, "1")],
        "2 1",
    ),
    "the one that went back was rejected": ([*UP, One("1'", 4, "1", "rejected")], "1' 1"),
    "all rejected": ([One("1", 1, "", "rejected")], ""),
    "back below what NeMo-RL has saved": (
        [nemo("3", 1), nemo("4", 2), nemo("5", 3), One("4'", 4, "4")],
        "4' 4",
    ),
    "NeMo-RL went on above": ([One("1", 1), One("2", 2, "1"), nemo("3", 3)], "3"),
    "copied, so that NeMo-RL's are young": ([One("1", 1), One("2", 2, "1"), nemo("3", 9)], "3"),
    "on from what NeMo-RL has saved": ([nemo("3", 1), One("4", 2, "3")], "4 3"),
    "manifests that make a circle": ([One("1", 1, "2"), One("2", 2, "1")], "2 1"),
}


@pytest.mark.parametrize(("history", "line"), HISTORIES.values(), ids=HISTORIES)
def test_the_line_that_training_was_on_last(history, line):
    assert " ".join(one.uuid for one in find_line(members(history))) == line
    assert " ".join(one.uuid for one in find_line(reversed(members(history)))) == line


def test_times_that_are_none_leave_the_highest_step_first():
    odd = [One("1", 1), One("3", 2), One("2", 3)]
    broken = [
        LineMember(**{**{n: getattr(m, n) for n in m.__slots__}, "created_at": "?"})
        for m in members(odd)
    ]
    assert find_line(broken)[0].step == 3


def test_a_long_line_is_walked_once():
    history = [One(str(step), 1, str(step - 1)) for step in range(20_000)]
    assert len(find_line(members(history))) == 20_000

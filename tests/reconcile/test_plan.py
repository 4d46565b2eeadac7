from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ckptdb.core.facts import Facts
from ckptdb.core.metrics import Metric
from ckptdb.core.observed import Identity, Leftover, Observation, Tmp, Writer
from ckptdb.core.recorded import IndexedRun, RecordedEnd, RecordedRun
from ckptdb.core.records import Annotations, Checkpoint, DeletedKind, Run
from ckptdb.core.stamp import Stamp
from ckptdb.reconcile.plan import ReconcilePlan, plan

HERE = Path("/results/grpo")
RUN = Run(uuid="the run", name="grpo", directory=HERE, created_at="2026")
SEEN = IndexedRun(1, RUN, "0:0:0", verified=True)
NO_FACTS = Facts({}, {})
PINNED = Annotations(pinned=True)


def checkpoint(step: int, uuid: str | None = None, status="final", **more: object) -> Checkpoint:
    values: dict[str, object] = {
        "run_uuid": RUN.uuid,
        "run": RUN.name,
        "uuid": uuid or f"uuid {step}",
        "step": step,
        "path": HERE / ("tmp_step_" if status == "tmp" else "step_") / str(step),
        "status": status,
        "created_at": "2026",
        "metrics": {"loss": 0.5},
        "info": {"loss": 0.5},
    }
    return Checkpoint(**{**values, **more})


def gone(
    step: int,
    uuid: str | None = None,
    reason: str = "retention: too old",
    kind: DeletedKind = "retention",
) -> Checkpoint:
    return checkpoint(step, uuid).ended(kind, reason, "2027")


def replaced(step: int, uuid: str | None = None) -> Checkpoint:
    return gone(step, uuid, f"replaced by a new save of step {step}", "replaced")


def end(reason: str, kind: DeletedKind = "retention", at: str = "2027") -> RecordedEnd:
    return RecordedEnd(at, kind, reason, None)


def tmp(step: int, uuid: str | None = None, *, writer: Writer | None = None, fate=None) -> Tmp:
    found = checkpoint(step, uuid or f"tmp uuid {step}", "tmp")
    return Tmp(found, f"uuid {step}", None, writer, fate)


def observed(*finals: Checkpoint, known: tuple[int, ...] = (), **more: object) -> Observation:
    values: dict[str, object] = {
        "identity": Identity(RUN, RUN.uuid, recorded=True, marked=True),
        "stamp": Stamp(1, 2, 3),
        "settled": True,
        "finals": {**{c.step: c for c in finals}, **dict.fromkeys(known)},
        "tmps": {},
        "olds": (),
        "trash": (),
        "foreign": (),
        "facts": NO_FACTS,
        "config": None,
        "errors": (),
    }
    return Observation(**{**values, **more})


def recorded(*live: Checkpoint, **more: object) -> RecordedRun:
    finals = [c for c in live if c.status == "final"]
    values: dict[str, object] = {
        "indexed": SEEN,
        "finals": {c.step: (c.uuid, "fingerprint") for c in finals},
        "problems": {c.uuid: problem for c in finals if (problem := c.find_problem())},
        "tmps": {c.uuid: c.step for c in live if c.status == "tmp"},
        "records": {c.uuid: c for c in live},
    }
    return RecordedRun(**{**values, **more})


def kinds(found: ReconcilePlan) -> list[tuple[str, int | None]]:
    return [(action.kind, action.step) for action in found.actions]


ALIVE = Writer("tmp uuid 5", "2026", host="another host", pid=1, started=None, boot=None)
ONE = checkpoint(1)


@pytest.mark.parametrize(
    ("disk", "index", "expected"),
    [
        (observed(), recorded(), []),
        (observed(ONE), recorded(ONE), []),
        (observed(known=(1,)), recorded(ONE), []),
        (observed(ONE), recorded(), [("added", 1)]),
        (observed(ONE), RecordedRun(indexed=None), [("new run", None), ("added", 1)]),
        (observed(checkpoint(1, info={"a": 1})), recorded(ONE), [("changed", 1)]),
        (observed(checkpoint(1, metrics={})), recorded(ONE), [("changed", 1)]),
        (observed(checkpoint(1, size_bytes=1)), recorded(ONE), [("changed", 1)]),
        (observed(), recorded(ONE), [("vanished", 1)]),
        (
            observed(checkpoint(1, "another")),
            recorded(ONE),
            [("added", 1), ("vanished", 1)],
        ),
        (
            observed(facts=Facts({ONE.uuid: gone(1)}, {})),
            recorded(ONE),
            [("deleted", 1)],
        ),
        (
            observed(
                checkpoint(1, "new"),
                facts=Facts({ONE.uuid: replaced(1)}, {}),
            ),
            recorded(ONE),
            [("added", 1), ("replaced", 1)],
        ),
        (observed(ONE), recorded(gone={ONE.uuid: end("x")}), [("reappeared", 1)]),
        (observed(ONE, facts=Facts({ONE.uuid: gone(1)}, {})), recorded(ONE), []),
        (observed(facts=Facts({ONE.uuid: gone(1)}, {})), recorded(), [("deleted", 1)]),
        (
            observed(facts=Facts({ONE.uuid: gone(1)}, {})),
            recorded(gone={ONE.uuid: end("retention: too old")}),
            [],
        ),
        (
            observed(facts=Facts({ONE.uuid: gone(1)}, {})),
            recorded(gone={ONE.uuid: end("vanished", "vanished", at="2026")}),
            [("deleted", 1)],
        ),
        (observed(facts=None), recorded(gone={"x": end("x")}), []),
    ],
    ids=[
        "nothing", "the same", "known and unchanged", "added", "new run", "other info",
        "other metrics", "other size", "vanished", "another in its place", "deleted", "replaced",
        "reappeared", "a deletion that never happened", "history", "known history",
        "corrected history", "journal not read",
    ],
)  # fmt: skip
def test_finals_are_compared_with_the_index(disk, index, expected):
    found = plan(disk, index)
    assert kinds(found) == expected
    assert found.has_changes is bool(expected)
    assert found.blocked is None


@pytest.mark.parametrize(
    ("disk", "index", "expected"),
    [
        (
            observed(tmps={5: tmp(5)}),
            recorded(),
            [("abandoned tmp", 5), ("new tmp", 5)],
        ),
        (
            observed(tmps={5: tmp(5)}),
            recorded(checkpoint(5, "tmp uuid 5", "tmp")),
            [("abandoned tmp", 5)],
        ),
        (
            observed(tmps={5: tmp(5, writer=ALIVE)}),
            recorded(checkpoint(5, "tmp uuid 5", "tmp")),
            [("live tmp", 5)],
        ),
        (
            observed(tmps={5: tmp(5, writer=replace(ALIVE, host="", boot="b"), fate="publish")}),
            recorded(checkpoint(5, "tmp uuid 5", "tmp")),
            [("complete tmp", 5)],
        ),
        (
            observed(
                checkpoint(5),
                tmps={5: tmp(5, "old", fate="trash")},
                facts=Facts({"old": replaced(5, "old")}, {}),
            ),
            recorded(checkpoint(5, "old")),
            [("added", 5), ("complete tmp", 5), ("replaced", 5)],
        ),
        (
            observed(checkpoint(5), tmps={5: tmp(5, "uuid 5")}),
            recorded(checkpoint(5)),
            [("duplicate", 5)],
        ),
        (
            observed(tmps={5: tmp(5, "same"), 6: tmp(6, "same")}),
            recorded(checkpoint(5, "same", "tmp")),
            [("abandoned tmp", 5), ("duplicate", 6)],
        ),
        (observed(), recorded(checkpoint(5, "x", "tmp")), [("vanished", 5)]),
        (
            observed(facts=Facts({"x": gone(5, "x", "discarded: left unfinished")}, {})),
            recorded(checkpoint(5, "x", "tmp")),
            [("deleted", 5)],
        ),
        (observed(checkpoint(5, "x")), recorded(checkpoint(5, "x", "tmp")), [("added", 5)]),
        (
            observed(tmps={5: tmp(5, "x")}),
            recorded(gone={"x": end("old")}),
            [("abandoned tmp", 5), ("new tmp", 5)],
        ),
        (
            observed(tmps={5: tmp(5, "y")}),
            recorded(checkpoint(5, "x", "tmp")),
            [("abandoned tmp", 5), ("new tmp", 5), ("vanished", 5)],
        ),
    ],
    ids=[
        "new", "known", "alive elsewhere", "complete", "replaced one", "copy of a final",
        "copy of a tmp", "vanished", "discarded", "published", "ended before", "another tmp",
    ],
)  # fmt: skip
def test_tmps_are_told_apart(disk, index, expected):
    assert kinds(plan(disk, index)) == expected


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (RUN, []),
        (replace(RUN, config={"lr": 1}), []),
        (replace(RUN, directory=Path("/results/before")), [("moved run", None)]),
        (replace(RUN, metric_name="loss"), [("changed run", None)]),
    ],
    ids=["same", "config is not part of it", "moved", "changed"],
)
def test_the_run_itself_is_compared(run, expected):
    assert kinds(plan(observed(), recorded(indexed=replace(SEEN, run=run)))) == expected


@pytest.mark.parametrize(
    ("disk", "is_new"),
    [
        (observed(), True),
        (observed(identity=Identity(RUN, "", recorded=False, marked=False)), False),
        (observed(ONE, identity=Identity(RUN, "", recorded=False, marked=False)), True),
        (
            observed(tmps={1: tmp(1)}, identity=Identity(RUN, "", recorded=False, marked=False)),
            True,
        ),
    ],
    ids=["marked", "an empty directory", "a final", "a tmp"],
)
def test_a_directory_is_a_new_run_when_it_holds_something_of_one(disk, is_new):
    found = kinds(plan(disk, RecordedRun(indexed=None)))
    assert (("new run", None) in found) is is_new


@pytest.mark.parametrize(
    ("told", "known", "expected"),
    [
        ({ONE.uuid: PINNED}, {}, PINNED),
        ({ONE.uuid: PINNED}, {ONE.uuid: PINNED}, None),
        ({}, {ONE.uuid: PINNED}, Annotations()),
        ({"nobody": PINNED}, {}, None),
    ],
    ids=["new", "known", "undone", "of nobody"],
)
def test_annotations_follow_the_journal(told, known, expected):
    lines = {ONE.uuid: frozenset({"pin"})}  # also one that takes it away
    facts = Facts({}, told, keys=lines)
    found = plan(observed(ONE, facts=facts), recorded(ONE, annotations=known))
    assert [a.annotations for a in found.actions] == ([] if expected is None else [expected])
    assert all(a.kind == "annotated" for a in found.actions)


@pytest.mark.parametrize(
    ("disk", "index"),
    [
        (observed(facts=Facts({"x": gone(1, "x")}, {"x": PINNED})), recorded()),
        (observed(facts=Facts({}, {"x": PINNED})), recorded(gone={"x": end("r")})),
        (observed(tmps={1: tmp(1, "x")}, facts=Facts({}, {"x": PINNED})), recorded()),
    ],
    ids=["gone in the journal", "gone in the index", "tmp"],
)
def test_what_is_gone_or_not_yet_there_is_annotated_too(disk, index):
    assert "annotated" in [a.kind for a in plan(disk, index).actions]


def test_a_late_value_is_no_change_of_the_files():
    late = Metric("loss", 0.4, "eval", "2026")
    known = replace(ONE, metrics={"loss": 0.4}, late={"loss": late})
    index = recorded(known, annotations={ONE.uuid: Annotations(late=(late,))})
    facts = Facts({}, {ONE.uuid: Annotations(late=(late,))})
    assert kinds(plan(observed(ONE, facts=facts), index)) == []


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        ("damaged: model.pt: 1 of 7 bytes", "damaged"),
        ("training_info.json is missing", "unreadable"),
    ],
)
@pytest.mark.parametrize("read_again", [True, False])
def test_a_problem_is_reported_every_time_and_is_no_drift(problem, kind, read_again):
    bad = checkpoint(1, problem=problem, problem_kind=kind)
    disk = observed(bad) if read_again else observed(known=(1,))
    found = plan(disk, recorded(bad))
    assert kinds(found) == [(kind, 1)]
    assert not found.has_changes
    assert found.actions[0].what == f"{problem}; kept, not ranked"


@pytest.mark.parametrize("read_again", [True, False])
@pytest.mark.parametrize("told", [True, False], ids=["by the journal", "by the index"])
def test_what_was_rejected_is_reported_every_time_and_is_no_drift(read_again, told):
    said = {ONE.uuid: Annotations(rejected="diverged"), "of nobody": Annotations(rejected="x")}
    facts = Facts({}, said) if told else None
    disk = observed(ONE, facts=facts) if read_again else observed(known=(1,), facts=facts)
    found = plan(disk, recorded(ONE, annotations={ONE.uuid: said[ONE.uuid]}))
    assert [(a.kind, a.step, a.what) for a in found.actions] == [
        ("rejected", 1, "diverged; kept, not ranked")
    ]
    assert not found.has_changes


def test_leftovers_are_to_be_put_away():
    old = Leftover(HERE / "old_step_1.x", 1, "x")
    trashed = Leftover(HERE / ".ckptdb/trash/step_2.y", 2, "y")
    kept = Leftover(HERE / ".ckptdb/trash/step_3.z", 3, "z")
    facts = Facts({"z": gone(3, "z")}, {"z": PINNED})
    index = recorded(gone={"z": end("retention: too old")}, annotations={"z": PINNED})

    found = plan(observed(olds=(old,), trash=(trashed, kept), facts=facts), index)
    assert kinds(found) == [("orphan old", 1), ("unfinished removal", 2)]
    assert found.has_changes

    unread = plan(observed(olds=(old,), trash=(trashed, kept), facts=None), index)
    assert kinds(unread) == [("orphan old", 1)]


def test_strangers_are_only_reported():
    found = plan(observed(foreign=("step_007",)), recorded())
    assert kinds(found) == [("foreign", None)]
    assert not found.has_changes
    assert found.actions[0].as_dict() == {
        "kind": "foreign",
        "step": None,
        "what": "step_007 is no checkpoint; left alone",
        "drift": False,
    }


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        (("step_9: I/O error",), "step_9: I/O error; nothing missing is recorded as deleted"),
        (("a: x", "b: y", "c: z"), "a: x and 2 more; nothing missing"),
    ],
)
def test_while_anything_cannot_be_read_nothing_has_vanished(errors, told):
    two = checkpoint(2)
    found = plan(observed(two, errors=errors), recorded(ONE))
    assert found.blocked.startswith(told)
    assert kinds(found) == [("added", 2)]


def test_an_empty_directory_without_a_run_json_may_be_a_mount_point():
    unmarked = Identity(RUN, RUN.uuid, recorded=False, marked=False)
    found = plan(observed(identity=unmarked), recorded(ONE))
    assert "holds no checkpoint any more; nothing of it is recorded as deleted" in found.blocked
    assert kinds(found) == []


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (observed(), [("vanished", 1)]),
        (observed(facts=None), []),
        (observed(facts=Facts({"x": gone(1, "x", "vanished: y", "vanished")}, {})), []),
    ],
    ids=["not in the journal", "journal not read", "in the journal"],
)
def test_what_only_the_index_has_seen_vanish_is_still_to_be_written_down(disk, expected):
    ended = gone(1, "x", "vanished: y", "vanished")
    index = recorded(gone={"x": end("vanished: y", "vanished")}, records={"x": ended})
    assert kinds(plan(disk, index)) == expected
    unread = recorded(gone={"x": end("vanished: y", "vanished")})
    assert kinds(plan(observed(), unread)) == []


def test_what_has_another_in_its_place_is_gone_whatever_cannot_be_read():
    found = plan(observed(checkpoint(1, "new"), errors=("step_9: x",)), recorded(ONE))
    assert kinds(found) == [("added", 1), ("vanished", 1)]


@pytest.mark.parametrize(
    ("known", "config", "learnt"),
    [
        (None, {"lr": 1}, {"lr": 1}),
        ({"lr": 1}, {"lr": 1}, None),
        ({"lr": 2}, {"lr": 1}, {"lr": 1}),
        ({"lr": 2}, None, None),
        (None, {}, {}),
        ({}, {}, None),
    ],
    ids=["new", "same", "other", "not read", "found to have none", "known to have none"],
)
def test_a_config_is_learnt_when_it_is_another(known, config, learnt):
    seen = replace(SEEN, run=replace(RUN, config=known))
    assert plan(observed(config=config), recorded(indexed=seen)).config == learnt

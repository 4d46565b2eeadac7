"""The crowd itself, small; and that its check of a history finds what it is made to find."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lab import crowd, history, payload, report
from lab.history import Found, Op, State
from lab.report import Row

pytestmark = pytest.mark.slow

LAB = Path(__file__).parent


def test_a_crowd_of_sixteen_processes_loses_nothing():
    command = [sys.executable, str(LAB), "--only", "crowd", "--smoke", "--shard", "0/1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [Row.from_json(line) for line in done.stdout.splitlines()]
    rows = {row.harness: row for row in report.merged(told)}
    assert set(rows) == {
        "crowd", "crowd kills", "readers native", "readers fallback", "control: crowd",
    }  # fmt: skip
    assert all(row.holds for row in rows.values()), [row.failures for row in rows.values()]
    assert rows["crowd"].points >= crowd.OPERATIONS["smoke"]
    assert rows["crowd kills"].struck > 0
    assert rows["readers native"].points == rows["readers fallback"].points == 200
    assert rows["control: crowd"].lost + rows["control: crowd"].half_visible > 0


# --- the check, on histories made up ------------------------------------------------------------


def save(token, at, step=1, loss=0.5, **changes):
    op = Op(token, "save", "run", step, at, at + 1, at + 1, token=token, loss=loss)
    return replace(op, **changes)


def row(token, step=1, status="final", **changes):
    return Found("run", step, token, status, **changes)


def gone(token, at, reason, step=1, **changes):
    return row(token, step, "deleted", ended=at, reason=reason, **changes)


def done(kind, at, **facts):
    return Op(f"{kind}@{at}", kind, "run", called=at, acked=at + 1, ended=at + 1, **facts)


PIN = {"step": 1, "key": "pin", "value": True, "token": "a"}
WORST = history.retention_reason((1, None), 0.9)
PRUNED = [save("a", 0, loss=0.9), save("b", 2, step=2, loss=0.1)]
LEFT = {("run", 2): "b"}

# Each is a true story: operations, what the index has, and what is live.
TRUE = {
    "saved": ([save("a", 0)], [row("a")], {("run", 1): "a"}),
    "replaced": (
        [save("a", 0), save("b", 2)],
        [gone("a", 2.5, "replaced by a new save of step 1"), row("b")],
        {("run", 1): "b"},
    ),
    "pruned": (
        [*PRUNED, done("prune", 4, policy=(1, None))],
        [gone("a", 4.5, WORST), row("b", 2)],
        LEFT,
    ),
    "pinned while it was pruned": (
        [*PRUNED, done("prune", 4, policy=(1, None)), done("pin", 4.2, **PIN)],
        [gone("a", 4.5, WORST, pinned=True), row("b", 2)],
        LEFT,
    ),
    "removed by hand": (
        [save("a", 0), done("rm", 2, step=1)],
        [gone("a", 2.5, "by hand")],
        {},
    ),
    "cut, and finished by another": (
        [save("a", 0, acked=history.NEVER, error="cut"), done("reconcile", 5)],
        [row("a")],
        {("run", 1): "a"},
    ),
    "cut, and gone": ([save("a", 0, acked=history.NEVER, error="cut")], [], {}),
    "asked while it was replaced": (
        [save("a", 0), save("b", 2), done("best", 2.2, answer="a"), done("get", 2.3, answer="b")],
        [gone("a", 2.5, "replaced by a new save of step 1"), row("b")],
        {("run", 1): "b"},
    ),
    "missing while it was removed": (
        [save("a", 0), done("rm", 2, step=1), done("open", 2.2, step=1, error="missing")],
        [gone("a", 2.5, "by hand")],
        {},
    ),
    "discarded after a death that its parent had not seen yet": (
        [save("a", 0, alive_until=1, ended=9, acked=history.NEVER, error="cut"), done("gc", 2)],
        [gone("a", 2.5, "discarded: left unfinished, removed by gc")],
        {},
    ),
    "too late for a pin": (
        [save("a", 0), done("rm", 2, step=1), done("pin", 2.2, step=1, error="CheckpointGone")],
        [gone("a", 2.5, "by hand")],
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("story", TRUE.values(), ids=TRUE)
def test_what_may_happen_is_accepted(story):
    ops, found, live = story
    assert history.check(ops, State(found, live)) == []


# One thing about each of them cannot be true.
FALSE = {
    "a lost save": ([save("a", 0)], [], {}),
    "a save that is in the index alone": ([save("a", 0)], [row("a")], {}),
    "a save that is on disk alone": ([save("a", 0)], [], {("run", 1): "a"}),
    "live and gone": (
        [save("a", 0), done("rm", 2, step=1)],
        [gone("a", 2.5, "by hand")],
        {("run", 1): "a"},
    ),
    "a deletion that nobody asked for": ([save("a", 0)], [gone("a", 2.5, "by hand")], {}),
    "vanished": ([save("a", 0)], [gone("a", 2.5, "vanished: not on disk any more")], {}),
    "an acknowledged save, discarded": (
        [save("a", 0), save("b", 2)],
        [gone("a", 2.5, "discarded: left unfinished, the step was saved again"), row("b")],
        {("run", 1): "b"},
    ),
    "discarded under a living process": (
        [save("a", 0, alive_until=8, ended=9, acked=history.NEVER, error="cut"), done("gc", 2)],
        [gone("a", 2.5, "discarded: left unfinished, removed by gc")],
        {},
    ),
    "one save that replaces two": (
        [save("a", 0), save("b", 1), save("c", 2.3)],
        [gone("a", 2.4, "replaced by a new save of step 1"),
         gone("b", 2.5, "replaced by a new save of step 1"),
         row("c")],
        {("run", 1): "c"},
    ),
    "a prune before its time": (
        [*PRUNED, done("prune", 9, policy=(1, None))],
        [gone("a", 4.5, WORST), row("b", 2)],
        LEFT,
    ),
    "a prune by another policy": (
        [*PRUNED, done("prune", 4, policy=(2, None))],
        [gone("a", 4.5, WORST), row("b", 2)],
        LEFT,
    ),
    "the best, pruned": (
        [save("a", 0, loss=0.1), save("b", 2, step=2, loss=0.9),
         done("prune", 4, policy=(1, None))],
        [gone("a", 4.5, history.retention_reason((1, None), 0.1)), row("b", 2)],
        LEFT,
    ),
    "pinned and pruned": (
        [*PRUNED, done("pin", 3.1, **PIN), done("prune", 5, policy=(1, None))],
        [gone("a", 5.5, WORST, pinned=True), row("b", 2)],
        LEFT,
    ),
    "a lost pin": ([save("a", 0), done("pin", 2, **PIN)], [row("a")], {("run", 1): "a"}),
    "a pin of nobody": ([save("a", 0)], [row("a", pinned=True)], {("run", 1): "a"}),
    "a tag that had been taken away": (
        [save("a", 0), done("tag", 2, step=1, key="tag x", value=True, token="a"),
         done("untag", 4, step=1, key="tag x", value=None, token="a")],
        [row("a", tags=frozenset({"x"}))],
        {("run", 1): "a"},
    ),
    "a late metric of before": (
        [save("a", 0), done("metric", 2, step=1, key="metric m", value=1.0, token="a"),
         done("metric", 4, step=1, key="metric m", value=2.0, token="a")],
        [row("a", late={"m": 1.0})],
        {("run", 1): "a"},
    ),
    "an answer that never was": (
        [save("a", 0), done("get", 2, step=1, answer="z")], [row("a")], {("run", 1): "a"},
    ),
    "an answer that was gone": (
        [save("a", 0), save("b", 2), done("latest", 5, answer="a")],
        [gone("a", 2.5, "replaced by a new save of step 1"), row("b")],
        {("run", 1): "b"},
    ),
    "a best that was not": (
        [*PRUNED, done("best", 5, answer=1)], [row("a"), row("b", 2)], {**LEFT, ("run", 1): "a"},
    ),
    "no answer": ([save("a", 0), done("latest", 5)], [row("a")], {("run", 1): "a"}),
    "mixed content": (
        [save("a", 0), done("open", 2, step=1, error="half")], [row("a")], {("run", 1): "a"},
    ),
    "mixed content in the end": ([save("a", 0)], [row("a")], {("run", 1): "half: weights.bin"}),
    "a missing name": (
        [save("a", 0), done("open", 2, step=1, error="missing")], [row("a")], {("run", 1): "a"},
    ),
    "files that went while nothing ended": (
        [save("a", 0), done("open", 2, step=1, error="emptied")], [row("a")], {("run", 1): "a"},
    ),
    "live by nobody": ([], [], {("run", 1): "a"}),
    "a discarded one, live": (
        [save("a", 0, publishes=False)], [row("a")], {("run", 1): "a"},
    ),
    "gone for a pin, and never gone": (
        [save("a", 0), done("pin", 2, step=1, error="CheckpointGone")],
        [row("a")],
        {("run", 1): "a"},
    ),
    "an error": ([done("reconcile", 1, error="OSError")], [], {}),
}  # fmt: skip


@pytest.mark.parametrize("story", FALSE.values(), ids=FALSE)
def test_what_cannot_be_is_found(story):
    ops, found, live = story
    assert history.check(ops, State(found, live)) != []


def test_a_checkpoint_is_whole_or_it_is_not(tmp_path):
    def info(token):
        (tmp_path / "training_info.json").write_text(json.dumps({"token": token}))

    payload.write(tmp_path, "a")
    info("a")
    assert payload.read(tmp_path) == "a"
    info("b")
    with pytest.raises(payload.Half):
        payload.read(tmp_path)
    info("a")
    (tmp_path / "weights.bin").write_bytes(payload.content("a", "weights.bin")[:-1])
    with pytest.raises(payload.Half):
        payload.read(tmp_path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(payload.Half):
        payload.read(tmp_path)
    with pytest.raises(payload.Missing):
        payload.read(tmp_path / "nowhere")


def test_what_is_in_flight_at_a_death_is_known(tmp_path):
    (tmp_path / "3.1").write_text(
        '{"id": "3.1.1", "kind": "save", "run": "r", "step": 1, "token": "t", "called": 1.0}\n'
        '{"id": "3.1.1", "ended": 2.0, "acked": 1.5}\n'
        '{"id": "3.1.2", "kind": "pin", "run": "r", "step": 1, "called": 3.0}\n{"id": "3.'
    )
    saved, pinned = crowd.read_notes(tmp_path, {"3.1": crowd.Death(3.5, 4.0)})
    assert (saved.acked, saved.ended, saved.error) == (1.5, 2.0, None)
    assert (pinned.acked, pinned.ended, pinned.error) == (history.NEVER, 4.0, "cut")
    assert (saved.alive_until, pinned.alive_until) == (None, 3.5)


def test_one_that_ends_in_good_order_says_until_when_it_lived(tmp_path):
    (tmp_path / "3.1").write_text(
        '{"id": "3.1.1", "kind": "save", "run": "r", "step": 1, "called": 1.0}\n{"last": 3.9}\n'
    )
    (cut,) = crowd.read_notes(tmp_path, {"3.1": crowd.Death(3.5, 4.0)})
    assert (cut.alive_until, cut.ended) == (3.9, 4.0)

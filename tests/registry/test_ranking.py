"""Choosing with more demands than a metric: conditions, ties, fronts, history, other times."""

import json
import shutil
from datetime import UTC, datetime

import pytest

from ckptdb import Registry
from ckptdb.disk import root_marker
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import (
    InvalidChoice,
    InvalidCondition,
    InvalidTime,
    UnknownDirection,
    UnknownMetric,
    UnknownName,
)
from ckptdb.registry import published

LOSS = "val:loss"


def hour(number):
    return f"2020-01-01T{number:02}:00:00.000Z"


class Story:
    """What happens in a run, each at an hour of one day."""

    def __init__(self, run, metric=(LOSS, False)):
        self.run = run
        self.hour = 0
        self.publisher = Publisher(run, make_durable=False, metric=metric, clock=self.clock)

    def clock(self):
        return datetime(2020, 1, 1, self.hour, tzinfo=UTC).timestamp()

    def save(self, hour, step, **metrics):
        self.hour = hour
        info = {name.replace("__", ":"): value for name, value in metrics.items()}
        staged = self.publisher.stage(step, json.dumps(info).encode(), None)
        return self.publisher.publish(staged.checkpoint.path).checkpoint

    def delete(self, hour, checkpoint, reason="retention: test"):
        self.hour = hour
        self.publisher.retire([Deletion(checkpoint.step, checkpoint.uuid, reason)])
        self.publisher.empty_trash()


@pytest.fixture
def root(tmp_path):
    """Run a: 1 to 4 at these hours; 2, the best ever, went at 5. Run b: 9 at hour 6.

    step  val:loss  kl    acc
     1     0.5      0.05  0.1
     2     0.1      0.30  0.2
     3     0.3      0.20  -
     4     0.3      0.10  0.4
    """
    directory = tmp_path / "results"
    directory.mkdir()
    root_marker.mark_root(directory)
    a = Story(directory / "a")
    a.save(1, 1, val__loss=0.5, kl=0.05, acc=0.1)
    best = a.save(2, 2, val__loss=0.1, kl=0.30, acc=0.2)
    a.save(3, 3, val__loss=0.3, kl=0.20)
    a.save(4, 4, val__loss=0.3, kl=0.10, acc=0.4)
    a.delete(5, best)
    Story(directory / "b").save(6, 9, val__loss=0.2, kl=0.4)
    with Registry.open(directory) as registry:
        registry.reconcile()
    return directory


@pytest.fixture
def registry(root):
    with Registry.open(root) as found:
        yield found


def steps(found):
    return [checkpoint.step for checkpoint in found]


# --- conditions ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("kl < 0.15", [4, 1]),
        ('"val:loss" = 0.3', [4, 3]),
        ('"val:loss" = 0.3 AND kl < 0.15', [4]),
        ("acc > 0", [4, 1]),
        ("acc IS NULL", [9, 3]),
        ("NOT (acc > 0.2)", [1]),
        ("step % 2 = 1", [9, 3, 1]),
        ("finalized_at < '2020-01-01T04'", [3, 1]),
        ("notes LIKE '%paper%'", [3]),
        ("pinned = 1", [3]),
        ("kl < 0", []),
    ],
)
def test_a_condition_leaves_what_it_holds_for(registry, where, found):
    registry.pin("a", 3, note="in the paper")
    assert steps(registry.top(9, where=where)) == found
    best = registry.best(where=where)
    assert (None if best is None else best.step) == (found[0] if found else None)


def test_a_misspelt_name_in_double_quotes_is_no_string(registry):
    with pytest.raises(UnknownName) as told:
        registry.best(where='"val:los" < 0.5')
    assert str(told.value) == (
        "The condition '\"val:los\" < 0.5' cannot be used: 'val:los' is neither a column (step, "
        "size_bytes, created_at, finalized_at, pinned, status, problem, notes) nor a metric "
        '(acc, kl, "val:loss").'
    )


def test_names_are_those_of_the_run_that_is_asked_about(registry):
    with pytest.raises(UnknownName, match=r"'acc' is neither .* \(kl, \"val:loss\"\)"):
        registry.best(run="b", where="acc > 0")
    assert registry.best(run="a", where="acc > 0.2").step == 4


def test_what_is_no_expression_changes_nothing_and_says_so(root, registry):
    before = (root / ".ckptdb" / "catalog.db").read_bytes()
    for where in ("kl < 1; DELETE FROM runs", "kl <", "(SELECT 1 FROM runs) = 1", "1) OR (1"):
        with pytest.raises(InvalidCondition):
            registry.top(3, where=where)
    assert (root / ".ckptdb" / "catalog.db").read_bytes() == before


def test_a_late_metric_can_be_demanded(registry):
    registry.log_metrics("a", 3, {"mmlu": 0.6}, source="eval")
    assert registry.best(where="mmlu > 0.5").step == 3


def test_demands_are_met_without_a_catalog_too(root):
    shutil.rmtree(root / ".ckptdb")
    with Registry.open(root) as registry:
        assert steps(registry.top(9, where="kl < 0.25", tie=("kl", "max"))) == [3, 4, 1]
        assert registry.best(run="a", ever=True).step == 2
    assert not (root / ".ckptdb").exists()


def test_what_vanished_is_not_chosen_however_it_was_asked_for(root, registry):
    shutil.rmtree(root / "a" / "step_4")
    assert registry.best(where="kl < 0.25", tie=("kl", "min")).step == 3
    assert steps(registry.pareto(against=("kl", "min"), run="a")) == [3, 1]


@pytest.mark.parametrize("ask", ["best", "pareto"])
def test_what_is_replaced_while_it_is_chosen_is_not_named(root, registry, monkeypatch, ask):
    ranked = published.ranked

    def ranked_too_early(*arguments):
        found = ranked(*arguments)
        monkeypatch.undo()
        Story(root / "a").save(8, 4, val__loss=0.9, kl=0.9)
        registry.reconcile()
        return found

    monkeypatch.setattr(published, "ranked", ranked_too_early)
    if ask == "best":
        assert registry.best(run="a", where="kl < 0.15").step == 1
    else:
        assert steps(registry.pareto(run="a", against=("kl", "min"))) == [3, 1]
    assert published.ranked is ranked


# --- ties ---------------------------------------------------------------------------------------


def test_a_second_metric_decides_among_equals(registry):
    assert steps(registry.top(3, run="a")) == [4, 3, 1]
    assert steps(registry.top(3, run="a", tie=("kl", "max"))) == [3, 4, 1]
    assert registry.best(run="a", tie=("acc", "max")).step == 4  # 3 has none
    with pytest.raises(UnknownMetric, match="'kll'"):
        registry.best(run="a", tie=("kll", "max"))
    with pytest.raises(InvalidChoice, match="mode must be 'min' or 'max'"):
        registry.best(run="a", tie=("kl", "low"))


# --- a front ------------------------------------------------------------------------------------


def test_the_front_of_two_metrics_comes_best_first(registry):
    assert steps(registry.pareto(against=("kl", "min"), run="a")) == [4, 1]
    assert steps(registry.pareto(against=("kl", "min"))) == [9, 4, 1]
    assert steps(registry.pareto("kl", mode="max", against=(LOSS, "min"), run="a")) == [3]
    assert steps(registry.pareto(against=("kl", "min"), where="kl >= 0.1")) == [9, 4]
    assert steps(registry.pareto(against=("acc", "max"), run="a")) == [4]


def test_equals_stay_on_the_front_together(root):
    story = Story(root / "c")
    for number, (loss, kl) in enumerate([(0.1, 0.2), (0.1, 0.2), (0.1, 0.3), (0.2, 0.2)]):
        story.save(7, number, val__loss=loss, kl=kl)
    with Registry.open(root / "c") as registry:
        assert steps(registry.pareto(against=("kl", "min"))) == [1, 0]


def test_a_front_of_nothing_says_which_metric_there_is(registry):
    with pytest.raises(UnknownMetric, match="'los'; known metrics: acc, kl"):
        registry.pareto("los", mode="min", against=("kl", "min"))
    with pytest.raises(UnknownMetric, match="'los'"):
        registry.pareto(against=("los", "min"))
    assert registry.pareto(against=("kl", "min"), where="kl > 5") == ()


def test_a_front_looks_behind_a_run_that_is_not_there(root, registry):
    (root / "b").rename(root.parent / "unmounted")
    assert steps(registry.pareto(against=("kl", "min"))) == [4, 1]


# --- history ------------------------------------------------------------------------------------


def test_the_best_ever_may_be_gone(registry):
    found = registry.best(run="a", ever=True)
    assert (found.step, found.status, found.deleted_at) == (2, "deleted", hour(5))
    assert found.deleted_reason == "retention: test"
    assert registry.best(run="a").step == 4
    assert steps(registry.top(9, ever=True)) == [2, 9, 4, 3, 1]
    assert registry.best(run="b", ever=True).status == "final"


def test_what_has_just_vanished_is_known_to_be_gone(root, registry):
    shutil.rmtree(root / "b" / "step_9")
    found = registry.top(2, ever=True)
    assert [(cp.step, cp.status) for cp in found] == [(2, "deleted"), (9, "deleted")]


def test_what_never_was_a_checkpoint_is_not_the_best_ever(root):
    story = Story(root / "a")
    staged = story.publisher.stage(7, b'{"val:loss": 0.0}', None)
    story.publisher.discard(staged.checkpoint.path, reason="discarded: test")
    (root / "a" / "step_8").mkdir()  # without training_info.json: it has a problem
    with Registry.open(root / "a") as registry:
        assert {cp.step for cp in registry.checkpoints()} >= {7, 8}
        assert steps(registry.top(9, ever=True)) == [2, 4, 3, 1]


@pytest.mark.parametrize(
    ("at", "found"),
    [
        (hour(0), []),
        (hour(1), [1]),
        (hour(2), [2, 1]),
        (hour(4), [2, 4, 3, 1]),
        ("2020-01-01T04:59:59.999Z", [2, 4, 3, 1]),
        (hour(5), [4, 3, 1]),
        ("2020-01-01T06:00+01:00", [4, 3, 1]),
        ("2020-01-01 06:00", [9, 4, 3, 1]),
        (datetime(2020, 1, 1, 3, tzinfo=UTC), [2, 3, 1]),
        ("1 second ago", [9, 4, 3, 1]),
    ],
)
def test_another_time_has_what_was_there_then(registry, at, found):
    assert steps(registry.top(9, at=at)) == found


def test_ever_as_of_a_time_is_what_had_been_until_then(registry):
    assert steps(registry.top(9, at=hour(5), ever=True)) == [2, 4, 3, 1]
    assert steps(registry.top(9, at=hour(3), ever=True)) == [2, 3, 1]


def test_what_is_said_later_is_not_known_before(registry):
    registry.log_metrics("a", 1, {LOSS: 0.0, "mmlu": 1.0}, source="eval")
    assert registry.best(run="a").step == 1
    then = registry.best(run="a", at=hour(1))
    assert (then.step, then.metrics, then.late) == (1, {"acc": 0.1, "kl": 0.05, LOSS: 0.5}, {})
    assert registry.best(run="a", at=hour(6)).step == 4
    assert registry.best(run="a", at=hour(6), where="mmlu IS NULL").step == 4
    assert registry.top(9, "mmlu", mode="max", at=hour(6)) == ()
    now = registry.best(run="a", at="0 seconds ago")
    assert (now.step, now.metrics[LOSS], now.late["mmlu"].value) == (1, 0.0, 1.0)


@pytest.mark.parametrize("at", ["yesterday", "", "2020-01-32"])
def test_what_is_no_time_is_refused(registry, at):
    with pytest.raises(InvalidTime, match="is no time"):
        registry.best(at=at)


def test_without_a_metric_the_best_is_the_latest_whatever_else_is_demanded(root):
    story = Story(root / "c", metric=None)
    saved = [story.save(number, number, kl=number / 10) for number in (1, 2, 3)]
    story.delete(4, saved[2])
    with Registry.open(root / "c") as registry:
        assert registry.best().step == 2
        assert registry.best(where="kl < 0.15").step == 1
        assert registry.best(ever=True).step == 3
        assert registry.best(at=hour(1)).step == 1
        with pytest.raises(UnknownDirection):
            registry.best(tie=("kl", "min"))

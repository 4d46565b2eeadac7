"""What a loop is told after each step, on a clock that the test moves."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdb.training.recent_saves import RecentSaves
from ckptdb.training.save_scheduler import STEPS_KEPT, SaveScheduler
from ckptdb.training.schedule import Limits
from ckptdb.training.signals import Signals

TMP = Path("tmp_step_1")


class Loop:
    """A training loop whose steps and saves take as long as the test says."""

    def __init__(self, *, by=None, ends_in=None, saves=True, period=None):
        self.now = 1000.0
        self.signals = Signals(())
        self.period = period
        self.step = 0
        self.keeper = SaveScheduler(
            Limits(by, None if ends_in is None else 5000.0 + ends_in),
            self.signals,
            RecentSaves(lambda: ()),
            saves=saves,
            monotonic=lambda: self.now,
            wall=lambda: self.now + 4000.0,
        )

    def train(self, seconds=1.0):
        """Take a step, and ask after it."""
        self.now += seconds
        self.step += 1
        periodic = self.period is not None and self.step % self.period == 0
        return self.keeper.ask(is_periodic=periodic)

    def save(self, seconds=2.0):
        self.keeper.begin(TMP)
        self.now += seconds
        self.keeper.end(TMP, 10)


def test_without_a_period_a_deadline_or_a_signal_nothing_is_to_be_saved():
    loop = Loop()
    assert [loop.train() for _ in range(3)] == [None] * 3
    assert not loop.keeper.is_over


def test_a_periodic_step_is_saved_and_ends_nothing():
    loop = Loop(period=2)
    assert [loop.train() for _ in range(4)] == [None, "period", None, "period"]
    loop.save()
    assert not loop.keeper.is_over


# --- signals ------------------------------------------------------------------------------------


def test_a_signal_asks_until_a_save_has_answered_it_and_then_no_more():
    loop = Loop()
    loop.train()
    loop.signals.received = "SIGTERM"
    assert not loop.keeper.is_over, "this step is not saved yet"
    assert [loop.train(), loop.train()] == ["signal", "signal"]
    assert not loop.keeper.is_over
    loop.save()
    assert loop.keeper.is_over
    assert loop.train() is None
    assert loop.keeper.is_over, "for good"


def test_the_reason_of_the_last_save_comes_before_the_period():
    loop = Loop(period=1)
    loop.signals.received = "SIGTERM"
    assert loop.train() == "signal"


def test_a_signal_during_a_save_needs_no_other_one():
    loop = Loop(period=1)
    assert loop.train() == "period"
    loop.keeper.begin(TMP)
    loop.signals.received = "SIGTERM"
    loop.keeper.end(TMP, 10)
    assert loop.keeper.is_over
    assert loop.train() == "period"


def test_a_loop_that_never_asks_whether_to_stop_is_not_asked_twice_either():
    loop = Loop(period=1)
    loop.train()
    loop.keeper.begin(TMP)
    loop.signals.received = "SIGTERM"
    loop.keeper.end(TMP, 10)
    assert loop.train() == "period"


def test_a_signal_after_a_save_needs_another_one_once_a_step_has_been_taken():
    loop = Loop()
    loop.train()
    loop.save()
    loop.train()
    loop.signals.received = "SIGTERM"
    assert not loop.keeper.is_over
    assert loop.train() == "signal"


def test_a_signal_right_after_a_save_ends_the_loop_without_another_one():
    loop = Loop(period=1)
    loop.train()
    loop.save()
    loop.signals.received = "SIGTERM"
    assert loop.keeper.is_over


def test_another_signal_asks_again():
    loop = Loop()
    for _ in range(2):
        loop.signals.received = "SIGUSR1"
        assert loop.train() == "signal"
        loop.save()
        assert loop.train() is None


def test_a_save_that_fails_has_answered_nothing():
    loop = Loop()
    loop.signals.received = "SIGTERM"
    assert loop.train() == "signal"
    loop.keeper.begin(TMP)
    with suppress(OSError), loop.keeper.dropping(TMP):
        raise OSError("full")
    assert not loop.keeper.is_over
    assert loop.train() == "signal"


def test_a_save_that_was_staged_by_another_manager_counts():
    loop = Loop()
    loop.signals.received = "SIGTERM"
    assert loop.train() == "signal"
    loop.keeper.end(TMP, 10)
    assert loop.keeper.is_over


def test_nothing_ends_before_the_loop_has_asked():
    loop = Loop(by=1.0)
    loop.signals.received = "SIGTERM"
    loop.now += 100
    assert not loop.keeper.is_over
    loop.save()
    assert not loop.keeper.is_over
    assert loop.train() == "signal"


def test_a_loop_that_saves_nothing_is_only_told_when_to_stop():
    loop = Loop(saves=False, period=1)
    assert loop.train() is None
    assert not loop.keeper.is_over
    loop.signals.received = "SIGTERM"
    assert loop.train() is None
    assert loop.keeper.is_over


# --- behind the loop ----------------------------------------------------------------------------


def test_a_save_that_goes_on_behind_the_loop_ends_it_and_is_not_asked_for_twice():
    loop = Loop()
    loop.signals.received = "SIGTERM"
    assert loop.train() == "signal"
    loop.keeper.begin(TMP)
    assert not loop.keeper.is_over, "it might still fail in the loop's hands"
    loop.keeper.hand_over(TMP)
    assert loop.keeper.is_over
    assert loop.train() is None
    loop.keeper.end(TMP, 10)
    assert loop.keeper.is_over


def test_a_save_that_the_loop_has_begun_and_forgotten_has_answered_nothing():
    loop = Loop()
    loop.signals.received = "SIGTERM"
    assert loop.train() == "signal"
    loop.keeper.begin(TMP)  # what went on failed, and the loop caught that
    assert loop.train() == "signal"
    loop.keeper.begin(TMP.with_name("tmp_step_2"))
    loop.keeper.end(TMP.with_name("tmp_step_2"), 10)
    assert loop.keeper.is_over
    assert loop.train() is None


def test_a_save_that_fails_behind_the_loop_is_asked_for_again():
    loop = Loop()
    loop.signals.received = "SIGTERM"
    loop.train()
    loop.keeper.begin(TMP)
    loop.keeper.hand_over(TMP)
    loop.keeper.drop(TMP)
    assert not loop.keeper.is_over
    assert loop.train() == "signal"


def test_a_periodic_save_behind_the_loop_covers_a_signal_that_comes_before_the_next_step():
    loop = Loop(period=1)
    loop.train()
    loop.keeper.begin(TMP)
    loop.keeper.hand_over(TMP)
    loop.signals.received = "SIGTERM"
    assert loop.keeper.is_over


# --- deadlines ----------------------------------------------------------------------------------


def asked_at(loop, seconds=1.0):
    """Return how many seconds after the beginning a loop of such steps is told to save."""
    while loop.train(seconds) != "deadline":
        assert loop.now < 1e6
    return loop.now - 1000.0


@pytest.mark.parametrize("kind", ["by", "ends_in"])
def test_before_a_deadline_there_is_time_for_a_step_and_a_save_and_half_of_it(kind):
    loop = Loop(**{kind: 100.0})
    loop.train()
    loop.save(10.0)
    # 1 for the step, 15 for the save, 1 besides: at 83 s it is not too late for it a step later.
    assert asked_at(loop) == 83.0
    assert not loop.keeper.is_over
    loop.save(10.0)
    assert loop.keeper.is_over
    assert loop.train() is None, "once"


def test_the_nearer_of_two_deadlines_counts():
    assert asked_at(Loop(by=50.0, ends_in=100.0)) < asked_at(Loop(by=100.0, ends_in=60.0)) < 60.0


def test_a_step_that_is_saved_in_any_case_is_the_last_when_no_other_save_would_fit():
    loop = Loop(by=100.0, period=1)
    told = []
    while not loop.keeper.is_over:
        told.append(loop.train())
        loop.save(10.0)
    # Asked every 11 s: at 78 s this save, a step and a save of 15 s would leave less than 1 s.
    assert told == ["period"] * 7 + ["deadline"]
    assert loop.now == 1000.0 + 88.0


def test_a_save_that_takes_longer_than_ever_ends_the_loop_when_nothing_more_fits():
    loop = Loop(by=100.0, period=1)
    loop.train()
    loop.save(60.0)
    assert loop.keeper.is_over
    assert loop.train() == "period", "a loop that goes on all the same"


def test_the_time_of_saves_is_not_counted_as_that_of_steps():
    loop = Loop(by=1000.0, period=2)
    for _ in range(4):
        loop.train(1.0)
        if loop.step % 2 == 0:
            loop.save(100.0)
    assert list(loop.keeper._steps) == [1.0, 1.0, 1.0]


def test_what_goes_on_behind_the_loop_is_part_of_the_steps_it_goes_on_behind():
    loop = Loop(by=1000.0)
    loop.train()
    loop.keeper.begin(TMP)
    loop.now += 3.0
    loop.keeper.hand_over(TMP)
    loop.train(5.0)
    loop.now += 2.0
    loop.keeper.end(TMP, 10)
    loop.train(3.0)
    assert list(loop.keeper._steps) == [5.0, 5.0]
    assert loop.keeper._recent.slowest_seconds == 10.0


def test_of_a_save_that_spans_steps_each_bears_its_own_part():
    loop = Loop(by=1000.0)
    loop.train()
    loop.keeper.begin(TMP)
    loop.train(5.0)
    loop.now += 2.0
    loop.keeper.end(TMP, 10)
    loop.train(3.0)
    assert list(loop.keeper._steps) == [5.0, 3.0]


def test_a_slow_first_step_does_not_count_for_ever():
    loop = Loop(by=10_000.0)
    loop.train()
    loop.train(500.0)
    for _ in range(STEPS_KEPT):
        loop.train()
    assert max(loop.keeper._steps) == 1.0


def test_a_deadline_that_has_passed_is_still_answered_once():
    loop = Loop(by=5.0)
    assert loop.train(60.0) == "deadline"
    loop.save()
    assert loop.keeper.is_over
    assert loop.train() is None


def test_the_answer_to_a_signal_shortly_before_a_deadline_answers_both():
    loop = Loop(by=10.0)
    loop.signals.received = "SIGTERM"
    assert loop.train(9.5) == "signal"
    loop.save()
    assert loop.train() is None


def test_a_signal_long_before_a_deadline_leaves_the_deadline_to_be_answered():
    loop = Loop(by=100.0)
    loop.signals.received = "SIGUSR1"
    assert loop.train() == "signal"
    loop.save()
    assert 90.0 < asked_at(loop) < 100.0


@pytest.mark.slow
@given(
    first_step=st.floats(1, 20),
    first_save=st.floats(0, 50),
    steps=st.lists(st.floats(0.3, 1), min_size=1, max_size=10),
    saves=st.lists(st.floats(0.8, 1), min_size=1),
    last=st.floats(0, 1.2),
    period=st.sampled_from([1, 2, 7, None]),
    kind=st.sampled_from(["by", "ends_in"]),
)
@settings(deadline=None)
def test_a_loop_that_obeys_saves_its_last_step_in_time_and_once(
    first_step, first_save, steps, saves, last, period, kind
):
    """Steps and saves vary as they do, and the last save takes half as long again as others."""
    loop = Loop(**{kind: 300.0}, period=period)
    loop.train(first_step)
    loop.train(first_step)
    loop.save(first_save)
    urgent, saved = 0, loop.step
    while not loop.keeper.is_over:
        reason = loop.train(first_step * steps[loop.step % len(steps)])
        if reason:
            urgent += reason == "deadline"
            slow = last if reason == "deadline" else saves[loop.step % len(saves)]
            loop.save(first_save * slow)
            saved = loop.step
    assert loop.now <= 1300.0
    assert saved == loop.step
    assert urgent <= 1
    assert urgent or period, "only a periodic save can have been the last by itself"

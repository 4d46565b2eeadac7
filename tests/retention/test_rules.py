"""Each rule alone and in unions, against the plainest reading of what its text says."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptdb.core.candidates import Candidate
from ckptdb.errors import InvalidPolicy
from ckptdb.retention import (
    Ancestors,
    AtMost,
    Awaiting,
    Best,
    EveryHours,
    EverySteps,
    Latest,
    NewerThan,
    Policy,
    Standing,
    Steps,
    Tagged,
    Where,
    decide,
    judge,
    parse,
    plan,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC).timestamp()
HOUR = 3600


def at(hours_ago):
    moment = datetime.fromtimestamp(NOW - hours_ago * HOUR, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@st.composite
def histories(draw):
    """Up to twelve checkpoints, saved in the order of steps, with everything a rule may ask for."""
    steps = sorted(draw(st.sets(st.integers(0, 40), max_size=12)))
    ago = sorted((draw(st.integers(0, 30)) for _ in steps), reverse=True)
    values = st.dictionaries(
        st.sampled_from(["loss", "acc"]), st.sampled_from([0.1, 0.5, 0.9, -1.0])
    )
    return [
        Candidate(
            step,
            f"uuid {step}",
            draw(values),
            draw(st.booleans()),
            draw(st.sampled_from([None, 0, 10, 25])),
            at(hours),
            late=frozenset(draw(st.sets(st.sampled_from(["loss", "acc"])))),
            tags=frozenset(draw(st.sets(st.sampled_from(["rc", "demo"])))),
            matches=frozenset(draw(st.sets(st.sampled_from(["kl < 1", "step > 5"])))),
            resumed_at=draw(st.none() | st.sampled_from([at(1), at(2)])),
            ancestor=draw(st.booleans()),
        )
        for step, hours in zip(steps, ago, strict=True)
    ]


COUNTS, PERIODS = st.integers(0, 6), st.integers(1, 7)
RULES = st.one_of(
    st.builds(Best, COUNTS, st.just("loss"), st.just("min"), PERIODS),
    st.builds(Best, COUNTS, st.just("acc"), st.just("max"), PERIODS),
    st.builds(Latest, COUNTS, PERIODS),
    st.builds(EverySteps, PERIODS),
    st.builds(EveryHours, st.sampled_from([0.5, 1, 2.5, 7])),
    st.builds(NewerThan, st.sampled_from([0.5, 1, 2.5, 7])),
    st.builds(Steps, st.lists(st.integers(0, 40), min_size=1, max_size=4).map(tuple)),
    st.builds(Tagged, st.sampled_from([None, "rc", "demo", "else"])),
    st.builds(Awaiting, st.sampled_from(["loss", "acc"]), st.sampled_from([0.5, 1, 2.5, 7])),
    st.just(Ancestors()),
    st.builds(Where, st.sampled_from(["kl < 1", "step > 5"])),
)
LEASES = st.dictionaries(st.integers(0, 40).map("uuid {}".format), st.just("somebody"), max_size=3)


def hours_ago(candidate):
    return (NOW - datetime.fromisoformat(candidate.finalized_at).timestamp()) / HOUR


def naive(rule, found):  # noqa: C901, PLR0911  # one for each
    """Return the steps that a rule keeps, one by one."""
    periodic = [c for c in found if c.step % getattr(rule, "period", 1) == 0]
    if isinstance(rule, Best):
        kept = set()
        while len(kept) < min(rule.count, len(periodic)):
            left = [c for c in periodic if c.step not in kept]
            ranked = [c for c in left if rule.metric in c.values] or left
            worth = [c.values.get(rule.metric, 0) for c in ranked]
            top = min(worth) if rule.mode == "min" else max(worth)
            kept.add(max(c.step for c, w in zip(ranked, worth, strict=True)
                         if w == top or rule.metric not in c.values))  # fmt: skip
        return kept
    if isinstance(rule, Latest):
        return set(sorted(c.step for c in periodic)[::-1][: rule.count])
    if isinstance(rule, EverySteps):
        return {c.step for c in found if c.step % rule.steps == 0}
    if isinstance(rule, Steps):
        return {c.step for c in found} & set(rule.steps)
    if isinstance(rule, Tagged):
        return {c.step for c in found if c.tags and rule.name in {None, *c.tags}}
    if isinstance(rule, NewerThan):
        return {c.step for c in found if hours_ago(c) < rule.hours - 1e-9}
    if isinstance(rule, Awaiting):
        lacking = [c for c in found if not {rule.metric} & {*c.values, *c.late}]
        return {c.step for c in lacking if hours_ago(c) < rule.hours - 1e-9}
    if isinstance(rule, Ancestors):
        return {c.step for c in found if c.ancestor}
    if isinstance(rule, Where):
        return {c.step for c in found if rule.condition in c.matches}
    kept, last = set(), math.inf
    for candidate in sorted(found, key=lambda c: (-hours_ago(c), c.step)):
        if last - hours_ago(candidate) >= rule.hours - 1e-9:
            kept.add(candidate.step)
            last = hours_ago(candidate)
    return kept


@pytest.mark.slow
@given(histories(), RULES)
@settings(max_examples=500)
def test_a_rule_alone_keeps_what_its_text_says(found, rule):
    assert {c.step for c in rule.kept(found, NOW)} == naive(rule, found)
    assert {c.step for c in parse(str(rule)).kept(found, NOW)} == naive(rule, found)


def protected(found, leases):
    kept = {c.step for c in found if c.pinned or c.uuid in leases} | {c.step for c in found[-1:]}
    resumed = sorted((c.resumed_at, c.step) for c in found if c.resumed_at)
    return kept | {step for _, step in resumed[-1:]}


@pytest.mark.slow
@given(histories(), st.lists(RULES, min_size=1, max_size=4), LEASES)
@settings(max_examples=500)
def test_a_union_keeps_what_any_of_its_rules_keeps(found, rules, leases):
    decisions = decide(found, Policy(keep=tuple(rules)), leased=leases, now=NOW)
    expected = protected(found, leases)
    for rule in rules:
        expected |= naive(rule, found)
    assert {d.step for d in decisions if d.keep} == expected
    texts = {f"kept: {rule}" for rule in rules} | {"kept: pinned", "kept: the latest"}
    texts |= {"kept: leased for somebody", "kept: training was resumed from it"}
    for decision in decisions:
        assert decision.reason in texts or decision.reason.startswith("retention: not")
        assert decision.keep == (decision.reason in texts)


@pytest.mark.slow
@given(
    found=histories(),
    rules=st.lists(RULES, max_size=2),
    limit=st.sampled_from([0, 9, 10, 30, 60, 1000]),
    ranking=st.sampled_from([(None, None), ("loss", "min"), ("acc", "max")]),
    leases=LEASES,
)
@settings(max_examples=1000)
def test_a_limit_in_bytes_takes_the_lowest_ranked_until_the_rest_fits(
    found, rules, limit, ranking, leases
):
    metric, mode = ranking
    policy = Policy(metric=metric, mode=mode, keep=(*rules, AtMost(limit), AtMost(limit + 5)))
    decisions = decide(found, policy, leased=leases, now=NOW)
    safe = protected(found, leases)
    staying = set() if rules else {c.step for c in found}
    for rule in rules:
        staying |= naive(rule, found)
    staying |= safe
    by_step = {c.step: c for c in found}

    def taken():
        return sum(by_step[step].size_bytes or 0 for step in staying)

    best_first = Best(len(found), metric, mode)
    for size in range(len(found), 0, -1):
        # The last one of all that are left is the one that the next larger "best" does not have.
        lowest = naive(replace(best_first, count=size), found) - naive(
            replace(best_first, count=size - 1), found
        )
        if taken() > limit and any(by_step[step].size_bytes for step in lowest):
            staying -= lowest - safe
    assert {d.step for d in decisions if d.keep} == staying
    assert taken() <= limit or all(not by_step[s].size_bytes for s in staying - safe)


def test_the_reason_of_a_limit_tells_rank_and_value():
    found = [Candidate(s, f"uuid {s}", {"loss": s / 10}, size_bytes=10) for s in (1, 2, 3, 4)]
    limited = Policy(metric="loss", mode="min", keep=["at most 25 B"])
    assert [(d.step, d.reason) for d in decide(found, limited)] == [
        (1, "kept: at most 25 B"),
        (2, "retention: at most 25 B, ranked 2 of 4 by loss min (0.2)"),
        (3, "retention: at most 25 B, ranked 3 of 4 by loss min (0.3)"),
        (4, "kept: the latest"),
    ]
    assert [d.reason for d in decide(found[:3], Policy(keep=["at most 20 B"]))] == [
        "retention: at most 20 B, ranked 3 of 3 by step",
        "kept: at most 20 B",
        "kept: the latest",
    ]


def plan_of(found, policy, **options):
    return plan.make(judge(found, policy, **options), found, policy)


def test_a_plan_tells_what_becomes_of_best_latest_and_top():
    found = [Candidate(s, f"uuid {s}", {"loss": 1 / s}, size_bytes=10) for s in (1, 2, 3, 4, 5)]
    by_loss = plan_of(found, Policy(1, 1, None, "loss", "max"), exclude_latest=False)
    assert by_loss.before == Standing(1, 5, (1, 2, 3))
    assert by_loss.after == Standing(1, 1, (1,))
    assert by_loss.freed_bytes == 40
    nobodys = plan_of(found, Policy(keep=["steps 1,2"]))
    assert (nobodys.before, nobodys.after) == (Standing(5, 5, (5, 4, 3)), Standing(5, 5, (5, 2, 1)))
    lost = plan.make(nobodys.decisions, found[2:4], Policy(metric="loss", mode="min"))
    assert (lost.before, lost.after) == (Standing(4, 4, (4, 3)), Standing(None, None, ()))


@pytest.mark.slow
@given(histories(), st.lists(RULES, min_size=1, max_size=4))
def test_what_is_kept_is_kept_the_second_time(found, rules):
    policy = Policy(keep=tuple(rules))
    kept = {d.step for d in decide(found, policy, now=NOW) if d.keep}
    left = [c for c in found if c.step in kept]
    # By rank others than the best may move up, but nobody moves out.
    assert all(d.keep for d in decide(left, policy, now=NOW))


@pytest.mark.slow
@given(
    found=histories(),
    period=PERIODS,
    top=st.none() | COUNTS,
    newest=st.none() | COUNTS,
    ranking=st.sampled_from([(None, None), ("loss", "min"), ("acc", "max")]),
    exclude_latest=st.booleans(),
)
@settings(max_examples=2000)
def test_nemo_settings_and_their_rules_agree(found, period, top, newest, ranking, exclude_latest):
    settings_ = Policy(period, top, newest, *ranking)
    rules = Policy(keep=tuple(parse(str(rule)) for rule in settings_.rules))
    said = decide(found, settings_, exclude_latest=exclude_latest, now=NOW)
    assert said == decide(found, rules, exclude_latest=exclude_latest, now=NOW)


# --- clocks that are wrong ----------------------------------------------------------------------


def saved(step, hours):
    """A checkpoint that was saved so many hours after a day ago, by the clock of its machine."""
    return Candidate(step, f"uuid {step}", {}, finalized_at=at(24 - hours))


def prune(found, rule):
    """Return what is left, and what of it the rule keeps."""
    decisions = decide(found, Policy(keep=(rule,)), now=NOW)
    kept = {d.step for d in decisions if d.keep}
    return [c for c in found if c.step in kept], {c.step for c in rule.kept(found, NOW)}


def test_a_clock_set_back_three_hours_drops_nothing_that_every_hour_kept():
    rule, found, kept = EveryHours(1), [], set()
    for tenth in range(120):  # a save each six minutes
        hours = tenth / 10 - (3 if tenth > 50 else 0)
        found, now_kept = prune([*found, saved(tenth, hours)], rule)
        assert kept <= now_kept
        kept = now_kept
    # One each hour before and after, and the first after the clock was set.
    assert sorted(kept) == [0, 10, 20, 30, 40, 50, 51, 61, 71, 81, 91, 101, 111]


HOURS = st.integers(0, 40).map(lambda tenths: tenths / 4)


@pytest.mark.slow
@given(st.lists(HOURS, min_size=1, max_size=15), st.sampled_from([0.5, 1, 2.5]))
@settings(max_examples=500)
def test_whatever_the_clocks_say_what_every_hours_has_kept_stays(clock, hours):
    rule, found, kept = EveryHours(hours), [], set()
    for step, time in enumerate(clock):
        found, now_kept = prune([*found, saved(step, time)], rule)
        assert kept <= now_kept
        kept = now_kept


@pytest.mark.slow
@given(st.lists(HOURS, min_size=1, max_size=15), st.sampled_from([0.5, 1, 2.5]))
@settings(max_examples=500)
def test_clocks_in_any_order_keep_no_fewer_than_a_clock_that_goes_on(clock, hours):
    rule = EveryHours(hours)
    ordered = [saved(step, time) for step, time in enumerate(sorted(clock))]
    as_it_was = [saved(step, time) for step, time in enumerate(clock)]
    assert len(list(rule.kept(as_it_was, NOW))) >= len(list(rule.kept(ordered, NOW)))


def test_a_time_in_the_future_ends_no_keeping_of_those_after_it():
    found = [saved(1, 0), saved(2, 10**6), *(saved(step, step / 10) for step in range(3, 40))]
    assert [c.step for c in EveryHours(1).kept(found, NOW)] == [1, 2, 3, 13, 23, 33]
    assert [c.step for c in NewerThan(23).kept(found, NOW)] == [2, *range(11, 40)]


def test_going_back_by_hand_drops_nothing_that_every_hour_kept():
    line = [saved(step * 100, step) for step in range(1, 6)]
    kept = {c.step for c in EveryHours(1).kept(line, NOW)}
    assert kept == {100, 200, 300, 400, 500}
    again = sorted([*line, saved(150, 6), saved(160, 6.5)], key=lambda c: c.step)
    assert {c.step for c in EveryHours(1).kept(again, NOW)} == kept | {150}


def test_a_save_after_the_clock_was_set_back_is_as_new_as_the_one_before():
    found = [saved(1, 20), saved(2, 23.5), saved(3, 20.6), saved(4, 20.7)]
    assert [c.step for c in NewerThan(1).kept(found, NOW)] == [2, 3, 4]
    assert [c.step for c in Awaiting("loss", 1).kept(found, NOW)] == [2, 3, 4]
    assert list(NewerThan(1).kept(found, NOW + HOUR)) == []


# --- text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("best 3", Best(3)),
        ("best 3 by val:loss min", Best(3, "val:loss", "min")),
        ("best 1 by a b max of every 100 steps", Best(1, "a b", "max", 100)),
        ("best 2 by x min min", Best(2, "x min", "min")),
        ("latest 2", Latest(2)),
        ("latest 2 of every 10 steps", Latest(2, 10)),
        ("every 100 steps", EverySteps(100)),
        ("every 6 hours", EveryHours(6)),
        ("every 30 minutes", EveryHours(0.5)),
        ("newer than 2 days", NewerThan(48)),
        ("newer than 1.5 hours", NewerThan(1.5)),
        ("steps 10,20, 30", Steps((10, 20, 30))),
        ("step 7", Steps((7,))),
        ("awaiting mmlu for 2 hours", Awaiting("mmlu", 2)),
        ("awaiting a for b for 30 minutes", Awaiting("a for b", 0.5)),
        ("ancestors", Ancestors()),
        ("where kl < 0.1 AND step > 5", Where("kl < 0.1 AND step > 5")),
        ("at most 500 GB", AtMost(500 * 10**9)),
        ("at most 1.5TiB", AtMost(3 * 2**39)),
        ("at most 0 B", AtMost(0)),
        ("tagged", Tagged()),
        ("tagged release candidate", Tagged("release candidate")),
        ("  latest 1 ", Latest(1)),
    ],
)
def test_a_rule_is_read_from_its_text_and_written_back(text, rule):
    assert parse(text) == rule
    assert parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (NewerThan(48), "newer than 2 days"),
        (NewerThan(24), "newer than 1 day"),
        (EveryHours(36), "every 36 hours"),
        (EveryHours(1), "every 1 hour"),
        (EveryHours(0.5), "every 30 minutes"),
        (parse("newer than 1 minute"), "newer than 1 minute"),
        (NewerThan(0.001), "newer than 0.001 hours"),
        (NewerThan(1e-05), "newer than 0.00001 hours"),
        (EveryHours(0.123456789), "every 0.123456789 hours"),
        (AtMost(2 * 10**12), "at most 2 TB"),
        (AtMost(1500), "at most 1500 B"),
        (AtMost(3 * 2**30), "at most 3 GiB"),
        (AtMost(0), "at most 0 B"),
    ],
)
def test_a_time_or_a_size_is_told_in_the_unit_that_fits(rule, text):
    assert str(rule) == text
    assert parse(text) == rule


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' is no rule; there are: best K"),
        ("best", "is no rule"),
        ("best three", "is no rule"),
        ("best 3 by loss", "is no rule"),
        ("latest -1", "is no rule"),
        ("every 0 steps", "steps must be at least 1, not 0"),
        ("every 0 hours", "hours must be more than 0, not 0.0"),
        ("best 1 by x min of every 0 steps", "period must be at least 1, not 0"),
        ("DROP TABLE", "is no rule"),
    ],
)
def test_what_is_no_rule_is_refused_in_one_sentence(text, why):
    with pytest.raises(InvalidPolicy, match=why) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_rule_without_a_metric_takes_that_of_the_run():
    policy = Policy(metric="loss", mode="max", keep=(Best(2), Best(1, "acc", "min")))
    assert policy.rules == (Best(2, "loss", "max"), Best(1, "acc", "min"))
    assert policy.ranked_by == ("loss", "acc")


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("loss <", "it is not one whole expression"),
        ("loss < 1 2", "it is not one whole expression"),
        ("abs(loss, 2) < 1", "wrong number of arguments to function abs"),
        ("loss < 1; DROP TABLE runs", "';' has no meaning here"),
        ("(loss < 1", "a bracket is not closed"),
    ],
)
def test_a_condition_that_is_none_is_told_at_once(condition, why):
    with pytest.raises(InvalidPolicy, match=re.escape(why)):
        Where(condition)


def test_a_condition_may_name_columns_metrics_and_texts():
    text = """"val:loss" < 0.5 AND kl IS NOT NULL AND notes LIKE 'a%' AND step % 2 = 0"""
    assert Where(text).metrics == ("val:loss", "kl")


def test_a_policy_takes_texts_and_tells_all_that_are_none():
    assert Policy(keep=["latest 2", Steps((7,))]) == Policy(keep=(Latest(2), Steps((7,))))
    with pytest.raises(InvalidPolicy, match=r"keep_top_k must .*'x' is no rule.*'y' is no rule"):
        Policy(keep_top_k=-1, keep=["x", "latest 1", "y"])


def test_what_has_no_time_is_kept_by_rules_of_time():
    found = [Candidate(1, "a", {}), Candidate(2, "b", {}, finalized_at="nonsense")]
    assert list(EveryHours(1).kept(found, NOW)) == found
    assert list(NewerThan(1).kept(found, NOW)) == found

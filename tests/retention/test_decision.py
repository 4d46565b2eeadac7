from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.candidates import Candidate
from ckptdb.errors import InvalidPolicy
from ckptdb.retention import Policy, decide


def valued(value):
    return {} if value is None or not math.isfinite(value) else {"loss": value}


def candidates(values, *, pinned=()):
    return [
        Candidate(step, f"uuid {step}", valued(value), step in pinned, 100 + step)
        for step, value in values.items()
    ]


def kept(values, policy, *, pinned=(), exclude_latest=True):
    found = decide(candidates(values, pinned=pinned), policy, exclude_latest=exclude_latest)
    return [decision.step for decision in found if decision.keep]


LOSS = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.2, 50: 0.9}


@pytest.mark.parametrize(
    ("policy", "survivors"),
    [
        (Policy(), [10, 20, 30, 40, 50]),
        (Policy(keep_top_k=2, metric="loss", mode="min"), [20, 40, 50]),
        (Policy(keep_top_k=2, metric="loss", mode="max"), [10, 50]),
        (Policy(keep_top_k=2), [40, 50]),
        (Policy(ft_keep_latest_k=2), [10, 20, 30, 40, 50]),
        (Policy(ft_keep_latest_k=2, save_period=20), [20, 40, 50]),
        (Policy(ft_keep_latest_k=2, save_period=100), [40, 50]),
        (Policy(keep_top_k=1, ft_keep_latest_k=2, metric="loss", mode="min"), [20, 40, 50]),
        (Policy(keep_top_k=1, save_period=30, metric="loss", mode="min"), [30, 50]),
        (Policy(keep_top_k=0, metric="loss", mode="min"), [50]),
        (Policy(keep_top_k=9, metric="loss", mode="min"), [10, 20, 30, 40, 50]),
    ],
    ids=[
        "no limit",
        "two best low",
        "two best high",
        "two newest without a metric",
        "all periodic are kept without a top k",
        "newest and periodic",
        "only newest",
        "best and newest",
        "best among periodic",
        "only the latest",
        "more than there are",
    ],
)
def test_a_checkpoint_stays_if_any_rule_keeps_it(policy, survivors):
    assert kept(LOSS, policy) == survivors


@pytest.mark.parametrize(
    ("values", "survivors"),
    [
        ({1: 0.9, 2: math.nan, 3: 0.1}, [3]),
        ({1: None, 2: 0.9, 3: None}, [2, 3]),
        ({1: math.inf, 2: None, 3: math.nan}, [3]),
        ({1: 0.5, 2: 0.5, 3: 0.9}, [2, 3]),
    ],
    ids=["NaN never wins", "missing ranks last", "of the missing the newest", "ties go up"],
)
def test_top_one_keeps_the_best_finite_value(values, survivors):
    assert kept(values, Policy(keep_top_k=1, metric="loss", mode="min")) == survivors


def test_the_latest_may_go_when_it_is_not_excluded():
    assert kept(LOSS, Policy(keep_top_k=1, metric="loss", mode="min"), exclude_latest=False) == [20]


def test_a_pinned_checkpoint_always_stays():
    policy = Policy(keep_top_k=1, metric="loss", mode="min")
    assert kept(LOSS, policy, pinned={10}) == [10, 20, 50]


def test_nothing_is_judged_when_there_is_nothing():
    assert decide([], Policy(keep_top_k=1)) == ()


@pytest.mark.parametrize(
    ("policy", "step", "reason"),
    [
        (Policy(), 10, "kept: no limit is set"),
        (Policy(keep_top_k=1, metric="loss", mode="min"), 20, "kept: best 1 by loss min"),
        (Policy(keep_top_k=1, metric="loss", mode="min"), 50, "kept: the latest"),
        (Policy(keep_top_k=2), 40, "kept: latest 2"),
        (Policy(ft_keep_latest_k=2, save_period=100), 40, "kept: latest 2"),
        (Policy(ft_keep_latest_k=1, save_period=20), 20, "kept: every 20 steps"),
        (Policy(keep_top_k=1, metric="loss", mode="min"), 30, "kept: pinned"),
        (
            Policy(keep_top_k=1, metric="loss", mode="min"),
            10,
            "retention: not best 1 by loss min (0.5)",
        ),
        (Policy(keep_top_k=1), 10, "retention: not latest 1"),
        (Policy(keep_top_k=0), 10, "retention: nothing but the latest is kept"),
        (Policy(keep_top_k=0, ft_keep_latest_k=2), 10, "retention: not latest 2"),
        (
            Policy(keep_top_k=1, ft_keep_latest_k=1, save_period=20, metric="loss", mode="min"),
            10,
            "retention: not best 1 by loss min of every 20 steps, not latest 1",
        ),
        (
            Policy(keep_top_k=1, ft_keep_latest_k=1, metric="loss", mode="min"),
            5,
            "retention: not best 1 by loss min (no value), not latest 1",
        ),
    ],
)
def test_every_decision_gives_its_reason(policy, step, reason):
    found = decide(candidates({5: None, **LOSS}, pinned={30}), policy)
    by_step = {decision.step: decision for decision in found}

    assert by_step[step].reason == reason
    assert by_step[step].size_bytes == 100 + step
    assert by_step[step].uuid == f"uuid {step}"
    assert [d.step for d in found] == sorted(by_step)


@pytest.mark.parametrize(
    ("policy", "count", "answer"),
    [
        (Policy(), 100, True),
        (Policy(keep_top_k=3), 3, True),
        (Policy(keep_top_k=3), 4, False),
        (Policy(keep_top_k=3, save_period=2), 3, False),
        (Policy(ft_keep_latest_k=3, save_period=2), 3, True),
        (Policy(ft_keep_latest_k=3, save_period=2), 4, False),
        (Policy(ft_keep_latest_k=3), 4, True),
    ],
)
def test_it_is_known_without_a_look_that_nothing_can_go(policy, count, answer):
    assert policy.keeps_all(count) is answer


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        ({"keep_top_k": -1}, "keep_top_k must be at least 0, not -1"),
        ({"ft_keep_latest_k": -2}, "ft_keep_latest_k must be at least 0, not -2"),
        ({"save_period": 0}, "save_period must be at least 1, not 0"),
        ({"metric": "loss"}, "say whether 'loss' is better low or high: mode='min' or mode='max'"),
        ({"metric": "loss", "mode": "low"}, "mode must be 'min' or 'max', not 'low'"),
        ({"mode": "max"}, "mode='max' needs a metric"),
        ({"keep_top_k": -1, "save_period": 0}, "save_period must .*; keep_top_k must"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(rules, why):
    with pytest.raises(InvalidPolicy, match=why):
        Policy(**rules)


# --- against a naive reading of the rules ----------------------------------------------


def naive_survivors(found, policy, *, exclude_latest):
    steps = [c.step for c in found]
    value = {c.step: c.values.get("loss") for c in found}
    survivors = {c.step for c in found if c.pinned}
    if policy.keep_top_k is None and policy.ft_keep_latest_k is None:
        return set(steps)
    if steps and exclude_latest:
        survivors.add(max(steps))
    if policy.ft_keep_latest_k:
        survivors.update(sorted(steps)[-policy.ft_keep_latest_k :])
    periodic = {s for s in steps if s % policy.save_period == 0}
    if policy.keep_top_k is None:
        return survivors | periodic
    chosen: set[int] = set()
    while len(chosen) < policy.keep_top_k and periodic - chosen:
        left = periodic - chosen
        has_value = {
            s
            for s in left
            if policy.metric is not None and value[s] is not None and math.isfinite(value[s])
        }
        if has_value:
            pick = min if policy.mode == "min" else max
            best = pick(value[s] for s in has_value)
            chosen.add(max(s for s in has_value if value[s] == best))
        else:
            chosen.add(max(left))
    return survivors | chosen


some_values = st.none() | st.sampled_from([0.1, 0.5, 0.5, 0.9, math.nan, math.inf, -math.inf])
some_candidates = st.dictionaries(
    st.integers(0, 30), st.tuples(some_values, st.booleans()), max_size=12
)
some_policies = st.builds(
    lambda ranking, **limits: Policy(**limits, metric=ranking[0], mode=ranking[1]),
    save_period=st.integers(1, 7),
    keep_top_k=st.none() | st.integers(0, 6),
    ft_keep_latest_k=st.none() | st.integers(0, 6),
    ranking=st.sampled_from([(None, None), ("loss", "min"), ("loss", "max")]),
)


@pytest.mark.slow
@given(some_candidates, some_policies, st.booleans(), st.randoms())
def test_the_survivors_are_those_of_a_naive_reading(listed, policy, exclude_latest, random):
    found = [Candidate(s, str(s), valued(value), pin, None) for s, (value, pin) in listed.items()]
    expected = naive_survivors(found, policy, exclude_latest=exclude_latest)
    random.shuffle(found)

    decisions = decide(found, policy, exclude_latest=exclude_latest)

    assert {d.step for d in decisions if d.keep} == expected
    assert [d.step for d in decisions] == sorted(listed)
    assert all(d.reason.startswith("kept: " if d.keep else "retention: ") for d in decisions)


@pytest.mark.slow
@given(some_candidates, some_policies)
def test_applying_the_rules_twice_changes_nothing(listed, policy):
    found = [Candidate(s, str(s), valued(value), pin, None) for s, (value, pin) in listed.items()]
    survivors = {d.step for d in decide(found, policy) if d.keep}
    left = [replace(c) for c in found if c.step in survivors]

    assert all(d.keep for d in decide(left, policy))


@given(some_candidates, some_policies, st.booleans())
def test_nothing_goes_when_it_is_known_that_nothing_can(listed, policy, exclude_latest):
    found = [Candidate(s, str(s), valued(value), pin, None) for s, (value, pin) in listed.items()]
    decisions = decide(found, policy, exclude_latest=exclude_latest)

    assert not policy.keeps_all(len(found)) or all(d.keep for d in decisions)

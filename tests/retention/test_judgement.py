"""The judgement of a run: what protects checkpoints beside the rules."""

from __future__ import annotations

import pytest

from ckptdb.core.candidates import Candidate
from ckptdb.retention import Policy, describe, judge
from ckptdb.retention.reasons import (
    ByHand,
    DeletionFailed,
    KeptByNoRule,
    KeptByRule,
    OverLimit,
    Protected,
)
from ckptdb.retention.rules import AtMost, Best, Latest

LOSS = {10: 0.5, 20: 0.1, 30: 0.4, 40: 0.2, 50: 0.9}
BEST_TWO = Policy(keep_top_k=2, metric="loss", mode="min")


def candidates():
    return [Candidate(s, f"uuid {s}", {"loss": v}, size_bytes=100) for s, v in LOSS.items()]


def kept(policy=BEST_TWO, **circumstances):
    return [d.step for d in judge(candidates(), policy, **circumstances) if d.keep]


@pytest.mark.parametrize(
    ("circumstances", "steps"),
    [
        ({}, [20, 40, 50]),
        ({"exclude_latest": False}, [20, 40]),
        ({"leased": {"uuid 10": "evaluation"}}, [10, 20, 40, 50]),
        ({"in_use": {"uuid 10": "just saved"}}, [10, 20, 40, 50]),
        ({"linked": {10}}, [10, 20, 40, 50]),
        ({"previous": Policy(keep_top_k=1, metric="loss", mode="max")}, [20, 40, 50]),
        ({"previous": Policy(keep_top_k=2, metric="loss", mode="max")}, [10, 20, 40, 50]),
        # The damaged one is not judged; 40 is among the best with it, and 30 without it.
        ({"damaged": {"uuid 20"}}, [30, 40, 50]),
    ],
)
def test_a_checkpoint_that_anything_protects_stays(circumstances, steps):
    assert kept(**circumstances) == steps


def test_a_checkpoint_behind_a_symlink_takes_no_bytes_of_a_limit():
    limit = Policy(metric="loss", mode="min", keep=["at most 300 B"])
    assert kept(limit) == [20, 40, 50]
    assert kept(limit, linked={20}) == [20, 30, 40, 50]


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (Protected("no limit"), "kept: no limit is set"),
        (Protected("in use", "just saved"), "kept: just saved"),
        (Protected("leased", "evaluation by ann"), "kept: leased for evaluation by ann"),
        (Protected("linked"), "kept: behind a symlink"),
        (KeptByRule(Best(3, "loss", "min")), "kept: best 3 by loss min"),
        (DeletionFailed("Permission denied"), "not deleted: Permission denied"),
        (
            KeptByNoRule(7, (Best(3, "loss", "min"), Latest(2), Latest(0)), (("loss", 0.25),)),
            "retention: not best 3 by loss min (0.25), not latest 2",
        ),
        (
            OverLimit(AtMost(25), 2, 4, "loss", "min", None),
            "retention: at most 25 B, ranked 2 of 4 by loss min (no value)",
        ),
        (ByHand(), "by hand"),
    ],
)
def test_a_reason_has_one_sentence(reason, sentence):
    assert describe(reason) == sentence


def test_a_decision_carries_its_reason_as_data():
    reasons = {d.step: d.because for d in judge(candidates(), BEST_TWO)}
    best = Best(2, "loss", "min")
    assert reasons == {
        10: KeptByNoRule(10, (best,), (("loss", 0.5),)),
        20: KeptByRule(best),
        30: KeptByNoRule(30, (best,), (("loss", 0.4),)),
        40: KeptByRule(best),
        50: Protected("latest"),
    }


def test_a_checkpoint_that_only_the_rules_before_keep_says_so():
    previous = Policy(keep_top_k=2, metric="loss", mode="max")
    (decision, *_) = judge(candidates(), BEST_TWO, previous=previous)
    assert (decision.is_previous, decision.because) == (True, KeptByRule(Best(2, "loss", "max")))
    assert decision.reason == "kept: best 2 by loss max, as until now"

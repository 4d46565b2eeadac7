"""Judgement of a run: the only place that decides which checkpoints of a run go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ckptdb.core.candidates import Candidate
from ckptdb.retention.decision import Decision, decide, keep_previous
from ckptdb.retention.policy import Policy
from ckptdb.retention.reasons import Protected


def judge(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    previous: Policy | None = None,
    exclude_latest: bool = True,
    leased: Mapping[str, str] | None = None,
    in_use: Mapping[str, str] | None = None,
    linked: Collection[int] = (),
    damaged: Collection[str] = (),
    now: float | None = None,
) -> tuple[Decision, ...]:
    """Judge every live checkpoint of a run, by step.

    Args:
        candidates: All live, trusted checkpoints of the run.
        policy: The rules.
        previous: The rules before, when the metric has changed: what they keep stays, too.
        exclude_latest: Always keep the highest step.
        leased: Purpose and holder of each lease, by uuid.
        in_use: Use that the current training makes of a checkpoint, by uuid.
        linked: Steps behind a symlink. They are ranked like others, never go, and take no bytes
            of a limit.
        damaged: uuids of checkpoints that are recorded as damaged although their files do not
            show it. They are not judged, and a checkpoint goes only if it would go both with
            and without them.
        now: Seconds since the epoch; None for the clock's.
    """
    candidates = without_linked_bytes(candidates, linked)

    def decide_by(rules: Policy, some: Sequence[Candidate]) -> tuple[Decision, ...]:
        return decide(
            some, rules, exclude_latest=exclude_latest, leased=leased, in_use=in_use, now=now
        )

    decisions = decide_by(policy, candidates)
    sound = [candidate for candidate in candidates if candidate.uuid not in damaged]
    if len(sound) < len(candidates):
        kept = {decision.uuid: decision for decision in decisions if decision.keep}
        decisions = tuple(kept.get(one.uuid, one) for one in decide_by(policy, sound))
    if previous is not None:
        decisions = keep_previous(decisions, decide_by(previous, sound))
    return keep_linked(decisions, linked)


def without_linked_bytes(
    candidates: Sequence[Candidate], linked: Collection[int]
) -> Sequence[Candidate]:
    """Return candidates of which those behind a symlink take no bytes of a limit."""
    if not linked:
        return candidates
    return tuple(replace(c, size_bytes=None) if c.step in linked else c for c in candidates)


def keep_linked(decisions: tuple[Decision, ...], linked: Collection[int]) -> tuple[Decision, ...]:
    """Return decisions by which no checkpoint behind a symlink goes."""
    if not linked:
        return decisions
    return tuple(
        decision
        if decision.keep or decision.step not in linked
        else replace(decision, keep=True, because=Protected("linked"))
        for decision in decisions
    )

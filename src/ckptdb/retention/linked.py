"""Checkpoints behind a symlink: ranked like others, never deleted, not counted in bytes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from ckptdb.core.candidates import Candidate
from ckptdb.retention.decision import Decision

_KEPT = "kept: behind a symlink"


def without_bytes(
    candidates: Sequence[Candidate], linked: Collection[int]
) -> tuple[Candidate, ...]:
    """Return candidates so that what lies behind a symlink takes no bytes of a limit."""
    return tuple(replace(c, size_bytes=None) if c.step in linked else c for c in candidates)


def keep(decisions: tuple[Decision, ...], linked: Collection[int]) -> tuple[Decision, ...]:
    """Return decisions so that nothing behind a symlink goes."""
    if not linked:
        return decisions
    return tuple(
        decision
        if decision.keep or decision.step not in linked
        else replace(decision, keep=True, reason=_KEPT)
        for decision in decisions
    )

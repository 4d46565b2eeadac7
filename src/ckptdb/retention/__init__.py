"""What to keep and why: rules, what a run's configuration says in them, and their verdict."""

from ckptdb.retention.decision import (
    Decision,
    decide,
    decide_below,
    find_resumed_from,
    keep_previous,
)
from ckptdb.retention.grammar import parse, parse_all
from ckptdb.retention.plan import RetentionPlan, Standing
from ckptdb.retention.policy import Policy
from ckptdb.retention.replay import Replay, replay
from ckptdb.retention.rules import (
    Ancestors,
    AtMost,
    Awaiting,
    Best,
    Clause,
    EveryHours,
    EverySteps,
    Latest,
    NewerThan,
    Rule,
    Steps,
    Tagged,
    Where,
)

__all__ = [
    "Ancestors",
    "AtMost",
    "Awaiting",
    "Best",
    "Clause",
    "Decision",
    "EveryHours",
    "EverySteps",
    "Latest",
    "NewerThan",
    "Policy",
    "Replay",
    "RetentionPlan",
    "Rule",
    "Standing",
    "Steps",
    "Tagged",
    "Where",
    "decide",
    "decide_below",
    "find_resumed_from",
    "keep_previous",
    "parse",
    "parse_all",
    "replay",
]

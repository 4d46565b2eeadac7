"""What to keep and why: rules, what a run's configuration says in them, and their verdict."""

from ckptdb.retention.policy import Decision, Policy, decide, decide_below
from ckptdb.retention.rules import (
    Best,
    EveryHours,
    EverySteps,
    Latest,
    NewerThan,
    Rule,
    Steps,
    Tagged,
    parse,
    parse_all,
)

__all__ = [
    "Best",
    "Decision",
    "EveryHours",
    "EverySteps",
    "Latest",
    "NewerThan",
    "Policy",
    "Rule",
    "Steps",
    "Tagged",
    "decide",
    "decide_below",
    "parse",
    "parse_all",
]

"""Retention: rules, policies made of them, and the decisions which checkpoints stay. Pure."""

from ckptdb.retention.decision import Decision, decide, decide_below, find_resumed_from
from ckptdb.retention.grammar import parse, parse_all
from ckptdb.retention.history_replay import Replay, replay
from ckptdb.retention.judgement import judge, keep_linked, without_linked_bytes
from ckptdb.retention.plan import RetentionPlan, Standing
from ckptdb.retention.policy import Policy
from ckptdb.retention.reasons import Reason, describe
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
    "Reason",
    "Replay",
    "RetentionPlan",
    "Rule",
    "Standing",
    "Steps",
    "Tagged",
    "Where",
    "decide",
    "decide_below",
    "describe",
    "find_resumed_from",
    "judge",
    "keep_linked",
    "parse",
    "parse_all",
    "replay",
    "without_linked_bytes",
]

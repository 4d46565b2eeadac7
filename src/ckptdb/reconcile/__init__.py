"""Bringing the index to what is on disk: observed × recorded → plan (pure) → applied."""

from ckptdb.reconcile.apply import (
    Depth,
    ReconcileReport,
    RunReport,
    index_run,
    reconcile_run,
    reconcile_tree,
)
from ckptdb.reconcile.plan import Action, Plan, plan
from ckptdb.reconcile.repairs import Completing

__all__ = [
    "Action",
    "Completing",
    "Depth",
    "Plan",
    "ReconcileReport",
    "RunReport",
    "index_run",
    "plan",
    "reconcile_run",
    "reconcile_tree",
]

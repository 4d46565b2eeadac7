"""Bringing the index to what is on disk: observed × recorded → plan (pure) → applied."""

from ckptdb.reconcile.apply import (
    ReconcileDepth,
    ReconcileReport,
    RunReport,
    index_run,
    reconcile_run,
    reconcile_tree,
)
from ckptdb.reconcile.plan import Action, ReconcilePlan, plan
from ckptdb.reconcile.repairs import Completing

__all__ = [
    "Action",
    "Completing",
    "ReconcileDepth",
    "ReconcilePlan",
    "ReconcileReport",
    "RunReport",
    "index_run",
    "plan",
    "reconcile_run",
    "reconcile_tree",
]

"""Bringing the index to what is on disk: observed × recorded → plan (pure) → applied."""

from ckptdb.reconcile.apply import ReconcileReport, RunReport, reconcile_run, reconcile_tree
from ckptdb.reconcile.plan import Action, Plan, plan

__all__ = [
    "Action",
    "Plan",
    "ReconcileReport",
    "RunReport",
    "plan",
    "reconcile_run",
    "reconcile_tree",
]

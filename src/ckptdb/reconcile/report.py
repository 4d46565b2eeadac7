"""Reports of reconciling: one run, and a whole tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ckptdb.core.jsonable import JsonKeys, JsonRecord
from ckptdb.core.records import Run
from ckptdb.core.stamp import Stamp
from ckptdb.reconcile.action import Action

_PREFIX = 8
"""Number of characters of a uuid that name a run in a sentence."""


@dataclass(frozen=True, slots=True)
class RunReport(JsonRecord):
    """Report of reconciling one run: the differences, and whether they were applied.

    Attributes:
        blocked: Why something could not be applied, or None.
        run_id: The run in the catalog, None when it is not there.
        verified: The stamp for which the catalog is now known to be exact.
        doubt: Why nothing of the run may be deleted now, in words: its journal is damaged, or the
            catalog contradicts it.
        uuid: The run's.
        journal_aside: The path of its damaged journal, which is kept.
        is_unfinished: Whether work is left in its directory that a question may not do: removals,
            and lines of the journal.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "run": "name",
        "directory": "directory",
        "applied": "applied",
        "blocked": "blocked",
        "doubt": "doubt",
        "journal_aside": "journal_aside",
        "actions": "actions",
    }

    directory: Path
    name: str
    actions: tuple[Action, ...]
    blocked: str | None = None
    applied: bool = False
    run_id: int | None = None
    verified: Stamp | None = None
    doubt: str | None = None
    uuid: str | None = None
    journal_aside: Path | None = None
    is_unfinished: bool = False

    @property
    def has_drift(self) -> bool:
        """Whether disk and index differed, or a checkpoint is lost or cannot be trusted."""
        return any(action.is_drift for action in self.actions)

    @property
    def has_changes(self) -> bool:
        """Whether disk and index differed: applying changes something."""
        return any(action.is_change for action in self.actions)

    @property
    def has_unresolved(self) -> bool:
        """Whether a checkpoint is lost or cannot be trusted, which only a person can resolve."""
        return any(action.is_unresolved for action in self.actions)


@dataclass(frozen=True, slots=True)
class ReconcileReport(JsonRecord):
    """Report of reconciling a tree.

    Attributes:
        missing: Runs that the catalog has below the tree and that are not there.
        replaced: Runs whose directory below the tree is another run's by now.
        set_aside: The path of a broken catalog, which is kept.
        checkpoints: Number of checkpoints that were read.
        strays: Number of rows in the catalog that belonged to no run or checkpoint; removed.
    """

    JSON_KEYS: ClassVar[JsonKeys] = {
        "drift": "has_drift",
        "not_verifiable": "not_verifiable",
        "counts": "counts",
        "blocked": "blocked",
        "replaced": "replaced",
        "set_aside": "set_aside",
        "strays": "strays",
        "runs": "runs",
    }

    runs: tuple[RunReport, ...]
    missing: tuple[Path, ...] = ()
    replaced: tuple[Run, ...] = ()
    set_aside: Path | None = None
    checkpoints: int = 0
    seconds: float = 0.0
    strays: int = 0

    @property
    def not_verifiable(self) -> int:
        """Number of checkpoints whose files could not be compared with a manifest."""
        return sum(a.kind == "not verifiable" for run in self.runs for a in run.actions)

    @property
    def has_drift(self) -> bool:
        """Whether any run has drift, or the catalog has stray rows."""
        return bool(self.strays) or any(run.has_drift for run in self.runs)

    @property
    def has_changes(self) -> bool:
        """Whether applying changes anything."""
        return bool(self.strays) or any(run.has_changes for run in self.runs)

    @property
    def has_unresolved(self) -> bool:
        """Whether something is left that only a person can resolve."""
        return any(run.has_unresolved for run in self.runs)

    @property
    def counts(self) -> dict[str, int]:
        """Number of differences, and of checkpoints that are lost or cannot be trusted, by kind."""
        actions = [action for run in self.runs for action in run.actions]
        kinds = Counter("lost" if a.is_lost else a.kind for a in actions)
        return {
            "differences": self.strays + sum(action.is_change for action in actions),
            **{kind: kinds[kind] for kind in ("lost", "damaged", "unreadable", "rejected")},
        }

    @property
    def history(self) -> tuple[str, ...]:
        """Runs that only the catalog has, because others took their directories; a line each."""
        return tuple(
            f"{run.directory} is another run's by now; what was there before is history, and is "
            f"called {run.uuid[:_PREFIX]} (`ckptdb ls {run.uuid[:_PREFIX]} --all`, `ckptdb forget "
            f"{run.uuid[:_PREFIX]}`)"
            for run in self.replaced
        )

    @property
    def blocked(self) -> tuple[str, ...]:
        """Reasons why something could not be applied, one sentence each."""
        gone = (
            f"{path} is not there; its history is kept until it is back or `ckptdb forget {path}`"
            for path in self.missing
        )
        return (*(run.blocked for run in self.runs if run.blocked), *gone)

"""Pure rooms decide and touch nothing: they load no database, no terminal and no acting module."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from importlib import import_module

import pytest

PLANNER = (
    "action", "comparison", "freshness", "missing_facts", "plan", "plan_gone", "plan_published",
    "plan_unpublished",
)  # fmt: skip
FOREIGN = frozenset({"sqlalchemy", "alembic", "click", "rich", "numpy", "torch"})
GRAMMAR = frozenset({"ckptdb.disk", "ckptdb.disk.names"})
"""Modules of the disk that are pure themselves: the grammar of names."""

SCRIPT = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted(sys.modules)))
"""


def list_modules(room: str) -> list[str]:
    package = import_module(f"ckptdb.{room}")
    return [
        f"ckptdb.{room}",
        *(f"ckptdb.{room}.{m.name}" for m in pkgutil.iter_modules(package.__path__)),
    ]


def load(module: str) -> set[str]:
    """Import a module in a fresh interpreter; return everything that is loaded then."""
    command = [sys.executable, "-c", SCRIPT, module]
    return set(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


MODULES = [
    *list_modules("errors"),
    *list_modules("core"),
    *list_modules("retention"),
    *(f"ckptdb.reconcile.{name}" for name in PLANNER),
]


@pytest.mark.parametrize("module", MODULES)
def test_a_pure_module_loads_nothing_that_acts(module):
    loaded = load(module)
    assert not {name.partition(".")[0] for name in loaded} & FOREIGN
    rooms = {name for name in loaded if name.startswith(("ckptdb.disk", "ckptdb.catalog"))}
    assert rooms <= GRAMMAR if module.startswith("ckptdb.reconcile.") else not rooms


def test_the_check_sees_what_an_acting_module_loads():
    loaded = load("ckptdb.reconcile.run")
    assert "sqlalchemy" in loaded
    assert "ckptdb.disk.publish" in loaded

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    # What happens when the power fails is another room's question.
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(params=["memory", "file"])
def catalog(request, tmp_path: Path):
    (tmp_path / "results").mkdir()
    if request.param == "memory":
        database = Database.in_memory()
    else:
        database = Database.open(locate(tmp_path / "results"), create=True, durable=False)
    yield Catalog(database)
    database.close()


@pytest.fixture
def memory():
    database = Database.in_memory()
    yield Catalog(database)
    database.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "results" / "grpo"
    path.mkdir(parents=True, exist_ok=True)
    return path

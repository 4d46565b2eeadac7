"""What every test may need, and the way to the fault laboratory."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "crash"))
sys.path.insert(0, str(Path(__file__).parent))

from lab.dump import dump_catalog  # found only now


@pytest.fixture
def dump():
    """Return the logical content of a catalog file; equal dumps, equal answers."""
    return dump_catalog


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch, tmp_path_factory):
    """No test sees or leaves anything under the home directory."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CKPTDB_CATALOG", raising=False)
    yield
    assert list(home.iterdir()) == []

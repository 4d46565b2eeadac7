"""What every test may need, and the way to the fault laboratory."""

import os
import shutil

import pytest
from lab.dump import dump_catalog


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


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """The system's Chromium, without a window."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.fail("There is no Chromium: `apt-get install chromium` (or what it is called here).")
    from playwright.sync_api import sync_playwright

    home = tmp_path_factory.mktemp("chromium")
    with sync_playwright() as playwright:
        # Its sandbox needs namespaces that containers seldom give, least of all to root.
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-dev-shm-usage"],
            env=os.environ | {"HOME": str(home)},
        )
        yield browser
        browser.close()

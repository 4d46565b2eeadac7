"""Fixtures and options of all tests."""

import os

import pytest
from lab.dump import dump_catalog
from tests.support import requirements, selection


def pytest_addoption(parser):
    selection.add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    selection.choose(config)


def pytest_configure(config):
    if config.option.no_skips and not hasattr(config, "workerinput"):
        config.pluginmanager.register(selection.NoSkips())


def pytest_report_header(config):
    left_out = config.option.markexpr == selection.QUICK
    return [f"left out without --all: {selection.QUICK}"] if left_out else []


def pytest_itemcollected(item):
    selection.mark(item)


@pytest.fixture
def dump():
    """Return the logical content of a catalog file; equal dumps, equal answers."""
    return dump_catalog


@pytest.fixture(scope="session")
def _home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def _nothing_outside(monkeypatch, _home):
    """No test sees or leaves anything under the home directory, or stays in another one."""
    before, here = os.listdir(_home), os.getcwd()
    monkeypatch.setenv("HOME", str(_home))
    monkeypatch.delenv("CKPTDB_CATALOG", raising=False)
    yield
    os.chdir(here)  # the directory of a test that has passed is removed
    assert os.listdir(_home) == before


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Start the system's Chromium, without a window."""
    found = requirements.find_chromium()
    if found is None:
        requirements.skip(requirements.CHROMIUM)
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

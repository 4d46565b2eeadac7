"""The site builds without a warning or a network, and is readable without one."""

import importlib
import os
import re
import subprocess
import sys

import pytest
from tests.support.documents import ROOT

pytestmark = pytest.mark.slow  # MkDocs takes seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; return its folder."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = ["-m", "mkdocs", "build", "--strict", "-f", "docs/mkdocs.yml", "-d", str(folder)]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | nowhere, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def test_a_page_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r"<(?!a\b)[^>]+(?:src|href)=\"((?:https?:)?//[^\"]+)", page.read_text())
        assert loaded == [], page


@pytest.mark.parametrize("module", ["manager", "registry", "retention", "errors"])
def test_every_public_name_is_on_its_page(module, site):
    page = (site / f"reference/api/{module}.html").read_text()
    found = {name.rpartition(".")[2] for name in re.findall(r'id="(ckptdb[\w.]*)"', page)}

    assert set(importlib.import_module(f"ckptdb.{module}").__all__) - found == set()


def test_every_command_shows_its_help(site):
    page = (site / "reference/options.html").read_text()

    assert "Usage: ckptdb gc [OPTIONS]" in page
    assert "Usage: ckptdb db upgrade [OPTIONS]" in page

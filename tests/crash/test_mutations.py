"""Every flush of the disk's rooms has a mutant, and mutants are caught."""

import subprocess
import sys
from pathlib import Path

import pytest
from lab import mutants
from lab.mutants import MUTANTS
from lab.stories import STORIES
from tests.support.requirements import needs_compiler

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@needs_compiler
def test_a_few_mutants_are_caught_and_the_product_is_not():
    done = subprocess.run(
        [sys.executable, str(HERE), "--smoke", "--only", "mutations"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| mutations of the protocol | 3 | 3 | 3 | 0 | 0 | 0 |" in done.stdout
    assert done.stdout.count("caught by") == 3


def test_every_flush_is_left_out_by_some_mutant():
    left_out = {site for mutant in MUTANTS for site in mutant.without}
    assert sorted(set(mutants.sites()) - left_out) == []
    assert sorted(left_out - set(mutants.sites())) == []


def test_a_new_flush_is_noticed(tmp_path, monkeypatch):
    (tmp_path / "new.py").write_text(
        "def one(self, path):\n    fsutil.fsync(path)\n    write(path, durable=self.durable)\n"
        "    pool.map(fsync, path)\n    write(path, durable=False)\n    read(path)\n"
    )
    monkeypatch.setattr(mutants, "DISK", tmp_path)
    mutants.sites.cache_clear()
    try:
        assert list(mutants.sites()) == ["new.one/fsync/1", "new.one/write/1", "new.one/map/1"]
    finally:
        mutants.sites.cache_clear()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_mutant_has_stories_and_a_name_of_its_own(mutant):
    assert mutant.stories
    assert set(mutant.stories) <= set(STORIES)
    assert [other.name for other in MUTANTS].count(mutant.name) == 1

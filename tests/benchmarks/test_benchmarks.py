"""The benchmarks run, and what they count is what it should be; nobody looks at the clock."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.requirements import needs_compiler

pytestmark = pytest.mark.slow

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """The counts of the quick size, for the lines that have any and need no large catalog."""
    scratch = tmp_path_factory.mktemp("benchmarks")
    told = scratch / "told.json"
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", told]
    command += ["--scratch", scratch, "--only", "durable", "--only", "slow"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = json.loads(told.read_text())["lines"]
    assert set(lines) == {"durable", "slow"}
    assert all(row["what"] in done.stdout for line in lines.values() for row in line["rows"])
    return {name: line["counts"] for name, line in lines.items()}


def test_a_durable_save_that_prunes_one_flushes_and_commits_a_bounded_number_of_times(counted):
    counts = counted["durable"]
    assert counts["durable save: commit"] <= 3
    assert sum(counts.values()) <= 13
    # Each of these is what an order of the protocol hangs on.
    assert {"durable save: journal", "durable save: manifest", "durable save: run"} <= set(counts)


@needs_compiler
def test_reconciling_makes_a_bounded_number_of_calls_for_each_checkpoint(counted):
    counts = counted["slow"]
    assert counts["calls a checkpoint, one call at a time"] == 8
    assert counts["calls a checkpoint, ckptdb"] <= 18

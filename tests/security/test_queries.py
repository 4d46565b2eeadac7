"""No query takes more than a part of the memory, or more than twice its time."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from security.attempts import ATTEMPTS
from web.planting import plant

CKPTDB = Path(sys.executable).with_name("ckptdb")
MOST_BYTES = 300 << 20
TIMEOUT_SECONDS = 1.0
SLACK_SECONDS = 6.0
"""For starting two processes, and for printing, on a machine that does much else."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("tree") / "results")


def environment():
    # Measured without what measures coverage.
    return {k: v for k, v in os.environ.items() if not k.startswith("COV")}


MEASURE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdin=sys.stdin, stdout=subprocess.DEVNULL)
# Of the command and of all that it has waited for, the largest.
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("query", ATTEMPTS.values(), ids=ATTEMPTS.keys())
def test_no_query_of_the_command_takes_all_memory_or_more_than_twice_its_time(tree, query):
    command = [CKPTDB, "-C", tree, "sql", "--timeout", str(TIMEOUT_SECONDS), "-"]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command], input=query, text=True, capture_output=True,
        env=environment(), timeout=60, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    *said, kilobytes = done.stderr.splitlines()

    assert done.returncode in (0, 1)
    assert int(kilobytes) << 10 < MOST_BYTES
    assert seconds < 2 * TIMEOUT_SECONDS + SLACK_SECONDS
    if done.returncode:
        assert said[0].startswith("ckptdb: The query ")
        assert len([line for line in said if line.startswith("ckptdb: ")]) == 1
    assert "Traceback" not in done.stderr

"""No query takes more than a part of the memory, or more than twice its time."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from tests.support.attempts import ATTEMPTS
from tests.support.planting import plant
from tests.support.serving import serving

pytestmark = pytest.mark.slow

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


ASK = """
import json, resource, sys, time
from ckptdb import CkptdbError, Registry

said = {}
with Registry.open(sys.argv[1]) as registry:
    for name, query in json.load(sys.stdin).items():
        started = time.monotonic()
        try:
            registry.query(query, limit=10_000, timeout_seconds=1.0)
            outcome = ""
        except CkptdbError as error:
            outcome = str(error)
        said[name] = outcome, time.monotonic() - started
    assert registry.query("SELECT 1").rows == ((1,),)
# Since it was begun, for what getrusage says of it counts the process that has begun it.
with open("/proc/self/status") as status:
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
json.dump([said, max(own, workers)], sys.stdout)
"""


@pytest.mark.parametrize("part", range(6))
def test_no_query_in_python_takes_all_memory_or_more_than_twice_its_time(tree, part):
    # The process is the same as that of the command: some of each kind will do.
    some = dict(list(ATTEMPTS.items())[part::24])
    done = subprocess.run(
        [sys.executable, "-c", ASK, tree], input=json.dumps(some), text=True, env=environment(),
        capture_output=True, timeout=120, check=True,
    )  # fmt: skip
    said, kilobytes = json.loads(done.stdout)

    assert said.keys() == some.keys()
    assert kilobytes << 10 < MOST_BYTES
    for outcome, seconds in said.values():
        assert outcome == "" or outcome.startswith("The query ")
        assert seconds < 2 * TIMEOUT_SECONDS + SLACK_SECONDS


def test_a_long_answer_is_printed_whole_and_not_held_in_memory(tree):
    # As many and as long as the checkpoints of a hundred thousand saves.
    rows = (
        "with recursive c(x) as (select 1 union all select x + 1 from c limit 100000) "
        "select x, hex(randomblob(200)) as info from c"
    )
    command = [CKPTDB, "-C", tree, "sql", "-o", "csv", "--limit", "200000", rows]
    script = MEASURE.replace("subprocess.DEVNULL", "sys.stdout")
    with subprocess.Popen(
        [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(),
    ) as process:  # fmt: skip
        lines = sum(1 for _ in process.stdout)
        kilobytes = int(process.stderr.read())

    assert (lines, process.wait()) == (100_001, 0)
    assert kilobytes << 10 < 150 << 20


# --- the page ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tree, tmp_path_factory):
    with serving(tree, home=tmp_path_factory.mktemp("server")) as served:
        yield served


def get(address):
    """Return status and text; a request that is too long is refused in whatever way."""
    try:
        with urlopen(address, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def processes(served):
    """Return the numbers of a server and of the processes that answer its queries."""
    number = served.process.pid
    children = Path(f"/proc/{number}/task").glob("*/children")
    return [number, *(int(child) for file in children for child in file.read_text().split())]


def most_memory_ever(number):
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except FileNotFoundError:  # ended just now
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) << 10 if found else 0  # a zombie has none


SENDABLE = {name: query for name, query in ATTEMPTS.items() if len(quote(query)) < 40_000}


@pytest.mark.parametrize("form", [".json", ""], ids=["json", "html"])
@pytest.mark.parametrize("query", SENDABLE.values(), ids=SENDABLE.keys())
def test_no_query_of_the_page_takes_all_memory_or_more_than_twice_its_time(server, query, form):
    started = time.monotonic()
    status, text = get(f"{server.base}/catalog{form}?sql={quote(query)}")
    seconds = time.monotonic() - started

    assert status in (200, 400)
    assert seconds < 2 * 2 + SLACK_SECONDS
    assert max(map(most_memory_ever, processes(server))) < MOST_BYTES
    if status == 400 and form:
        assert json.loads(text)["error"]
    assert get(f"{server.base}/catalog.json?sql=select+1")[0] == 200
    assert server.process.poll() is None

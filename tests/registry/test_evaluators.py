"""Evaluators in processes of their own, some of them killed, beside a trainer that prunes."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest

from ckptdb import Registry
from ckptdb.disk import identity, root_marker
from ckptdb.disk.journal_pins import Evaluated

STEPS = 500
BEST = 30
LATEST = 2
SPAN = 12
"""How many saves an evaluation takes."""
DEADLINE_SECONDS = 120

COMMON = """
import os, sys, threading, time
os.fsync = lambda _: None  # power cuts are not what this is about
from pathlib import Path
run = Path(sys.argv[1])
"""

# The first ones are the best and stay; each other one goes as soon as two newer ones are there.
# The first that would go waits until each victim has one of those that stay.
TRAINER = f"""{COMMON}
from ckptdb import CheckpointManager
from ckptdb.disk import leases
steps, best, control = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if control == "leases mean nothing":
    leases.settle = leases.find = lambda *_, **__: ()
config = {{"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False,
           "durability": "none",
           "keep_top_k": best, "ft_keep_latest_k": {LATEST}}}
with CheckpointManager(config) as manager:
    for step in range(1, steps + 1):
        while step == best + 1 > 1 and not (run.parent / "held").exists():
            time.sleep(0.005)
        with manager.save(step, {{"loss": float(step)}}) as folder:
            (folder / "model.bin").write_bytes(b"w" * 100)
"""

# Has each checkpoint until the trainer has pruned some more, or is done; then looks whether it is
# still there. A victim says when it is in the middle of its first one, and does not go on.
EVALUATOR = f"""{COMMON}
from ckptdb import Registry
victim = sys.argv[2] == "victim"
told = threading.Event()

def listen():
    sys.stdin.readline()
    told.set()

def newest():
    return max(int(name[5:]) for name in os.listdir(run) if name.startswith("step_"))

threading.Thread(target=listen, daemon=True).start()
done = run.parent / "trained"
registry = Registry.open(run.parent)
print("ready", flush=True)
watching = registry.watch(lease="mmlu", poll_seconds=0.1, stop=told)
for checkpoint in watching:
    print("begin", checkpoint.uuid, flush=True)
    try:
        handle = os.open(checkpoint.path, os.O_RDONLY)
    except FileNotFoundError:
        print("missing", checkpoint.uuid, flush=True)
        continue
    if victim:
        print("held", checkpoint.uuid, flush=True)
        threading.Event().wait()
    while newest() < checkpoint.step + {SPAN} and not done.exists():
        time.sleep(0.005)
    whole = "model.bin" in os.listdir(handle) and (checkpoint.path / "model.bin").exists()
    os.close(handle)
    print("end" if whole else "missing", checkpoint.uuid, flush=True)
"""


class Crowd:
    """A trainer and evaluators on one run; what the latter say is collected at the end."""

    def __init__(self, run, stack):
        self.run = run
        self.said = []
        self._stack = stack

    def start(self, program, *arguments):
        command = [sys.executable, "-c", program, str(self.run), *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self._stack.enter_context(process)
        self._stack.callback(process.kill)
        return process

    def listen(self, evaluator, until):
        """Collect what an evaluator says up to some word; return what that was about."""
        for line in evaluator.stdout:
            word, _, uuid = line.strip().partition(" ")
            self.said.append((word, uuid))
            if word == until:
                return uuid
        return None

    def uuids(self, word):
        return Counter(uuid for said, uuid in self.said if said == word)


@contextmanager
def crowd(tmp_path):
    root_marker.mark_root(tmp_path)
    with ExitStack() as stack:
        yield Crowd(tmp_path / "run", stack)


def find_unevaluated(registry):
    done = Evaluated(identity.hidden(registry.runs()[0].directory)).find("mmlu")
    return [cp for cp in registry.checkpoints(run="run", status="final") if cp.uuid not in done]


@pytest.mark.slow
def test_each_checkpoint_that_survives_is_evaluated_once_though_evaluators_are_killed(tmp_path):
    with crowd(tmp_path) as people, Registry.open(tmp_path) as registry:
        victims = [people.start(EVALUATOR, "victim") for _ in range(2)]
        others = [people.start(EVALUATOR, "") for _ in range(2)]
        for evaluator in (*victims, *others):
            people.listen(evaluator, "ready")
        trainer = people.start(TRAINER, STEPS, BEST, "")
        held = [people.listen(victim, "held") for victim in victims]
        (tmp_path / "held").touch()
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        assert trainer.wait(DEADLINE_SECONDS) == 0
        (tmp_path / "trained").touch()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while find_unevaluated(registry) and time.monotonic() < deadline:
            time.sleep(0.2)
        for evaluator in others:
            evaluator.stdin.close()
            people.listen(evaluator, None)
            assert evaluator.wait(DEADLINE_SECONDS) == 0
        live = {cp.uuid for cp in registry.checkpoints(run="run", status="final")}
        gone = {cp.uuid for cp in registry.checkpoints(run="run", status="deleted")}
        assert find_unevaluated(registry) == []

    begun, ended = people.uuids("begin"), people.uuids("end")
    assert people.uuids("missing") == {}
    assert len(live | gone) == STEPS
    assert live <= set(ended)
    assert set(ended.values()) == {1}
    assert {uuid: (begun[uuid], ended[uuid]) for uuid in held} == dict.fromkeys(held, (2, 1))
    assert {uuid for uuid, times in begun.items() if times > 1} == set(held)
    # All this was worth something: evaluators had what retention wanted gone.
    assert len(gone & set(ended)) > 20
    assert len(gone) > STEPS / 2
    assert os.listdir(tmp_path / "run" / ".ckptdb" / "leases") == []


@pytest.mark.slow
def test_control_where_leases_mean_nothing_evaluators_miss_their_files(tmp_path):
    with crowd(tmp_path) as people:
        evaluator = people.start(EVALUATOR, "")
        people.listen(evaluator, "ready")
        people.start(TRAINER, 1000, 0, "leases mean nothing")
        assert people.listen(evaluator, "missing")

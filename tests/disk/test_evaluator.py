from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from ckptdb.core import threads
from ckptdb.disk import (
    checkpoint_identity,
    identity,
    leases,
    lock,
    read_trash,
)
from ckptdb.disk.evaluator import Evaluator
from ckptdb.disk.journal_pins import Evaluated
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import RunLocked

# Takes step 1, says so, and does with it what the next line says; at the end of its input it dies.
OTHER = """
import sys
from pathlib import Path
from ckptdb.disk.evaluator import Evaluator
turn = Evaluator(Path(sys.argv[1]), "mmlu").take(1, sys.argv[2])
print("taken" if turn else "refused", flush=True)
for line in sys.stdin:
    print(getattr(turn, line.strip())(), flush=True)
"""


class Other:
    """An evaluator in another process."""

    def __init__(self, run, uuid):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(run), uuid],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.began = self.process.stdout.readline().strip()

    def tell(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(run, uuid):
    """Start another process that wants the same checkpoint."""
    started = []

    def start():
        started.append(Other(run, uuid))
        return started[-1]

    yield start
    for found in started:
        found.kill()
        found.process.stdin.close()
        found.process.stdout.close()


@pytest.fixture
def other(start):
    return start()


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def uuid(run):
    """The checkpoint at step 1."""
    run.mkdir()
    return save(run, 1)


def save(run, step):
    publisher = Publisher(run, make_durable=False)
    path = publisher.stage(step, b'{"loss": 0.5}', None).checkpoint.path
    (path / "model.pt").write_bytes(b"weights")
    return publisher.publish(path).checkpoint.uuid


def retire(run, step, uuid, **how):
    publisher = Publisher(run, make_durable=False)
    gone = publisher.retire([Deletion(step, uuid, "for the test", **how)]).gone
    publisher.empty_trash()
    return [checkpoint.uuid for checkpoint in gone]


def trash(run):
    return [left.uuid for left in read_trash.list_trash(run)]


def facts(run):
    lines = (run / ".ckptdb" / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def leases_of(run):
    return sorted(os.listdir(run / ".ckptdb" / "leases"))


def expire(run):
    """Let all leases be older than they may."""
    for path in (run / ".ckptdb" / "leases").iterdir():
        os.utime(path, (0, path.stat().st_mtime - 1000))


# --- sharing ------------------------------------------------------------------------------------


def test_what_is_finished_is_recorded_with_who_did_it_and_never_taken_again(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert turn.finish()
    assert leases_of(run) == []
    (fact,) = facts(run)
    assert (fact["fact"], fact["uuid"], fact["name"]) == ("evaluated", uuid, "mmlu")
    assert (fact["host"], fact["pid"]) == (os.uname().nodename, os.getpid())
    again = Evaluator(run, "mmlu")
    assert again.find_done() == {uuid}
    assert again.take(1, uuid) is None
    assert Evaluator(run, "gsm8k").take(1, uuid).finish()


def test_two_never_have_the_same_one(run, uuid, other, start):
    mine = Evaluator(run, "mmlu")
    assert other.began == "taken"
    assert mine.take(1, uuid) is None
    another = Evaluator(run, "gsm8k").take(1, uuid)
    another.give_up()
    assert other.tell("give_up") == "None"
    turn = mine.take(1, uuid)
    assert start().began == "refused"
    assert turn.finish()


def test_one_whose_holder_was_killed_is_taken_at_once(run, uuid, other):
    other.kill()
    turn = Evaluator(run, "mmlu").take(1, uuid)
    assert turn.finish()
    assert len(facts(run)) == 1


def test_many_threads_that_want_the_same_one_are_one_that_has_it(run, uuid):
    barrier = threading.Barrier(8)
    turns = []

    def want():
        found = Evaluator(run, "mmlu")
        barrier.wait()
        turns.append(found.take(1, uuid))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (turn,) = [turn for turn in turns if turn]
    assert turn.finish()


def test_what_is_gone_or_another_one_is_not_taken(run, uuid):
    mine = Evaluator(run, "mmlu")
    new = save(run, 1)
    assert mine.take(1, uuid) is None
    retire(run, 1, new)
    assert mine.take(1, new) is None
    assert mine.take(2, uuid) is None
    assert not (run / ".ckptdb" / "leases").exists()


def test_a_run_that_ckptdb_never_wrote_keeps_the_uuids_of_its_checkpoints(tmp_path):
    (tmp_path / "step_1").mkdir()
    (tmp_path / "step_1" / "training_info.json").write_text("{}")
    known = checkpoint_identity.find_uuid(identity.identify(tmp_path), tmp_path / "step_1", 1)
    assert Evaluator(tmp_path, "mmlu").take(1, known).finish()
    assert (
        checkpoint_identity.find_uuid(identity.identify(tmp_path), tmp_path / "step_1", 1) == known
    )
    assert os.listdir(tmp_path / "step_1") == ["training_info.json"]


# --- renewing, and losing it --------------------------------------------------------------------


def test_a_lease_is_renewed_as_long_as_somebody_works(run, uuid, monkeypatch):
    renewed = threading.Semaphore(0)
    real = leases.renew

    def renew(claim):
        told = real(claim)
        renewed.release()
        return told

    monkeypatch.setattr(leases, "renew", renew)
    turn = Evaluator(run, "mmlu", lease_seconds=0.05).take(1, uuid)
    for _ in range(20):
        assert renewed.acquire(timeout=30)
    assert leases.settle(run / ".ckptdb")
    assert turn.finish()


def test_an_error_in_between_does_not_end_renewing(run, uuid, monkeypatch):
    tried = threading.Semaphore(0)

    def renew(claim):
        tried.release()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(leases, "renew", renew)
    turn = Evaluator(run, "mmlu", lease_seconds=0.05).take(1, uuid)
    for _ in range(3):
        assert tried.acquire(timeout=30)
    assert turn.finish()


def test_who_was_suspended_too_long_notices_that_somebody_else_had_it(run, uuid):
    suspended = Evaluator(run, "mmlu").take(1, uuid)
    expire(run)
    second = Evaluator(run, "mmlu").take(1, uuid)
    assert not suspended.finish()
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert second.finish()
    assert not suspended.finish()
    assert len(facts(run)) == 1


def test_who_was_suspended_and_whom_nobody_has_missed_is_done(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    expire(run)
    leases.settle(run / ".ckptdb")
    assert leases_of(run) == []
    assert turn.finish()
    assert Evaluator(run, "mmlu").find_done() == {uuid}


def test_giving_up_one_that_was_taken_over_takes_it_from_nobody(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    expire(run)
    second = Evaluator(run, "mmlu").take(1, uuid)
    turn.give_up()
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert second.finish()


def test_what_cannot_be_given_up_is_left_to_expire(run, uuid, monkeypatch, caplog):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0)
    with lock.run_lock(run / ".ckptdb"):
        turn.give_up()
        with pytest.raises(RunLocked):
            turn.finish()
    assert "is left to expire" in caplog.text
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert turn._renewing is None  # and is not renewed any more


def test_without_a_thread_to_renew_it_a_lease_holds_as_long_as_it_does(
    run, uuid, monkeypatch, caplog
):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threads._thread, "start_new_thread", refuse)
        turn = Evaluator(run, "mmlu").take(1, uuid)
    assert "cannot be renewed: can't start new thread" in caplog.text
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert turn.finish()
    assert leases_of(run) == []


def test_a_run_that_was_removed_is_not_begun_anew(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    shutil.rmtree(run)
    assert not turn.finish()
    turn.give_up()
    assert Evaluator(run, "mmlu").take(1, uuid) is None
    assert not run.exists()


def test_a_forked_child_neither_finishes_nor_gives_it_up(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    child = os.fork()
    if child == 0:
        turn.give_up()
        os._exit(turn.finish())
    assert os.waitpid(child, 0)[1] == 0
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert turn.finish()


# --- what is leased stays -----------------------------------------------------------------------


def test_what_is_leased_is_retired_only_by_force(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    assert retire(run, 1, uuid) == []
    assert (run / "step_1" / "model.pt").exists()
    assert retire(run, 1, uuid, force=True) == [uuid]
    assert leases_of(run) == []
    assert trash(run) == []
    assert turn.finish()  # what it has measured it has measured


def test_what_was_leased_goes_when_it_is_given_back(run, uuid):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    turn.give_up()
    assert retire(run, 1, uuid) == [uuid]


@pytest.mark.parametrize("how", ["killed", "not renewed"])
def test_a_lease_that_has_ended_protects_nothing_and_is_cleared_away(run, uuid, other, how):
    assert retire(run, 1, uuid) == []
    if how == "killed":
        other.kill()
    else:
        expire(run)
    assert retire(run, 1, uuid) == [uuid]
    assert leases_of(run) == []


@pytest.mark.parametrize("end", ["finish", "give_up"])
def test_the_bytes_of_what_is_replaced_stay_until_the_lease_ends(run, uuid, end):
    turn = Evaluator(run, "mmlu").take(1, uuid)
    new = save(run, 1)
    assert Publisher(run).empty_trash() == 0
    assert trash(run) == [uuid]
    assert new != uuid
    getattr(turn, end)()
    assert trash(run) == []
    assert Evaluator(run, "mmlu").take(1, new).finish()


def test_bytes_whose_evaluator_has_died_go_with_the_next_emptying(run, uuid, other):
    save(run, 1)
    assert Publisher(run).empty_trash() == 0
    other.kill()
    assert Publisher(run).empty_trash() == 1


def test_journal_and_leases_tell_the_same_story_after_a_kill_anywhere(run, uuid, monkeypatch):
    """Between the line and the end of the lease: the line counts."""

    def killed(*_):
        raise KeyboardInterrupt

    turn = Evaluator(run, "mmlu").take(1, uuid)
    with monkeypatch.context() as patch:
        patch.setattr(leases, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            turn.finish()
    assert leases_of(run) == [f"{uuid}.mmlu"]
    assert Evaluated(run / ".ckptdb").find("mmlu") == {uuid}
    expire(run)
    assert Evaluator(run, "mmlu").take(1, uuid) is None
    assert leases_of(run) == []

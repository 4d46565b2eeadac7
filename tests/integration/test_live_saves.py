"""A save in progress is never taken for an abandoned one, wherever its writer is.

Real processes in real namespaces: another container of this machine, one of another name, a second
machine (as far as it can be told from one by the id of its boot), a /proc that hides.
"""

import ctypes
import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
from tests.support import requirements
from tests.support.requirements import needs_namespaces

from ckptdb import CheckpointManager, Registry
from ckptdb.core.observed import Writer
from ckptdb.disk import (
    fs_clock,
    identity,
    liveness,
    lock,
    names,
    observation,
    writer,
)
from ckptdb.errors import StepInUse

pytestmark = pytest.mark.slow

LOSS = "val:loss"
DAY = 24 * 3600.0

# Stages step 200, says so, and does what it is told.
TRAINER = """
import os, sys
from ckptdb import CheckpointManager
config = {"checkpoint_dir": sys.argv[1], "metric_name": "val:loss", "higher_is_better": False,
          "durability": "none"}
manager = CheckpointManager(config, exclusive=sys.argv[2] == "exclusive")
with manager.save(100, {"val:loss": 1.0}) as folder:
    (folder / "model.bin").write_bytes(b"w")
staged = manager.init_tmp_checkpoint(200, {"val:loss": 0.5})
(staged / "model.bin").write_bytes(b"w")
print("staged", flush=True)
if sys.stdin.readline() == "die\\n":
    os._exit(9)
manager.finalize_checkpoint(staged)
manager.shutdown()
print("published", flush=True)
"""

# Leases what there is, says so, and goes on with the evaluation until it is told to end.
EVALUATOR = """
import os, sys
from ckptdb import Registry
for checkpoint in Registry.open(sys.argv[1]).watch(lease="mmlu", poll_seconds=None):
    print("evaluating", checkpoint.step, flush=True)
    sys.stdin.readline()
"""

ELSEWHERE = {
    "another container": ["unshare", "--pid", "--fork", "--mount-proc"],
    "another host name": ["unshare", "--uts", "sh", "-c", 'hostname gpu-7 && exec "$@"', "sh"],
    "another boot id": [
        "unshare", "--mount", "sh", "-c",
        'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"',
    ],
}  # fmt: skip
HIDDEN = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'


@contextmanager
def begun(prefix, script, *arguments, until):
    """Run a script somewhere, up to the line that it prints; it ends with this."""
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout.readline() == f"{until}\n"
            yield process
        finally:
            process.stdin.close()  # what waits for a line goes on, and ends
            process.wait(60)


def tell(process, what):
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return process.stdout.readline()


@pytest.fixture
def elsewhere(request, tmp_path):
    """How to run a command elsewhere."""
    prefix = list(ELSEWHERE[request.param])
    if request.param == "another boot id":
        other = tmp_path / "boot_id"
        other.write_text("00000000-1111-2222-3333-444444444444\n")
        prefix.append(str(other))
    return prefix


everywhere = pytest.mark.parametrize("elsewhere", ELSEWHERE, indirect=True)


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def manager_of(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
    }
    return CheckpointManager(config, **options)


def gc(run, **options):
    with Registry.open(run) as registry:
        (found,) = registry.gc(**options)
    return found


def check(run):
    """Return what `check` says of unfinished saves."""
    with Registry.open(run) as registry:
        report = registry.reconcile(dry_run=True)
    return [action.what for one in report.runs for action in one.actions
            if action.kind in ("live tmp", "abandoned tmp")]  # fmt: skip


def leave(run, *, step=200, **changes):
    """Leave a save behind whose writer holds no lock; return its directory."""
    manager = manager_of(run, exclusive=False)
    staged = manager.init_tmp_checkpoint(step, {LOSS: 0.5})
    by = writer.find(staged)
    writer.remove(staged)
    name(staged, replace(by, lock=None, **changes))
    manager.shutdown()
    return staged


def name(staged, by: Writer):
    (staged / names.WRITER).write_text(json.dumps(asdict(by)))


def age(folder, seconds):
    then = time.time() - seconds
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (then, then))


# --- a writer that lives ----------------------------------------------------------------


@needs_namespaces
@everywhere
@pytest.mark.parametrize("exclusive", ["exclusive", "not exclusive"])
def test_gc_spares_a_save_in_progress_elsewhere_and_check_does_not_advise_it(
    run, elsewhere, exclusive
):
    with begun(elsewhere, TRAINER, run, exclusive, until="staged") as trainer:
        staged = run / "tmp_step_200"
        age(staged, 2 * DAY)  # as if it had been at it for long
        (what,) = check(run)
        assert what.startswith("is being written by process ")
        assert "gc" not in what
        for dry_run in (True, False):
            found = gc(run, dry_run=dry_run)
            assert found.leftovers == ()
            (spared,) = found.spared
            assert (spared.path, spared.step, spared.life) == (staged, 200, "alive")
            assert spared.why.startswith("it is being written by process ")
        assert (staged / "model.bin").exists()
        assert tell(trainer, "publish") == "published\n"
    assert (run / "step_200" / "model.bin").exists()


@needs_namespaces
@everywhere
def test_a_second_container_does_not_discard_what_the_first_stages(run, elsewhere):
    with begun(elsewhere, TRAINER, run, "not exclusive", until="staged") as trainer:
        with manager_of(run, exclusive=False) as manager, pytest.raises(StepInUse) as told:
            manager.init_tmp_checkpoint(200, {LOSS: 0.1})
        assert "is being written by process " in str(told.value)
        assert "stop the other one first" in str(told.value)
        assert tell(trainer, "publish") == "published\n"
    with Registry.open(run) as registry:
        assert registry.latest().metrics == {LOSS: 0.5}


@needs_namespaces
@everywhere
def test_a_save_in_progress_is_not_discarded_for_the_space_that_it_takes(run, elsewhere):
    with begun(elsewhere, TRAINER, run, "not exclusive", until="staged") as trainer:
        age(run / "tmp_step_200", 2 * DAY)
        with manager_of(run, exclusive=False) as manager:
            for tmp in observation.observe(run, may_touch=True).tmps.values():
                assert not tmp.abandoned
                path, uuid = tmp.checkpoint.path, tmp.checkpoint.uuid
                assert manager._publisher.discard(path, reason="no space", uuid=uuid).gone == ()
        assert tell(trainer, "publish") == "published\n"


@needs_namespaces
def test_a_process_that_proc_hides_is_not_taken_for_dead(run):
    with begun([], TRAINER, run, "exclusive", until="staged") as trainer:
        staged = run / "tmp_step_200"
        # Also by its number alone.
        by = writer.find(staged)
        for lives in (by, replace(by, lock=None)):
            with as_somebody_else(run) as hidden:
                assert hidden(lambda _, lives=lives: lives.life == "unknown")
        with as_somebody_else(run) as hidden:
            assert hidden(lambda there: gc(there).leftovers == ())
            assert hidden(lambda there: gc(there).spared[0].life == "alive")
        assert tell(trainer, "publish") == "published\n"


@needs_namespaces
def test_a_dead_process_is_dead_also_where_proc_hides(run):
    with begun([], TRAINER, run, "exclusive", until="staged") as trainer:
        by = writer.find(run / "tmp_step_200")
        assert tell(trainer, "die") == ""
    with as_somebody_else(run) as hidden:
        assert hidden(lambda _: by.life == "dead")


@needs_namespaces
@everywhere
def test_what_somebody_evaluates_elsewhere_is_not_handed_out(run, elsewhere):
    with manager_of(run) as manager, manager.save(100, {LOSS: 1.0}):
        pass
    with begun(elsewhere, EVALUATOR, run, until="evaluating 100") as evaluator:
        with Registry.open(run) as registry:
            assert list(registry.watch(lease="mmlu", poll_seconds=None)) == []
        assert tell(evaluator, "done") == ""
    with Registry.open(run) as registry:
        assert list(registry.watch(lease="mmlu", poll_seconds=None)) == []


@needs_namespaces
def test_what_somebody_evaluates_whom_proc_hides_is_not_handed_out(run):
    with manager_of(run) as manager, manager.save(100, {LOSS: 1.0}):
        pass
    with begun([], EVALUATOR, run, until="evaluating 100"):

        def watch(there):
            with Registry.open(there) as registry:
                return list(registry.watch(lease="mmlu", poll_seconds=None)) == []

        with as_somebody_else(run) as hidden:
            assert hidden(watch)


@contextmanager
def as_somebody_else(run):
    """Yield what asks a question as another user, whose /proc shows nobody else's processes.

    The question gets the run as that user sees it.
    """
    os.chmod(run, 0o777)  # a run that users share
    for path in run.rglob("*"):
        os.chmod(path, 0o777)

    def ask(question):
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        try:
            _hide(run)
            os._exit(0 if question(os.path.realpath("/mnt")) else 1)
        except BaseException:  # noqa: BLE001  # the child must not come back
            traceback.print_exc()
        os._exit(2)

    yield ask


def _hide(run):
    library = ctypes.CDLL(None, use_errno=True)
    assert library.unshare(0x00020000) == 0  # CLONE_NEWNS
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "--bind", str(run), "/mnt"],
        ["mount", "-t", "proc", "-o", "hidepid=2", "proc", "/proc"],
    ):
        subprocess.run(command, check=True)
    os.setgroups([])
    os.setgid(12345)
    os.setuid(12345)
    os.chdir("/")
    assert not os.path.exists("/proc/1")


# --- a writer that has died -------------------------------------------------------------


@needs_namespaces
@everywhere
def test_what_a_killed_writer_left_elsewhere_on_this_machine_is_recovered_at_once(run, elsewhere):
    with begun(elsewhere, TRAINER, run, "exclusive", until="staged") as trainer:
        assert tell(trainer, "die") == ""
    if writer.find(run / "tmp_step_200").lock.system not in lock.LOCAL:
        requirements.skip(requirements.SHARED)
    assert check(run) == ["was left unfinished; `ckptdb gc` removes it"]
    with manager_of(run) as manager, manager.save(200, {LOSS: 0.1}):
        pass
    assert gc(run).spared == ()


def test_what_a_killed_writer_left_here_is_removed_at_once(run):
    with begun([], TRAINER, run, "exclusive", until="staged") as trainer:
        assert tell(trainer, "die") == ""
    assert check(run) == ["was left unfinished; `ckptdb gc` removes it"]
    (left,) = gc(run).leftovers
    assert (left.step, left.kind) == (200, "unfinished save")
    assert not (run / "tmp_step_200").exists()


# --- where only time counts -------------------------------------------------------------

OTHERS = {
    "another machine": {"host": "gpu-7"},
    "another boot": {"boot": "another"},
    "another container": {"namespace": 1},
    "an earlier version": {"namespace": None},
}
each_other = pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)


@each_other
def test_what_cannot_be_asked_is_kept_for_a_day_and_gc_says_so(run, change):
    staged = leave(run, pid=2**30, **change)
    host = change.get("host", os.uname().nodename)
    who = f"process {2**30} on {host}, which cannot be asked from here"
    later = "`ckptdb gc` removes it a day after its last change"
    assert check(run) == [f"is being written, or was left, by {who}; {later}"]
    found = gc(run)
    (spared,) = found.as_dict()["spared"]
    assert spared == {
        "path": str(staged), "step": 200, "life": "unknown",
        "why": f"written by {who}; it counts as abandoned 24 hours after its last change",
    }  # fmt: skip
    age(staged, DAY - 100)
    assert gc(run).leftovers == ()
    age(staged, DAY + 100)
    assert check(run) == ["was left unfinished; `ckptdb gc` removes it"]
    assert [left.step for left in gc(run).leftovers] == [200]
    assert not staged.exists()


@pytest.mark.parametrize("hours", [26, -26], ids=["ahead", "behind"])
def test_a_clock_that_is_wrong_makes_nothing_abandoned(run, monkeypatch, hours):
    staged = leave(run, host="gpu-7")
    now = time.time() + hours * 3600
    monkeypatch.setattr(time, "time", lambda: now)
    assert "a day after its last change" in check(run)[0]
    assert gc(run, dry_run=True).leftovers == gc(run).leftovers == ()
    assert staged.exists()


def test_a_save_that_is_written_deep_inside_is_not_untouched(run):
    staged = leave(run, host="gpu-7")
    deep = staged / "policy" / "weights" / "shard"
    deep.mkdir(parents=True)
    (deep / "0.bin").write_bytes(b"w")
    age(staged, 2 * DAY)
    with (deep / "0.bin").open("ab") as file:
        file.write(b"more")
    assert gc(run).leftovers == ()
    age(staged, 2 * DAY)
    assert len(gc(run).leftovers) == 1


def test_a_time_that_is_still_to_come_is_neither_young_for_ever_nor_old(run):
    staged = leave(run, host="gpu-7")
    age(staged, 2 * DAY)
    os.utime(staged / names.INFO, (time.time() + DAY,) * 2)
    assert gc(run).leftovers == ()  # nobody can have set the other time, which is of just now
    hidden = identity.hidden(run)
    assert liveness.is_untouched(staged, hidden, may_touch=False, seconds=-1)


def test_where_the_time_cannot_be_asked_nothing_is_abandoned(run, monkeypatch):
    staged = leave(run, host="gpu-7")
    age(staged, 2 * DAY)
    monkeypatch.setattr(fs_clock, "find_time", lambda *_, **__: None)
    assert "a day after its last change" in check(run)[0]
    assert gc(run).leftovers == ()
    assert staged.exists()


def test_looking_at_an_old_save_changes_nothing_in_the_tree(run):
    age(leave(run, host="gpu-7"), 2 * DAY)
    gc(run, dry_run=True)

    def look():
        paths = [run, *run.rglob("*")]
        return {path: (found.st_mtime_ns, found.st_ctime_ns)
                for path in paths if (found := path.lstat())
                and not path.name.startswith("catalog.db")}  # fmt: skip

    before = look()
    gc(run, dry_run=True)
    check(run)
    assert look() == before


def test_a_save_that_somebody_goes_on_with_while_gc_judges_is_left_alone(run, monkeypatch):
    staged = leave(run, host="gpu-7")
    age(staged, 2 * DAY)
    real = observation.observe

    def go_on(*arguments, **options):
        found = real(*arguments, **options)
        (staged / "model.bin").write_bytes(b"more")
        return found

    monkeypatch.setattr(observation, "observe", go_on)
    assert gc(run).leftovers == ()
    assert (staged / "model.bin").exists()


# --- saving the step anew ---------------------------------------------------------------


@each_other
def test_a_step_that_was_begun_by_whom_nobody_can_ask_says_how_to_go_on(run, change):
    staged = leave(run, pid=2**30, **change)
    with manager_of(run) as manager:
        with pytest.raises(StepInUse, match="stop it, then remove the directory, and save again"):
            manager.init_tmp_checkpoint(200, {LOSS: 0.1})
        assert staged.exists()
        age(staged, 2 * DAY)
        with manager.save(200, {LOSS: 0.1}):
            pass


def test_the_run_s_trainer_saves_anew_what_a_lost_machine_left_on_a_shared_disk(run, monkeypatch):
    # On a file system of many machines a free lock alone proves nothing.
    monkeypatch.setattr(lock, "find_file_system", lambda _: 0x6969)
    with begun([], NETWORKED, run, until="staged") as trainer:
        assert tell(trainer, "die") == ""
    staged = run / "tmp_step_200"
    name_again(staged, boot="another machine's")
    assert gc(run).spared[0].life == "unknown"
    with manager_of(run) as manager, pytest.raises(StepInUse, match="cannot be asked"):
        manager.init_tmp_checkpoint(200, {LOSS: 0.1})
    age(staged, liveness.SILENT_SECONDS + 10)
    assert gc(run).leftovers == ()
    with manager_of(run, exclusive=False) as beside, pytest.raises(StepInUse, match="be asked"):
        beside.init_tmp_checkpoint(200, {LOSS: 0.1})
    with manager_of(run) as manager, manager.save(200, {LOSS: 0.1}):
        pass


NETWORKED = f"from ckptdb.disk import lock; lock.find_file_system = lambda _: 0x6969\n{TRAINER}"
NETWORKED = NETWORKED.replace('sys.argv[2] == "exclusive"', "True")


def name_again(staged, **changes):
    """Change what a writer says of itself, in the very file that it has locked."""
    name(staged, replace(writer.find(staged), **changes))


def test_a_trainer_that_lives_protects_what_it_stages_whatever_its_name_is(run):
    with begun([], TRAINER, run, "exclusive", until="staged") as trainer:
        staged = run / "tmp_step_200"
        name_again(staged, host="gpu-7", boot="another", namespace=1)
        age(staged, 2 * DAY)
        assert gc(run).leftovers == ()
        (staged / names.WRITER).write_text("{")
        assert gc(run).spared[0].why == "it is being written by another process"
        assert tell(trainer, "publish") == "published\n"

"""Many processes on one tree: nothing is lost, and no reader sees half of anything.

Where several save into one run they say so with ``exclusive=False``; test_trainers.py is about
those that do not.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
import warnings
from contextlib import contextmanager

import pytest
from tests.support import requirements

from ckptdb.catalog.catalog import Catalog
from ckptdb.disk import (
    fsutil,
    names,
    published_name,
    read_trash,
    root_marker,
    run_stamp,
    writer,
)
from ckptdb.disk.publish import Publisher
from ckptdb.errors import NoCheckpointHere, StepInUse
from ckptdb.manager import CheckpointManager
from ckptdb.registry import Registry

pytestmark = pytest.mark.slow

METRIC = "val:loss"
PROCESSES = 8
ROUNDS = 50

# Stays for all rounds, because starting an interpreter takes longer than a round.
WORKER = """
import json, sys, warnings
warnings.simplefilter("error")
# Whoever comes second is warned that somebody else has saved here.
warnings.filterwarnings("ignore", ".*(is saved below|of another process)")
from ckptdb import CheckpointManager
from ckptdb.errors import StepInUse

number = int(sys.argv[1])
for line in sys.stdin:
    work, directory, durability = json.loads(line)
    try:
        run = f"run{number}" if work == "own run" else "run"
        run = f"{number}/run" if work == "own catalog" else run
        catalog = f"{directory}/catalog.sqlite" if work == "own catalog" else None
        manager = CheckpointManager({"checkpoint_dir": f"{directory}/{run}", "catalog": catalog,
                                     "durability": durability, "exclusive": False})
        step = 5 if work == "same step" else number
        with manager, manager.save(step, {"val:loss": number}) as folder:
            (folder / "writer").write_text(str(number))
        latest = manager.get_latest_checkpoint_path()
        manager.shutdown()
        print(json.dumps(latest), flush=True)
    except StepInUse:
        print(json.dumps("refused"), flush=True)
    except BaseException as error:
        print(json.dumps({"failed": repr(error)}), flush=True)
"""


class Crowd:
    """Processes that each do one thing at the same time when told to."""

    def __init__(self, count=PROCESSES):
        self.workers = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(count)
        ]

    def do(self, work, directory, durability="full"):
        for worker in self.workers:
            worker.stdin.write(json.dumps([work, str(directory), durability]) + "\n")
        for worker in self.workers:
            worker.stdin.flush()
        return [json.loads(worker.stdout.readline()) for worker in self.workers]

    def close(self):
        for worker in self.workers:
            worker.stdin.close()
            worker.wait()
            worker.stdout.close()


@pytest.fixture(scope="module")
def crowd():
    found = Crowd()
    yield found
    found.close()


@contextmanager
def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": METRIC,
        "higher_is_better": False,
        "durability": "none",
    }
    with CheckpointManager({**config, **options}) as manager:
        yield manager


def save(manager, step, loss=0.5):
    with manager.save(step, {METRIC: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m" * 10)


def live_steps(root, run=None):
    with Registry.open(root) as registry:
        return sorted(cp.step for cp in registry.checkpoints(run=run, status="final"))


# --- the same new root, catalog and run at once -------------------------------------------------


def test_eight_processes_open_the_same_new_root_at_once_fifty_times(tmp_path, crowd):
    for number in range(ROUNDS):
        root = tmp_path / str(number)
        root.mkdir()
        root_marker.mark_root(root)
        # Flushing only makes the rounds slower, and the races fewer.
        answers = crowd.do("own run", root, "none" if number % 5 else "full")
        assert answers == [str(root / f"run{n}" / f"step_{n}") for n in range(PROCESSES)]
        rows = Registry.open(root).query("SELECT step FROM checkpoints WHERE status = 'final'")
        assert sorted(row[0] for row in rows) == list(range(PROCESSES))
        assert not list((root / ".ckptdb").glob("*broken*"))


def test_eight_processes_open_the_same_new_catalog_at_once(tmp_path, crowd):
    for number in range(ROUNDS // 5):
        top = tmp_path / str(number)
        top.mkdir()
        answers = crowd.do("own catalog", top)
        assert answers == [str(top / f"{n}/run/step_{n}") for n in range(PROCESSES)]
        with Registry.open(top / "catalog.sqlite") as registry:
            steps = [cp.step for cp in registry.checkpoints(status="final")]
        assert sorted(steps) == list(range(PROCESSES))


def test_eight_processes_save_into_one_new_run_at_once(tmp_path, crowd):
    for number in range(ROUNDS // 5):
        root = tmp_path / str(number)
        root.mkdir()
        answers = crowd.do("same run", root)
        assert not [answer for answer in answers if isinstance(answer, dict)]
        with Registry.open(root / "run") as registry:
            registry.reconcile()
            assert len(registry.runs()) == 1
        assert live_steps(root / "run") == list(range(PROCESSES))


# --- fork ---------------------------------------------------------------------------------------


def wait_for(child):
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def fork(work):
    """Run a function in a forked child, where nothing of pytest may run."""
    with warnings.catch_warnings():
        # Python 3.12 warns about threads; that there are some is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            signal.alarm(30)  # a child that hangs shall not hang the test
            work()
        except BaseException:  # noqa: BLE001  # the parent asserts the exit code
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return child


@contextmanager
def set_after(event):
    """Let a thread go on, however the test ends."""
    try:
        yield
    finally:
        event.set()


def test_a_fork_after_opening_loses_nothing(tmp_path):
    root = tmp_path / "results"
    root.mkdir()
    root_marker.mark_root(root)
    with open_manager(root / "run", exclusive=False) as manager:
        save(manager, 0)
        manager.get_best_checkpoint_path()

        def save_as_child():
            for step in range(1, 20, 2):
                save(manager, step)
            assert manager.get_latest_checkpoint_path()
            manager.shutdown()

        child = fork(save_as_child)
        for step in range(2, 20, 2):
            save(manager, step)
        wait_for(child)
        assert manager.get_latest_checkpoint_path() == str(root / "run" / "step_19")
    rows = Registry.open(root).query("SELECT step FROM checkpoints WHERE status = 'final'")
    assert sorted(row[0] for row in rows) == list(range(20))
    with Registry.open(root) as registry:
        assert not registry.reconcile(dry_run=True).has_drift


def test_a_fork_while_a_finalization_is_pending_neither_hangs_nor_loses_it(tmp_path):
    with open_manager(tmp_path / "run", exclusive=False) as manager:
        save(manager, 1)
        forked = threading.Event()
        manager.begin_finalization(manager.init_tmp_checkpoint(2, {METRIC: 0.1}), forked.wait)

        def save_as_child():
            assert manager.get_latest_checkpoint_path().endswith("step_1")
            with open_manager(tmp_path / "run", exclusive=False) as another:
                save(another, 3)

        child = fork(save_as_child)
        wait_for(child)
        forked.set()
        manager.finalize_pending()
        assert manager.get_latest_checkpoint_path() == str(tmp_path / "run" / "step_3")
        assert manager.get_best_checkpoint_path() == str(tmp_path / "run" / "step_2")
    assert live_steps(tmp_path / "run") == [1, 2, 3]


def test_a_manager_inherited_with_a_pending_finalization_can_be_shut_down_and_used(tmp_path):
    with open_manager(tmp_path / "run", exclusive=False) as manager:
        forked = threading.Event()
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {METRIC: 0.1}), forked.wait)

        def use_as_child():
            save(manager, 2)
            manager.shutdown()

        child = fork(use_as_child)
        wait_for(child)
        forked.set()
        manager.finalize_pending()
    assert live_steps(tmp_path / "run") == [1, 2]


def test_a_manager_inherited_with_a_pending_finalization_has_none_of_its_own(tmp_path):
    forked = threading.Event()
    with open_manager(tmp_path / "run", exclusive=False) as manager, set_after(forked):
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {METRIC: 0.1}), forked.wait)

        def use_as_child():
            assert not manager.has_pending_finalization
            with pytest.raises(StepInUse):
                manager.init_tmp_checkpoint(1, {METRIC: 0.2})

        wait_for(fork(use_as_child))
        assert manager.has_pending_finalization
    assert live_steps(tmp_path / "run") == [1]


def test_what_a_child_does_in_the_background_is_done(tmp_path):
    run = tmp_path / "run"
    with open_manager(run, exclusive=False, keep_top_k=1) as manager:
        for step in range(3):
            save(manager, step, loss=step)
        # The thread behind the manager is idle now, and not there in a child.
        manager._background.submit(lambda: None)

        def finalize_as_child():
            manager.begin_finalization(manager.init_tmp_checkpoint(3, {METRIC: 3}))
            manager.shutdown()
            assert live_steps(run) == [0, 3]
            assert not list((run / ".ckptdb" / "trash").iterdir())

        wait_for(fork(finalize_as_child))
        assert manager.get_latest_checkpoint_path() == str(run / "step_3")


def test_a_child_forked_while_the_index_is_busy_does_not_wait_for_it(tmp_path, monkeypatch):
    run = tmp_path / "run"
    inside, leave = threading.Event(), threading.Event()
    real = Catalog.apply

    def linger(*arguments, **options):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            leave.wait()
        return real(*arguments, **options)

    with open_manager(run, exclusive=False) as manager, set_after(leave):
        save(manager, 1)
        monkeypatch.setattr(Catalog, "apply", linger)
        manager.begin_finalization(manager.init_tmp_checkpoint(2, {METRIC: 0.1}))
        inside.wait()

        def use_as_child():
            assert manager.get_latest_checkpoint_path() == str(run / "step_2")
            save(manager, 3, loss=0.01)
            assert manager.get_best_checkpoint_path() == str(run / "step_3")
            manager.shutdown()

        wait_for(fork(use_as_child))
        leave.set()
        manager.finalize_pending()
        assert manager.get_best_checkpoint_path() == str(run / "step_3")
    with Registry.open(run) as registry:
        assert not registry.reconcile(dry_run=True).has_drift


@pytest.mark.parametrize("where", ["in the catalog", "in memory"])
def test_a_child_forked_in_the_middle_of_a_question_answers_its_own(tmp_path, where):
    run = tmp_path / "run"
    inside, leave = threading.Event(), threading.Event()

    def linger(catalog, _, __):
        with catalog.database.read():
            inside.set()
            leave.wait()

    with open_manager(run, exclusive=False) as manager, set_after(leave):
        save(manager, 1)
        if where == "in memory":
            (run / ".ckptdb" / "catalog.db").write_bytes(b"no database" * 100)
            with pytest.warns(UserWarning, match="answered from disk"):
                manager.get_latest_checkpoint_path()
        thread = threading.Thread(target=lambda: manager._index.query(linger, nothing=None))
        thread.start()
        inside.wait()

        def use_as_child():
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                assert manager.get_latest_checkpoint_path() == str(run / "step_1")
                save(manager, 2)
                assert manager.get_latest_checkpoint_path() == str(run / "step_2")
                manager.shutdown()
            # A file that was in use at the fork is of no use to a child, and that is told once.
            assert len(told) == (where == "in the catalog")

        wait_for(fork(use_as_child))
        leave.set()
        thread.join()
        assert manager.get_latest_checkpoint_path() == str(run / "step_2")


def test_a_registry_goes_on_in_a_forked_child(tmp_path):
    with open_manager(tmp_path / "run") as manager:
        save(manager, 1)
        save(manager, 2)
    registry = Registry.open(tmp_path / "run")
    registry.runs()
    child = fork(lambda: registry.pin(None, 1))
    registry.tag(None, 2, "release")
    wait_for(child)
    assert registry.get(1).pinned
    assert registry.get(2).tags == ("release",)
    registry.close()


# --- two managers on one run --------------------------------------------------------------------

SAVER = """
import sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", ".*(is saved below|of another process)")
from ckptdb import CheckpointManager

first, last, every = map(int, sys.argv[2:5])
with CheckpointManager({"checkpoint_dir": sys.argv[1], "metric_name": "val:loss",
                        "higher_is_better": False,
                        "durability": "none", "exclusive": False,
                        **eval(sys.argv[5])}) as manager:
    print("ready", flush=True)
    sys.stdin.readline()
    for step in range(first, last, every):
        with manager.save(step, {"val:loss": step}) as folder:
            (folder / "who").write_text(sys.argv[6])
"""


@contextmanager
def saver(run, steps, *, who="another", **options):
    arguments = [str(n) for n in (steps.start, steps.stop, steps.step)]
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(run), *arguments, repr(options), who],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.communicate("\n")
        assert process.returncode == 0
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait()


def begin(process):
    process.stdin.write("\n")
    process.stdin.flush()


def test_two_processes_save_different_steps_of_one_run(tmp_path):
    run = tmp_path / "run"
    with (
        saver(run, range(1, 60, 2)) as process,
        open_manager(run, exclusive=False) as manager,
    ):
        begin(process)
        for step in range(0, 60, 2):
            save(manager, step)
        process.wait()
    assert live_steps(run) == list(range(60))


def test_two_processes_save_and_prune_the_same_run(tmp_path):
    run = tmp_path / "run"
    with (
        saver(run, range(1, 60, 2), keep_top_k=3) as process,
        open_manager(run, keep_top_k=3, exclusive=False) as manager,
    ):
        begin(process)
        for step in range(0, 60, 2):
            save(manager, step, loss=step)
        process.wait()
        manager.remove_old_checkpoints()
    live = live_steps(run)
    # 58 is what this manager has saved last: it goes only by a prune of the other one.
    assert [step for step in live if step != 58] == [0, 1, 2, 59]
    with Registry.open(run) as registry:
        registry.reconcile()
        assert not registry.reconcile().has_drift
        gone = registry.checkpoints(status="deleted")
        assert len(gone) == 60 - len(live)
        assert all(checkpoint.deleted_reason.startswith("retention") for checkpoint in gone)


def test_a_step_that_a_living_process_writes_is_refused(tmp_path):
    run = tmp_path / "run"
    with open_manager(run, exclusive=False) as manager:
        manager.init_tmp_checkpoint(7, {METRIC: 1})
        command = [sys.executable, "-c", SAVER, str(run), "7", "8", "1", "{}", "another"]
        told = subprocess.run(command, input="\n", capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert f"{StepInUse.__name__}: {run}/tmp_step_7 is being written by" in told.stderr
    assert f"process {os.getpid()} on" in told.stderr
    assert (run / "tmp_step_7").is_dir()


def test_eight_processes_that_save_the_same_step_leave_one_whole_checkpoint(tmp_path, crowd):
    refused = saved = 0
    for number in range(ROUNDS // 5):
        run = tmp_path / str(number) / "run"
        answers = crowd.do("same step", run.parent)
        assert set(map(str, answers)) <= {"refused", str(run / "step_5")}
        refused += answers.count("refused")
        saved += PROCESSES - answers.count("refused")
        with Registry.open(run) as registry:
            registry.reconcile()
            (live,) = registry.verify()
            assert live.problem is None
            writer = (live.path / "writer").read_text()
            assert live.metrics == {METRIC: float(writer)}
            replaced = registry.checkpoints(status="deleted")
        assert len(replaced) + 1 == PROCESSES - answers.count("refused")
        assert not list(run.glob("*tmp_step_*"))
    assert saved >= ROUNDS // 5


def test_what_another_process_published_for_us_is_not_published_twice(tmp_path, monkeypatch):
    run = tmp_path / "run"
    real = Publisher._seal

    def seal_and_be_overtaken(self, who, path, step, parent):
        sealed = real(self, who, path, step, parent)
        monkeypatch.undo()
        another = Publisher(run, make_durable=False)
        another.stage(step, b'{"val:loss": 2}', None)  # adopts ours, then begins its own
        return sealed

    monkeypatch.setattr(Publisher, "_seal", seal_and_be_overtaken)
    with open_manager(run) as manager:
        save(manager, 5, loss=1)
        assert manager.load_training_info(run / "step_5") == {METRIC: 1}
    assert json.loads((run / "tmp_step_5" / names.INFO).read_text()) == {METRIC: 2}


# --- readers ------------------------------------------------------------------------------------

# Steps only grow here and never come back: what is answered was either there before the question
# or has come since. Anything else was gone before it was named.
READER = """
import os, sys, warnings
warnings.simplefilter("error")
from ckptdb import CheckpointManager

run, stop = sys.argv[1:]
config = {"checkpoint_dir": run, "metric_name": "val:loss", "higher_is_better": False}
manager = CheckpointManager(config)
asked = 0
print("ready", flush=True)
while not os.path.exists(stop):
    for ask in (manager.get_best_checkpoint_path, manager.get_latest_checkpoint_path):
        here = {int(name[5:]) for name in os.listdir(run) if name.startswith("step_")}
        path = ask()
        step = int(path.rpartition("_")[2])
        assert step in here or step > max(here), (step, here)
        if here == {1}:
            assert manager.load_training_info(path)["val:loss"] >= 0
            assert os.path.getsize(path + "/model.bin") == 10
        asked += 1
manager.shutdown()
print(asked, flush=True)
"""


@contextmanager
def reader(run, stop):
    command = [sys.executable, "-c", READER, str(run), str(stop)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        stop.touch()
        told, _ = process.communicate()
    assert process.returncode == 0
    assert int(told) > 0


@pytest.fixture
def exchange(tmp_path):
    """Skip where the file system cannot exchange two names: readers may see a gap there."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    try:
        fsutil.exchange(one, other)
    except fsutil.ExchangeUnsupported:
        requirements.skip(requirements.NO_EXCHANGE)


def test_readers_never_see_a_checkpoint_missing_or_half_replaced(tmp_path, exchange):
    run = tmp_path / "run"
    with open_manager(run) as manager:
        save(manager, 1)
        with reader(run, tmp_path / "stop"):
            for number in range(60):
                save(manager, 1, loss=number)
    assert live_steps(run) == [1]


def test_readers_are_never_sent_to_a_checkpoint_that_was_gone_when_they_asked(tmp_path):
    run = tmp_path / "run"
    with open_manager(run, keep_top_k=2) as manager:
        save(manager, 0)
        with reader(run, tmp_path / "stop"):
            for step in range(1, 80):
                save(manager, step, loss=(step * 37) % 11)
    assert len(live_steps(run)) == 3


@pytest.fixture
def aside(tmp_path, monkeypatch):
    """Put step 1 aside, as a replacement in two renames does; it comes back when one waits."""
    run = tmp_path / "run"
    with open_manager(run) as manager:
        save(manager, 1, loss=0.5)
    final, old = run / "step_1", run / names.old_name(1, str(uuid.uuid4()))
    final.rename(old)
    monkeypatch.setattr(published_name.time, "sleep", lambda _: old.rename(final))
    return final


def test_reading_waits_for_a_step_that_is_being_replaced(tmp_path, aside):
    with open_manager(tmp_path / "other") as manager:
        assert manager.load_training_info(aside) == {METRIC: 0.5}


def test_a_registry_waits_for_a_step_that_is_being_replaced(aside):
    with Registry.open(aside.parent) as registry:
        assert registry.latest().path == aside
        assert registry.best().path == aside


def test_reading_does_not_wait_for_what_does_not_come_back(tmp_path, aside, monkeypatch):
    monkeypatch.setattr(published_name, "_GAP_SECONDS", 0.0)
    with open_manager(tmp_path / "other") as manager:
        with pytest.raises(NoCheckpointHere):
            manager.load_training_info(aside)
        with pytest.raises(NoCheckpointHere):
            manager.load_training_info(aside.with_name("step_2"))


def test_a_replacement_by_another_process_does_not_hide_a_pin(tmp_path):
    run = tmp_path / "run"
    with open_manager(run) as manager:
        save(manager, 1)
        with Registry.open(run) as registry:
            registry.pin(None, 1)
        with pytest.warns(UserWarning, match="pinned checkpoint at step 1 was replaced"):
            save(manager, 1)
    assert len(read_trash.list_trash(run)) == 1


# --- reconcile while a save is under way --------------------------------------------------------


def reconcile_elsewhere(directory):
    command = [sys.executable, "-m", "ckptdb", "-C", str(directory), "reconcile", "--full"]
    subprocess.run(command, capture_output=True, text=True, check=True)


def content(folder):
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_reconcile_elsewhere_touches_nothing_of_a_save_under_way(tmp_path):
    run = tmp_path / "run"
    with open_manager(run) as manager:
        save(manager, 1)
        staged = manager.init_tmp_checkpoint(1, {METRIC: 0.1})
        (staged / "model.bin").write_bytes(b"half")
        before = content(staged)
        reconcile_elsewhere(run)
        assert content(staged) == before
        (staged / "model.bin").write_bytes(b"whole")
        manager.begin_finalization(staged, lambda: reconcile_elsewhere(run))
        manager.finalize_pending()
        assert manager.get_latest_checkpoint_path() == str(run / "step_1")
    assert (run / "step_1" / "model.bin").read_bytes() == b"whole"
    with Registry.open(run) as registry:
        assert [cp.status for cp in registry.checkpoints()] == ["deleted", "final"]


@pytest.mark.parametrize("replacing", [False, True], ids=["fresh", "replacing"])
@pytest.mark.parametrize(
    ("module", "moment"),
    [
        (Publisher, "_seal"),
        (Publisher, "_publish_or_find"),
        (run_stamp, "find_stamp"),
        (writer, "write"),
    ],
    ids=lambda moment: moment if isinstance(moment, str) else None,
)
def test_a_reconcile_elsewhere_at_any_moment_of_a_save_is_harmless(
    tmp_path, monkeypatch, module, moment, replacing
):
    run = tmp_path / "run"
    real, struck = getattr(module, moment), []

    def reconciled_before(*arguments, **options):
        if not struck:
            struck.append(moment)
            # Where the run's lock is held, the other process waits for it and so must not be
            # waited for here.
            process = subprocess.Popen(
                [sys.executable, "-m", "ckptdb", "-C", str(run), "reconcile"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            running.append(process)
        return real(*arguments, **options)

    running = []
    with open_manager(run) as manager:
        save(manager, 1)
        monkeypatch.setattr(module, moment, reconciled_before)
        save(manager, 1 if replacing else 2, loss=0.1)
        assert struck
        assert [process.wait() for process in running] == [0]
        assert manager.get_best_checkpoint_path() == str(run / f"step_{1 if replacing else 2}")
    assert live_steps(run) == [1] if replacing else [1, 2]
    with Registry.open(run) as registry:
        registry.reconcile()
        assert not registry.reconcile(dry_run=True).has_drift

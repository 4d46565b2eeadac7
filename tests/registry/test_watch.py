"""Registry.watch: every checkpoint once, shared where a lease is used."""

import json
import math
import multiprocessing
import os
import shutil
import sqlite3
import threading
from contextlib import closing, suppress
from itertools import islice

import pytest
from tests.support.counting import counted
from tests.support.trees import settle, snapshot

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.engine import Database
from ckptdb.disk import read_trash, root_marker
from ckptdb.errors import (
    CatalogMissing,
    InvalidWatch,
    LeasedCheckpoint,
    UnknownCheckpoint,
    UnknownRun,
)
from ckptdb.retention import Policy

LOSS = "val:loss"
AT_ONCE = 0.005


def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    return CheckpointManager(config)


def save(run, *steps, **options):
    with open_manager(run, **options) as manager:
        for step in steps:
            with manager.save(step, {LOSS: 1 / (step + 1)}) as folder:
                (folder / "model.bin").write_bytes(b"m" * 100)


def write_like_nemo(run, *steps):
    for step in steps:
        folder = run / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text(json.dumps({LOSS: 1 / step}))


@pytest.fixture
def root(tmp_path):
    """Runs a (steps 1 to 3) and b (steps 2 and 9) below one root."""
    directory = tmp_path / "results"
    directory.mkdir()
    root_marker.mark_root(directory)
    save(directory / "a", 1, 2, 3)
    save(directory / "b", 2, 9)
    return directory


@pytest.fixture
def registry(root):
    with Registry.open(root) as found:
        yield found


def leases(root):
    return sorted(path.name for path in root.glob("*/.ckptdb/leases/*"))


def told(checkpoints):
    return [(checkpoint.run, checkpoint.step) for checkpoint in checkpoints]


ALL = [("a", 1), ("a", 2), ("a", 3), ("b", 2), ("b", 9)]


def all_there(registry, run=None, **options):
    return told(registry.watch(run, poll_seconds=None, **options))


# --- what comes, and in which order -------------------------------------------------------------


def test_what_is_there_comes_by_run_and_step_and_then_it_ends(registry, root):
    assert all_there(registry) == ALL
    assert all_there(registry, "a") == ALL[:3]
    assert all_there(registry, root / "b") == ALL[3:]
    with Registry.open(root / "a") as inside:
        assert all_there(inside) == ALL[:3]
    with Registry.open(root / ".ckptdb" / "catalog.db") as catalog:
        assert all_there(catalog) == ALL


def test_what_is_yielded_is_the_whole_record(registry):
    registry.tag("a", 2, "rc")
    found = list(registry.watch("a", poll_seconds=None))
    assert found == list(registry.checkpoints(run="a", status="final"))
    assert found[1].tags == ("rc",)


def test_what_is_saved_later_comes_when_it_is_saved(registry, root):
    watching = registry.watch(poll_seconds=AT_ONCE)
    assert told(islice(watching, 5)) == ALL
    save(root / "b", 10, 11)
    assert told(islice(watching, 2)) == [("b", 10), ("b", 11)]
    save(root / "new", 1)
    assert told([next(watching)]) == [("new", 1)]
    write_like_nemo(root / "deep" / "er", 5)
    assert told([next(watching)]) == [("er", 5)]
    save(root / "a", 0, 4)
    assert told(islice(watching, 2)) == [("a", 0), ("a", 4)]


def test_only_what_is_new_comes_when_that_is_asked(registry, root):
    watching = registry.watch(poll_seconds=AT_ONCE, existing=False)
    save(root / "a", 4)
    save(root / "c", 1)
    assert told(islice(watching, 2)) == [("a", 4), ("c", 1)]


@pytest.mark.parametrize("settled", [True, False])
def test_what_is_gone_before_its_turn_is_passed_over(registry, root, settled):
    if settled:
        settle(root)
    watching = registry.watch(poll_seconds=None)
    assert next(watching).step == 1
    registry.remove([2], run="a")
    shutil.rmtree(root / "b" / "step_2")
    assert told(watching) == [("a", 3), ("b", 9)]


def test_a_step_that_is_saved_again_comes_again(registry, root):
    watching = registry.watch("a", poll_seconds=AT_ONCE)
    first = list(islice(watching, 2))
    save(root / "a", 2)
    assert told([next(watching)]) == [("a", 3)]
    again = next(watching)
    assert (again.step, again.uuid != first[1].uuid) == (2, True)


def test_what_is_replaced_before_its_turn_comes_once_as_what_it_is_now(registry, root):
    watching = registry.watch("a", poll_seconds=None)
    assert next(watching).step == 1
    save(root / "a", 2)
    found = list(watching)
    assert sorted(told(found)) == [("a", 2), ("a", 3)]
    assert {cp.uuid for cp in found} <= {cp.uuid for cp in registry.checkpoints(run="a")}


def test_what_cannot_be_trusted_comes_when_it_can(registry, root):
    info = root / "a" / "step_2" / "training_info.json"
    good = info.read_bytes()
    info.write_bytes(b"{")
    watching = registry.watch("a", poll_seconds=None)
    assert told(islice(watching, 2)) == [("a", 1), ("a", 3)]
    info.write_bytes(good)
    save(root / "a", 4)
    assert sorted(told(watching)) == [("a", 2), ("a", 4)]


def test_the_checkpoints_of_a_copied_run_come_as_well(registry, root):
    shutil.copytree(root / "a", root / "c")
    assert all_there(registry) == [*ALL, ("c", 1), ("c", 2), ("c", 3)]


def test_an_unfinished_save_is_not_one(registry, root):
    with open_manager(root / "a") as manager:
        manager.init_tmp_checkpoint(7, {})
        assert all_there(registry, "a") == ALL[:3]


# --- where there is no catalog, or one that fails -----------------------------------------------


def test_runs_without_a_catalog_are_watched_and_left_as_they_are(tmp_path):
    write_like_nemo(tmp_path / "x", 1, 2)
    write_like_nemo(tmp_path / "deep" / "y", 7)
    before = snapshot(tmp_path)
    with Registry.open(tmp_path) as registry:
        watching = registry.watch(poll_seconds=AT_ONCE)
        assert told(islice(watching, 3)) == [("y", 7), ("x", 1), ("x", 2)]
        assert snapshot(tmp_path) == before
        write_like_nemo(tmp_path / "z", 3)
        assert told([next(watching)]) == [("z", 3)]


@pytest.mark.parametrize("marked", [True, False])
def test_the_first_run_is_waited_for(tmp_path, marked):
    if marked:
        root_marker.mark_root(tmp_path)
    with Registry.open(tmp_path) as registry:
        with pytest.raises(CatalogMissing):
            registry.watch(poll_seconds=None)
        watching = registry.watch(poll_seconds=AT_ONCE)
        thread = threading.Thread(target=save, args=(tmp_path / "run", 1))
        thread.start()
        assert told([next(watching)]) == [("run", 1)]
        thread.join()


def test_a_run_that_nobody_knows_is_an_error_at_once(registry):
    with pytest.raises(UnknownRun):
        registry.watch("c")


def test_a_catalog_that_is_locked_keeps_nobody_waiting_for_long(root, monkeypatch):
    real = Database.open.__func__

    def impatient(cls, location, **options):
        return real(cls, location, **{**options, "timeout_seconds": 0.05})

    monkeypatch.setattr(Database, "open", classmethod(impatient))
    with Registry.open(root / "a") as registry:
        file = root / ".ckptdb" / "catalog.db"
        with closing(sqlite3.connect(file, isolation_level=None)) as raw:
            raw.execute("BEGIN EXCLUSIVE")
            with pytest.warns(UserWarning, match=r"locked.*found by looking at the directories"):
                found = all_there(registry)
        assert found == ALL[:3]
        assert all_there(registry) == ALL[:3]


def test_a_catalog_that_is_lost_meanwhile_is_done_without(registry, root):
    watching = registry.watch(poll_seconds=None)
    assert told(islice(watching, 2)) == ALL[:2]
    (root / ".ckptdb" / "catalog.db").unlink()
    save(root / "b", 10)
    (root / ".ckptdb" / "catalog.db").unlink()
    assert told(watching) == [*ALL[2:], ("b", 10)]


def test_a_run_that_is_not_there_is_waited_for(registry, root):
    watching = registry.watch("a", poll_seconds=None)
    next(watching)
    (root / "a").rename(root / "away")
    assert told(watching) == []


# --- what it costs ------------------------------------------------------------------------------


def test_while_nothing_happens_a_look_is_one_stamp_a_run(root, monkeypatch):
    settle(root)
    looks = []

    def stop():
        looks.append(None)
        return len(looks) > 10

    with Registry.open(root) as registry:
        assert all_there(registry) == ALL
        watching = registry.watch(poll_seconds=0.0001, stop=stop)
        assert len(list(islice(watching, 5))) == 5
        looks.clear()
        with counted(monkeypatch) as (files, statements, stamps):
            assert list(watching) == []
    assert len(looks) == 11
    assert (files, statements) == ([], [])
    assert 0 < len(stamps) <= 2 * 11
    assert set(stamps) == {root / "a", root / "b"}


def test_watching_without_a_lease_leaves_no_trace(root):
    settle(root)
    with Registry.open(root) as registry:
        all_there(registry)
        before = snapshot(root)
        assert all_there(registry) == ALL
    assert snapshot(root) == before


# --- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [threading.Event, multiprocessing.Event])
def test_an_event_ends_it_at_once_though_it_waits(registry, make):
    stop = make()
    watching = registry.watch(poll_seconds=3600, stop=stop)
    assert len(list(islice(watching, 5))) == 5
    timer = threading.Timer(0.01, stop.set)
    timer.start()
    assert list(watching) == []
    timer.join()


def test_a_function_ends_it_soon_though_it_waits(registry):
    asked = []

    def stop():
        asked.append(None)
        return len(asked) > 8

    watching = registry.watch(poll_seconds=3600, stop=stop)
    assert len(list(watching)) == 5


def test_it_stops_before_the_next_one(registry):
    stop = threading.Event()
    for _ in (watching := registry.watch(poll_seconds=None, stop=stop, lease="mmlu")):
        stop.set()
    assert list(watching) == []
    assert all_there(registry, lease="mmlu") == ALL[1:]  # and the last one was done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"lease": ""}, "lease must be a short line of printable text, not ''"),
        ({"lease": "a\nb"}, r"not 'a\\nb'"),
        ({"lease": "\x1b[31m"}, r"not '\\x1b\[31m'"),
        ({"lease": "\ud800"}, "lease must be"),
        ({"lease": b"mmlu"}, "not b'mmlu'"),
        ({"lease": "x" * 1000}, r"not 'x+\.\.\.x+'\.$"),
        ({"lease_seconds": 0}, "lease_seconds must be a number above 0, not 0"),
        ({"lease_seconds": math.nan}, "not nan"),
        ({"poll_seconds": -1}, "poll_seconds must be a number above 0 or None, not -1"),
        ({"poll_seconds": True}, "not True"),
        ({"poll_seconds": 1e300}, "poll_seconds"),
        ({"stop": 5}, "stop must be an event or a function, not 5"),
        ({"lease": "", "lease_seconds": "x"}, "lease must.*; lease_seconds must.*not 'x'"),
    ],
    ids=str,
)
def test_arguments_that_make_no_sense_are_told_together(registry, root, options, why):
    with pytest.raises(InvalidWatch, match=why):
        registry.watch("a", **options)
    assert leases(root) == []


# --- sharing ------------------------------------------------------------------------------------


def test_two_share_what_there_is(root):
    with Registry.open(root) as one, Registry.open(root) as other:
        mine = one.watch(lease="mmlu", poll_seconds=None)
        theirs = other.watch(lease="mmlu", poll_seconds=None)
        assert told([next(mine), next(theirs), next(mine)]) == ALL[:3]
        assert len(leases(root)) == 2
        assert told(theirs) == ALL[3:]
        assert list(mine) == []
    assert leases(root) == []


def test_what_is_done_never_comes_again_for_that_name(registry, root):
    assert all_there(registry, lease="mmlu") == ALL
    assert all_there(registry, lease="mmlu") == []
    registry.close()
    (root / ".ckptdb" / "catalog.db").unlink()
    registry.reconcile()
    assert all_there(registry, lease="mmlu") == []
    save(root / "a", 4)
    assert all_there(registry, lease="mmlu") == [("a", 4)]
    assert all_there(registry, lease="gsm8k") == sorted([*ALL, ("a", 4)])


def break_off(registry):
    for _ in registry.watch("a", lease="mmlu"):
        break


def fail(registry):
    for _ in registry.watch("a", lease="mmlu"):
        raise ZeroDivisionError


def close(registry):
    watching = registry.watch("a", lease="mmlu")
    next(watching)
    watching.close()
    assert list(watching) == []


def leave(registry):
    with registry.watch("a", lease="mmlu") as watching:
        next(watching)
        raise ZeroDivisionError


def forget(registry):
    next(registry.watch("a", lease="mmlu"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [break_off, fail, close, leave, forget])
def test_leaving_the_loop_gives_it_up_at_once(registry, root, how):
    with suppress(ZeroDivisionError):
        how(registry)
    assert leases(root) == []
    assert all_there(registry, "a", lease="mmlu") == ALL[:3]


def test_one_that_is_given_up_goes_to_somebody_else(registry, root):
    mine = registry.watch("a", lease="mmlu", poll_seconds=AT_ONCE)
    assert next(mine).step == 1
    mine.give_up()
    assert leases(root) == []
    assert told(islice(mine, 2)) == ALL[1:3]
    assert all_there(registry, "a", lease="mmlu") == ALL[:1]
    save(root / "a", 4)
    assert next(mine).step == 4


def test_giving_up_without_a_lease_changes_nothing(registry):
    watching = registry.watch("a", poll_seconds=None)
    next(watching)
    watching.give_up()
    assert told(watching) == ALL[1:3]


def test_what_somebody_else_has_comes_when_they_do_not_finish_it(root):
    with Registry.open(root) as one, Registry.open(root) as other:
        theirs = other.watch("b", lease="mmlu")
        assert next(theirs).step == 2
        mine = one.watch("b", lease="mmlu", poll_seconds=AT_ONCE)
        assert next(mine).step == 9
        theirs.close()
        assert next(mine).step == 2


def test_what_exists_is_not_done_by_passing_over_it(registry):
    assert all_there(registry, lease="mmlu", existing=False) == []
    assert all_there(registry, lease="mmlu") == ALL


def test_who_has_lost_the_lease_is_told_and_goes_on(registry, root):
    watching = registry.watch("a", lease="mmlu", poll_seconds=None)
    next(watching)
    (held,) = root.glob("a/.ckptdb/leases/*")
    os.utime(held, (0, held.stat().st_mtime - 1000))
    with Registry.open(root) as other:
        theirs = other.watch("a", lease="mmlu", poll_seconds=None)
        assert next(theirs).step == 1
        with pytest.warns(UserWarning, match="Step 1 of 'a' does not count as evaluated here"):
            assert next(watching).step == 2
        assert next(theirs).step == 3


def test_a_run_that_ckptdb_never_wrote_can_be_shared(tmp_path):
    write_like_nemo(tmp_path / "run", 1, 2)
    with Registry.open(tmp_path) as registry:
        assert all_there(registry, lease="mmlu") == [("run", 1), ("run", 2)]
    with Registry.open(tmp_path) as registry:
        assert all_there(registry, lease="mmlu") == []
    assert sorted(os.listdir(tmp_path / "run" / "step_1")) == ["training_info.json"]


def test_a_copied_run_is_shared_with_what_is_done_of_it(registry, root):
    assert all_there(registry, "a", lease="mmlu") == ALL[:3]
    shutil.copytree(root / "a", root / "c")
    save(root / "c", 4)
    assert all_there(registry, lease="mmlu") == [*ALL[3:], ("c", 4)]


# --- what is leased stays -----------------------------------------------------------------------


def test_what_is_leased_is_pruned_when_it_has_been_given_back(registry, root):
    watching = registry.watch("a", lease="mmlu", poll_seconds=None)
    for new in (11, 12):
        checkpoint = next(watching)
        save(root / "a", new, ft_keep_latest_k=1, keep_top_k=0)
        assert (checkpoint.path / "model.bin").exists()
        left = told(registry.checkpoints(run="a", status="final"))
        assert left == [("a", checkpoint.step), ("a", new)]


def test_gc_keeps_what_is_leased_and_rm_says_who_has_it(registry, root):
    watching = registry.watch("a", lease="mmlu")
    next(watching)
    (plan,) = registry.gc(
        Policy(keep_top_k=0, ft_keep_latest_k=1, metric=LOSS, mode="min"), run="a"
    )
    who = f"'mmlu' by process {os.getpid()} on {os.uname().nodename} since"
    kept = {d.step: d.reason for d in plan.decisions if d.keep}
    assert kept.pop(1).startswith(f"kept: leased for {who} ")
    assert kept == {3: "kept: the latest"}
    with pytest.raises(LeasedCheckpoint, match=rf"Step 1 of 'a' is leased for {who} .*--force"):
        registry.remove([1], run="a")
    registry.remove([1], run="a", force=True)
    assert not (root / "a" / "step_1").exists()


def test_neither_check_nor_gc_wants_the_bytes_of_what_is_replaced_while_leased(registry, root):
    watching = registry.watch("a", lease="mmlu", poll_seconds=None)
    old = next(watching)
    save(root / "a", 1)
    (left,) = read_trash.list_trash(root / "a")
    assert left.uuid == old.uuid
    assert not registry.reconcile(dry_run=True).has_drift
    assert registry.gc(run="a")[0].leftovers == ()
    assert (left.path / "model.bin").exists()
    assert next(watching).step == 2
    assert read_trash.list_trash(root / "a") == ()


# --- late metrics -------------------------------------------------------------------------------


def test_what_was_measured_is_of_what_was_yielded_though_its_step_is_saved_again(registry, root):
    old = next(registry.watch("a"))
    save(root / "a", 1)
    found = registry.log_metrics("a", old.step, {"mmlu": 0.6}, source="lm-eval", uuid=old.uuid)
    assert (found.uuid, found.status, found.metrics["mmlu"]) == (old.uuid, "deleted", 0.6)
    new = registry.get(1, run="a")
    assert (new.uuid != old.uuid, "mmlu" in new.metrics) == (True, False)
    with pytest.raises(UnknownCheckpoint, match="has no checkpoint at step 2"):
        registry.log_metrics("a", 2, {"mmlu": 0.6}, source="lm-eval", uuid=old.uuid)


def test_late_metrics_have_a_source_and_a_time_and_decide_what_is_best_and_what_stays(root):
    with Registry.open(root) as registry:
        for checkpoint in registry.watch("a", lease="mmlu", poll_seconds=None):
            value = {1: 0.2, 2: 0.9, 3: 0.1}[checkpoint.step]
            found = registry.log_metrics(
                checkpoint.run, checkpoint.step, {"mmlu": value}, source="lm-eval"
            )
            late = found.late["mmlu"]
            assert (late.value, late.source) == (value, "lm-eval")
            assert late.reported_at >= checkpoint.finalized_at
        assert registry.best("mmlu", mode="max", run="a").step == 2
    save(root / "a", 4, keep=["best 1 by mmlu max"])
    assert sorted(path.name for path in (root / "a").glob("step_*")) == ["step_2", "step_4"]


def test_a_metric_of_nobody_is_recorded_nowhere(registry):
    with pytest.raises(UnknownCheckpoint):
        registry.log_metrics("a", 1, {"mmlu": 0.6}, source="lm-eval", uuid="nobody's")
    assert registry.get(1, run="a").late == {}

"""Other users on the same disk: a superuser who helps, colleagues of a group, who may only read.

Whole stories with real users; what each of them does is done in a process of their own.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import stat
import warnings
from pathlib import Path

import pytest
from tests.support.requirements import needs_root
from tests.support.users import (
    ANN,
    BOB,
    EVE,
    GROUP,
    LOSS,
    as_user,
    make,
    save,
    set_acl,
    shared_place,
)

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk import lock
from ckptdb.errors import CkptdbError
from ckptdb.retention import Policy

pytestmark = [needs_root, pytest.mark.slow]

# What a training loop writes itself belongs to whoever runs it.
THEIRS = {"model.bin", "rank0.bin", "shards"}


@pytest.fixture
def shared():
    with shared_place() as top:
        yield top


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What is held for ever is not waited for."""
    monkeypatch.setattr(lock, "TIMEOUT_SECONDS", 0.5)


def train(run, *steps, **options):
    """Save some steps; return what was warned of."""
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with CheckpointManager(config) as manager:
            manager.resume()
            for step in steps:
                with manager.save(step, {LOSS: 1 / (step + 1)}) as folder:
                    (folder / "model.bin").write_bytes(b"m")
                    (folder / "shards").mkdir()
                    (folder / "shards" / "rank0.bin").write_bytes(b"r")
    return [str(one.message) for one in caught]


def train_here(run, *steps):
    """Save some steps and keep the best."""
    return train(run, *steps, keep_top_k=1)


def train_by_another_metric(run, step):
    return train(run, step, metric_name="other", higher_is_better=True)


def steps_of(run):
    return sorted(int(p.name[5:]) for p in run.glob("step_*"))


def trash_of(run):
    return os.listdir(run / ".ckptdb" / "trash")


def command(*arguments):
    """Run a command line; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(one) for one in arguments])
    return ended.value.code


def owners(top):
    """Return of everything of ours below a directory who it belongs to."""
    found = {}
    for folder, _, files in os.walk(top):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if path.name not in THEIRS and not path.name.startswith("catalog.db"):
                status = path.lstat()
                found[str(path)] = (status.st_uid, status.st_gid)
    return found


def not_of(top, *whose):
    return {path: who for path, who in owners(top).items() if who not in whose}


@contextlib.contextmanager
def staging(run, step, *, uid=ANN, group=None, umask=0o022):
    """Another user's process in the middle of a save, killed in the end; yields its number."""
    reading, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([] if group is None else [group])
            os.setgid(uid if group is None else group)
            os.setuid(uid)
            os.umask(umask)
            manager = CheckpointManager({"checkpoint_dir": run})
            manager.init_tmp_checkpoint(step, {LOSS: 0.1})
            os.write(ready, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reading, 1) == b"x"
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(ready)


# --- a superuser who helps ------------------------------------------------------------------------


def pin(registry):
    registry.pin(None, 2, note="good")


def reject(registry):
    registry.reject(None, 2, "bad")


def log_metrics(registry):
    registry.log_metrics(None, 2, {"late": 0.5}, source="root")


def remove(registry):
    registry.remove([1])


def remove_and_undelete(registry):
    registry.remove([1], trash_ttl_seconds=3600)
    registry.undelete(1)


def collect(registry):
    registry.gc(Policy(keep_top_k=2, metric=LOSS, mode="min"))


def verify(registry):
    registry.verify()


def reconcile(registry):
    registry.reconcile()


def reconcile_what_is_damaged(registry):
    registry.remove([1])
    path = registry.location.file.parent / "journal.jsonl"
    path.write_bytes(b"{damage}\n" + path.read_bytes())
    registry.reconcile()


HELP = [
    pin, reject, log_metrics, remove, remove_and_undelete, collect, verify, reconcile,
    reconcile_what_is_damaged,
]  # fmt: skip


@pytest.mark.parametrize("helps", HELP, ids=lambda one: one.__name__)
@pytest.mark.parametrize("known", ["saved with ckptdb", "of another framework"])
def test_what_root_helps_with_belongs_to_the_owner_who_goes_on_as_before(shared, helps, known):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1, 2, 3)
    if known == "of another framework":
        shutil.rmtree(run / ".ckptdb")
        for step in (1, 2, 3):
            (run / f"step_{step}" / "manifest.json").unlink()

    def help_out():
        with Registry.open(run) as registry:
            helps(registry)

    as_user(0, help_out, umask=0o077)
    assert not_of(run, (ANN, ANN)) == {}
    assert as_user(ANN, train_here, run, 4, 5) == []
    assert steps_of(run) == ([2, 3, 5] if helps in (pin, reject) else [3, 5])
    assert trash_of(run) == []


def save_some(run, *steps):
    for step in steps:
        save(run, step, loss=1 / step)


def test_what_root_trains_in_the_tree_of_a_user_is_pruned_by_that_user(shared):
    results = make(shared / "results", ANN)
    run = results / "deep" / "run"
    as_user(0, save_some, run, 1, 2, 3)
    assert not_of(results, (ANN, ANN)) == {}
    assert as_user(ANN, train_here, run, 4) == []
    assert steps_of(run) == [3, 4]
    assert trash_of(run) == []


def test_root_helps_a_group_and_all_of_it_go_on(shared):
    run = make(shared / "run", ANN, mode=0o2775, group=GROUP)
    as_user(ANN, train, run, 1, 2, umask=0o002, groups=[GROUP])
    shutil.rmtree(run / ".ckptdb")

    def help_out():
        with Registry.open(run) as registry:
            registry.pin(None, 1)
            registry.remove([2])

    as_user(0, help_out)
    assert not_of(run, (ANN, GROUP)) == {}
    assert as_user(BOB, train, run, 3, 4, umask=0o002, groups=[GROUP]) == []
    assert as_user(ANN, train, run, 5, umask=0o002, groups=[GROUP]) == []
    assert not_of(run, (ANN, GROUP), (BOB, GROUP)) == {}


def test_a_file_that_root_replaces_stays_whose_it_was(shared):
    run = make(shared / "run", ANN, mode=0o2775, group=GROUP)
    as_user(BOB, train, run, 1, umask=0o002, groups=[GROUP])
    path = run / ".ckptdb" / "run.json"
    before = path.stat()
    path.chmod(0o640)
    as_user(0, train_by_another_metric, run, 2)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (BOB, GROUP, 0o640)


def test_what_root_has_left_in_the_tree_of_a_user_goes_back_when_root_comes_again(shared):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1, 2)
    with Registry.open(run) as registry:
        registry.pin(None, 1)
    for name in ("lock", "trainer", "journal.jsonl", "trash"):
        os.chown(run / ".ckptdb" / name, 0, 0)
        (run / ".ckptdb" / name).chmod(0o755 if name == "trash" else 0o644)
    with Registry.open(run) as registry:
        registry.unpin(None, 1)
    as_user(0, train, run, 3)
    assert not_of(run / ".ckptdb", (ANN, ANN)) == {}
    assert as_user(ANN, train_here, run, 4) == []
    assert steps_of(run) == [3, 4]


# --- colleagues of a group ------------------------------------------------------------------------


@pytest.fixture
def team(shared):
    return make(shared / "team", ANN, mode=0o2775, group=GROUP)


def as_colleague(uid, what, *arguments, umask=0o002):
    return as_user(uid, what, *arguments, umask=umask, groups=[GROUP])


def test_two_colleagues_train_and_tidy_up_in_turns(team):
    run = team / "run"
    assert as_colleague(ANN, train, run, 1, 2, 3) == []
    assert as_colleague(BOB, train_here, run, 4, 5) == []
    assert steps_of(run) == [3, 5]  # what it continued from stays
    assert trash_of(run) == []
    assert as_colleague(ANN, train_here, run, 6) == []
    assert steps_of(run) == [5, 6]
    assert trash_of(run) == []
    assert not_of(run, (ANN, GROUP), (BOB, GROUP)) == {}


def test_a_colleague_pins_removes_brings_back_and_collects_what_another_saved(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2, 3, 4)

    def tidy_up():
        with Registry.open(run) as registry:
            registry.pin(None, 1)
            registry.remove([2])
            registry.remove([3], trash_ttl_seconds=3600)
            registry.undelete(3)
            registry.gc(Policy(keep_top_k=1, metric=LOSS, mode="min"))
            registry.verify()
            registry.reconcile()

    as_colleague(BOB, tidy_up)
    assert steps_of(run) == [1, 4]
    assert trash_of(run) == []
    assert as_colleague(ANN, train_here, run, 5) == []
    assert steps_of(run) == [1, 4, 5]
    assert not_of(run, (ANN, GROUP), (BOB, GROUP)) == {}


@pytest.mark.parametrize("kind", ["prune", "gc", "rm"])
def test_the_bytes_of_a_colleague_are_removed_wherever_rm_would(team, kind):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2)
    # Of somebody who is in the group, only not the owner: nothing may be chmod'ed, all removed.
    os.chown(run / "step_1" / "shards", EVE, GROUP)

    def take_away():
        with Registry.open(run) as registry:
            if kind == "gc":
                registry.gc(Policy(keep_top_k=1, metric=LOSS, mode="min"))
            elif kind == "rm":
                registry.remove([1])

    if kind == "prune":
        assert as_colleague(BOB, train_here, run, 3) == []
    else:
        as_colleague(BOB, take_away)
    assert 1 not in steps_of(run)
    assert trash_of(run) == []


def test_two_colleagues_do_not_train_at_once_and_one_takes_over_from_the_other(team):
    run = team / "run"
    with staging(run, 1, group=GROUP, umask=0o002) as pid:
        text = as_colleague(BOB, catch, train, run, 1)
        assert f"{run} is being trained by process {pid} on" in text
    assert as_colleague(BOB, train, run, 1, 2) == []
    assert steps_of(run) == [1, 2]
    with staging(run, 3, group=GROUP, umask=0o002):
        pass
    assert as_colleague(BOB, command, "-C", run, "reconcile", "-o", "json") in (0, 3)
    assert as_colleague(BOB, command, "-C", run, "gc", "-o", "json") == 0
    assert not (run / "tmp_step_3").exists()
    assert trash_of(run) == []


def catch(what, *arguments, **options):
    try:
        what(*arguments, **options)
    except CkptdbError as error:
        return str(error)
    return None


def remove_from(run, step):
    with Registry.open(run) as registry:
        registry.remove([step])


def test_what_a_colleague_may_not_remove_stays_whole_and_the_sentence_says_why(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2)
    (run / "step_1" / "shards").chmod(0o2755)
    before = sorted(p.name for p in (run / "step_1").rglob("*"))
    text = as_colleague(BOB, catch, remove_from, run, 1)
    assert "Nothing was deleted" in text
    assert "step 1 is untouched" in text
    assert "step_1/shards" in text
    assert sorted(p.name for p in (run / "step_1").rglob("*")) == before
    assert trash_of(run) == []


def test_what_a_colleague_may_not_look_at_keeps_nothing_else_from_being_collected(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2, 3)
    (run / "step_1" / "shards").chmod(0o2730)

    def collect_all():
        with Registry.open(run) as registry:
            registry.gc(Policy(ft_keep_latest_k=1, keep_top_k=0))

    text = as_colleague(BOB, catch, collect_all)
    assert "step 2 is gone; step 1 is untouched" in text
    assert f"{run}/step_1/shards: Permission denied" in text
    assert steps_of(run) == [1, 3]
    assert trash_of(run) == []


def test_a_prune_that_leaves_bytes_says_where_and_the_owner_removes_them(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2)
    (run / "step_1" / "shards").chmod(0o2755)
    texts = as_colleague(BOB, train_here, run, 3)
    assert len(texts) == 1
    left = [p for p in (run / ".ckptdb" / "trash").iterdir() if p.name.startswith("step_1.")]
    assert len(left) == 1
    assert "step 1 is out of sight, with bytes left in" in texts[0]
    assert str(left[0]) in texts[0]
    assert "shards" in texts[0]
    assert (left[0] / "shards" / "rank0.bin").exists()
    assert as_colleague(ANN, train_here, run, 4) == []
    assert trash_of(run) == []


def test_a_step_that_only_its_owner_may_write_is_no_colleagues_to_remove(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1, 2)
    for folder in ("step_1", "step_2"):
        (run / folder).chmod(0o2755)
    text = as_colleague(BOB, catch, remove_from, run, 1)
    assert "Nothing was deleted" in text
    assert f"{run}/step_1: Permission denied" in text
    texts = as_colleague(BOB, train_here, run, 3)
    assert len(texts) == 1
    assert "step 1 is untouched" in texts[0]
    assert steps_of(run) == [1, 2, 3]
    assert trash_of(run) == []


def test_in_a_sticky_directory_the_step_of_another_stays_as_it_is(shared):
    run = make(shared / "run", ANN, mode=0o3775, group=GROUP)
    as_colleague(ANN, train, run, 1, 2)
    before = sorted(p.name for p in (run / "step_1").rglob("*"))
    text = as_colleague(BOB, catch, remove_from, run, 1)
    assert text is not None
    assert text.count("step_1: Operation not permitted") == 1
    assert "Nothing was deleted" in text
    assert sorted(p.name for p in (run / "step_1").rglob("*")) == before
    assert trash_of(run) == []


def test_in_a_place_for_everybody_the_run_of_another_is_left_alone(shared):
    run = make(shared / "tmp", 0, mode=0o1777)
    as_user(ANN, train, run, 1, 2)
    text = as_user(BOB, catch, remove_from, run, 1)
    assert f"{run}/.ckptdb belongs to another user ({ANN})" in text
    assert steps_of(run) == [1, 2]
    assert trash_of(run) == []


def modes_below(top):
    found = {p.relative_to(top): stat.S_IMODE(p.lstat().st_mode) for p in top.rglob("*")}
    return {p: mode for p, mode in found.items() if not p.name.startswith("catalog.db")}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_what_is_made_follows_umask_and_setgid(shared, umask):
    run = make(shared / "run", ANN, mode=0o2775, group=GROUP)
    as_colleague(ANN, train_here, run, 1, 2, umask=umask)
    for path, mode in modes_below(run).items():
        full = run / path
        wanted = 0o2777 & ~umask if full.is_dir() else 0o666 & ~umask
        if path.name in ("lock", "trainer"):
            wanted = 0o660 if umask == 0o002 else 0o600
        assert (path, oct(mode)) == (path, oct(wanted))
        assert full.lstat().st_gid == GROUP


def test_what_is_replaced_keeps_its_group_and_permissions(team):
    run = team / "run"
    as_colleague(ANN, train, run, 1)
    path = run / ".ckptdb" / "run.json"

    as_colleague(BOB, train_by_another_metric, run, 2, umask=0o077)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (BOB, GROUP, 0o664)


def share_by_acl(path, *uids):
    """Let some users write a directory, and what will be made in it."""
    users = [("user", 7, uid) for uid in sorted(uids)]
    for kind in ("access", "default"):
        set_acl(path, ("owner", 7), *users, ("group", 5), ("mask", 7), ("others", 5), kind=kind)


def test_colleagues_who_share_by_an_acl_train_in_turns_and_readers_stop_nobody(shared):
    run = make(shared / "run", ANN)
    share_by_acl(run, BOB)
    assert as_user(ANN, train, run, 1, 2) == []
    with neighbour(run):
        assert as_user(BOB, train_here, run, 3, 4) == []
        # Made by Bob, and of a directory that is Ann's.
        for name in ("lock", "trainer"):
            (run / ".ckptdb" / name).unlink()
        assert as_user(BOB, train, run, 5) == []
    with neighbour(run, groups=[GROUP]):
        assert as_user(ANN, train, run, 6) == []
        assert as_user(BOB, train_here, run, 7) == []
    assert steps_of(run) == [6, 7]
    assert trash_of(run) == []


def test_a_group_without_a_setgid_bit_shares_a_run_all_the_same(shared):
    run = make(shared / "run", ANN, mode=0o775, group=GROUP)
    others = 20555  # of which everybody is

    def as_one_of_all(uid, what, *arguments, groups=(GROUP,)):
        return as_user(uid, what, *arguments, umask=0o002, groups=[others, *groups])

    (run / ".ckptdb").mkdir()
    os.chown(run / ".ckptdb", ANN, GROUP)
    (run / ".ckptdb").chmod(0o775)
    assert as_one_of_all(BOB, train, run, 1) == []
    assert as_one_of_all(ANN, train, run, 2) == []
    with neighbour(run, groups=[others]):
        assert as_one_of_all(ANN, train, run, 3) == []
        assert as_one_of_all(BOB, train, run, 4) == []


# --- who may only read ----------------------------------------------------------------------------


def hold_all_locks(run, ready):
    """Take every lock on everything that can be opened, for ever."""
    held = []
    for folder, names, files in os.walk(run):
        for path in (Path(folder), *(Path(folder, name) for name in (*names, *files))):
            # Of a database, SQLite's own waits are bounded; see there.
            if path.name.startswith("catalog.db"):
                continue
            with contextlib.suppress(OSError):
                handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
                held.append(handle)
                with contextlib.suppress(OSError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(OSError):
                    fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    os.write(ready, b"%d\n" % len(held))
    signal.pause()


@contextlib.contextmanager
def neighbour(run, uid=EVE, groups=()):
    """Somebody who holds all the locks that can be had; yields how many files could be opened."""
    reading, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(list(groups))
            os.setgid(groups[0] if groups else uid)
            os.setuid(uid)
            hold_all_locks(run, ready)
        finally:
            os._exit(1)
    try:
        yield int(os.read(reading, 100))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        os.close(ready)


def test_who_may_only_read_a_run_stops_neither_its_training_nor_anything_else(shared):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1, 2)

    def tidy_up():
        with Registry.open(run) as registry:
            registry.pin(None, 2)
            registry.remove([1], trash_ttl_seconds=3600)
            registry.undelete(1)
            registry.gc(Policy(keep_top_k=1, metric=LOSS, mode="min"))
            registry.reconcile()

    with neighbour(run) as opened:
        assert opened > 5
        assert as_user(ANN, train, run, 3, 4) == []
        as_user(ANN, tidy_up)
        assert as_user(ANN, train_here, run, 5) == []
    assert steps_of(run) == [2, 4, 5]


@pytest.mark.parametrize("mode", [0o755, 0o2775, 0o777, 0o750, 0o700])
def test_a_lock_is_for_those_who_may_write_its_directory(shared, mode):
    run = make(shared / "run", ANN, mode=mode, group=GROUP)
    umask = 0o777 & ~mode
    as_colleague(ANN, train, run, 1, umask=umask)
    wanted = 0o600 | (0o060 if mode & 0o020 else 0) | (0o006 if mode & 0o002 else 0)
    for name in ("lock", "trainer"):
        assert oct(stat.S_IMODE((run / ".ckptdb" / name).stat().st_mode)) == oct(wanted)


@pytest.mark.parametrize("uid", [ANN, 0])
def test_a_lock_that_an_earlier_version_left_open_to_all_is_closed_by_its_owner(shared, uid):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1)
    for name in ("lock", "trainer"):
        (run / ".ckptdb" / name).chmod(0o644)
    as_user(uid, train, run, 2)
    for name in ("lock", "trainer"):
        assert stat.S_IMODE((run / ".ckptdb" / name).stat().st_mode) == 0o600


def test_a_directory_opened_to_a_group_later_lets_its_members_in_after_the_owners_next_save(shared):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1)
    for path in (run, *run.rglob("*")):
        os.chown(path, ANN, GROUP)
        if path.is_dir():
            path.chmod(0o2775)
        elif path.name not in ("lock", "trainer"):
            path.chmod(0o664)
    as_colleague(ANN, train, run, 2)
    assert as_colleague(BOB, train_here, run, 3) == []
    assert steps_of(run) == [2, 3]


def test_a_dead_writer_of_another_container_is_not_kept_alive_by_a_reader(shared):
    run = make(shared / "run", ANN)

    with staging(run, 1):
        pass
    path = run / "tmp_step_1" / ".writer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "namespace": 1}))
    with neighbour(run):
        assert as_user(ANN, train, run, 1) == []
    assert steps_of(run) == [1]


def test_a_reader_sees_who_trains_and_changes_nothing(shared, capfd):
    run = make(shared / "run", ANN)
    as_user(ANN, train, run, 1, 2)
    with staging(run, 3) as pid:
        capfd.readouterr()
        assert as_user(EVE, command, "-C", run, "check") in (0, 3)
        assert as_user(EVE, command, "-C", run, "ls") == 0
        assert as_user(EVE, command, "-C", run, "reconcile", "--dry-run") in (0, 3)
        found = capfd.readouterr()
        assert f"process {pid}" in found.out + found.err
    assert not_of(run, (ANN, ANN)) == {}

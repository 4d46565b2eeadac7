"""Deleting where the file system refuses: what goes, what stays, and that exactly this is said."""

import errno
import os
import shutil
import subprocess
import sys
import traceback
import warnings
from contextlib import suppress

import pytest
from tests.support import requirements
from tests.support.mounts import immutable, mounted
from tests.support.requirements import needs_root

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import (
    delete_in_place,
    fsutil,
    observation,
    read_checkpoint,
    read_trash,
    root_marker,
    run_listing,
    tree_removal,
)
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import DeletionIncomplete, ReplacedInPart, SaveFailed
from ckptdb.manager import _load_checkpoint_history
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

BYTES = 300_000
LOSSES = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.3}


def open_manager(run, **options):
    return CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False, **options}
    )


def make_run(run, losses=LOSSES, size_bytes=BYTES):
    with open_manager(run) as manager:
        for step, loss in losses.items():
            with manager.save(step, {"loss": loss}) as folder:
                (folder / "part").mkdir()
                (folder / "part" / "model.bin").write_bytes(b"m" * size_bytes)
    with Registry.open(run) as registry:
        registry.reconcile()
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def steps(run):
    return sorted(step for step, _ in run_listing.list_finals(run))


def fill(folder):
    """Take every byte, and then every name."""
    with (folder / "ballast").open("ab", buffering=0) as ballast, suppress(OSError):
        while ballast.write(b"\0" * 4096):
            pass
    with suppress(OSError):
        for number in range(100_000):
            (folder / f"name{number}").touch()


def check(run, live, reasons):
    """Disk, journal and index say the same, and a rebuild says it too."""
    assert sorted(os.listdir(run)) == [".ckptdb", *(f"step_{step}" for step in live)]
    assert read_trash.list_trash(run) == ()
    with Registry.open(run) as registry:
        assert [cp.step for cp in registry.checkpoints(status="final")] == live
        gone = {cp.step: cp.deleted_reason for cp in registry.checkpoints(status="deleted")}
        assert {step: gone[step].partition(":")[0] for step in gone} == reasons
        registry.reconcile()
        assert not registry.reconcile().has_drift
        file = registry.location.file
    file.unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert gone == {cp.step: cp.deleted_reason for cp in registry.checkpoints(status="deleted")}


# --- where a rename needs space, and a removal does not ---------------------------------------


@pytest.fixture(params=["quota", "full"])
def full_btrfs(request, tmp_path):
    """Return a run on a btrfs on which nothing can be renamed any more."""
    requirements.skip_without_root()
    requirements.skip_without("mkfs.btrfs", requirements.BTRFS)
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.btrfs", "-q", "-M", image], check=True)
    with mounted(tmp_path / "disk", "-o", "loop", image) as disk:
        if request.param == "quota":
            subprocess.run(["btrfs", "quota", "enable", disk], check=True)
            subprocess.run(["btrfs", "subvolume", "create", disk / "mine"], check=True)
            subprocess.run(["btrfs", "qgroup", "limit", "16M", disk / "mine"], check=True)
        mine = disk / "mine"
        run = make_run(mine / "run", size_bytes=1_500_000)
        for _ in range(2):
            fill(mine)
            os.sync()
        with pytest.raises(OSError, match=r"No space left|Disk quota exceeded"):
            (run / "step_4").rename(run / ".ckptdb" / "trash" / "step_4")
        yield run


def test_rm_frees_a_disk_that_has_no_space_for_a_rename(full_btrfs):
    with warnings.catch_warnings(), Registry.open(full_btrfs) as registry:
        warnings.simplefilter("ignore")
        removed = registry.remove([1, 3])
    assert removed.freed_bytes > 2 * BYTES
    assert removed.failed == ()
    check(full_btrfs, [2, 4], {1: "by hand", 3: "by hand"})


def test_a_training_loop_prunes_a_disk_that_has_no_space_for_a_rename(full_btrfs):
    with warnings.catch_warnings(), open_manager(full_btrfs, keep_top_k=1) as manager:
        warnings.simplefilter("ignore")
        manager.remove_old_checkpoints()
    check(full_btrfs, [2, 4], {1: "retention", 3: "retention"})


# --- killed in between ------------------------------------------------------------------------


class NoRename:
    """A disk on which nothing can be moved into the trash, and perhaps nothing recorded."""

    def __init__(self, monkeypatch, code):
        real = fsutil.rename_new

        def rename_new(source, target):
            if target.parent.name == "trash":
                raise OSError(code, os.strerror(code), str(source), None, str(target))
            real(source, target)

        monkeypatch.setattr(fsutil, "rename_new", rename_new)


_KILLED = """
import errno, os, sys
from pathlib import Path
from ckptdb import Registry
from ckptdb.disk import fsutil, journal
number, code, refuses = map(int, sys.argv[1:4])
run = Path(sys.argv[4])
real_rename, real_append, refused = fsutil.rename_new, journal.append, [0]
def rename_new(source, target):
    if target.parent.name == "trash":
        raise OSError(code, os.strerror(code))
    real_rename(source, target)
def append(*arguments, **options):
    if refuses and not refused[0]:
        refused[0] = 1
        raise OSError(errno.ENOSPC, "No space left on device")
    real_append(*arguments, **options)
fsutil.rename_new, journal.append = rename_new, append
uuid = sys.argv[5]
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
publisher, count = Publisher(run), [0]
def counted(real):
    def call(*arguments, **options):
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), 9)
        return real(*arguments, **options)
    return call
for name in ("chmod", "unlink", "rmdir", "utime", "write", "fsync"):
    setattr(os, name, counted(getattr(os, name)))
publisher.retire([Deletion(1, uuid, "by hand", by_hand=True)])
print(count[0])
"""


@pytest.mark.parametrize(
    ("code", "refuses"),
    [(errno.ENOSPC, 1), (errno.ENOSPC, 0), (errno.EXDEV, 0)],
    ids=["not recorded", "recorded", "another layer"],
)
def test_killed_while_deleting_where_it_stands_it_is_whole_or_deleted(tmp_path, code, refuses):
    """After a kill before any change there is a whole checkpoint, or one that ends by itself."""
    template = make_run(tmp_path / "template", {1: 0.5, 2: 0.1})
    uuid = read_checkpoint.load(observation.observe(template).identity, template / "step_1", 1).uuid
    seen, number = set(), 0
    while True:
        number += 1
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(template, run, copy_function=shutil.copy2)
        # The same run, not a copy: it stands where the other one stood.
        template.rename(tmp_path / "away")
        run.rename(template)
        arguments = map(str, (number, code, refuses, template, uuid))
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, *arguments], check=False, capture_output=True
        )
        try:
            seen.add(_judge(template, uuid))
            _recover(template, uuid)
        finally:
            shutil.rmtree(template)
            (tmp_path / "away").rename(template)
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert number > 6
    assert seen >= {"whole", "deleted"}


def _judge(run, uuid):
    """Return what a reader that may not write takes the first checkpoint for."""
    observed = observation.observe(run, verify=True)
    history = [step for step, _, _ in _load_checkpoint_history(run)]
    if 1 in observed.finals:
        assert observed.finals[1].problem is None
        assert history == [1, 2]
        return "whole"
    assert history == [2]
    with open_manager(run) as manager, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert manager.get_top_checkpoint_paths(5) == [str(run / "step_2")]
    return "deleted"


def _recover(run, uuid):
    with Registry.open(run) as registry:
        registry.reconcile()
        left = [cp.step for cp in registry.checkpoints(status="final")]
        ended = registry.checkpoints(status="deleted")
        assert not registry.reconcile(dry_run=True).has_drift
    assert sorted(os.listdir(run)) == [".ckptdb", *(f"step_{step}" for step in left)]
    assert left in ([1, 2], [2])
    assert [cp.uuid for cp in ended] == ([] if left == [1, 2] else [uuid])
    assert read_trash.list_trash(run) == ()


def test_a_step_that_is_half_deleted_can_be_saved_again(run, monkeypatch):
    mark_only(run, 3, monkeypatch)
    with open_manager(run) as manager, manager.save(3, {"loss": 0.05}) as folder:
        (folder / "model.bin").write_bytes(b"new")
    with open_manager(run) as manager:
        assert manager.get_best_checkpoint_path() == str(run / "step_3")
    check(run, [1, 2, 3, 4], {3: "deleted on a full disk, which had no space for the reason"})


def mark_only(run, step, monkeypatch):
    """Leave a checkpoint marked, as somebody does who is killed right after that."""

    def die(*_):
        raise InterruptedError

    uuid = read_checkpoint.load(observation.observe(run).identity, run / f"step_{step}", step).uuid
    with monkeypatch.context() as patch:
        NoRename(patch, errno.ENOSPC)
        patch.setattr(Publisher, "_append", refuse_space)
        patch.setattr(delete_in_place.DeletingInPlace, "_delete_in_place", die)
        with pytest.raises(DeletionIncomplete):
            Publisher(run).retire([Deletion(step, uuid, "by hand")])
    assert read_checkpoint.is_being_deleted(os.lstat(run / f"step_{step}"))


def refuse_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_gc_finishes_what_stands_half_deleted(run, monkeypatch):
    mark_only(run, 3, monkeypatch)
    with Registry.open(run) as registry:
        registry.gc()
    check(run, [1, 2, 4], {3: "deleted on a full disk, which had no space for the reason"})


# --- a directory of an overlay's lower layer --------------------------------------------------


@pytest.fixture
def overlaid(tmp_path):
    """Return a run whose directories lie in the lower layer of an overlay."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    make_run(tmp_path / "lower" / "run")
    with mounted(upper, "-t", "tmpfs", "ckptdb-test"):
        (upper / "changes").mkdir()
        (upper / "work").mkdir()
        layers = f"lowerdir={lower},upperdir={upper}/changes,workdir={upper}/work,redirect_dir=off"
        with mounted(tmp_path / "merged", "-t", "overlay", "-o", layers, "ckptdb-test") as merged:
            run = merged / "run"
            with pytest.raises(OSError, match="cross-device"):
                (run / "step_4").rename(run / "elsewhere")
            yield run


def test_rm_deletes_what_an_image_layer_lets_nobody_move(overlaid):
    with Registry.open(overlaid) as registry:
        registry.reconcile()
        registry.remove([1, 3])
    check(overlaid, [2, 4], {1: "by hand", 3: "by hand"})


def test_what_cannot_be_moved_is_not_deleted_when_it_was_to_be_kept_for_undelete(overlaid):
    with Registry.open(overlaid) as registry:
        registry.reconcile()
        with pytest.raises(DeletionIncomplete, match="only deleted at once") as caught:
            registry.remove([1], trash_ttl_seconds=3600)
    assert str(caught.value).startswith(f"Nothing was deleted. {overlaid}: step 1 is untouched")
    assert caught.value.is_partial is False
    check(overlaid, [1, 2, 3, 4], {})


def test_a_step_of_an_image_layer_can_be_saved_again(overlaid):
    with open_manager(overlaid) as manager:
        with manager.save(3, {"loss": 0.05}) as folder:
            (folder / "model.bin").write_bytes(b"new")
        assert manager.get_best_checkpoint_path() == str(overlaid / "step_3")
    assert (overlaid / "step_3" / "model.bin").read_bytes() == b"new"
    with Registry.open(overlaid) as registry:
        (gone,) = registry.checkpoints(status="deleted")
        assert gone.deleted_reason == "replaced by a new save of step 3"
        assert not registry.reconcile().has_drift


def test_killed_while_a_step_of_an_image_layer_is_replaced_the_new_one_is_published(
    overlaid, monkeypatch
):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, open_manager(overlaid) as manager:
        patch.setattr(delete_in_place.DeletingInPlace, "_finish_in_place", die)
        with pytest.raises(KeyboardInterrupt), manager.save(3, {"loss": 0.05}) as folder:
            (folder / "model.bin").write_bytes(b"new")
    with Registry.open(overlaid) as registry:
        registry.reconcile()
        assert registry.best().step == 3
    assert (overlaid / "step_3" / "model.bin").read_bytes() == b"new"


def test_a_replacement_in_place_that_fails_says_so_and_is_completed_later(overlaid, monkeypatch):
    real = os.rmdir

    def rmdir(path, **options):
        if os.fspath(path).endswith("step_3"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        real(path, **options)

    with monkeypatch.context() as patch, open_manager(overlaid) as manager:
        patch.setattr(os, "rmdir", rmdir)
        with pytest.raises(ReplacedInPart, match="is complete and has not its final name yet"):
            manager.finalize_checkpoint(manager.init_tmp_checkpoint(3, {"loss": 0.05}))
    with open_manager(overlaid) as manager:
        # A question removes nothing, not even what is in the way of what is complete.
        assert manager.get_best_checkpoint_path() != str(overlaid / "step_3")
        assert (overlaid / "tmp_step_3").exists()
    with Registry.open(overlaid) as registry:
        registry.reconcile()
    with open_manager(overlaid) as manager:
        assert manager.get_best_checkpoint_path() == str(overlaid / "step_3")
    assert (overlaid / "tmp_step_3").exists() is False


def test_a_pinned_one_of_an_image_layer_is_not_lost_by_saving_its_step_again(overlaid):
    with Registry.open(overlaid) as registry:
        registry.pin(None, 3)
    with (
        open_manager(overlaid) as manager,
        pytest.raises(SaveFailed, match="cross-device"),
        manager.save(3, {"loss": 0.05}),
    ):
        pass
    assert (overlaid / "step_3" / "part" / "model.bin").exists()


# --- what may not be removed ------------------------------------------------------------------


def test_rm_of_two_removes_none_when_a_file_of_one_is_immutable(run):
    file = run / "step_1" / "part" / "model.bin"
    with (
        immutable(file, below=run),
        Registry.open(run) as registry,
        pytest.raises(DeletionIncomplete) as caught,
    ):
        registry.remove([1, 2])
    assert str(caught.value) == (
        f"Nothing was deleted. {run}: steps 1, 2 are untouched ({file}: Operation not permitted)."
    )
    check(run, [1, 2, 3, 4], {})


def test_gc_leaves_what_is_immutable_whole_and_removes_the_rest(run):
    file = run / "step_1" / "part" / "model.bin"
    with immutable(file, below=run), Registry.open(run) as registry:
        with pytest.raises(DeletionIncomplete) as caught:
            registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1))
        (done,) = caught.value.done
    assert str(caught.value) == (
        f"Not everything was deleted. {run}: steps 2, 3 are gone; step 1 is untouched "
        f"({file}: Operation not permitted)."
    )
    assert {d.step: d.reason for d in done.decisions if d.keep} == {
        1: f"not deleted: {file}: Operation not permitted",
        4: "kept: the latest",
    }
    check(run, [1, 4], {2: "retention", 3: "retention"})


def test_a_failure_midway_says_what_is_gone_and_what_has_bytes_left(run, monkeypatch):
    """Something forbids it that could not be seen before, in the moving and in the removing."""
    real_rename, real_remove = fsutil.rename_new, tree_removal.remove_tree

    def rename_new(source, target):
        if source.name == "step_3":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        real_rename(source, target)

    def remove_tree(path):
        if path.name.startswith("step_1."):
            raise OSError(errno.EIO, os.strerror(errno.EIO), "model.bin")
        real_remove(path)

    with Registry.open(run) as registry:
        with monkeypatch.context() as patch:
            patch.setattr(fsutil, "rename_new", rename_new)
            patch.setattr(tree_removal, "remove_tree", remove_tree)
            with pytest.raises(DeletionIncomplete) as caught:
                registry.remove([1, 2, 3])
        (left,) = read_trash.list_trash(run)
        assert str(caught.value) == (
            f"Not everything was deleted. {run}: step 2 is gone; step 1 is out of sight, with "
            f"bytes left in {left.path}; step 3 is untouched ({run}/step_3: Input/output error; "
            "model.bin: Input/output error). When that is mended, `ckptdb gc` removes what is left."
        )
        error = caught.value
        assert (error.gone, error.is_partial, error.errno) == ({run: (1, 2)}, True, errno.EIO)
        assert [(one.step, one.left) for one in error.failed] == [(3, None), (1, left.path)]
        size = next(d.size_bytes for d in error.done.decisions if d.step == 2)
        assert error.done.freed_bytes == size
        assert [cp.step for cp in registry.checkpoints(status="final")] == [3, 4]
        registry.gc()
    check(run, [3, 4], {1: "by hand", 2: "by hand"})


def test_what_cannot_be_removed_from_the_trash_is_not_said_to_be_freed(run):
    with Registry.open(run) as registry:
        registry.remove([1, 2], trash_ttl_seconds=3600)
        kept = next(left.path for left in read_trash.list_trash(run) if left.step == 1)
        file = next(path for path in kept.rglob("*") if path.is_file())
        with immutable(file, below=run), pytest.raises(DeletionIncomplete) as caught:
            registry.gc(empty_trash=True)
    (collected,) = caught.value.done
    assert {left.step: collected.is_left(left) for left in collected.leftovers} == {
        1: True,
        2: False,
    }
    assert collected.freed_bytes == sum(
        left.size_bytes for left in collected.leftovers if left.step == 2
    )
    assert caught.value.removed == 1


def test_what_failed_to_go_is_not_recorded_as_deleted_when_it_vanishes_later(run, monkeypatch):
    def rename_new(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))

    with Registry.open(run) as registry:
        with monkeypatch.context() as patch:
            patch.setattr(fsutil, "rename_new", rename_new)
            with pytest.raises(DeletionIncomplete):
                registry.remove([1])
        shutil.rmtree(run / "step_1")
        registry.reconcile()
        assert registry.get(1).deleted_reason.startswith("vanished")


def test_gc_over_several_runs_tells_of_all_when_one_fails(tmp_path, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    runs = [root / name for name in ("a", "b", "c")]
    root_marker.mark_root(root)
    for run in runs:
        make_run(run)
    with Registry.open(root) as registry:
        registry.reconcile()
        real = Publisher.retire

        def retire(publisher, *arguments, **options):
            if publisher.directory == runs[1]:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(runs[1]))
            return real(publisher, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Publisher, "retire", retire)
            with pytest.raises(DeletionIncomplete) as caught:
                registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1), all_runs=True)
    assert str(caught.value) == (
        f"Not everything was deleted. {runs[0]}: steps 1, 2, 3 are gone. {runs[2]}: steps 1, 2, 3 "
        f"are gone. {runs[1]}: {runs[1]}: Input/output error."
    )
    assert [one.directory for one in caught.value.done] == [runs[0], runs[2]]
    assert [steps(run) for run in runs] == [[4], [1, 2, 3, 4], [4]]


def test_removed_leftovers_are_not_called_nothing_when_the_rest_fails(run, monkeypatch):
    """What a killed process had retired goes, and the checkpoint itself does not."""
    uuid = read_checkpoint.load(observation.observe(run).identity, run / "step_1", 1).uuid
    Publisher(run).retire([Deletion(1, uuid, "by somebody who died then")])

    def rename_new(source, target):
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))

    with Registry.open(run) as registry:
        registry._catalog().runs.list_all()
        monkeypatch.setattr("ckptdb.registry.healing.reconcile_run", lambda *_, **__: None)
        monkeypatch.setattr(fsutil, "rename_new", rename_new)
        with pytest.raises(DeletionIncomplete) as caught:
            registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1))
    assert str(caught.value).startswith(f"Not everything was deleted. {run}: ")
    assert str(caught.value).endswith(" Leftovers that were removed: 1.")
    assert caught.value.is_partial
    assert read_trash.list_trash(run) == ()


def test_a_manager_tells_index_and_hooks_of_what_went_before_it_warns(run, monkeypatch):
    gone = []
    real = fsutil.rename_new

    def rename_new(source, target):
        if source.name == "step_3":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        real(source, target)

    with open_manager(run, keep_top_k=1, on_deleted=gone.append) as manager:
        monkeypatch.setattr(fsutil, "rename_new", rename_new)
        with pytest.warns(UserWarning, match="Failed to prune old checkpoints: DeletionIncomp"):
            manager._prune()
        assert manager.get_top_checkpoint_paths(9) == [str(run / f"step_{n}") for n in (2, 4, 3)]
    assert [checkpoint.step for checkpoint in gone] == [1]


@pytest.fixture
def open_to_all(tmp_path):
    """Let every user come to the directories of this test."""
    closed = [p for p in (tmp_path, *tmp_path.parents) if p.stat().st_mode & 0o005 != 0o005]
    modes = {path: path.stat().st_mode for path in closed}
    for path, mode in modes.items():
        path.chmod(mode | 0o055)
    yield
    for path, mode in modes.items():
        path.chmod(mode)


@needs_root
@pytest.mark.usefixtures("open_to_all")
def test_in_a_sticky_directory_of_others_what_is_theirs_stays_and_is_named(tmp_path):
    """A user of a group deletes his own and another's checkpoint: none goes, and he is told why."""
    run = make_run(tmp_path / "run")
    for path in (run, *run.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    run.chmod(0o1777)
    for path in (run / "step_1", *(run / "step_1").rglob("*")):
        os.chown(path, 65534, 65534)

    def attempt():
        with warnings.catch_warnings(), Registry.open(run) as registry:
            warnings.simplefilter("ignore")
            with pytest.raises(DeletionIncomplete) as caught:
                registry.remove([1, 3])
        assert str(caught.value) == (
            f"Nothing was deleted. {run}: steps 1, 3 are untouched "
            f"({run}/step_3: Operation not permitted)."
        )

    as_nobody(attempt)
    assert steps(run) == [1, 2, 3, 4]


def as_nobody(work):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            work()
            code = 0
        except BaseException:  # noqa: BLE001  # the child must not go on with the tests
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

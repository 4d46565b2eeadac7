"""A warning points at the line that called into ckptdb."""

import errno
import fcntl
import linecache
import os
import warnings
from contextlib import ExitStack, contextmanager, suppress

import pytest

from ckptdb import CheckpointManager, Registry, retention
from ckptdb.core.warnings import warn, warning_afterwards
from ckptdb.disk import lock
from ckptdb.training import prune_selection


@contextmanager
def pointed_at(*lines):
    """Expect one warning for each line of this file, given by how it ends."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        yield
    assert [w.filename for w in told] == [__file__] * len(lines)
    for warning, line in zip(told, lines, strict=True):
        assert linecache.getline(__file__, warning.lineno).rstrip().endswith(line)


@pytest.fixture
def manager(tmp_path):
    with CheckpointManager(
        {"checkpoint_dir": tmp_path / "run", "metric_name": "loss", "higher_is_better": False}
    ) as manager:
        yield manager


@pytest.fixture
def broken(manager):
    """Return a manager of a run with one checkpoint whose catalog is no database."""
    manager.finalize_checkpoint(manager.init_tmp_checkpoint(1, {"loss": 1}))
    manager.shutdown()
    (manager.checkpoint_dir / ".ckptdb" / "catalog.db").write_bytes(b"no database" * 100)
    return manager


CALLS = {
    "best": lambda manager: manager.get_best_checkpoint_path(),  # best
    "latest": lambda manager: manager.get_latest_checkpoint_path(),  # latest
    "init": lambda manager: manager.init_tmp_checkpoint(2, {"loss": 2}),  # init
    "prune": lambda manager: manager.remove_old_checkpoints(),  # prune
}


@pytest.mark.parametrize("call", CALLS)
def test_of_a_broken_catalog(broken, call):
    broken.keep_top_k = 1
    with pointed_at(f"# {call}"):
        CALLS[call](broken)


def test_of_a_catalog_that_breaks_before_a_finalization(broken):
    good = (broken.checkpoint_dir / ".ckptdb" / "catalog.db").read_bytes()
    (broken.checkpoint_dir / ".ckptdb" / "catalog.db").unlink()
    folder = broken.init_tmp_checkpoint(2, {"loss": 2})
    broken.shutdown()
    (broken.checkpoint_dir / ".ckptdb" / "catalog.db").write_bytes(good)
    with pointed_at("# finalize"):
        broken.finalize_checkpoint(folder)  # finalize


def test_of_a_catalog_that_breaks_within_a_save(broken):
    good = (broken.checkpoint_dir / ".ckptdb" / "catalog.db").read_bytes()
    (broken.checkpoint_dir / ".ckptdb" / "catalog.db").unlink()
    with pointed_at("# within"), broken.save(2, {"loss": 2}):  # within
        broken._index.close()
        (broken.checkpoint_dir / ".ckptdb" / "catalog.db").write_bytes(good)


def test_of_a_pinned_checkpoint_that_is_replaced(manager):
    with manager.save(2, {"loss": 2}):
        pass
    with Registry.open(manager.checkpoint_dir) as registry:
        registry.pin(None, 2)
    with pointed_at("# replacing"), manager.save(2, {"loss": 2}):  # replacing
        pass


def test_of_a_file_system_without_locks(manager, monkeypatch):
    def refuse(handle, operation):
        if operation != fcntl.LOCK_UN:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pointed_at("# first"):
        manager.init_tmp_checkpoint(1, {})  # first


def test_of_a_file_system_without_locks_where_no_lease_is_asked_for(tmp_path, monkeypatch):
    def refuse(handle, operation):
        if operation != fcntl.LOCK_UN:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    manager = CheckpointManager({"checkpoint_dir": tmp_path / "run"}, exclusive=False)
    with pointed_at("# shared"):
        manager.init_tmp_checkpoint(1, {})  # shared


def test_of_an_unknown_key(tmp_path):
    class Mine(CheckpointManager):
        def __init__(self, config):
            super().__init__(config)  # from a class of the caller's

    with pointed_at("# from the caller", "# from a class of the caller's"):
        CheckpointManager({"checkpoint_dir": tmp_path, "kept": 1})  # from the caller
        Mine({"checkpoint_dir": tmp_path, "kept": 1})


def test_of_a_prune_that_fails(manager, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    manager.keep_top_k = 1
    monkeypatch.setattr(prune_selection, "judge", fail)
    monkeypatch.setattr(retention.Policy, "keeps_all", lambda *_: False)
    folder = manager.init_tmp_checkpoint(1, {})
    with pointed_at("# pruning"):
        manager.finalize_checkpoint(folder)  # pruning


def test_of_a_finalization_that_fails_beside_another_error(manager):
    def fail():
        raise OSError(errno.EIO, "Input/output error")

    manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), fail)
    with pointed_at("# leaving"), suppress(KeyError), ExitStack() as stack:  # leaving
        stack.enter_context(manager)
        raise KeyError


def test_outside_of_ckptdb_it_is_the_caller_itself():
    with pointed_at("# itself"):
        warn("something")  # itself


# --- where warnings are errors ------------------------------------------------------------------


def test_a_prune_that_warns_of_values_that_are_not_finite_is_done_all_the_same(manager):
    manager.keep_top_k = 1
    for step in (1, 2):
        with ExitStack() as stack:
            if step == 2:
                stack.enter_context(pytest.raises(UserWarning, match="only NaN or infinite"))
            with manager.save(step, {"loss": float("nan")}):
                pass
    assert [path.name for path in manager.checkpoint_dir.glob("step_*")] == ["step_2"]


def test_a_prune_by_hand_that_warns_is_done_all_the_same(manager):
    for step in (1, 2):
        with manager.save(step, {"loss": float("nan")}):
            pass
    manager.keep_top_k = 1
    with pytest.raises(UserWarning, match="only NaN or infinite"):
        manager.remove_old_checkpoints()
    assert [path.name for path in manager.checkpoint_dir.glob("step_*")] == ["step_2"]


def test_a_save_whose_files_are_warned_of_is_published_all_the_same(manager):
    with (
        pytest.raises(UserWarning, match="which is not there"),
        manager.save(1, {"loss": 1.0}) as folder,
    ):
        (folder / "model").symlink_to("/nowhere")
    assert (manager.checkpoint_dir / "step_1" / "manifest.json").exists()


def test_a_background_save_whose_files_are_warned_of_is_published_and_pruned(manager, caplog):
    manager.keep_top_k = 1
    with manager.save(1, {"loss": 2.0}):
        pass
    folder = manager.init_tmp_checkpoint(2, {"loss": 1.0})
    (folder / "model").symlink_to("/nowhere")
    manager.begin_finalization(folder)
    manager.shutdown()
    assert [path.name for path in manager.checkpoint_dir.glob("step_*")] == ["step_2"]
    assert "which is not there" in caplog.text


def test_a_catalog_that_fails_is_warned_of_when_the_checkpoint_is_published(broken):
    folder = broken.init_tmp_checkpoint
    with pytest.raises(UserWarning, match="Checkpoints are saved as usual"):
        folder(2, {"loss": 2.0})
    broken.finalize_checkpoint(broken.checkpoint_dir / "tmp_step_2")
    assert (broken.checkpoint_dir / "step_2").is_dir()


def test_the_error_of_a_loop_is_not_masked_by_a_warning(manager):
    def fail() -> None:
        (manager.checkpoint_dir / ".ckptdb" / "catalog.db").write_bytes(b"no database" * 100)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), manager.save(1, {"loss": 1.0}):
        fail()
    assert not list(manager.checkpoint_dir.glob("*step_*"))


def test_warnings_of_work_that_fails_mask_no_error():
    def fail() -> None:
        warn("on the way")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), warning_afterwards():
        fail()


def test_all_that_is_held_back_is_told_in_order():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with warning_afterwards():
            warn("one")
            with warning_afterwards():
                warn("two")
            assert not told
    assert [str(w.message) for w in told] == ["one", "two"]

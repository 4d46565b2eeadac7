"""What retention deletes with a trash_ttl can come back until that has passed."""

from __future__ import annotations

import os
import time

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import journal
from ckptdb.disk.publish import Publisher
from ckptdb.errors import InvalidConfig, NotUndeleted, UnknownCheckpoint
from ckptdb.retention import Policy

DAY = 24 * 3600


@pytest.fixture
def run(tmp_path):
    """A run with the steps 1 to 4, of which 1 and 3 were deleted a moment ago."""
    directory = tmp_path / "run"
    options = {
        "metric_name": "loss",
        "higher_is_better": False,
        "keep_top_k": 1,
        "trash_ttl": "1 day",
        "durability": "none",
    }
    with CheckpointManager({"checkpoint_dir": directory}, **options) as manager:
        for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.4)):
            with manager.save(step, {"loss": loss}) as folder:
                (folder / "model").write_bytes(b"%d" % step * 1000)
    assert steps(directory) == ["step_2", "step_4"]
    return directory


def steps(directory):
    return sorted(name for name in os.listdir(directory) if name.startswith("step_"))


def trash(directory):
    return sorted(os.listdir(directory / ".ckptdb" / "trash"))


def later(directory, seconds):
    """A publisher in the future."""

    return Publisher(directory, clock=lambda: time.time() + seconds)


def test_what_retention_took_comes_back_as_it_was(run):
    with Registry.open(run) as registry:
        before = registry.get(3)
        assert before.status == "deleted"
        back = registry.undelete(3)
        assert (run / "step_3" / "model").read_bytes() == b"3" * 1000
        assert (back.uuid, back.status, back.deleted_reason) == (before.uuid, "final", None)
        assert registry.get(3) == back
        assert registry.top(2, "loss", mode="min")[1].step == 4
        assert registry.latest().step == 4
    with CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False}
    ) as manager:
        assert manager.get_top_checkpoint_paths(3) == [f"{run}/step_{s}" for s in (2, 4, 3)]


def test_a_rebuilt_catalog_knows_what_came_back(run):
    with Registry.open(run) as registry:
        registry.undelete(1)
        before = registry.checkpoints()
    (run / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert registry.checkpoints() == before


def test_after_its_time_the_bytes_go_with_the_next_ones(run):
    assert len(trash(run)) == 2
    assert later(run, DAY - 60).empty_trash() == 0
    assert len(trash(run)) == 2
    assert later(run, DAY + 60).empty_trash() == 2
    assert trash(run) == []
    with Registry.open(run) as registry:
        with pytest.raises(NotUndeleted, match="bytes are gone"):
            registry.undelete(3)
        with pytest.raises(UnknownCheckpoint, match="no checkpoint at step 77"):
            registry.undelete(77)


def test_what_waits_is_no_leftover_and_is_told(run):
    with Registry.open(run) as registry:
        assert not registry.reconcile(dry_run=True).has_drift
        (found,) = registry.gc()
        assert (found.leftovers, found.freed_bytes) == ((), 0)
        assert [(left.step, left.kind) for left in found.waiting] == [
            (1, "can be undeleted"), (3, "can be undeleted"),
        ]  # fmt: skip
        assert len(trash(run)) == 2
        (found,) = registry.gc(empty_trash=True)
        assert ([left.step for left in found.leftovers], found.waiting) == ([1, 3], ())
        assert found.freed_bytes > 2000
    assert trash(run) == []


def test_what_goes_while_the_trash_is_emptied_waits_as_promised(run):
    with Registry.open(run) as registry:
        (found,) = registry.gc(Policy(keep=["steps 7"]), trash_ttl_seconds=60, empty_trash=True)
        assert [left.step for left in found.leftovers] == [1, 3]
        assert len(trash(run)) == 1
        registry.undelete(2)
    assert steps(run) == ["step_2", "step_4"]


def test_by_hand_too_what_goes_may_wait(run):
    with Registry.open(run) as registry:
        removed = registry.remove([2], trash_ttl_seconds=60)
        assert (removed.freed_bytes, removed.retention.freed_bytes > 1000) == (0, True)
        registry.undelete(2)
        registry.gc(Policy(keep=["steps 7"]), trash_ttl_seconds=60)
        assert steps(run) == ["step_4"]
        registry.undelete(2)
    assert steps(run) == ["step_2", "step_4"]


def test_of_several_at_a_step_the_last_one_comes_back(run):
    with CheckpointManager({"checkpoint_dir": run, "durability": "none"}) as manager:
        with manager.save(3, {"loss": 7.0}):
            pass
        with Registry.open(run) as registry:
            registry.remove([3], trash_ttl_seconds=2 * DAY)
            assert registry.undelete(3).metrics == {"loss": 7.0}


def test_a_step_that_is_taken_is_not_overwritten(run):
    manager = CheckpointManager({"checkpoint_dir": run, "durability": "none"})
    with manager, manager.save(3, {"loss": 7.0}):
        pass
    with Registry.open(run) as registry:
        with pytest.raises(NotUndeleted, match="another one has its place"):
            registry.undelete(3)
        assert registry.get(3).metrics == {"loss": 7.0}
        with pytest.raises(NotUndeleted, match="it is there"):
            registry.undelete(4)
    assert len(trash(run)) == 2


def test_an_undeletion_that_is_cut_off_is_finished_by_reconcile(run, monkeypatch):
    with Registry.open(run) as registry:
        with monkeypatch.context() as patched:

            def fail(*_, **__):
                raise OSError(5, "Input/output error")

            patched.setattr(journal, "append", fail)
            with pytest.raises(OSError, match="Input/output"):
                registry.undelete(3)
        assert steps(run) == ["step_2", "step_3", "step_4"]
        kinds = {action.kind for one in registry.reconcile().runs for action in one.actions}
        assert kinds == {"reappeared"}
        assert registry.get(3).status == "final"


@pytest.mark.parametrize("wrong", ["soon", 5, "-1 days", "1 fortnight"])
def test_a_time_that_is_none_is_told(tmp_path, wrong):
    with pytest.raises(InvalidConfig, match="trash_ttl must be a time such as '2 days'"):
        CheckpointManager({"checkpoint_dir": tmp_path, "trash_ttl": wrong})

"""What has a checkpoint's name and is somebody's own is not lost when the step is saved."""

import json
import os
import warnings
from contextlib import contextmanager

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import (
    free_space,
    fsutil,
    read_trash,
    trash,
)
from ckptdb.disk.fsutil import ExchangeUnsupported
from ckptdb.disk.publish import Publisher
from ckptdb.disk.trash import UNIDENTIFIED_TTL_SECONDS
from ckptdb.errors import NotEnoughSpace, NotUndeleted

DAY = 24 * 3600


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


def save(run, step, loss=0.5, **options):
    config = {"checkpoint_dir": run, "metric_name": "loss", "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {"loss": loss}) as folder:
        (folder / "model.bin").write_bytes(b"new")


def make_own(run, step=100, name="step"):
    """Make a directory that a person has filled."""
    folder = run / f"{name}_{step}"
    folder.mkdir(parents=True)
    (folder / "merged.safetensors").write_bytes(b"precious")
    return folder


@contextmanager
def told():
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(w.message) for w in caught]


def kept(run):
    return [left for left in read_trash.list_trash(run) if not left.identified]


def test_a_persons_own_directory_is_kept_for_a_month_when_its_step_is_saved(run):
    make_own(run)
    with told() as texts:
        save(run, 100)
    (left,) = kept(run)
    assert (left.path / "merged.safetensors").read_bytes() == b"precious"
    assert (run / "step_100" / "model.bin").read_bytes() == b"new"
    (text,) = texts
    assert text.startswith(
        f"What stood in the place of step 100 of {run} is no checkpoint that can"
    )
    assert f"It was moved to {left.path} and stays there until 20" in text
    assert "`ckptdb undelete 100` when no other checkpoint has that step" in text
    now = os.stat(left.path).st_ctime
    assert now + UNIDENTIFIED_TTL_SECONDS - 60 < left.until <= now + UNIDENTIFIED_TTL_SECONDS + 60
    with Registry.open(run) as registry:
        (gone,) = registry.checkpoints(status="deleted")
    assert gone.deleted_reason == (
        "replaced by a new save of step 100; it could not be identified, and is kept in the trash "
        "for 30 days"
    )


def test_a_trash_ttl_does_not_shorten_how_long_it_is_kept(run):
    make_own(run)
    with told():
        save(run, 100, trash_ttl="2 days")
        save(run, 200, trash_ttl="2 days")
    (left,) = kept(run)
    assert left.until > os.stat(left.path).st_ctime + 29 * DAY


@pytest.mark.parametrize("name", ["training_info.json", "manifest.json"])
def test_what_cannot_be_read_any_more_is_kept_like_what_has_no_identity(run, name):
    save(run, 100)
    (run / "step_100" / name).write_text("{")
    if name == "training_info.json":
        (run / "step_100" / "manifest.json").unlink()
    with told() as texts:
        save(run, 100)
    assert len(texts) == 1
    assert [left.step for left in kept(run)] == [100]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ours", "NeMo-RL's", "damaged, with a manifest", "empty"])
def test_a_checkpoint_is_replaced_as_ever(run, kind):
    save(run, 100)
    if kind == "NeMo-RL's":
        (run / "step_100" / "manifest.json").unlink()
    elif kind == "damaged, with a manifest":
        (run / "step_100" / "training_info.json").unlink()
    elif kind == "empty":
        for file in (run / "step_100").iterdir():
            file.unlink()
    with told() as texts:
        save(run, 100)
    assert texts == []
    assert read_trash.list_trash(run) == ()


def test_it_comes_back_by_undelete_when_the_step_is_free(run):
    make_own(run)
    with told():
        save(run, 100)
    (left,) = kept(run)
    with Registry.open(run) as registry:
        with pytest.raises(NotUndeleted) as caught:
            registry.undelete(100)
        assert f"what was there before lies in {left.path} until 20" in str(caught.value)
        registry.remove([100])
        registry.undelete(100)
    assert (run / "step_100" / "merged.safetensors").read_bytes() == b"precious"
    assert read_trash.list_trash(run) == ()


def test_what_was_deleted_since_comes_back_before_it(run):
    make_own(run)
    with told():
        save(run, 100)
    with Registry.open(run) as registry:
        registry.remove([100], trash_ttl_seconds=DAY)
        registry.undelete(100)
    assert (run / "step_100" / "model.bin").read_bytes() == b"new"
    assert len(kept(run)) == 1


def test_emptying_all_that_was_deleted_does_not_take_it(run):
    make_own(run)
    with told():
        save(run, 100)
    Publisher(run).empty_trash(everything=True)
    assert len(kept(run)) == 1


def test_gc_names_it_and_removes_it_only_when_told_to(run):
    make_own(run)
    with told():
        save(run, 100)
    with Registry.open(run) as registry:
        (found,) = registry.gc()
        assert [(left.step, left.kind) for left in found.waiting] == [(100, "can be undeleted")]
        assert len(kept(run)) == 1
        (found,) = registry.gc(empty_trash=True)
        assert [left.step for left in found.leftovers] == [100]
    assert read_trash.list_trash(run) == ()


def test_it_goes_when_its_month_is_over(run):
    make_own(run)
    with told():
        save(run, 100)
    (left,) = kept(run)
    assert Publisher(run, clock=lambda: left.until - 60).empty_trash() == 0
    assert Publisher(run, clock=lambda: left.until + 60).empty_trash() == 1


def test_where_two_names_cannot_be_exchanged_it_is_kept_too(run, monkeypatch):
    def refuse(*_):
        raise ExchangeUnsupported

    monkeypatch.setattr(fsutil, "_renameat2", refuse)
    make_own(run)
    with told() as texts:
        save(run, 100)
    assert len(texts) == len(kept(run)) == 1


def test_killed_between_exchange_and_trash_it_is_kept_by_whoever_recovers(run, monkeypatch):
    make_own(run)

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, told():
        patch.setattr(trash.Trash, "_set_aside", die)
        with pytest.raises(KeyboardInterrupt):
            save(run, 100)
    assert (run / "tmp_step_100" / "merged.safetensors").exists()
    with Registry.open(run) as registry, told() as texts:
        registry.reconcile()
    assert not (run / "tmp_step_100").exists()
    assert len(kept(run)) == 1
    assert any("What stood in the place of step 100" in text for text in texts)


def test_a_persons_own_directory_in_the_place_of_staging_is_kept_too(run):
    make_own(run, name="tmp_step")
    with told() as texts:
        save(run, 100)
    (left,) = kept(run)
    assert (left.path / "merged.safetensors").read_bytes() == b"precious"
    assert len(texts) == 1


def test_what_a_killed_save_of_ours_left_is_not_kept(run):
    save(run, 1)
    folder = run / "tmp_step_100"
    folder.mkdir()
    (folder / "training_info.json").write_text('{"lo')
    with told() as texts:
        save(run, 100)
    assert texts == []
    assert kept(run) == []


def test_making_space_for_a_save_refuses_before_it_takes_what_is_somebodys_own(run, monkeypatch):
    make_own(run)
    with told():
        save(run, 100)

    def full(directory, step, *, needed_bytes, remedies):
        for remedy in remedies:
            remedy()
        raise NotEnoughSpace(directory, step, needed_bytes=needed_bytes, free_bytes=0)

    monkeypatch.setattr(free_space, "make_sure", full)
    with told(), pytest.raises(NotEnoughSpace):
        save(run, 300)
    assert len(kept(run)) == 1
    assert json.loads((run / "step_100" / "training_info.json").read_text()) == {"loss": 0.5}

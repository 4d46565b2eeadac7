# ruff: noqa: PT012  # what is tested is often how a `with` block of ours ends
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydantic
import pytest
import yaml
from tests.support.warned import warned

from ckptdb import Registry
from ckptdb import manager as module
from ckptdb.core.facts import Fact
from ckptdb.disk import fsutil, journal, root_marker, tree_removal
from ckptdb.errors import (
    CatalogUnusable,
    CkptdbError,
    InvalidConfig,
    InvalidStep,
    NoCheckpointHere,
    PlanChanged,
    SaveFailed,
    StepTaken,
    UnreadableInfo,
    UnwritableInfo,
)
from ckptdb.manager import CheckpointManager, validate_warm_start_checkpoint

ADVICE = "Consider enabling val_at_end or adjusting val_period to align with max_steps."


@pytest.fixture
def make(tmp_path):
    """Return what makes a manager of one run; all are shut down in the end."""
    made = []

    def make(directory: Path | str = tmp_path / "run", **options):
        if options.get("metric_name") is not None:
            options.setdefault("higher_is_better", False)
        made.append(CheckpointManager({"checkpoint_dir": directory, **options}))
        return made[-1]

    yield make
    for manager in made:
        manager.shutdown()


def save(manager, step, **info):
    manager.finalize_checkpoint(manager.init_tmp_checkpoint(step, info))


def steps(manager):
    return [step for step, _, _ in module._load_checkpoint_history(manager.checkpoint_dir)]


# --- construction -------------------------------------------------------------------------------


def test_every_key_of_the_config_is_an_attribute_of_that_name(make):
    given = {
        "metric_name": "val:acc",
        "higher_is_better": True,
        "save_period": 10,
        "keep_top_k": 3,
        "ft_keep_latest_k": 2,
        "save_optimizer": False,
        "model_save_format": None,
        "save_consolidated": True,
        "model_cache_dir": "/cache",
        "model_repo_id": "org/model",
        "is_peft": True,
    }
    manager = make(**given)
    assert {name: getattr(manager, name) for name in given} == given


def test_the_checkpoint_dir_is_kept_as_a_path_and_not_resolved(make, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    manager = make(str(tmp_path / "link"))
    assert manager.checkpoint_dir == tmp_path / "link"
    assert manager.init_tmp_checkpoint(1, {}) == tmp_path / "link" / "tmp_step_1"


def test_a_pydantic_config_is_as_good_as_a_mapping(tmp_path):
    class Config(pydantic.BaseModel):
        checkpoint_dir: Path
        keep_top_k: int | None = None
        enabled: bool = True

    given = Config(checkpoint_dir=tmp_path, keep_top_k=2)
    manager = CheckpointManager(given, metric_name="a", higher_is_better=True)
    assert (manager.checkpoint_dir, manager.keep_top_k, manager.metric_name) == (tmp_path, 2, "a")


def test_all_faults_of_a_config_are_told_at_once():
    with pytest.raises(InvalidConfig, match=r"checkpoint_dir is missing.*") as caught:
        CheckpointManager({"save_period": 0, "keep_top_k": -1})
    assert "save_period" in str(caught.value)
    assert "keep_top_k" in str(caught.value)


def test_the_warning_about_an_unknown_key_points_at_the_caller(tmp_path):
    with pytest.warns(
        UserWarning, match=r"'keep_top_K' is ignored; did you mean 'keep_top_k'"
    ) as w:
        CheckpointManager({"checkpoint_dir": tmp_path, "keep_top_K": 1})
    assert [Path(found.filename) for found in w] == [Path(__file__)]


def test_keys_that_loops_read_themselves_do_not_warn(make):
    make(
        enabled=True,
        ft_save_period=5,
        checkpoint_must_save_by="00:03:45:00",
        pretrained_checkpoint=None,
        peft_config={},
        is_async=True,
    )


@pytest.mark.parametrize("choice", ["mysql://host/db", "no/such/directory/catalog.db"])
def test_a_wrong_explicit_catalog_raises_at_construction(tmp_path, choice):
    with pytest.raises(CatalogUnusable):
        CheckpointManager({"checkpoint_dir": tmp_path}, catalog=choice)


@pytest.mark.parametrize("how", ["keyword", "key", "environment"])
def test_an_explicit_catalog_is_used(tmp_path, monkeypatch, how):
    file = tmp_path / "elsewhere.db"
    config = {"checkpoint_dir": tmp_path / "run"}
    if how == "environment":
        monkeypatch.setenv("CKPTDB_CATALOG", str(file))
    choice = {"catalog": file} if how != "environment" else {}
    manager = (
        CheckpointManager(config, **choice)
        if how == "keyword"
        else CheckpointManager({**config, **choice})
    )
    save(manager, 1)
    manager.shutdown()
    assert file.stat().st_size > 0
    assert not (tmp_path / "run" / ".ckptdb" / "catalog.db").exists()


# --- one checkpoint -----------------------------------------------------------------------------


def test_a_checkpoint_appears_under_its_name_with_what_was_written(make, tmp_path):
    manager = make()
    staged = manager.init_tmp_checkpoint(100, {"val:loss": 0.42}, {"lr": 0.1})
    assert staged == tmp_path / "run" / "tmp_step_100"
    assert staged.is_absolute()
    (staged / "policy" / "weights").mkdir(parents=True)
    (staged / "policy" / "weights" / "model.bin").write_bytes(b"w" * 1000)
    assert manager.get_latest_checkpoint_path() is None
    assert manager.finalize_checkpoint(staged) is None
    final = tmp_path / "run" / "step_100"
    assert sorted(p.relative_to(final).as_posix() for p in final.rglob("*") if p.is_file()) == [
        "config.yaml",
        "manifest.json",
        "policy/weights/model.bin",
        "training_info.json",
    ]
    assert manager.get_latest_checkpoint_path() == str(final)
    assert json.loads((final / "training_info.json").read_text()) == {"val:loss": 0.42}
    assert yaml.safe_load((final / "config.yaml").read_text()) == {"lr": 0.1}


INFO = {
    "step": 7,
    "bool": True,
    "null": None,
    "text": "ünï\n",
    "nested": {"list": [1, 2.5, "x"], "empty": {}},
    "large": 2**70,
}


def test_training_info_holds_exactly_what_was_passed(make):
    manager = make()
    staged = manager.init_tmp_checkpoint(1, INFO)
    assert json.loads((staged / "training_info.json").read_text()) == INFO
    manager.finalize_checkpoint(staged)
    assert manager.load_training_info(manager.get_latest_checkpoint_path()) == INFO


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.int64(3), 3),
        (np.bool_(True), True),  # noqa: FBT003  # numpy's own constructor
        (np.array(0.25), 0.25),
        (np.array([7]), 7),
        ([np.float32(1), {"a": np.int8(2)}], [1.0, {"a": 2}]),
        ((1, 2), [1, 2]),
        (SimpleNamespace(item=lambda: 1.5), 1.5),
    ],
    ids=[
        "float32",
        "float64",
        "int64",
        "bool",
        "0-d",
        "one element",
        "nested",
        "tuple",
        "a tensor",
    ],
)
def test_scalars_of_numpy_and_torch_become_numbers(make, value, stored):
    staged = make().init_tmp_checkpoint(1, {"value": value})
    found = json.loads((staged / "training_info.json").read_text())["value"]
    assert found == stored
    assert type(found) is type(stored)


def test_non_finite_numbers_are_written_as_json_of_python_has_them(make):
    manager = make(metric_name="loss")
    save(manager, 1, loss=float("nan"))
    save(manager, 2, loss=float("inf"))
    save(manager, 3, loss=5.0)
    with warned() as texts:
        assert manager.get_best_checkpoint_path().endswith("step_3")
    (text,) = texts
    assert text == (
        "Ignoring 2 checkpoint(s) at step(s) [1, 2] whose value of metric 'loss' is not finite. "
        "NaN and infinite values are never ranked; look at what computes them."
    )
    assert "NaN" in (manager.checkpoint_dir / "step_1" / "training_info.json").read_text()


class _Model(pydantic.BaseModel):
    lr: float = 0.1
    path: Path = Path("/data")


class _OldModel:
    def model_dump(self):
        return {"lr": 0.1, "path": "/data"}


@pytest.mark.parametrize("config", [_Model(), _OldModel(), {"lr": 0.1, "path": "/data"}])
def test_run_config_is_a_model_or_a_mapping(make, config):
    staged = make().init_tmp_checkpoint(1, {}, config)
    assert yaml.safe_load((staged / "config.yaml").read_text()) == {"lr": 0.1, "path": "/data"}


def test_without_run_config_there_is_no_config_file(make):
    assert not (make().init_tmp_checkpoint(1, {}) / "config.yaml").exists()


@pytest.mark.parametrize(
    ("info", "config", "named"),
    [
        ({"good": 1, "bad": object()}, None, "'bad'"),
        ({"vector": np.zeros(2)}, None, "'vector'"),
        ({"a": {1, 2}, "b": b"bytes"}, None, "'b'"),
        ({"in": {"depth": [lambda: 0]}}, None, "depth"),
        ({}, {"fine": 1, "bad": object()}, "'bad'"),
        ({}, ["no", "mapping"], "not a mapping"),
    ],
    ids=["object", "array of two", "set and bytes", "nested", "config value", "config list"],
)
def test_what_cannot_be_written_is_named_before_a_file_is_opened(
    make, tmp_path, info, config, named
):
    with pytest.raises(UnwritableInfo, match=named) as caught:
        make().init_tmp_checkpoint(1, info, config)
    assert isinstance(caught.value, TypeError)
    assert list(tmp_path.iterdir()) == []


def test_a_refused_save_leaves_the_earlier_attempt_at_that_step_alone(make):
    manager = make()
    staged = manager.init_tmp_checkpoint(1, {"a": 1})
    with pytest.raises(UnwritableInfo):
        manager.init_tmp_checkpoint(1, {"a": object()})
    manager.finalize_checkpoint(staged)
    assert steps(manager) == [1]


@pytest.mark.parametrize(
    "step", [-1, 2**63, True, False, 1.0, "1", None, np.float64(1), np.int64(-1), "1\n"]
)
def test_a_step_that_is_no_whole_number_is_refused(make, tmp_path, step):
    with pytest.raises(InvalidStep, match="is not a step") as caught:
        make().init_tmp_checkpoint(step, {})
    assert isinstance(caught.value, ValueError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", [0, 2**63 - 1, np.int64(5), np.uint8(7)])
def test_every_whole_number_below_2_to_63_is_a_step(make, step):
    manager = make()
    save(manager, step)
    assert manager.get_latest_checkpoint_path() == str(manager.checkpoint_dir / f"step_{step}")


@pytest.mark.parametrize("wrap", [str, Path, os.fspath])
def test_finalize_takes_any_kind_of_path(make, wrap):
    manager = make()
    manager.finalize_checkpoint(wrap(manager.init_tmp_checkpoint(1, {})))
    assert steps(manager) == [1]


@pytest.mark.parametrize("name", ["step_1", "tmp_step_01", "tmp_step_9", "elsewhere/tmp_step_1"])
def test_finalizing_what_was_never_staged_is_an_error(make, tmp_path, name):
    manager = make()
    save(manager, 1)
    (tmp_path / "run" / "elsewhere" / "tmp_step_1").mkdir(parents=True)
    with pytest.raises(NoCheckpointHere) as caught:
        manager.finalize_checkpoint(tmp_path / "run" / name)
    assert isinstance(caught.value, FileNotFoundError)
    assert steps(manager) == [1]


def test_finalizing_twice_is_an_error_and_harmless(make):
    manager = make()
    staged = manager.init_tmp_checkpoint(1, {})
    manager.finalize_checkpoint(staged)
    with pytest.raises(NoCheckpointHere):
        manager.finalize_checkpoint(staged)
    assert steps(manager) == [1]


def test_a_stranger_under_the_final_name_is_never_touched(make, tmp_path):
    manager = make()
    (tmp_path / "run").mkdir()
    staged = manager.init_tmp_checkpoint(1, {})
    (tmp_path / "run" / "step_1").write_text("mine")
    with pytest.raises(StepTaken, match="move it away and save again"):
        manager.finalize_checkpoint(staged)
    assert (tmp_path / "run" / "step_1").read_text() == "mine"
    (tmp_path / "run" / "step_1").unlink()
    manager.finalize_checkpoint(staged)
    assert steps(manager) == [1]


def test_a_save_that_cannot_be_made_durable_fails_for_good_and_older_ones_stay(make, monkeypatch):
    manager = make(keep_top_k=1)
    save(manager, 1)
    staged = manager.init_tmp_checkpoint(2, {})
    with monkeypatch.context() as patch:

        def fail(top, **_):
            raise OSError(5, "Input/output error")

        patch.setattr(fsutil, "fsync_tree", fail)
        with pytest.raises(SaveFailed, match="Older checkpoints are untouched"):
            manager.finalize_checkpoint(staged)
    with pytest.raises(SaveFailed):
        manager.finalize_checkpoint(staged)
    assert steps(manager) == [1]
    save(manager, 2)
    assert steps(manager) == [2]


def test_without_durability_nothing_is_flushed(make, monkeypatch):
    def fail(handle):
        raise AssertionError

    monkeypatch.setattr(os, "fsync", fail)
    manager = make(durability="none", keep_top_k=1)
    save(manager, 1)
    save(manager, 1)
    save(manager, 2)
    assert steps(manager) == [2]


# --- save() -------------------------------------------------------------------------------------


def test_save_publishes_on_exit(make):
    manager = make()
    with manager.save(3, {"loss": np.float32(0.5)}, config={"lr": 1}) as folder:
        (folder / "model.pt").write_bytes(b"weights")
        assert steps(manager) == []
    assert steps(manager) == [3]
    assert (manager.checkpoint_dir / "step_3" / "model.pt").read_bytes() == b"weights"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
def test_save_discards_on_an_error_and_lets_it_through(make, error):
    manager = make()
    save(manager, 1)
    with pytest.raises(type(error)), manager.save(2, {}) as folder:
        (folder / "model.pt").write_bytes(b"half")
        raise error
    manager.shutdown()
    visible = [path.name for path in manager.checkpoint_dir.iterdir()]
    assert sorted(visible) == [".ckptdb", "step_1"]
    line = (manager.checkpoint_dir / ".ckptdb" / "journal.jsonl").read_text()
    assert "discarded" in line


def test_a_discard_that_fails_does_not_hide_the_error(make, monkeypatch):
    manager = make()
    with pytest.raises(ValueError, match="the loop's own"), manager.save(2, {}):
        monkeypatch.setattr(journal, "append", _fail)
        raise ValueError("the loop's own")


def _fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_save_discarded_by_hand_meanwhile_is_told(make):
    manager = make()
    with pytest.raises(NoCheckpointHere), manager.save(1, {}) as folder:
        tree_removal.remove_tree(folder)


# --- saving a step again ------------------------------------------------------------------------


def test_saving_a_step_again_replaces_it(make):
    manager = make(metric_name="loss")
    save(manager, 1, loss=1.0)
    save(manager, 2, loss=2.0)
    save(manager, 1, loss=3.0)
    assert steps(manager) == [1, 2]
    assert manager.get_best_checkpoint_path().endswith("step_2")
    manager.shutdown()
    assert list((manager.checkpoint_dir / ".ckptdb" / "trash").iterdir()) == []


def _pin(manager, step):
    uuid = json.loads((manager.checkpoint_dir / f"step_{step}" / "manifest.json").read_text())
    manager._publisher.record([Fact("2026-01-01T00:00:00.000Z", "pin", uuid["uuid"])])


def test_a_pinned_checkpoint_that_is_replaced_stays_in_the_trash_with_a_warning(make):
    manager = make()
    save(manager, 1, loss=1.0)
    _pin(manager, 1)
    staged = manager.init_tmp_checkpoint(1, {"loss": 2.0})
    with warned() as texts:
        manager.finalize_checkpoint(staged)
    manager.shutdown()
    assert len(texts) == 1
    assert texts[0].startswith("The pinned checkpoint at step 1 was replaced by a new save;")
    [kept] = (manager.checkpoint_dir / ".ckptdb" / "trash").iterdir()
    assert json.loads((kept / "training_info.json").read_text()) == {"loss": 1.0}


def test_a_pinned_checkpoint_survives_every_rule(make):
    manager = make()
    save(manager, 1)
    save(manager, 2)
    _pin(manager, 1)
    manager.keep_top_k = manager.ft_keep_latest_k = 0
    manager.remove_old_checkpoints(exclude_latest=False)
    assert steps(manager) == [1]


# --- in the background --------------------------------------------------------------------------


class _Gate:
    """An asynchronous writer that is done when somebody says so."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.event = threading.Event()
        self.error = error

    def __call__(self) -> None:
        assert self.event.wait(60)
        if self.error:
            raise self.error


def test_a_background_finalization_is_pending_until_it_is_collected(make):
    manager, gate = make(), _Gate()
    assert not manager.has_pending_finalization
    manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)
    assert manager.has_pending_finalization
    assert steps(manager) == []
    gate.event.set()
    manager._background._finalization.wait()
    assert steps(manager) == [1]
    assert manager.has_pending_finalization, "done, but nobody has collected it"
    manager.finalize_pending()
    assert not manager.has_pending_finalization
    manager.finalize_pending()


def test_wait_fn_is_called_before_anything_is_published(make):
    manager = make()
    staged = manager.init_tmp_checkpoint(1, {})

    def write():
        (staged / "late.bin").write_bytes(b"late")

    manager.begin_finalization(staged, wait_fn=write)
    manager.finalize_pending()
    manifest = json.loads((manager.checkpoint_dir / "step_1" / "manifest.json").read_text())
    assert manifest["files"]["late.bin"] == 4


def test_beginning_another_collects_the_earlier_one_first(make):
    manager, gate = make(), _Gate()
    manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)
    second = manager.init_tmp_checkpoint(2, {})
    threading.Timer(0.05, gate.event.set).start()
    manager.begin_finalization(second)
    assert 1 in steps(manager)
    manager.shutdown()
    assert steps(manager) == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("error", [ValueError("disk on fire"), SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("collect", ["finalize_pending", "shutdown", "begin", "with"])
def test_the_error_of_the_background_is_raised_once(make, error, collect):
    manager, gate = make(), _Gate(error)
    gate.event.set()
    manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)
    second = manager.init_tmp_checkpoint(2, {})
    with pytest.raises(
        RuntimeError, match=r"^Background checkpoint finalization failed$"
    ) as caught:
        if collect == "begin":
            manager.begin_finalization(second)
        elif collect == "with":
            with manager:
                pass
        else:
            getattr(manager, collect)()
    assert caught.value.__cause__ is error
    assert not manager.has_pending_finalization
    manager.finalize_pending()
    manager.shutdown()
    assert steps(manager) == []
    manager.begin_finalization(second)
    manager.shutdown()
    assert steps(manager) == [2]


def test_beginning_with_a_wrong_path_raises_at_once(make):
    manager = make()
    with pytest.raises(NoCheckpointHere):
        manager.begin_finalization(manager.checkpoint_dir / "step_1")
    assert not manager.has_pending_finalization


def test_a_save_that_fails_in_the_background_has_its_reason_as_the_cause(make):
    manager = make()
    staged = manager.init_tmp_checkpoint(1, {})
    tree_removal.remove_tree(staged)
    manager.begin_finalization(staged)
    with pytest.raises(RuntimeError) as caught:
        manager.finalize_pending()
    assert isinstance(caught.value.__cause__, NoCheckpointHere)


def test_staging_the_step_that_is_being_finalized_waits_for_it(make):
    manager, gate = make(), _Gate()
    manager.begin_finalization(manager.init_tmp_checkpoint(1, {"try": 1}), gate)
    threading.Timer(0.05, gate.event.set).start()
    second = manager.init_tmp_checkpoint(1, {"try": 2})
    manager.finalize_checkpoint(second)
    assert manager.load_training_info(manager.checkpoint_dir / "step_1") == {"try": 2}


def test_an_interrupted_wait_leaves_the_finalization_to_be_collected(make, monkeypatch):
    manager, gate = make(), _Gate()
    manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)

    def interrupt():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(manager._background._finalization, "wait", interrupt)
        manager.finalize_pending()
    assert manager.has_pending_finalization
    gate.event.set()
    manager.finalize_pending()
    assert steps(manager) == [1]


def test_leaving_with_flushes(make):
    gate = _Gate()
    with make() as manager:
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)
        threading.Timer(0.05, gate.event.set).start()
    assert not manager.has_pending_finalization
    assert steps(manager) == [1]


def test_leaving_with_never_masks_the_exception_in_flight(make):
    gate = _Gate(ValueError("disk on fire"))
    gate.event.set()
    with warned() as texts, pytest.raises(KeyError, match="the loop's own"), make() as manager:
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {}), gate)
        raise KeyError("the loop's own")
    assert len(texts) == 1
    assert texts[0].startswith("Checkpoint finalization failed")
    assert "disk on fire" in texts[0]
    assert not manager.has_pending_finalization


def test_leaving_with_an_exception_still_flushes(make):
    with pytest.raises(KeyError), make() as manager:
        manager.begin_finalization(manager.init_tmp_checkpoint(1, {}))
        raise KeyError
    assert steps(manager) == [1]


def test_a_manager_works_after_shutdown_any_number_of_times(make):
    manager = make(keep_top_k=2)
    for step in range(1, 5):
        save(manager, step)
        manager.shutdown()
        assert manager.get_latest_checkpoint_path().endswith(f"step_{step}")
        manager.begin_finalization(manager.init_tmp_checkpoint(step + 10, {}))
        manager.shutdown()
        manager.shutdown()
        assert max(steps(manager)) == step + 10
        (manager.checkpoint_dir / f"step_{step + 10}").rename(manager.checkpoint_dir / "keep")
        tree_removal.remove_tree(manager.checkpoint_dir / "keep")
    with manager, manager:
        save(manager, 50)
    assert manager.get_latest_checkpoint_path().endswith("step_50")


@pytest.mark.slow
def test_a_loop_that_ends_without_shutdown_keeps_its_last_checkpoint(tmp_path):
    script = (
        "import sys, time\n"
        "from ckptdb.manager import CheckpointManager\n"
        "m = CheckpointManager({'checkpoint_dir': sys.argv[1], 'keep_top_k': 1})\n"
        "for step in (1, 2):\n"
        "    m.begin_finalization(m.init_tmp_checkpoint(step, {}), lambda: time.sleep(0.1))\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "run"], check=True)
    assert [p.name for p in (tmp_path / "run").glob("*step_*")] == ["step_2"]


# --- pruning ------------------------------------------------------------------------------------


def test_retired_checkpoints_are_out_of_sight_when_a_finalize_returns(make):
    manager = make(keep_top_k=2)
    for step in (1, 2, 3, 4):
        save(manager, step)
        assert steps(manager) == [s for s in (step - 1, step) if s > 0]


def test_retired_checkpoints_are_out_of_sight_when_shutdown_returns(make):
    manager = make(keep_top_k=1)
    for step in (1, 2, 3):
        manager.begin_finalization(manager.init_tmp_checkpoint(step, {}))
    manager.shutdown()
    assert steps(manager) == [3]
    assert list((manager.checkpoint_dir / ".ckptdb" / "trash").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "exclude_latest", "kept"),
    [
        ({}, True, [1, 2, 3, 4, 5, 6]),
        ({}, False, [1, 2, 3, 4, 5, 6]),
        ({"keep_top_k": 2}, True, [5, 6]),
        ({"keep_top_k": 0}, True, [6]),
        ({"keep_top_k": 0}, False, []),
        ({"ft_keep_latest_k": 0}, True, [1, 2, 3, 4, 5, 6]),
        ({"ft_keep_latest_k": 0, "save_period": 4}, True, [4, 6]),
        ({"ft_keep_latest_k": 2, "save_period": 3}, True, [3, 5, 6]),
        ({"keep_top_k": 1, "metric_name": "loss"}, True, [2, 6]),
        ({"keep_top_k": 1, "metric_name": "loss", "higher_is_better": True}, True, [3, 6]),
        ({"keep_top_k": 4, "metric_name": "loss"}, False, [1, 2, 3, 5]),
        ({"keep_top_k": 5, "metric_name": "loss"}, False, [1, 2, 3, 5, 6]),
        ({"keep_top_k": 1, "metric_name": "loss", "save_period": 2}, True, [2, 6]),
        ({"keep_top_k": 1, "metric_name": "loss", "ft_keep_latest_k": 2}, True, [2, 5, 6]),
        ({"keep_top_k": 1, "metric_name": "absent"}, True, [6]),
    ],
    ids=str,
)
def test_a_checkpoint_survives_if_any_rule_keeps_it(make, rules, exclude_latest, kept):
    manager = make(**rules)
    quiet = make()
    losses = {1: 0.5, 2: 0.1, 3: 0.9, 4: float("nan"), 5: 0.1000001, 6: True}
    for step, loss in losses.items():
        save(quiet, step, loss=loss)
    with warned() as texts:
        manager.remove_old_checkpoints(exclude_latest=exclude_latest)
    assert steps(manager) == kept
    assert len(texts) == (rules.get("metric_name") == "absent")


def test_the_prune_is_called_as_a_method_without_arguments(make, tmp_path):
    calls = []

    class Mine(CheckpointManager):
        def remove_old_checkpoints(self, *args, **kwargs):
            calls.append((args, kwargs))

    with Mine({"checkpoint_dir": tmp_path / "run", "keep_top_k": 1}) as manager:
        save(manager, 1)
        save(manager, 2)
        manager.begin_finalization(manager.init_tmp_checkpoint(3, {}))
    assert calls == [((), {})] * 3
    assert steps(manager) == [1, 2, 3]


@pytest.mark.parametrize("background", [False, True])
def test_a_prune_that_fails_never_breaks_a_finalization(make, monkeypatch, background):
    manager = make()

    def fail():
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(manager, "remove_old_checkpoints", fail)
    staged = manager.init_tmp_checkpoint(1, {})
    with warned() as texts:
        if background:
            manager.begin_finalization(staged)
            manager.shutdown()
        else:
            manager.finalize_checkpoint(staged)
    assert steps(manager) == [1]
    assert len(texts) == 1
    assert texts[0].startswith("Failed to prune old checkpoints")
    assert "PermissionError(13, 'not yours')" in texts[0]


def test_warn_on_delete_failure_is_static_and_silent_on_success():
    future: Future[None] = Future()
    future.set_result(None)
    CheckpointManager._warn_on_delete_failure(future)
    broken: Future[None] = Future()
    broken.set_exception(ValueError("boom"))
    with pytest.warns(UserWarning, match=r"^Failed to prune old checkpoints.*ValueError\('boom'\)"):
        CheckpointManager._warn_on_delete_failure(broken)


def test_every_deletion_has_a_reason_on_disk(make):
    manager = make(keep_top_k=1, metric_name="loss")
    save(manager, 1, loss=0.5)
    save(manager, 2, loss=0.1)
    line = json.loads((manager.checkpoint_dir / ".ckptdb" / "journal.jsonl").read_text())
    assert line["fact"] == "deleted"
    assert line["reason"] == "retention: not best 1 by loss min (0.5)"
    assert line["record"]["info"] == {"loss": 0.5}


def test_strangers_and_broken_checkpoints_are_never_pruned(make):
    manager = make(keep_top_k=1)
    manager.checkpoint_dir.mkdir()
    for name in ("step_007", "step_1-hf", "step_\u0661", "step_3", "hf"):
        (manager.checkpoint_dir / name).mkdir()
    (manager.checkpoint_dir / "latest_checkpoint_status.json").write_text("{}")
    (manager.checkpoint_dir / "step_9").symlink_to("hf")
    before = sorted(path.name for path in manager.checkpoint_dir.iterdir())
    with pytest.warns(UserWarning, match="Step 9 is passed over"):
        save(manager, 1)
    save(manager, 2)
    after = sorted(p.name for p in manager.checkpoint_dir.iterdir() if p.name != ".ckptdb")
    assert after == sorted([*before, "step_2"])
    assert manager.get_latest_checkpoint_path().endswith("step_2")


def test_what_any_rule_keeps_stays(make):
    manager = make(metric_name="loss", keep=["best 1", "best 1 by acc max", "every 5 steps"])
    for step, loss, acc in ((1, 0.5, 0.9), (2, 0.1, 0.1), (3, 0.9, 0.2), (5, 0.8, 0.0), (6, 1, 0)):
        save(manager, step, loss=loss, acc=acc)
    manager.shutdown()
    assert steps(manager) == [1, 2, 5, 6]
    with Registry.open(manager.checkpoint_dir) as registry:
        (gone,) = registry.checkpoints(status="deleted")
    assert gone.deleted_reason == (
        "retention: not best 1 by loss min (0.9), not best 1 by acc max (0.2), not every 5 steps"
    )


def test_rules_and_the_settings_of_nemo_are_one_union(make):
    manager = make(metric_name="loss", keep_top_k=1, keep="steps 1")
    for step in (1, 2, 3, 4):
        save(manager, step, loss=1 / step if step < 4 else 9)
    manager.shutdown()
    assert steps(manager) == [1, 3, 4]


def test_what_would_go_is_said_before_and_goes_then(make):
    manager = make(metric_name="loss")
    assert manager.plan_retention().decisions == ()
    for step, loss in {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.2}.items():
        save(manager, step, loss=loss)
    assert {d.reason for d in manager.plan_retention().decisions} == {"kept: no limit is set"}
    manager.keep_top_k = 1
    for exclude_latest, kept in ((True, [2, 4]), (False, [2])):
        plan = manager.plan_retention(exclude_latest=exclude_latest)
        assert [d.step for d in plan.decisions if d.keep] == kept
        assert (plan.before.top, plan.after.best) == ((2, 4, 1), 2)
        assert steps(manager) == [1, 2, 3, 4]
    assert (plan.before.latest, plan.after.latest) == (4, 2)
    manager.remove_old_checkpoints()
    assert steps(manager) == [2, 4]
    with Registry.open(manager.checkpoint_dir) as registry:
        gone = {cp.step: cp.deleted_reason for cp in registry.checkpoints(status="deleted")}
    assert gone == {d.step: d.reason for d in plan.decisions if d.step in (1, 3)}


def test_a_plan_is_applied_as_it_was_told_or_not_at_all(make):
    manager = make(metric_name="loss")
    for step, loss in {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.2}.items():
        save(manager, step, loss=loss)
    manager.keep = ["best 1"]
    told = manager.plan_retention(exclude_latest=False)
    with Registry.open(manager.checkpoint_dir) as registry:
        registry.pin(None, 3)
    with pytest.raises(PlanChanged, match="Nothing went"):
        manager.apply_retention(told)
    assert steps(manager) == [1, 2, 3, 4]
    told = manager.plan_retention(exclude_latest=False)
    assert told.freed_bytes > 0
    manager.apply_retention(told)
    assert steps(manager) == [2, 3]
    manager.apply_retention(manager.plan_retention())
    assert steps(manager) == [2, 3]


def test_a_metric_that_nobody_has_is_told_once_before_the_first_goes(make):
    manager = make(metric_name="val:los", keep_top_k=1)
    with warned() as texts:
        save(manager, 1, **{"val:loss": 0.5, "acc": 1})
        assert texts == []
        for step in (2, 3, 4):
            save(manager, step, **{"val:loss": 0.1 * step})
    assert steps(manager) == [4]
    assert texts == [
        (
            "No checkpoint has ever had the metric 'val:los'; the newest are kept in place of the "
            "best. Metrics there are: acc, val:loss."
        )
    ]


def test_what_training_was_resumed_from_stays_until_it_is_resumed_from_another(make):
    options = {"metric_name": "loss", "higher_is_better": False, "keep_top_k": 1}
    with make(**options) as manager:
        save(manager, 1, loss=0.9)
    with make(**options) as manager:
        assert manager.resume().step == 1
        for step, loss in {2: 0.5, 3: 0.4, 4: 0.45, 5: 0.46}.items():
            save(manager, step, loss=loss)
            assert 1 in steps(manager)
        assert steps(manager) == [1, 3, 5]
        assert [d.reason for d in manager.plan_retention().decisions] == [
            "kept: training was resumed from it", "kept: best 1 by loss min", "kept: the latest",
        ]  # fmt: skip
    with make(**options) as manager:
        assert manager.resume().step == 5
        save(manager, 6, loss=0.6)
        assert steps(manager) == [3, 5, 6]


def test_ancestors_stay_while_something_that_came_of_them_lives(make):
    for step in (1, 2, 3):
        with make(keep=["ancestors"]) as manager:
            manager.resume()
            save(manager, 10 * step, loss=step)
            save(manager, 10 * step + 1, loss=step)
    # From 11 came 20 and 21, from 21 what is the latest now; 10, 20 and 30 nobody resumed from.
    with make(keep=["ancestors"]) as manager:
        assert steps(manager) == [11, 21, 31]
        reasons = {d.step: d.reason for d in manager.plan_retention().decisions}
    assert reasons[11] == "kept: ancestors"


def test_a_condition_keeps_that_for_which_it_holds(make):
    manager = make(metric_name="loss", keep=["where loss < 0.3 AND step % 2 = 0", "latest 1"])
    for step, loss in {1: 0.1, 2: 0.2, 3: 0.25, 4: 0.5, 5: 0.9}.items():
        save(manager, step, loss=loss)
    assert steps(manager) == [2, 5]
    assert [d.reason for d in manager.plan_retention().decisions] == [
        "kept: where loss < 0.3 AND step % 2 = 0", "kept: the latest",
    ]  # fmt: skip


def test_a_condition_that_names_no_metric_there_is_tells_so_once(make):
    manager = make(keep=["where los < 0.3"])
    with warned() as texts:
        for step in (1, 2, 3):
            save(manager, step, loss=0.1)
    assert steps(manager) == [3]
    assert texts == [
        (
            "No checkpoint has ever had the metric 'los'; a rule that names it keeps none. "
            "Metrics there are: loss."
        )
    ]


def test_a_metric_that_one_has_had_is_none_to_tell_of(make):
    manager = make(metric_name="loss", keep=["best 1 by acc max"])
    with warned() as texts:
        save(manager, 1, acc=1)
        save(manager, 2, acc=float("nan"))
        (manager.checkpoint_dir / "step_1").rename(manager.checkpoint_dir / "gone")
        for step in (3, 4):
            save(manager, step)
    assert texts == []


def test_a_later_value_that_is_none_takes_the_rank_and_not_the_pruning_away(make):
    manager = make(metric_name="loss", keep_top_k=1, ft_keep_latest_k=1)
    save(manager, 1, loss=0.1)
    with Registry.open(manager.checkpoint_dir) as registry:
        registry.log_metrics(None, 1, {"loss": float("nan")}, source="eval")
    for step in (2, 3):
        save(manager, step, loss=step)
    assert steps(manager) == [2, 3]


def test_a_tag_keeps_a_checkpoint_where_a_rule_says_so(make):
    manager = make(keep=["latest 1", "tagged"])
    save(manager, 1)
    with Registry.open(manager.checkpoint_dir) as registry:
        registry.tag(None, 1, "rc")
    for step in (2, 3):
        save(manager, step)
    assert steps(manager) == [1, 3]


# --- questions ----------------------------------------------------------------------------------


def test_an_empty_or_missing_directory_has_no_answers_and_no_warnings(make, tmp_path):
    with warned() as texts:
        for manager in (make(metric_name="loss"), make(tmp_path, metric_name="loss")):
            assert manager.get_best_checkpoint_path() is None
            assert manager.get_latest_checkpoint_path() is None
            assert manager.load_training_info() is None
            manager.remove_old_checkpoints()
    assert texts == []


@pytest.mark.parametrize(
    ("values", "higher", "best", "ignored", "none_has_it"),
    [
        ({1: 0.5, 2: 0.1, 3: 0.9}, False, 2, [], False),
        ({1: 0.5, 2: 0.1, 3: 0.9}, True, 3, [], False),
        ({1: 0.1, 5: 0.1, 3: 0.1}, False, 5, [], False),
        ({2: 1, 1: None}, False, 2, [1], False),
        ({10: None, 9: "0.1", 2: 0.3, 1: True}, False, 2, [1, 9, 10], False),
        ({4: None, 11: None}, True, 11, [4, 11], True),
    ],
    ids=["min", "max", "ties", "null", "no numbers", "nobody has it"],
)
def test_best_warns_exactly_about_what_it_ignores(make, values, higher, best, ignored, none_has_it):
    manager = make(metric_name="val:loss", higher_is_better=higher)
    for step, value in values.items():
        save(manager, step, **({} if value is None else {"val:loss": value}))
    expected = []
    if ignored:
        expected.append(
            f"Ignoring {len(ignored)} checkpoint(s) at step(s) {ignored} that do not have metric "
            f"'val:loss'. {ADVICE}"
        )
    if none_has_it:
        expected.append(
            f"No checkpoints contain metric 'val:loss'. Returning latest checkpoint. {ADVICE}"
        )
    for _ in range(2):
        with warned() as texts:
            assert manager.get_best_checkpoint_path() == str(
                manager.checkpoint_dir / f"step_{best}"
            )
        assert texts == expected


NOT_FINITE = "NaN and infinite values are never ranked; look at what computes them."


@pytest.mark.parametrize(
    ("values", "best", "lacking", "not_finite"),
    [
        ({1: float("nan"), 2: float("inf"), 3: float("-inf")}, 3, [], [1, 2, 3]),
        ({1: float("nan"), 2: 0.3, 3: float("inf")}, 2, [], [1, 3]),
        ({1: None, 2: float("nan"), 3: 0.5, 4: None}, 3, [1, 4], [2]),
        ({1: None, 2: float("nan")}, 2, [1], [2]),
    ],
    ids=["nothing else", "beside finite ones", "beside those that lack it", "neither is finite"],
)
def test_values_that_are_not_finite_are_called_so_and_not_missing(
    make, values, best, lacking, not_finite
):
    manager = make(metric_name="loss", higher_is_better=True)
    for step, value in values.items():
        save(manager, step, **({} if value is None else {"loss": value}))
    expected = [
        f"Ignoring {len(of)} checkpoint(s) at step(s) {of} {why}"
        for of, why in (
            (lacking, f"that do not have metric 'loss'. {ADVICE}"),
            (not_finite, f"whose value of metric 'loss' is not finite. {NOT_FINITE}"),
        )
        if of
    ]
    with warned() as texts:
        manager.get_top_checkpoint_paths(3)
    assert texts == expected
    if set(values) == {*lacking, *not_finite}:
        expected.append(
            "No checkpoints contain metric 'loss' with a finite value. Returning latest "
            f"checkpoint. {NOT_FINITE}"
        )
    with warned() as texts:
        assert manager.get_best_checkpoint_path() == f"{manager.checkpoint_dir}/step_{best}"
    assert texts == expected


def test_pruning_by_a_metric_that_was_never_finite_is_told_before_anything_goes(make):
    manager = make(metric_name="loss", keep_top_k=1)
    with warned() as texts:
        for step in (1, 2, 3):
            save(manager, step, loss=float("nan"))
    assert steps(manager) == [3]
    (text,) = texts
    assert text == (
        "No checkpoint has ever had the metric 'loss' with a finite value, only NaN or infinite "
        "ones; the newest are kept in place of the best."
    )


def test_the_warnings_of_best_point_at_the_caller(make):
    manager = make(metric_name="loss")
    save(manager, 1)
    with pytest.warns(UserWarning, match=r"Ignoring 1|No checkpoints contain") as caught:
        manager.get_best_checkpoint_path()
    assert [Path(w.filename) for w in caught] == [Path(__file__)] * 2


def shown(manager, *steps):
    return [str(manager.checkpoint_dir / f"step_{step}") for step in steps]


@pytest.mark.parametrize(
    ("higher", "values", "best_first"),
    [
        (False, {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.1}, [4, 2, 1, 3]),
        (True, {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.5}, [3, 4, 1, 2]),
    ],
    ids=["lower is better", "higher is better"],
)
def test_top_names_the_best_in_order_and_says_what_it_leaves_out(make, higher, values, best_first):
    manager = make(metric_name="loss", higher_is_better=higher)
    for step, value in values.items():
        save(manager, step, loss=value)
    with warned() as texts:
        for count in range(6):
            found = manager.get_top_checkpoint_paths(count)
            assert found == shown(manager, *best_first[:count])
        assert manager.get_top_checkpoint_paths(1) == [manager.get_best_checkpoint_path()]
    assert texts == []
    save(manager, 5, other=1)
    with warned() as texts:
        assert manager.get_top_checkpoint_paths(9) == shown(manager, *best_first)
    (ignoring,) = texts
    assert ignoring.startswith("Ignoring 1 checkpoint(s) at step(s) [5] that do not have metric")


def test_without_a_metric_top_are_the_newest(make):
    manager = make()
    assert manager.get_top_checkpoint_paths(3) == []
    for step in (3, 20, 1):
        save(manager, step)
    assert manager.get_top_checkpoint_paths(2) == shown(manager, 20, 3)
    with pytest.raises(ValueError, match="at least 0, not -1"):
        manager.get_top_checkpoint_paths(-1)


def test_when_none_has_the_metric_there_is_no_top(make):
    manager = make(metric_name="loss")
    save(manager, 1)
    with pytest.warns(UserWarning, match="Ignoring 1") as caught:
        assert manager.get_top_checkpoint_paths(3) == []
    assert [Path(w.filename) for w in caught] == [Path(__file__)]


def test_without_a_metric_best_is_the_latest_silently(make):
    manager = make()
    save(manager, 1, loss=0.1)
    save(manager, 2)
    with warned() as texts:
        assert manager.get_best_checkpoint_path() == manager.get_latest_checkpoint_path()
    assert texts == []


def test_latest_is_silent_about_missing_metrics(make):
    manager = make(metric_name="loss")
    save(manager, 1)
    with warned() as texts:
        assert manager.get_latest_checkpoint_path().endswith("step_1")
    assert texts == []


def test_a_broken_checkpoint_is_neither_best_nor_latest_nor_mentioned(make):
    manager = make(metric_name="loss")
    save(manager, 1, loss=0.5)
    save(manager, 2, loss=0.1)
    (manager.checkpoint_dir / "step_2").rename(manager.checkpoint_dir / "step_3")
    (manager.checkpoint_dir / "step_3" / "training_info.json").write_text('{"loss": 0.')
    with warned() as texts:
        assert manager.get_best_checkpoint_path().endswith("step_1")
        assert manager.get_latest_checkpoint_path().endswith("step_1")
    assert texts == []


def test_checkpoints_of_nemo_rl_are_first_class(make):
    manager = make(metric_name="loss", keep_top_k=1)
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
        path = manager.checkpoint_dir / f"step_{step}"
        path.mkdir(parents=True)
        (path / "training_info.json").write_text(json.dumps({"loss": loss}))
    assert manager.get_best_checkpoint_path().endswith("step_2")
    save(manager, 4, loss=0.7)
    assert steps(manager) == [2, 4]


def test_load_training_info_takes_any_path_and_tells_what_is_wrong(make, tmp_path):
    manager = make()
    save(manager, 1, loss=0.5)
    for path in (manager.checkpoint_dir / "step_1", str(manager.checkpoint_dir / "step_1")):
        assert manager.load_training_info(path) == {"loss": 0.5}
    with pytest.raises(FileNotFoundError, match=r"has no training_info\.json"):
        manager.load_training_info(tmp_path / "step_2")
    (tmp_path / "step_3").mkdir()
    (tmp_path / "step_3" / "training_info.json").write_text("[]")
    with pytest.raises(UnreadableInfo, match="holds a list, not an object"):
        manager.load_training_info(tmp_path / "step_3")


def test_the_history_lists_every_readable_checkpoint_by_step(make):
    manager = make()
    for step in (10, 9, 100):
        save(manager, step, loss=step)
    (manager.checkpoint_dir / "step_7").mkdir()
    assert module._load_checkpoint_history(str(manager.checkpoint_dir)) == [
        (step, str(manager.checkpoint_dir / f"step_{step}"), {"loss": step})
        for step in (9, 10, 100)
    ]
    assert module._load_checkpoint_history(manager.checkpoint_dir / "absent") == []


# --- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [None, ""])
def test_without_a_checkpoint_there_is_nothing_to_resume(path):
    assert CheckpointManager.get_resume_paths(path) == (None, None)


@pytest.mark.parametrize("component", ["policy", "value"])
@pytest.mark.parametrize("wrap", [str, Path])
def test_an_optimizer_directory_is_resumed_from(tmp_path, component, wrap):
    (tmp_path / component / "optimizer").mkdir(parents=True)
    found = CheckpointManager.get_resume_paths(wrap(tmp_path), model_component=component)
    assert found == (tmp_path / component / "weights", tmp_path / component / "optimizer")


def test_without_an_optimizer_there_is_a_warning_and_none(tmp_path):
    (tmp_path / "policy" / "weights" / "iter_0000000").mkdir(parents=True)
    with warned() as texts:
        found = CheckpointManager.get_resume_paths(tmp_path)
    assert found == (tmp_path / "policy" / "weights", None)
    assert len(texts) == 1
    assert texts[0].startswith(f"Optimizer state not found at {tmp_path / 'policy' / 'optimizer'}")


@pytest.mark.parametrize("file", ["common.pt", "metadata.json"])
@pytest.mark.parametrize("state", [{"optimizer": {}}, {"model": {}}], ids=["with", "without"])
def test_the_common_state_of_megatron_decides(tmp_path, monkeypatch, file, state):
    folder = tmp_path / "policy" / "weights" / "iter_0000000"
    folder.mkdir(parents=True)
    (folder / file).touch()
    asked = []
    monkeypatch.setattr(
        module, "_load_megatron_common_state_dict", lambda path: asked.append(path) or state
    )
    with warned() as texts:
        weights, optimizer = CheckpointManager.get_resume_paths(tmp_path)
    assert weights == tmp_path / "policy" / "weights"
    assert asked == [folder]
    if "optimizer" in state:
        assert (optimizer, texts) == (tmp_path / "policy" / "optimizer", [])
    else:
        assert optimizer is None
        assert len(texts) == 1


def test_an_error_in_loading_the_common_state_propagates(tmp_path, monkeypatch):
    folder = tmp_path / "policy" / "weights" / "iter_0000000"
    folder.mkdir(parents=True)
    (folder / "common.pt").touch()

    def fail(path):
        raise EOFError("torn")

    monkeypatch.setattr(module, "_load_megatron_common_state_dict", fail)
    with pytest.raises(EOFError, match="torn"):
        CheckpointManager.get_resume_paths(tmp_path)


def test_without_megatron_the_error_says_what_to_install(tmp_path):
    with pytest.raises(RuntimeError, match="install megatron-core"):
        module._load_megatron_common_state_dict(tmp_path)


def test_megatron_is_asked_lazily(tmp_path, monkeypatch):
    fake = SimpleNamespace(load_common_state_dict=lambda path: {"optimizer": path})
    for name in ("megatron", "megatron.core"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "megatron.core.dist_checkpointing", fake)
    assert module._load_megatron_common_state_dict(tmp_path) == {"optimizer": str(tmp_path)}


def test_a_warm_start_needs_its_weights(tmp_path):
    with pytest.raises(NoCheckpointHere, match="does not exist"):
        validate_warm_start_checkpoint(tmp_path)
    (tmp_path / "value" / "weights").mkdir(parents=True)
    validate_warm_start_checkpoint(tmp_path)


# --- the module in place of NeMo-RL's -----------------------------------------------------------


def test_the_module_has_the_names_that_loops_import_and_patch():
    names = (
        "CheckpointManager",
        "CheckpointingConfig",
        "PretrainedCheckpointConfig",
        "_load_checkpoint_history",
        "_load_megatron_common_state_dict",
        "glob",
    )
    assert all(hasattr(module, name) for name in names)
    import glob

    assert module.glob is glob
    assert set(module.PretrainedCheckpointConfig.__annotations__) == {"path", "format"}
    assert "checkpoint_dir" in module.CheckpointingConfig.__required_keys__
    assert isinstance(CheckpointManager.__dict__["get_resume_paths"], staticmethod)
    assert isinstance(CheckpointManager.__dict__["_warn_on_delete_failure"], staticmethod)


def test_the_module_can_stand_in_for_the_one_of_nemo_rl(tmp_path, monkeypatch):
    utils = SimpleNamespace(checkpoint=module)
    monkeypatch.setitem(sys.modules, "nemo_rl", SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "nemo_rl.utils", utils)
    monkeypatch.setitem(sys.modules, "nemo_rl.utils.checkpoint", module)
    from nemo_rl.utils.checkpoint import CheckpointManager as Theirs

    folder = tmp_path / "policy" / "weights" / "iter_0000000"
    folder.mkdir(parents=True)
    (folder / "common.pt").touch()
    monkeypatch.setattr(
        "nemo_rl.utils.checkpoint._load_megatron_common_state_dict", lambda _: {"optimizer": 1}
    )
    assert Theirs.get_resume_paths(tmp_path)[1] == tmp_path / "policy" / "optimizer"


def test_ckptdb_itself_never_globs(make, monkeypatch):
    monkeypatch.setattr(module.glob, "glob", _fail)
    monkeypatch.setattr(module.glob, "iglob", _fail)
    manager = make(metric_name="loss", keep_top_k=1)
    save(manager, 1, loss=1)
    save(manager, 2, loss=1)
    assert manager.get_best_checkpoint_path().endswith("step_2")


# --- where the run is ---------------------------------------------------------------------------


def test_a_relative_directory_survives_chdir(make, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = make("results/run", metric_name="loss")
    staged = manager.init_tmp_checkpoint(1, {"loss": 1.0})
    assert staged == tmp_path / "results" / "run" / "tmp_step_1"
    monkeypatch.chdir(tmp_path / "elsewhere")
    manager.finalize_checkpoint(staged)
    assert manager.checkpoint_dir == Path("results/run")
    manager.shutdown()
    assert os.listdir(tmp_path / "elsewhere") == []
    assert (tmp_path / "results" / "run" / "step_1").is_dir()


ANSWERS = {
    "latest": lambda manager: manager.get_latest_checkpoint_path(),
    "best": lambda manager: manager.get_best_checkpoint_path(),
    "top": lambda manager: manager.get_top_checkpoint_paths(1)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("given", ["results/run", "./results//run/", "results/../results/run"])
def test_after_chdir_answers_are_absolute_and_before_as_the_directory_was_given(
    make, tmp_path, monkeypatch, answer, given
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = make(given, metric_name="loss")
    save(manager, 1, loss=1.0)
    before = answer(manager)
    assert before == str(Path(given) / "step_1")
    monkeypatch.chdir("elsewhere")
    assert answer(manager) == os.path.normpath(tmp_path / given / "step_1") or ".." in given
    assert manager.load_training_info(answer(manager)) == {"loss": 1.0}
    assert manager.load_training_info(before) == {"loss": 1.0}, "as it was told before"
    with pytest.warns(UserWarning, match="Optimizer state not found"):
        weights, _ = CheckpointManager.get_resume_paths(before)
    assert weights.is_absolute()
    staged = manager.init_tmp_checkpoint(2, {"loss": 0.5})
    assert staged.is_absolute()
    manager.finalize_checkpoint(f"{given}/tmp_step_2")
    manager.begin_finalization(manager.init_tmp_checkpoint(3, {}) and f"{given}/tmp_step_3")
    manager.finalize_pending()
    assert steps(make(tmp_path / given)) == [1, 2, 3]
    monkeypatch.chdir(tmp_path)
    assert manager.get_latest_checkpoint_path() == str(Path(given) / "step_3")


def test_when_the_working_directory_is_gone_answers_are_absolute(make, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = make("run")
    save(manager, 1)
    monkeypatch.chdir("elsewhere")
    (tmp_path / "elsewhere").rmdir()
    assert manager.get_latest_checkpoint_path() == str(tmp_path / "run" / "step_1")
    assert manager.load_training_info("run/step_1") == {}
    save(manager, 2)
    assert manager.get_top_checkpoint_paths(1) == [str(tmp_path / "run" / "step_2")]


def test_the_run_that_is_elsewhere_is_not_taken_for_the_one_of_the_same_name_here(
    make, tmp_path, monkeypatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        manager = make("run")
        save(manager, 1, name=name)
    monkeypatch.chdir(tmp_path / "a")
    assert manager.load_training_info("run/step_1") == {"name": "b"}
    assert manager.get_latest_checkpoint_path() == str(tmp_path / "b" / "run" / "step_1")


NAMES = {
    "glob characters": b"a[0-9]*?{x}",
    "a URL's": b"50%20?mode=ro#x&y;z",
    "not UTF-8": b"\xff\xfe\x80",
    "a newline": b"two\nlines\t'\"",
    "a checkpoint's": b"step_5",
    "a dash": b"-rf",
    "blanks": b"  ",
    "not ASCII": "größe-1٣".encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("own_root", [True, False])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_any_bytes_may_stand_in_a_directorys_name(make, tmp_path, name, own_root):
    root = tmp_path / os.fsdecode(name)
    run = root if own_root else root / os.fsdecode(name)
    run.mkdir(parents=True)
    if not own_root:
        root_marker.mark_root(root)
    manager = make(run, metric_name="loss", keep_top_k=1)
    for step, loss in ((1, 0.3), (2, 0.1), (3, 0.2)):
        save(manager, step, loss=loss)
    assert steps(manager) == [2, 3]
    assert (root / ".ckptdb" / "catalog.db").is_file()
    for asked in (manager, make(run, metric_name="loss")):
        assert asked.get_best_checkpoint_path() == str(run / "step_2")
        assert asked.get_latest_checkpoint_path() == str(run / "step_3")


@pytest.mark.parametrize("key", ["a\ud800", "nul\0", "", "é", "a" * 5000])
def test_any_text_may_name_a_metric(make, key):
    manager = make(metric_name="loss")
    save(manager, 1, **{key: 1.0, "loss": 2.0})
    assert manager.get_best_checkpoint_path().endswith("step_1")
    assert manager.load_training_info(manager.checkpoint_dir / "step_1") == {key: 1.0, "loss": 2.0}


def test_an_error_of_ours_is_always_one_that_ckptdb_names(make):
    with pytest.raises(CkptdbError):
        make().init_tmp_checkpoint(-1, {})


def test_a_manager_without_a_metric_leaves_the_run_its_own(tmp_path):
    directory = tmp_path / "run"
    judged = {"checkpoint_dir": directory, "metric_name": "acc", "higher_is_better": True}
    with CheckpointManager(judged) as manager, manager.save(1, {"acc": 0.5}):
        pass
    with CheckpointManager({"checkpoint_dir": directory}) as other, other.save(2, {"acc": 0.4}):
        pass
    with Registry.open(directory) as registry:
        [run] = registry.runs()
        assert (run.metric_name, run.higher_is_better) == ("acc", True)


def test_pruning_leaves_the_catalog_the_configuration_of_what_is_newest(tmp_path):
    run = tmp_path / "run"

    def stored():
        with Registry.open(run) as registry:
            ((config,),) = registry.query("SELECT config FROM runs").rows
        return config

    with CheckpointManager({"checkpoint_dir": run, "keep_top_k": 1}) as manager:
        for step in (1, 2):
            with manager.save(step, {}, config={"lr": step}):
                pass
        assert stored() == '{"lr": 2}'
        with manager.save(3, {}):  # without one: that of step 2, until it goes
            pass
    assert stored() is None  # to be looked for again

"""A prune whose index and files go on disagreeing deletes nothing, and says so once."""

from __future__ import annotations

import time
import warnings

from ckptdb import CheckpointManager
from ckptdb.reconcile import disk_candidates
from ckptdb.training import prune_selection

LOSS = {"metric_name": "loss", "higher_is_better": False}


def test_a_contradiction_that_lasts_deletes_nothing_and_is_warned_about_once(tmp_path, monkeypatch):
    monkeypatch.setattr(prune_selection, "_is_confirmed", lambda *_: False)
    monkeypatch.setattr(disk_candidates, "compare_candidates", lambda *_: None)
    run = tmp_path / "run"
    with (
        warnings.catch_warnings(record=True) as caught,
        CheckpointManager({"checkpoint_dir": run, **LOSS}, keep_top_k=1) as manager,
    ):
        warnings.simplefilter("always")
        for step in (1, 2, 3, 4):
            manager.finalize_checkpoint(manager.init_tmp_checkpoint(step, {"loss": 1 / step}))
    assert sorted(path.name for path in run.glob("step_*")) == [f"step_{n}" for n in (1, 2, 3, 4)]
    (text,) = (str(warning.message) for warning in caught)
    assert text.startswith(f"Nothing was pruned in {run}: the catalog and the files disagree")
    assert "The next prune tries again" in text
    monkeypatch.undo()
    with CheckpointManager({"checkpoint_dir": run, **LOSS}, keep_top_k=1) as manager:
        manager.remove_old_checkpoints()
    assert [path.name for path in run.glob("step_*")] == ["step_4"]


def test_files_that_another_process_changes_meanwhile_are_no_contradiction(tmp_path, monkeypatch):
    run = tmp_path / "run"

    def change(*_):
        (run / f"other-{time.monotonic_ns()}").mkdir()

    monkeypatch.setattr(prune_selection, "_is_confirmed", lambda *_: False)
    monkeypatch.setattr(disk_candidates, "compare_candidates", change)
    with (
        warnings.catch_warnings(record=True) as caught,
        CheckpointManager({"checkpoint_dir": run, **LOSS}, keep_top_k=1) as manager,
    ):
        warnings.simplefilter("always")
        for step in (1, 2, 3):
            manager.finalize_checkpoint(manager.init_tmp_checkpoint(step, {"loss": 1 / step}))
    assert [path.name for path in sorted(run.glob("step_*"))] == ["step_1", "step_2", "step_3"]
    assert caught == []

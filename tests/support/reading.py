"""A tree as NeMo-RL writes it, and every question about it."""

import json
from pathlib import Path

from ckptdb.manager import CheckpointManager, _load_checkpoint_history
from ckptdb.registry import Registry


def write_like_nemo(run: Path, steps=(10, 20, 30)) -> None:
    for step in steps:
        weights = run / f"step_{step}" / "policy" / "weights"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(b"w" * 100)
        info = {"val:loss": 1 / step, "step": step}
        (run / f"step_{step}" / "training_info.json").write_text(json.dumps(info))
        (run / f"step_{step}" / "config.yaml").write_text("lr: 0.1\n")
    (run / "tmp_step_40").mkdir()
    (run / "tmp_step_40" / "training_info.json").write_text("{")


def make_manager(run: Path, **options) -> CheckpointManager:
    return CheckpointManager(
        {"checkpoint_dir": run, "metric_name": "val:loss", "higher_is_better": False, **options}
    )


def ask_everything(run: Path) -> None:
    manager = make_manager(run, keep_top_k=1)
    manager.get_best_checkpoint_path()
    manager.get_latest_checkpoint_path()
    manager.load_training_info(run / "step_10")
    CheckpointManager.get_resume_paths(None)
    _load_checkpoint_history(run)
    manager.shutdown()
    with Registry.open(run) as registry:
        registry.runs()
        registry.checkpoints()
        registry.latest()
        registry.best("val:loss", mode="min")
        registry.top(2, "val:loss", mode="min")
        registry.query("SELECT * FROM leaderboard")
        registry.schema()
        registry.status()
        registry.reconcile(dry_run=True)

"""Checkpoints saved as a training loop saves them."""

from ckptdb import CheckpointManager


def save(directory, step, metrics, *, training=None, **options):
    """Save one checkpoint the way a loop does."""
    config = {
        "checkpoint_dir": directory,
        "metric_name": "val:loss",
        "higher_is_better": False,
        **options,
    }
    with CheckpointManager(config) as manager:
        with manager.save(step, metrics, config=training or {"lr": 0.1}) as folder:
            (folder / "model.bin").write_bytes(b"m" * 1000)
        return folder.with_name(f"step_{step}")

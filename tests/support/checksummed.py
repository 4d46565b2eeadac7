"""Runs whose checkpoints have checksums, and flipped bits."""

from ckptdb import CheckpointManager

LOSS = "val:loss"
DIFFERS = "damaged: model.bin differs from its checksum"


def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    return CheckpointManager({"checksums": True, **config})


def save(manager, step, content=None):
    with manager.save(step, {LOSS: 1 / step}, config={"lr": step}) as folder:
        (folder / "model.bin").write_bytes(content or b"%d" % step * 100)
        (folder / "optimizer.bin").write_bytes(content or b"%d" % step * 10)
    return folder.with_name(f"step_{step}")


def save_all(run, steps=(1, 2, 3)):
    with open_manager(run) as manager:
        for step in steps:
            save(manager, step)


def flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)

"""A tree of runs that every example of the documentation works on."""

import pytest

from ckptdb import CheckpointManager, Registry


def plant(directory):
    """Make results/grpo-8b, which has pruned two checkpoints, and results/sft-1b."""
    results = directory / "results"
    results.mkdir()
    Registry.init(results)[0].close()
    training = {100: 0.8, 200: 0.5, 300: 0.55, 400: 0.6, 500: 0.5}
    for run, losses, size, optimizer in (
        ("grpo-8b", {100: 0.9, 200: 0.5, 300: 0.6, 400: 0.7, 500: 0.8}, 1_000, {"lr": 0.1}),
        ("sft-1b", {10: 1.5, 20: 1.2}, 5_000, {"lr": 0.2, "warmup": 50}),
    ):
        config = {
            "checkpoint_dir": results / run,
            "metric_name": "val:loss",
            "higher_is_better": False,
            "keep_top_k": 2,
        }
        with CheckpointManager(config) as manager:
            for step, loss in losses.items():
                metrics = {"val:loss": loss, "kl": round(loss / 10, 3)}
                if step in training:
                    metrics["train:loss"] = training[step]
                settings = {"optimizer": optimizer, "model": "llama"}
                with manager.save(step, metrics, config=settings) as folder:
                    (folder / "model.bin").write_bytes(bytes(size + step))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Return a directory with the runs, which is the working directory."""
    plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def read_only_tree(tmp_path_factory):
    """Return a directory with the runs, for all tests of a module that only ask."""
    folder = tmp_path_factory.mktemp("tree")
    plant(folder)
    return folder

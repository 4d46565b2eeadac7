"""Other libraries, each doing what its users do: save one more and prune, find best and latest.

Every class works in a folder of its own, keeps as many checkpoints as it is told, and is used in a
process where only its own library is loaded. What is saved is 512 bytes and a loss.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.benchmarks import trees
from tests.benchmarks.timing import Way, medians, wait_until

_WEIGHTS = b"w" * 512
_METRIC = "val_loss"


class Peer(Protocol):
    """What is measured of a library.

    Attributes:
        packages: What has to be installed.
        note: How it is used.
    """

    packages: tuple[str, ...]
    note: str

    def __init__(self, folder: Path, kept: int) -> None: ...

    def save(self, step: int, loss: float) -> None:
        """Save one more checkpoint, and let go what is too many."""

    def questions(self) -> Mapping[str, Callable[[], object]]:
        """Return what can be asked, by what of ours it is compared with."""


class Orbax(Peer):
    """Orbax's CheckpointManager, saving synchronously."""

    packages = ("orbax-checkpoint",)
    note = "JSON item, best_fn, max_to_keep"

    def __init__(self, folder: Path, kept: int) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._folder = folder
        self._kept = kept
        self._manager = self._open()

    def save(self, step: int, loss: float) -> None:
        args = self._ocp.args.JsonSave({"weights": _WEIGHTS.decode()})
        self._manager.save(step, args=args, metrics={_METRIC: loss})
        self._manager.wait_until_finished()

    def questions(self) -> Mapping[str, Callable[[], object]]:
        def open_and(ask: str) -> Callable[[], object]:
            def act() -> object:
                manager = self._open()
                found = getattr(manager, ask)()
                manager.close()
                return found

            return act

        return {"open and best": open_and("best_step"), "open and latest": open_and("latest_step")}

    def _open(self) -> Any:
        options = self._ocp.CheckpointManagerOptions(
            max_to_keep=self._kept,
            best_fn=lambda metrics: metrics[_METRIC],
            best_mode="min",
            enable_async_checkpointing=False,
        )
        return self._ocp.CheckpointManager(self._folder, options=options)


class Mlflow(Peer):
    """MLflow's logged models on SQLite; it prunes nothing."""

    packages = ("mlflow",)
    note = "logged models on SQLite; nothing is pruned"

    def __init__(self, folder: Path, kept: int) -> None:  # noqa: ARG002  # it keeps all
        # Both talk to the network, and to the terminal.
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        from mlflow import MlflowClient

        folder.mkdir()
        self._folder = folder
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
        location = (folder / "artifacts").as_uri()
        self._experiment = self._client.create_experiment("run", artifact_location=location)
        self._run = self._client.create_run(self._experiment).info.run_id
        self._weights = folder / "weights.bin"
        self._weights.write_bytes(_WEIGHTS)

    def save(self, step: int, loss: float) -> None:
        model = self._client.create_logged_model(
            self._experiment, name=f"step_{step}", source_run_id=self._run
        )
        self._client.log_model_artifact(model.model_id, str(self._weights))
        self._client.log_metric(self._run, _METRIC, loss, step=step, model_id=model.model_id)
        self._client.finalize_logged_model(model.model_id, "READY")

    def questions(self) -> Mapping[str, Callable[[], object]]:
        def ask(field: str, *, ascending: bool) -> Callable[[], object]:
            order = [{"field_name": field, "ascending": ascending}]
            return lambda: self._client.search_logged_models(
                [self._experiment], order_by=order, max_results=1
            )[0]

        return {
            "best": ask(f"metrics.{_METRIC}", ascending=True),
            "latest": ask("creation_timestamp", ascending=False),
        }


class HuggingFace(Peer):
    """The Trainer's rotation and its way to the last checkpoint."""

    packages = ("transformers", "torch", "accelerate")
    note = "a directory, trainer_state.json, rotate_checkpoints"

    def __init__(self, folder: Path, kept: int) -> None:
        from transformers import trainer_utils

        folder.mkdir()
        self._utils = trainer_utils
        self._folder = folder
        self._kept = kept
        self._losses: dict[str, float] = {}

    def save(self, step: int, loss: float) -> None:
        path = self._folder / f"checkpoint-{step}"
        path.mkdir()
        (path / "model.safetensors").write_bytes(_WEIGHTS)
        state = {"global_step": step, "best_metric": loss, "best_model_checkpoint": str(path)}
        (path / "trainer_state.json").write_text(json.dumps(state))
        self._utils.rotate_checkpoints(
            str(self._folder), save_total_limit=self._kept, best_model_checkpoint=str(path)
        )

    def questions(self) -> Mapping[str, Callable[[], object]]:
        return {"latest": lambda: self._utils.get_last_checkpoint(str(self._folder))}


class Lightning(Peer):
    """ModelCheckpoint in a Trainer, asked at the end of a validation."""

    packages = ("lightning", "torch")
    note = "ModelCheckpoint(save_top_k) of a model with one weight; best is in its memory"

    def __init__(self, folder: Path, kept: int) -> None:
        import lightning
        import torch
        from lightning.pytorch.callbacks import ModelCheckpoint
        from lightning.pytorch.demos.boring_classes import BoringModel

        self._torch = torch
        self._callback = ModelCheckpoint(
            folder, filename="{step}", monitor=_METRIC, save_top_k=kept, mode="min"
        )
        self._trainer = lightning.Trainer(
            default_root_dir=folder, logger=False, enable_progress_bar=False, max_steps=1,
            enable_model_summary=False, accelerator="cpu", callbacks=[self._callback],
            limit_train_batches=1, limit_val_batches=0,
        )  # fmt: skip
        self._trainer.fit(BoringModel())

    def save(self, step: int, loss: float) -> None:
        # What it does at the end of a validation, without the training in between.
        found = {_METRIC: loss, "epoch": 0, "step": step}
        candidates = {name: self._torch.tensor(value) for name, value in found.items()}
        self._callback._save_topk_checkpoint(self._trainer, candidates)

    def questions(self) -> Mapping[str, Callable[[], object]]:
        return {}


PEERS: Mapping[str, type[Peer]] = {
    "Orbax": Orbax,
    "MLflow": Mlflow,
    "HF Trainer": HuggingFace,
    "Lightning": Lightning,
}


def missing(name: str) -> tuple[str, ...]:
    """Return the packages that a peer needs and that are not installed."""
    return tuple(p for p in PEERS[name].packages if _find_version(p) is None)


def measure(name: str, kept: str, rounds: str, seconds: str, scratch: str) -> dict[str, Any]:
    """Take turns with ckptdb; in a fresh process."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    count = int(kept)
    often: dict[str, Any] = {"rounds": int(rounds), "seconds": float(seconds)}
    peer = PEERS[name](Path(scratch, "theirs"), count)
    run = Path(scratch, "ours")
    trees.write_run(run, count)
    trees.index(run)
    for step in range(1, count + 1):
        peer.save(step, 1 / step)
    found = {}
    with trees.manager(run, keep_top_k=count) as manager:
        steps = iter(range(count + 1, 10**9))

        def ours() -> None:
            step = next(steps)
            trees.save(manager, step, 1 / step - 1)

        def theirs() -> None:
            step = next(steps)
            peer.save(step, 1 / step - 1)

        def quiet() -> None:
            wait_until(lambda: trees.quiet(run))

        found["save"] = medians(
            {"ckptdb": Way(ours, after=quiet), name: Way(theirs, after=quiet)}, **often
        )
        trees.settle(run)
        asked = _ours(run, manager)
        for what, ask in peer.questions().items():
            found[what] = medians({"ckptdb": Way(asked[what]), name: Way(ask)}, **often)
    version = _find_version(PEERS[name].packages[0])
    return {"medians": found, "version": version, "note": PEERS[name].note}


def _ours(run: Path, manager: Any) -> Mapping[str, Callable[[], object]]:
    def opened(ask: str) -> Callable[[], object]:
        def act() -> object:
            with trees.manager(run) as fresh:
                return getattr(fresh, ask)()

        return act

    best, latest = "get_best_checkpoint_path", "get_latest_checkpoint_path"
    return {
        "best": getattr(manager, best),
        "latest": getattr(manager, latest),
        "open and best": opened(best),
        "open and latest": opened(latest),
    }


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""What a manager remembers of the contents of its checkpoints: checksums, made behind the loop."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from ckptdb.core import warnings
from ckptdb.core.records import Checkpoint
from ckptdb.disk import checksums, manifest, names
from ckptdb.disk.publish import Publisher
from ckptdb.errors import CkptdbError
from ckptdb.training.background import WorkQueue

_logger = logging.getLogger("ckptdb")
_NOT_PAYLOAD = frozenset({names.INFO, names.CONFIG})


class ChecksumWorker:
    """Adds checksums to the manifests of published checkpoints, one after the other.

    Args:
        publisher: Of the run.

    Raises:
        ChecksumsUnavailable: The library for it is not installed.
    """

    def __init__(self, publisher: Publisher) -> None:
        checksums.require()
        self._publisher = publisher
        # Its own queue: reading a large checkpoint must not keep the trash from being emptied.
        self._queue = WorkQueue()
        self._before: tuple[int, Mapping[str, str]] | None = None
        self._same = self._failed = False

    def add(self, checkpoint: Checkpoint) -> None:
        """Read the files of a checkpoint that was just published, later and elsewhere."""
        self._queue.submit(partial(self._add, checkpoint))

    def begin_after(self, checkpoint: Checkpoint) -> None:
        """Compare the next checkpoint with the one that training continues from."""
        self._queue.submit(partial(self._remember, checkpoint))

    def drain(self) -> bool:
        """Wait until all that is published has its checksums, as `WorkQueue.drain` does."""
        return self._queue.drain()

    def _add(self, checkpoint: Checkpoint) -> None:
        step, uuid = checkpoint.step, checkpoint.uuid
        folder = self._publisher.directory / names.final_name(step)
        try:
            found = manifest.find(folder)
            if found is None or found.uuid != uuid:
                return  # pruned, or replaced by another save
            sums = checksums.compute(folder, found.files)
            if not self._publisher.add_checksums(step, uuid, sums):
                return
        except FileNotFoundError:
            return  # pruned while it was read
        except (OSError, CkptdbError) as error:
            self._warn(folder, error)
            return
        self._compare(step, _payload(sums))

    def _remember(self, checkpoint: Checkpoint) -> None:
        try:
            found = manifest.find(checkpoint.path)
        except (OSError, CkptdbError) as error:
            _logger.info("nothing to compare with: %s", error)
            return
        if found is not None and found.uuid == checkpoint.uuid:
            self._before = (checkpoint.step, _payload(found.checksums))

    def _compare(self, step: int, payload: Mapping[str, str]) -> None:
        before, self._before = self._before, (step, payload)
        same = bool(payload) and before is not None and before[1] == payload
        # Once: when the model stands still, all later ones are the same, too.
        if same and not self._same and before is not None:
            warnings.warn(
                f"Step {step} holds bit for bit what step {before[0]} holds; is the model being "
                "updated?"
            )
        self._same = same

    def _warn(self, folder: Path, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            warnings.warn(f"{folder} is saved, and has no checksums: {error}")


def _payload(sums: Mapping[str, str]) -> dict[str, str]:
    return {name: checksum for name, checksum in sums.items() if name not in _NOT_PAYLOAD}

"""Publishing many files and large ones, durably; against flushing the same files in threads."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks import trees
from tests.benchmarks.results import Findings, Row, at_most, duration
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians

_THREADS = 8
_MIB = 1 << 20


def measure(size: Size, scratch: Path) -> Findings:
    """Publish both kinds of payload."""
    small = {f"part_{i}.bin": 4096 for i in range(size.files)}
    large = {f"shard_{i}.bin": size.shard_bytes for i in range(8)}
    rows = [
        _publish(f"{size.files:,} files of 4 KiB", small, size, scratch),
        _publish(f"8 files of {size.shard_bytes // _MIB} MiB", large, size, scratch),
    ]
    return Findings(rows=rows)


def _publish(what: str, files: Mapping[str, int], size: Size, scratch: Path) -> Row:
    ours, floor = _Ours(scratch / "ours", files), _Floor(scratch / "floor", files)
    ways = {
        "ckptdb": Way(ours.publish, before=ours.write, after=ours.remove),
        "floor": Way(floor.flush, before=floor.write, after=floor.remove),
    }
    found = medians(ways, rounds=size.rounds + 2, seconds=size.seconds, most=30)
    ours.close()
    shutil.rmtree(scratch / "ours")
    return at_most(
        f"durable publish of {what}, against a threaded fsync", 1.2,
        found["ckptdb"] / found["floor"],
        note=f"{duration(found['ckptdb'])} against {duration(found['floor'])}",
        medians=found,
    )  # fmt: skip


class _Ours:
    def __init__(self, run: Path, files: Mapping[str, int]) -> None:
        self._manager = trees.manager(run, durability="full")
        self._files = files
        self._step = 0
        self._run = run

    def write(self) -> None:
        self._step += 1
        self._tmp = self._manager.init_tmp_checkpoint(self._step, trees.info(self._step, 0.5))
        _write(self._tmp, self._files)

    def publish(self) -> None:
        self._manager.finalize_checkpoint(self._tmp)

    def remove(self) -> None:
        shutil.rmtree(self._run / f"step_{self._step}")

    def close(self) -> None:
        self._manager.shutdown()


class _Floor:
    def __init__(self, folder: Path, files: Mapping[str, int]) -> None:
        self._folder = folder
        self._files = files

    def write(self) -> None:
        self._folder.mkdir()
        _write(self._folder, self._files)

    def flush(self) -> None:
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._fsync, self._files))

    def remove(self) -> None:
        shutil.rmtree(self._folder)

    def _fsync(self, name: str) -> None:
        handle = os.open(self._folder / name, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write(folder: Path, files: Mapping[str, int]) -> None:
    part = os.urandom(_MIB)
    for name, size_bytes in files.items():
        with open(folder / name, "wb") as file:
            file.writelines(part[: size_bytes - begin] for begin in range(0, size_bytes, _MIB))

"""The least that reading a whole run takes, into tables of its own; each in a fresh process.

From nothing: one listing; of each checkpoint both files opened, read and parsed; two
`executemany` into indexed tables, one commit. With nothing changed: one listing, and of each
checkpoint the two `stat` calls that tell whether its record is still true, compared with what one
SELECT returns.
"""

from __future__ import annotations

import ctypes
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from ckptdb import Registry

_TABLES = """
CREATE TABLE checkpoints (
    id INTEGER PRIMARY KEY, uuid TEXT, step INTEGER, path TEXT, created_at TEXT,
    finalized_at TEXT, size_bytes INTEGER, file_count INTEGER, info TEXT, fingerprint TEXT
);
CREATE UNIQUE INDEX by_uuid ON checkpoints (uuid);
CREATE UNIQUE INDEX by_step ON checkpoints (step);
CREATE TABLE metrics (
    checkpoint_id INTEGER, name TEXT, step INTEGER, value REAL, PRIMARY KEY (checkpoint_id, name)
) WITHOUT ROWID;
CREATE INDEX by_value ON metrics (name, value, step);
"""


def ours(run: str, catalog: str) -> dict[str, float]:
    """Reconcile a run with a catalog, new or not; progress is counted instead of shown."""
    told = count()
    with Registry.open(run, catalog=catalog) as registry:
        found = _measured(partial(registry.reconcile, on_checkpoint=partial(next, told)))
        stored = registry.status().checkpoints
    return found | {"checkpoints": float(stored), "progress": float(next(told))}


def floor(run: str, file: str) -> dict[str, float]:
    """Read a run into new tables."""
    connection = _open(file)
    connection.executescript(_TABLES)
    return _measured(lambda: _fill(connection, run))


def floor_unchanged(run: str, file: str) -> dict[str, float]:
    """See that a run is as `floor` has left it in the tables."""
    connection = _open(file)
    return _measured(lambda: _compare(connection, run))


def _open(file: str) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _fill(connection: sqlite3.Connection, run: str) -> None:
    checkpoints, metrics = [], []
    for number, (step, path) in enumerate(_list(run)):
        info, told = _read(f"{path}/training_info.json")
        manifest, _ = _read(f"{path}/manifest.json")
        files = manifest["files"]
        checkpoints.append(
            (
                number, manifest["uuid"], step, path, manifest["created_at"],
                manifest["finalized_at"], sum(files.values()), len(files), told,
                _fingerprint(path),
            )
        )  # fmt: skip
        metrics += [
            (number, name, step, float(value))
            for name, value in info.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(f"INSERT INTO checkpoints VALUES ({'?, ' * 9}?)", checkpoints)
    connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", metrics)
    connection.execute("COMMIT")


def _compare(connection: sqlite3.Connection, run: str) -> None:
    known = dict(connection.execute("SELECT step, fingerprint FROM checkpoints"))
    found = {step: _fingerprint(path) for step, path in _list(run)}
    assert found == known


def _list(run: str) -> Iterator[tuple[int, str]]:
    with os.scandir(run) as listing:
        for entry in listing:
            if entry.name.startswith("step_") and entry.is_dir(follow_symlinks=False):
                yield int(entry.name[5:]), entry.path


def _read(path: str) -> tuple[dict[str, Any], bytes]:
    handle = os.open(path, os.O_RDONLY)
    try:
        content = os.read(handle, 1 << 20)
    finally:
        os.close(handle)
    return json.loads(content), content


def _fingerprint(path: str) -> str:
    folder, file = os.lstat(path), os.lstat(f"{path}/training_info.json")
    return f"{folder.st_mtime_ns}:{file.st_mtime_ns}:{file.st_size}:{file.st_ino}"


def _measured(act: Callable[[], object]) -> dict[str, float]:
    """Return the seconds it took, and by how many bytes the process has grown at its largest."""
    _forget_largest()
    before, calls = _resident_bytes("VmRSS"), _slowed_calls()
    started = time.perf_counter()
    act()
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "growth_bytes": float(_resident_bytes("VmHWM") - before),
        "calls": float(_slowed_calls() - calls),
    }


def _forget_largest() -> None:
    # Imports may have needed more, for a moment, than what is measured will add.
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(what: str) -> int:
    # Not getrusage: that begins with the size of whoever started this process.
    found = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)
    )
    return int(found.split()[1]) * 1024


def _slowed_calls() -> int:
    """Return how many calls slow.c has slowed down in this process; 0 without it."""
    library = ctypes.CDLL(None)
    return int(library.slow_calls()) if hasattr(library, "slow_calls") else 0

"""What a durable save flushes, recorded once, and done again by the plainest means.

Recorded are the paths given to fsync, in their order, with the commits of the catalog between
them. The floor writes the same files, flushes the same things in the same order and commits as
often to a SQLite file of its own, with the same journal and the same flushes; nothing else.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckptdb.core.fork import FileConnection

COMMIT = "commit"
_METRICS = 5


@contextmanager
def recorded(run: Path) -> Iterator[list[str]]:
    """Collect what is flushed below a run, by its role, and what is committed."""
    found: list[str] = []
    fsync, commit = os.fsync, FileConnection.commit

    def note(fd: Any) -> None:
        found.append(_role(run, Path(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def note_commit(connection: FileConnection) -> None:
        found.append(COMMIT)
        commit(connection)

    os.fsync, FileConnection.commit = note, note_commit  # type: ignore[method-assign]
    try:
        yield found
    finally:
        os.fsync, FileConnection.commit = fsync, commit  # type: ignore[method-assign]


def counts(sequence: Sequence[str]) -> Mapping[str, int]:
    """Return how often each role is flushed in one save."""
    return dict(sorted(Counter(role.partition(" ")[0] for role in sequence).items()))


def _role(run: Path, path: Path) -> str:
    if path == run:
        return "run"
    if path == run / ".ckptdb" or run / ".ckptdb" in path.parents:
        return "journal" if path.name == "journal.jsonl" else "hidden"
    if path.parent == run:
        return "step"
    return "manifest" if "manifest" in path.name else f"file {path.name}"


class Replay:
    """Saves and prunes as ckptdb does on the disk, and in no other respect.

    Args:
        folder: Where to work.
        sequence: From `recorded`, of one save that prunes one.
        files: What a checkpoint holds, manifest included.
    """

    def __init__(self, folder: Path, sequence: Sequence[str], files: Mapping[str, bytes]) -> None:
        self._run, self._trash = folder / "run", folder / "trash"
        self._run.mkdir(parents=True)
        self._trash.mkdir()
        self._sequence = sequence
        self._files = files
        self._step = 0
        self._db = sqlite3.connect(folder / "floor.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode = TRUNCATE")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, step, told)")
        self._db.execute("CREATE TABLE metrics (checkpoint_id, name, value)")
        self._db.execute("CREATE INDEX ranking ON metrics (name, value)")

    def save(self) -> None:
        """Save one, and remove the one before."""
        self._step += 1
        step = self._run / f"step_{self._step}"
        tmp = self._run / f"tmp_step_{self._step}"
        tmp.mkdir()
        flushed = {role.partition(" ")[2] for role in self._sequence} - {""}
        for name in flushed | (self._files.keys() - {"manifest.json"}):
            (tmp / name).write_bytes(self._files.get(name, b"?" * 200))
        folder, runs = tmp, 0
        for role in self._sequence:
            if role == COMMIT:
                self._commit()
            elif role.startswith("file "):
                _fsync(folder / role.partition(" ")[2])
            elif role == "manifest":
                self._write(folder / ".manifest", self._files["manifest.json"], os.O_CREAT)
                os.rename(folder / ".manifest", folder / "manifest.json")
            elif role == "journal":
                line = b"j" * 512 + b"\n"
                self._write(self._trash.parent / "journal", line, os.O_CREAT | os.O_APPEND)
            elif role == "hidden":
                _fsync(self._trash)
            elif role == "step":
                _fsync(folder)
            else:
                runs += 1
                self._rename(runs, tmp, step)
                folder = step
                _fsync(self._run)
        for gone in self._trash.iterdir():
            shutil.rmtree(gone)

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _rename(self, runs: int, tmp: Path, step: Path) -> None:
        old = self._run / f"step_{self._step - 1}"
        if runs == 1:
            os.rename(tmp, step)
        elif old.exists():
            os.rename(old, self._trash / old.name)

    def _write(self, path: Path, content: bytes, flags: int) -> None:
        handle = os.open(path, os.O_WRONLY | flags, 0o666)
        try:
            os.write(handle, content)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _commit(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        told = "{" + "t" * 200 + "}"
        self._db.execute("INSERT INTO checkpoints (step, told) VALUES (?, ?)", (self._step, told))
        rows = [(self._step, f"metric_{i}", self._step * 0.5) for i in range(_METRICS)]
        self._db.executemany("INSERT INTO metrics VALUES (?, ?, ?)", rows)
        self._db.execute("COMMIT")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

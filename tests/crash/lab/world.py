"""A root on disk that can be put back as it was, any number of times, quickly."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from lab import loop
from lab.ledger import Ledger, Operation, Workload, after_all
from lab.subject import CKPTDB, Subject

_AGED_SECONDS = 10.0
"""How old a prepared root is, so that nothing in it is too young to be sure of."""


class World:
    """The root that is hurt, always at the same path, with copies beside it."""

    def __init__(self, folder: Path, subject: Subject = CKPTDB) -> None:
        self.subject = subject
        self.root = folder / "root"
        self._folder = folder
        self._prepared: dict[tuple[object, ...], Path] = {}
        self.root.mkdir(parents=True)
        (self.root / loop.RUN).mkdir()

    def prepare(self, workload: Workload) -> Ledger:
        """Put the root where all but the last operation of a workload are done and settled."""
        return self._prepare(workload.operations[:-1], workload)

    def _prepare(self, before: tuple[Operation, ...], workload: Workload) -> Ledger:
        key = (before, workload.native, workload.many)
        if key not in self._prepared:
            if before:
                self._prepare(before[:-1], workload)
                self._in_child(lambda: self._do(before, many=workload.many))
            else:
                self.clear()
                self._in_child(lambda: self.subject.seed(self.root, many=workload.many))
            self._age()
            self._in_child(lambda: self.subject.settle(self.root))
            self._prepared[key] = self.snapshot(f"prepared-{len(self._prepared)}")
        self.restore(self._prepared[key])
        return after_all(before)

    def _do(self, operations: tuple[Operation, ...], *, many: bool) -> None:
        running = self.subject.begin(self.root, after_all(operations[:-1]), many=many)
        running.do(operations[-1])
        running.close()

    @staticmethod
    def _in_child(work: Callable[[], None]) -> None:
        if loop.in_child(work) != 0:
            raise RuntimeError("a workload failed before anything was done to it")

    # --- copies -------------------------------------------------------------------------

    def snapshot(self, name: str) -> Path:
        """Keep a copy of the root as it is now."""
        copy = self._folder / name
        if copy.exists():
            shutil.rmtree(copy)
        copy.mkdir()
        _copy(self.root, copy)
        return copy

    def restore(self, copy: Path) -> None:
        """Make the root what it was when the copy was made: names, bytes, times, run and all."""
        self.clear()
        _copy(copy, self.root)

    def clear(self) -> None:
        """Empty it."""
        # The two directories stay: a run is known by its inode.
        for entry in os.scandir(self.root):
            if entry.name == loop.RUN:
                for inner in os.scandir(entry.path):
                    _remove(inner)
            else:
                _remove(entry)

    def _age(self) -> None:
        then = time.time() - _AGED_SECONDS
        for folder, _, files in os.walk(self.root):
            for name in files:
                os.utime(os.path.join(folder, name), (then, then))
            os.utime(folder, (then, then))


def _remove(entry: os.DirEntry[str]) -> None:
    # Done thousands of times: shutil looks at much that never is here.
    if entry.is_dir(follow_symlinks=False):
        for inner in list(os.scandir(entry.path)):
            _remove(inner)
        os.rmdir(entry.path)
    else:
        os.unlink(entry.path)


def _copy(source: Path, target: Path) -> None:
    _copy_folder(os.fspath(source), os.fspath(target), hidden=False)


def _copy_folder(source: str, target: str, *, hidden: bool) -> None:
    for entry in os.scandir(source):
        there = f"{target}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            if not os.path.isdir(there):
                os.mkdir(there)
            # What is in the trash is a checkpoint again, and only ever written once.
            inside = entry.name == ".ckptdb" or (hidden and entry.name != "trash")
            # What is being written must not go on being written in the copy.
            inside = inside or entry.name.startswith("tmp_")
            _copy_folder(entry.path, there, hidden=inside)
        elif hidden:
            _copy_file(entry, there)
        else:
            # The same inode: what the index remembers of a checkpoint goes on being true.
            os.link(entry.path, there)
    status = os.stat(source)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _copy_file(entry: os.DirEntry[str], target: str) -> None:
    status = entry.stat(follow_symlinks=False)
    with open(entry.path, "rb", buffering=0) as file:
        content = file.read()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, status.st_mode)
    with open(handle, "wb", buffering=0) as file:
        file.write(content)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

"""File systems in files, mounted where only this process sees them, whose power can be cut."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import gc
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_LOOP_GET_FREE, _LOOP_CONFIGURE, _LOOP_AUTOCLEAR = 0x4C82, 0x4C0A, 4
# struct loop_config: the file's descriptor, zeros, the flags, zeros.
_LOOP_CONFIG = struct.Struct("=I56xI240x")
_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, 2
_PATIENCE_SECONDS = 5.0
# What a kernel or container answers that does not let us, or has no such file system.
_DENIED = frozenset({errno.EPERM, errno.EACCES, errno.ENOENT, errno.ENXIO, errno.ENODEV})


class CannotMount(Exception):  # a reason, not a failure
    """Here such a file system cannot be made and mounted; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file system.

    Attributes:
        make: The command that makes one, without its file.
        options: What it is mounted with.
    """

    name: str
    type: str
    size_bytes: int
    make: tuple[str, ...]
    options: str = ""


_EXT4 = (
    "mkfs.ext4", "-q", "-F", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
)  # fmt: skip
KINDS = (
    Kind("ext4", "ext4", 32 << 20, _EXT4),
    # Without the heuristic that flushes what is renamed over an older file.
    Kind("ext4 noauto_da_alloc", "ext4", 32 << 20, _EXT4, "noauto_da_alloc"),
    Kind("xfs", "xfs", 300 << 20, ("mkfs.xfs", "-q", "-f")),
)


class Disk:
    """One file system, mounted at ``path``."""

    def __init__(self, kind: Kind, device: str, path: Path) -> None:
        self.path = path
        self._kind = kind
        self._device = device
        self._covered: tuple[Path, Path] | None = None

    def mount(self) -> None:
        """Mount it; the kernel recovers what its journal holds."""
        kind = self._kind
        _call("mount", self._device, self.path, kind.type, ctypes.c_ulong(0), kind.options)
        if self._covered is not None:
            self._cover(*self._covered)

    def cover(self, folder: Path, other: Path) -> None:
        """Let a directory of another disk, which keeps its power, stand for one of this."""
        self._covered = folder, other
        self._cover(folder, other)

    def uncover(self) -> None:
        """Let it be its own again."""
        if self._covered is not None:
            self._uncover(self._covered[0])
            self._covered = None

    def _cover(self, folder: Path, other: Path) -> None:
        _call("mount", other, folder, None, ctypes.c_ulong(_MS_BIND), None)

    def _uncover(self, folder: Path) -> None:
        _call("umount2", folder, _MNT_DETACH)

    def unmount(self) -> None:
        """Unmount it, and with it forget all that was only in memory."""
        if self._covered is not None:
            self._uncover(self._covered[0])
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                return _call("umount2", self.path, 0)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
            gc.collect()  # a check that failed may have left something open
            time.sleep(0.002)

    def flush(self) -> None:
        """Make all that it holds durable."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            _call("syncfs", handle)
        finally:
            os.close(handle)

    def is_cut(self) -> bool:
        """Tell whether it refuses everything."""
        try:
            (self.path / "probe").mkdir()
        except OSError as error:
            return error.errno in (errno.EIO, errno.EROFS)
        return False

    def cut(self, *, foreign: bool) -> None:
        """Cut its power: what the journal has in memory is lost.

        Args:
            foreign: Somebody who knows nothing of us has flushed a file of his own just before.
        """
        if foreign:
            with (self.path / "foreign").open("wb") as file:
                file.write(b"foreign" * 1000)
                file.flush()
                os.fsync(file.fileno())
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(handle)


@contextmanager
def mounted(kind: Kind, folder: Path) -> Iterator[Disk]:
    """Make a file system in ``folder`` and mount it there; nothing is left of it afterwards.

    Raises:
        CannotMount: Here that cannot be done.
    """
    if os.geteuid() != 0:
        raise CannotMount("only root can mount file systems")
    tool = shutil.which(kind.make[0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if tool is None:
        raise CannotMount(f"there is no {kind.make[0]}")
    path = folder / kind.name.replace(" ", "-")
    path.mkdir()
    image = path.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(kind.size_bytes)
    subprocess.run([tool, *kind.make[1:], image], check=True)
    with _loop_device(image) as device:
        disk = Disk(kind, device, path)
        try:
            _enter_private_namespace()
            disk.mount()
        except OSError as error:
            if error.errno in _DENIED:
                raise CannotMount(f"mounting fails ({error.strerror})") from error
            raise
        try:
            yield disk
        finally:
            disk.unmount()
    image.unlink()


@contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    try:
        handle, device = _attach(image)
    except OSError as error:
        if error.errno in _DENIED:
            raise CannotMount(f"there is no loop device ({error.strerror})") from error
        raise
    try:
        yield device
    finally:
        # It detaches by itself when the last one lets go, however this process ends.
        os.close(handle)


def _attach(image: Path) -> tuple[int, str]:
    with open("/dev/loop-control", "rb") as control, image.open("r+b") as file:
        while True:
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}"
            handle = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                config = _LOOP_CONFIG.pack(file.fileno(), _LOOP_AUTOCLEAR)
                fcntl.ioctl(handle, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(handle)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
            else:
                return handle, device


def _enter_private_namespace() -> None:
    """Keep what is mounted from everybody else, and let the kernel unmount it at our end."""
    _call("unshare", _CLONE_NEWNS)
    _call("mount", "none", "/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def _call(name: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    given = [os.fsencode(a) if isinstance(a, str | Path) else a for a in arguments]
    if getattr(library, name)(*given) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")

"""Checksums: whether the files of a checkpoint still contain what was saved.

They guard against disks and copies, not against people: whoever can change a file can change the
manifest beside it. So the hash need not be a cryptographic one, and xxh3_128 is faster on one core
than memory is, while the others belong to the training. The library is optional, and imported
only by those who want checksums.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from ckptdb.core.observed import Manifest
from ckptdb.disk import manifest, paths
from ckptdb.disk.manifest import Compared
from ckptdb.disk.safe_path import ResolvedPath
from ckptdb.errors import ChecksumsUnavailable

ALGORITHM = "xxh3_128"
_PART_BYTES = 1024 * 1024
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class ChecksumStopped(Exception):  # a signal to the caller, not an error
    """The caller stopped the reading of a file."""

    def __init__(self, read_bytes: int) -> None:
        super().__init__()
        self.read_bytes = read_bytes


def is_available() -> bool:
    """Tell whether checksums can be computed here."""
    try:
        require()
    except ChecksumsUnavailable:
        return False
    return True


def require() -> None:
    """Make sure that checksums can be computed here.

    Raises:
        ChecksumsUnavailable: They cannot.
    """
    try:
        import xxhash  # noqa: F401  # 1 ms that only those pay who want it
    except ImportError as error:
        raise ChecksumsUnavailable from error


def compute(folder: Path, files: Mapping[str, int]) -> dict[str, str]:
    """Return the checksums of the regular files of a checkpoint that still have their size.

    Args:
        folder: The checkpoint.
        files: As in its manifest.

    Raises:
        OSError: A file cannot be read.
    """
    found = {}
    for name, size in files.items():
        checksum = _checksum(folder / name, size, follow=False)
        if checksum is not None:
            found[name] = checksum
    return found


def compare_file(
    folder: Path, name: str, content: Manifest, *, goes_on: Callable[[int], bool] | None = None
) -> Compared:
    """Compare the content of a listed file with its checksum, if it has one.

    A file that was moved elsewhere and linked is read through the link. No more is read than was
    saved, and nothing but a regular file.

    Args:
        folder: The checkpoint.
        name: The file's.
        content: The manifest.
        goes_on: Asked now and then with how many bytes have been read, whether to read the others.

    Raises:
        ChecksumStopped: The caller stopped it.
    """
    expected = content.checksums.get(name)
    if expected is None or not expected.startswith(f"{ALGORITHM}:"):
        return Compared()  # nothing, or something of another version, to compare it with
    try:
        found = _checksum(folder / name, content.files[name], follow=True, goes_on=goes_on)
    except OSError as error:
        return manifest.unreadable(name, error)
    if found == expected:
        return Compared()
    return Compared(f"{name} differs from its checksum", kind="corrupt")


def verify(folder: Path, content: Manifest) -> Compared:
    """Compare the contents of a checkpoint's files with their checksums."""
    return manifest.join([compare_file(folder, name, content) for name in content.files])


def _checksum(
    path: Path, size: int, *, follow: bool, goes_on: Callable[[int], bool] | None = None
) -> str | None:
    """Return the checksum of a regular file of a size; None when it is no such file."""
    import xxhash

    found = paths.find_stat(path) if follow else paths.get_status(path)
    if not stat.S_ISREG(found.st_mode):
        return None
    with ResolvedPath(path, strict=False) as resolved:
        flags = _FLAGS if follow else _FLAGS | os.O_NOFOLLOW
        handle = os.open(resolved.name, flags, dir_fd=resolved.parent)
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return None
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_PART_BYTES, size) or 1))
        while size and (count := os.readv(handle, [buffer[:size]])):
            digest.update(buffer[:count])
            size -= count
            if size and goes_on is not None and not goes_on(found.st_size - size):
                raise ChecksumStopped(found.st_size - size)
    finally:
        os.close(handle)
    return f"{ALGORITHM}:{digest.hexdigest()}" if size == 0 else None

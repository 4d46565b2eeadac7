"""Checksums: whether the files of a checkpoint still contain what was saved.

They guard against disks and copies, not against people: whoever can change a file can change the
manifest beside it. So the hash need not be a cryptographic one, and xxh3_128 is faster on one core
than memory is, while the others belong to the training. The library is optional, and imported
only by those who want checksums.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from ckptdb.disk import manifest
from ckptdb.disk.manifest import Manifest
from ckptdb.errors import ChecksumsUnavailable

ALGORITHM = "xxh3_128"
_PART_BYTES = 1024 * 1024
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        checksum = _checksum(folder / name, size, exactly=True)
        if checksum is not None:
            found[name] = checksum
    return found


def find_fault(folder: Path, name: str, content: Manifest) -> str | None:
    """Say what is wrong with the content of a listed file, or None.

    As much is compared as was saved: what somebody has appended to it is no damage.
    """
    expected = content.checksums.get(name)
    if expected is None or not expected.startswith(f"{ALGORITHM}:"):
        return None  # nothing, or something of another version, to compare it with
    try:
        found = _checksum(folder / name, content.files[name], exactly=False)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if found == expected else f"{name} {manifest.DIFFERS}"


def verify(folder: Path, content: Manifest) -> str | None:
    """Say what is wrong with the contents of a checkpoint's files, or None."""
    faults = (find_fault(folder, name, content) for name in content.files)
    return manifest.damage([fault for fault in faults if fault])


def _checksum(path: Path, size: int, *, exactly: bool) -> str | None:
    """Return the checksum of the first bytes of a file; None when it is no such file."""
    import xxhash

    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    handle = os.open(path, _FLAGS)
    try:
        length = os.fstat(handle).st_size
        if length < size or (exactly and length != size):
            return None
        digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_PART_BYTES, size) or 1))
        while size and (count := os.readv(handle, [buffer[:size]])):
            digest.update(buffer[:count])
            size -= count
    finally:
        os.close(handle)
    return f"{ALGORITHM}:{digest.hexdigest()}" if size == 0 else None

"""Directories of runs: their state before and after, and their age."""

import os
from pathlib import Path

# Permissions mean nothing to root until it has given up its capabilities (not its files).
AS_ANY_USER = """
import ctypes, os
if os.geteuid() == 0:
    numbers, libc = ctypes.c_uint32, ctypes.CDLL(None)
    assert libc.capset((numbers * 2)(0x20080522, 0), (numbers * 6)()) == 0
"""


def snapshot(top: Path) -> dict[str, tuple[object, ...]]:
    """Return everything that can be seen of a tree, but for when it was read."""
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        stat = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        seen = (stat.st_mode, stat.st_nlink, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        found[str(path)] = (*seen, content)
    return found


def settle(top: Path) -> None:
    """Make everything look a minute old."""
    for path in (*top.rglob("*"), top):
        if not path.is_symlink():
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 60 * 10**9))

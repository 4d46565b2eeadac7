"""What lies around a run, and must be as it was after anything that is done to the run."""

import os
import stat
from pathlib import Path

Picture = dict[str, tuple[object, ...]]


def take_picture(top: Path) -> Picture:
    """Return what there is at and below a path: types, modes, owners, times and bytes."""
    found: Picture = {}
    pending = [top]
    while pending:
        path = pending.pop()
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        elif stat.S_ISDIR(status.st_mode):
            pending += list(path.iterdir())
        found[os.path.relpath(path, top)] = (
            oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink,
            status.st_mtime_ns, content,
        )  # fmt: skip
    return found

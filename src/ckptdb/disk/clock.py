"""What time it is for a file system.

How long something has not been touched can be told only by the clock that has written when it was:
the clocks of two machines, or of a machine before and after it was set, are not compared.
"""

from __future__ import annotations

import os
from pathlib import Path

from ckptdb.disk import paths


def find_time(folder: Path, *, may_touch: bool) -> float | None:
    """Return what time it is for the file system of a directory; None when it cannot be asked.

    Args:
        folder: Where a file may be made.
        may_touch: Where no file can be made that has no name, set the directory's own mtime.
    """
    try:
        # A file without a name: whoever looks at the directory sees nothing of it.
        with paths.opened(folder) as place:
            handle = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=place)
    except OSError:
        return _touch(folder) if may_touch else None
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


def _touch(folder: Path) -> float | None:
    try:
        paths.touch(folder)
        return paths.find_stat(folder).st_mtime
    except OSError:
        return None

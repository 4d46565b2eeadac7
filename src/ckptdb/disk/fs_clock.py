"""The clock of a file system.

How long something has not been touched can be told only by the clock that has written when it was:
the clocks of two machines, or of a machine before and after it was set, are not compared.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from ckptdb.disk import lock, paths

_OF_FILES: Final = getattr(time, "CLOCK_REALTIME_COARSE", time.CLOCK_REALTIME)
"""Type number of file systems that the kernel itself provides."""
_OVERLAY: Final = 0x794C7630
"""Type number of overlay file systems, such as a container's; they have their own clock."""


def find_time(folder: Path, *, may_touch: bool) -> float | None:
    """Return what time it is for the file system of a directory; None when it cannot be asked.

    Args:
        folder: Where a file may be made.
        may_touch: Whether that may be done at all; and, where no file can be made that has no name,
            the directory's own mtime be set. If not, it is the kernel's time on a file system of
            this machine, and elsewhere not known.
    """
    if not may_touch:
        return time.clock_gettime(_OF_FILES) if _is_of_this_machine(folder) else None
    try:
        # A file without a name: whoever looks at the directory sees nothing of it.
        with paths.opened(folder) as place:
            handle = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=place)
    except OSError:
        return _touch(folder)
    try:
        return os.fstat(handle).st_mtime
    finally:
        os.close(handle)


def _is_of_this_machine(folder: Path) -> bool:
    try:
        with paths.opened(folder) as place:
            return lock.find_file_system(place) in {*lock.LOCAL, _OVERLAY}
    except OSError:
        return False


def _touch(folder: Path) -> float | None:
    try:
        paths.touch(folder)
        return paths.find_stat(folder).st_mtime
    except OSError:
        return None

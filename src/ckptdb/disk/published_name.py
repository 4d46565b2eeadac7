"""Published names during a replacement: wait for a name that is being exchanged."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

from ckptdb.disk import (
    identity,
    lock,
    names,
    paths,
    read_checkpoint,
    symlinks,
    training_info,
)
from ckptdb.errors import UnreadableInfo

_GAP_SECONDS = 2.0
"""Time that a reader waits for a name which a replacement in two renames has taken away."""
_LOOKS = 5


def is_published(folder: Path) -> bool:
    """Tell whether a checkpoint has its name, waiting while it is just being replaced.

    Where two names cannot be exchanged, a replacement takes the name away for an instant, and
    the older checkpoint stands beside it as ``old_step_N.<uuid>``. What stands so and nobody is
    changing the run was left by a crash.
    """
    deadline = time.monotonic() + _GAP_SECONDS
    looks = 0
    while not _is_readable(folder):
        if _is_aside(folder) and time.monotonic() < deadline:
            time.sleep(0.001)
            if lock.may_be_locked(identity.hidden(folder.parent)):
                continue
        # It may have come back between the two looks, and gone for the next replacement.
        looks += 1
        if looks == _LOOKS:
            return False
    return True


def _is_readable(folder: Path) -> bool:
    status = paths.find_status(folder)
    if status is None or stat.S_ISLNK(status.st_mode):
        return status is not None and symlinks.find_obstruction(folder) is None
    return stat.S_ISDIR(status.st_mode) and not read_checkpoint.is_being_deleted(status)


def find_published_info(folder: Path) -> dict[str, Any] | None:
    """Return training_info of a checkpoint, None when it has none; see `is_published`.

    Raises:
        UnreadableInfo: It is there and is not a JSON object.
    """
    for _ in range(_LOOKS):
        try:
            return training_info.load_info(folder)[0]
        except UnreadableInfo as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        if not is_published(folder):
            break
    return None


def _is_aside(folder: Path) -> bool:
    step = names.find_final_step(folder.name)
    try:
        beside = os.listdir(folder.parent)
    except OSError:
        return False
    return any((names.find_old(name) or (None,))[0] == step for name in beside if step is not None)

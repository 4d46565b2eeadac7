"""Liveness of unfinished saves: the only place that decides whether a writer is still at work.

A writer is dead only where that is proven: by its number, where that means something, or by its
lock, where locks reach. Everywhere else only time counts: a save that nobody has touched for
`UNTOUCHED_SECONDS` is abandoned, by the clock of the file system that it lies on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ckptdb.core.observed import Tmp, Writer
from ckptdb.core.process import Life
from ckptdb.disk import (
    fs_clock,
    fsutil,
    paths,
    trainer_lock,
    writer,
)
from ckptdb.errors import StepInUse

UNTOUCHED_SECONDS: Final = 24 * 3600.0
"""After so long without a change a save is abandoned whose writer is not known to be dead."""
SILENT_SECONDS: Final = 300.0
"""After so long without a change the run's trainer may save a step anew whose writer has let go of
its lock on a file system of many machines: a server frees what a machine held that it has lost."""


def find_life(folder: Path, who: Writer | None) -> Life:
    """Return what is known of the writer of a staged checkpoint.

    Args:
        folder: The ``tmp_step_N``.
        who: Its recorded writer; None when that cannot be read.
    """
    life = who.life if who else "unknown"
    if life != "unknown":
        return life
    match writer.look_at_lock(folder, who):
        case "locked":
            return "alive"
        case "free":
            return "dead"
        case _:
            return "unknown"


def is_untouched(
    folder: Path, hidden: Path, *, may_touch: bool, seconds: float = UNTOUCHED_SECONDS
) -> bool:
    """Tell whether nothing in a directory, however deep, has changed for so long.

    False when it cannot be read now.

    Args:
        folder: The directory.
        hidden: The run's ``.ckptdb``, where the file system is asked for the time.
        may_touch: See `clock.find_time`.
        seconds: Minimum time without a change.
    """
    try:
        # The mtime of the run itself tells whether it has changed, and is not to be touched.
        has_hidden = fsutil.is_folder(hidden)
        place = hidden if has_hidden else hidden.parent
        now = fs_clock.find_time(place, may_touch=may_touch and has_hidden)
        return now is not None and _is_older(folder, now - seconds, now)
    except OSError:
        return False


def has_silent_writer(folder: Path, who: Writer, hidden: Path) -> bool:
    """Tell whether this process, as the run's trainer, may save a step anew.

    It holds the run's lease and the writer has let go of its own lock, as far as this machine
    sees; and nothing has changed for `SILENT_SECONDS`.
    """
    if not trainer_lock.is_held(hidden) or writer.look_at_lock(folder, who) != "unseen":
        return False
    return is_untouched(folder, hidden, may_touch=True, seconds=SILENT_SECONDS)


def describe(who: Writer | None, life: Life) -> str:
    """Say of an unfinished save that is kept by whom it is written, and until when it is kept."""
    if life == "alive":
        return f"it is being written by {who or 'another process'}"
    until = f"it counts as abandoned {UNTOUCHED_SECONDS / 3600:g} hours after its last change"
    if who is None:
        return f"who writes it is not known; {until}"
    return f"written by {who}, which cannot be asked from here; {until}"


def _is_older(folder: Path, since: float, now: float) -> bool:
    for below, entries in paths.walk(folder):
        if _changed(paths.get_status(f"{folder}/{below}"), now) > since:
            return False
        for entry in entries:
            if _changed(entry.stat(follow_symlinks=False), now) > since:
                return False
    return True


def _changed(status: os.stat_result, now: float) -> float:
    # A time that is still to come was set by somebody; nobody can set the other one.
    return status.st_mtime if status.st_mtime <= now else status.st_ctime


def raise_if_in_use(tmp: Tmp, hidden: Path) -> None:
    """Refuse to discard an unfinished save that another process may still be writing.

    Raises:
        StepInUse: Its writer is alive, or may be.
    """
    path, who = tmp.checkpoint.path, tmp.writer
    if tmp.fate or tmp.abandoned or (who and who.is_me):
        return
    if tmp.life == "unknown" and (
        # Without a writer's record it was left by a crash, or by another framework.
        who is None or has_silent_writer(path, who, hidden)
    ):
        return
    raise StepInUse(path, str(who or "another process"), is_sure=tmp.life == "alive")

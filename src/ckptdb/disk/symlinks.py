"""Obstructions: symlinks and other things that have a checkpoint's name and are no directory.

A checkpoint that was moved to another disk and linked is read through its link, and nothing else is
done through it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptdb.core import warnings
from ckptdb.disk import fsutil, names, paths


def find_obstruction(path: Path) -> str | None:
    """Describe an obstruction; None for a directory or a symlink to a checkpoint."""
    status = paths.find_status(path)
    if status is None or stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISLNK(status.st_mode):
        return "it is no directory"
    fault = _find_fault_behind(path)
    return None if fault is None else f"it is a link to {find_target(path)}, which {fault}"


def _find_fault_behind(link: Path) -> str | None:
    try:
        is_folder = stat.S_ISDIR(os.stat(link).st_mode)
        # Whatever it leads to is not searched for files before it is known to be ours.
        has_record = any(fsutil.is_there(link / name) for name in (names.MANIFEST, names.INFO))
    except FileNotFoundError:
        return "is not there"
    except OSError as error:
        return f"cannot be reached ({error.strerror})"
    if not is_folder:
        return "is no directory"
    return None if has_record else "holds no checkpoint"


def find_target(path: Path) -> str | None:
    """Return what a symlink leads to, None when it is none."""
    try:
        return os.readlink(path)
    except OSError:
        return None


def find_linked(directory: Path, steps: Iterable[int]) -> frozenset[int]:
    """Return the steps of a run that stand behind a symlink, of some."""
    return frozenset(s for s in steps if os.path.islink(f"{directory}/{names.final_name(s)}"))


def warn_of_dangling(path: Path, dangling: Sequence[str]) -> None:
    """Warn of links in a staged checkpoint that lead to nothing, named by their paths below it."""
    more = f" and {len(dangling) - 1} more" if len(dangling) > 1 else ""
    warnings.warn(
        f"{path / dangling[0]}{more} leads to {paths.read_link(path / dangling[0])}, which is not "
        "there: the checkpoint will count as damaged. Make the link relative, or copy the file."
    )

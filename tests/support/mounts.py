"""File systems that a test mounts for itself, and files that nobody may remove."""

import gc
import subprocess
from contextlib import contextmanager

import pytest
from tests.support import requirements


@contextmanager
def mounted(path, *options):
    """Mount a file system at a path; skip where that is not allowed.

    Args:
        path: The directory; created when missing.
        options: Arguments of ``mount`` before the directory.
    """
    requirements.skip_without_root()
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, path], check=False, capture_output=True, text=True)
    if done.returncode:
        requirements.skip(requirements.MOUNTING, done.stderr)
    try:
        yield path
    finally:
        gc.collect()  # an exception may keep what was opened below
        if subprocess.run(["umount", path], check=False).returncode:
            subprocess.run(["umount", "--lazy", path], check=True)
            pytest.fail("a file of the mounted directory is still open")


def small_disk(path, size):
    """Mount a file system of a size in memory, for example ``3m``."""
    return mounted(path, "-t", "tmpfs", "-o", f"size={size}", "ckptdb-test")


@contextmanager
def immutable(file, *, below):
    """Forbid everybody to change or remove a file; skip where that is not possible.

    Args:
        file: The file; a deletion may move it.
        below: A directory that holds it before and afterwards.
    """
    requirements.skip_without_root()
    try:
        done = subprocess.run(["chattr", "+i", file], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        requirements.skip(requirements.CHATTR)
    if done.returncode:
        requirements.skip(requirements.NO_IMMUTABLE, done.stderr)
    try:
        yield
    finally:
        subprocess.run(["chattr", "-R", "-i", below], check=True)

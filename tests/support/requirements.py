"""Requirements of tests: what a machine may lack, and the line that says how to get it.

A mark skips a test where its requirement is missing. `Missing` are reasons that an installation
or a user with more rights removes: ``.ci/run`` fails on them. `OF_THE_MACHINE` are those that a
kernel or a file system decides: ``.ci/run`` lists and allows them.
"""

import functools
import os
import shutil
import subprocess

import pytest

ROOT = "needs root: run pytest as root, for example in a container"
COMPILER = "needs a C compiler: apt-get install gcc libc6-dev"
CHROMIUM = "needs Chromium: apt-get install chromium"
POSTGRES = "needs PostgreSQL: pip install pgserver, which has wheels up to Python 3.12 on x86-64"
STRACE = "needs strace: apt-get install strace"
SQLITE_SHELL = "needs the shell of SQLite: apt-get install sqlite3"
MKFS = "needs mkfs.ext4 and mkfs.xfs: apt-get install e2fsprogs xfsprogs"
BTRFS = "needs mkfs.btrfs: apt-get install btrfs-progs"
CHATTR = "needs chattr: apt-get install e2fsprogs"

TRACING = "the kernel allows no tracing"
NAMESPACES = "the kernel allows no namespaces: try a container with --privileged"
MOUNTING = "the kernel allows no mounting: try a container with --privileged"
SHARED = "the temporary directory is on a file system of several machines"
NO_ACLS = "the file system has no ACLs"
NO_EXCHANGE = "the file system cannot exchange two names"
NO_IMMUTABLE = "the file system has no immutable files"
ONLY_UTF8 = "the file system accepts only names in UTF-8"
NO_OPEN_FILES = "the system does not list open files"
OLD_SQLITE = "this SQLite cannot create the table"
OF_THE_MACHINE = (
    TRACING, NAMESPACES, MOUNTING, SHARED, NO_ACLS, NO_EXCHANGE, NO_IMMUTABLE, ONLY_UTF8,
    NO_OPEN_FILES, OLD_SQLITE,
)  # fmt: skip
"""Reasons that nobody can remove by installing something."""


def find_compiler():
    """Return the path of a C compiler, or None."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def find_chromium():
    """Return the path of the system's Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def skip(reason, said=""):
    """Skip the running test for one of the reasons above, and quote what the system said."""
    pytest.skip(f"{reason} ({said.strip()})" if said else reason)


def skip_without_root():
    """Skip the running test unless the process is root's."""
    if os.geteuid() != 0:
        skip(ROOT)


def skip_without(command, reason):
    """Skip the running test unless a command is installed."""
    if shutil.which(command) is None:
        skip(reason)


def _needs(found, reason):
    return pytest.mark.skipif(not found, reason=reason)


@functools.cache
def _why_no_tracing():
    if shutil.which("strace") is None:
        return STRACE
    return None if _works("strace", "-f", "-o", os.devnull, "true") else TRACING


@functools.cache
def _why_no_namespaces():
    if os.geteuid() != 0:
        return ROOT
    kinds = ("--pid", "--fork", "--mount-proc", "--mount", "--uts")
    return None if _works("unshare", *kinds, "true") else NAMESPACES


def _works(*command):
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


needs_root = _needs(os.geteuid() == 0, ROOT)
needs_compiler = _needs(find_compiler(), COMPILER)
needs_sqlite_shell = _needs(shutil.which("sqlite3"), SQLITE_SHELL)
needs_strace = _needs(_why_no_tracing() is None, str(_why_no_tracing()))
needs_namespaces = _needs(_why_no_namespaces() is None, str(_why_no_namespaces()))

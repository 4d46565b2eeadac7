"""Other users of this machine, who can all reach a port of 127.0.0.1."""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_FIRST_PERSON: Final = 500 if sys.platform == "darwin" else 1000
"""Lower numbers are of the system and its services."""

_NOBODY: Final = (65534, 2**32 - 2)
_NO_SHELLS: Final = ("nologin", "false", "sync", "true")


def why_shared() -> str | None:
    """Return the sign that others use this machine; None when there is none.

    In doubt the machine is shared: a directory service does not list all of its accounts.
    """
    try:
        accounts = pwd.getpwall()
        is_local = _is_local(pwd.getpwuid(os.geteuid()).pw_name)
    except (OSError, KeyError):
        return "who may log in to this machine is not known"
    if (name := find_account(accounts, os.geteuid())) is not None:
        return f"{name} may log in to this machine"
    if not is_local:
        return "the accounts of this machine come from a network"
    uid = find_person(_owners_of_processes(), os.geteuid())
    return None if uid is None else f"a process of user {uid} runs on this machine"


def find_account(accounts: Iterable[pwd.struct_passwd], mine: int) -> str | None:
    """Return an account of another person that has a shell, None when there is none."""
    for account in accounts:
        if find_person([account.pw_uid], mine) is not None and _has_shell(account):
            return account.pw_name
    return None


def find_person(uids: Iterable[int], mine: int) -> int | None:
    """Return a number of a person that is not mine, None when there is none."""
    others = (uid for uid in uids if uid >= _FIRST_PERSON and uid not in _NOBODY)
    return next((uid for uid in others if uid != mine), None)


def _has_shell(account: pwd.struct_passwd) -> bool:
    return os.path.basename(account.pw_shell) not in _NO_SHELLS


def _is_local(name: str) -> bool:
    if sys.platform == "darwin":
        return True  # its file of accounts is not the place where they are
    lines = Path("/etc/passwd").read_text("utf-8", "replace").splitlines()
    return any(line.startswith(f"{name}:") for line in lines)


def _owners_of_processes() -> Iterator[int]:
    try:
        entries = list(os.scandir("/proc"))
    except OSError:
        return  # not Linux, where the accounts are all there is to see
    for entry in entries:
        if entry.name.isdecimal():
            try:
                yield entry.stat().st_uid
            except OSError:
                continue  # it has ended

"""Checkpoints that show by themselves whether they are whole: one token in every file."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from ckptdb.disk import names

METRIC = "loss"
FILES = ("weights.bin", "optimizer/state.bin")


class Half(Exception):  # what it is, not an error of ours
    """A directory's files are not those of one save."""


class Missing(FileNotFoundError):
    """There is no such name."""


class Emptied(FileNotFoundError):
    """Files went while they were read, out of a directory that had lost its name by then."""


def content(token: str, name: str) -> bytes:
    """Return what a file of the save with that token holds; its length depends on the token."""
    line = f"{token} {name}\n"
    return line.encode() * (20 + zlib.crc32(line.encode()) % 200)


def write(folder: Path, token: str) -> None:
    """Write a payload, unflushed, as a training loop does."""
    for name in FILES:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content(token, name))


def read(folder: Path) -> str:
    """Read one directory, whatever its name is by now; return its token.

    Raises:
        Half: It is not whole.
        Missing: There is no such name.
        Emptied: It was being removed.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        raise Missing(str(error)) from error
    try:
        return _read(handle)
    except FileNotFoundError as error:
        if _still_has_name(handle, folder):
            raise Half(f"{error.filename} is missing") from error
        raise Emptied(str(error.filename)) from error
    finally:
        os.close(handle)


def _read(handle: int) -> str:
    try:
        token = str(json.loads(_bytes(handle, names.INFO))["token"])
    except (ValueError, KeyError) as error:
        raise Half(f"{names.INFO}: {error!r}") from error
    for name in FILES:
        check(name, _bytes(handle, name), token)
    return token


def check(name: str, found: bytes, token: str) -> None:
    """Compare a file with what that save wrote.

    Raises:
        Half: It differs.
    """
    if found != content(token, name):
        raise Half(f"{name} is not that of {token}: {len(found)} bytes, {found[:40]!r}")


def _bytes(handle: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY, dir_fd=handle)
    with open(file, "rb") as opened:
        return opened.read()


def _still_has_name(handle: int, folder: Path) -> bool:
    try:
        return os.stat(folder).st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False

"""Libraries that only an extra of the package installs."""

from __future__ import annotations

from importlib.util import find_spec

from ckptdb.errors import LibraryMissing


def require(command: str, extra: str, *libraries: str) -> None:
    """Raise `LibraryMissing` unless the libraries that a command needs are installed."""
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        raise LibraryMissing(f"`ckptdb {command}`", " and ".join(missing), f"ckptdb[{extra}]")

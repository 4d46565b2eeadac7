"""Compiling the shim (shim.c), starting Python with it, and telling it where to strike."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MUTATING, READING, LOCKING, GROWING = 1, 2, 4, 8
NOTHING, KILL, FAIL, SHORT, STOP = range(5)

_SOURCE = Path(__file__).with_name("shim.c")


def scratch() -> Path:
    """Return where the laboratory works: in memory, when the machine has such a place."""
    memory = Path("/dev/shm")
    return memory if memory.is_dir() and os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


@functools.cache
def build() -> Path:
    """Compile the shim unless that has been done; return the library.

    Raises:
        RuntimeError: There is no C compiler.
    """
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    library = Path(tempfile.gettempdir()) / f"ckptdb-shim-{os.getuid()}-{digest}.so"
    if library.exists():
        return library
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise RuntimeError("The laboratory needs a C compiler: install gcc or clang.")
    unfinished = library.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-Wall", "-Wno-nonnull-compare",
         "-o", str(unfinished), str(_SOURCE), "-ldl", "-lpthread"],
        check=True,
    )  # fmt: skip
    return unfinished.replace(library)


def environment() -> dict[str, str]:
    """Return the environment of a process that is to have the shim."""
    return {**os.environ, "LD_PRELOAD": str(build()), "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True, slots=True)
class Strike:
    """What the shim does in this process.

    Attributes:
        action: `NOTHING` (count), `KILL`, `FAIL`, `SHORT` or `STOP`.
        at: Before which operation, from 1.
        code: The errno of a failure.
        persistent: All later operations too.
        classes: Which operations are counted: `MUTATING`, `READING`, `LOCKING`, or only `GROWING`,
            what of the first needs space.
        trace: A file descriptor for what succeeded, or -1.
        no_exchange: Names cannot be exchanged, nor renamed without replacing, as on NFS.
    """

    action: int = NOTHING
    at: int = 0
    code: int = 0
    persistent: bool = False
    classes: int = MUTATING
    trace: int = -1
    no_exchange: bool = False


class Armed:
    """The shim while it stands over a directory."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @property
    def struck(self) -> int:
        """How often it has struck."""
        return int(self._library.lab_struck())

    @property
    def counted(self) -> int:
        """How many operations there were."""
        return int(self._library.lab_counted())

    def mark(self, name: str) -> None:
        """Put a line into the trace."""
        self._library.lab_mark(name.encode())

    def stop(self) -> None:
        """Let everything pass from now on."""
        self._library.lab_end()


@contextmanager
def armed(root: Path, strike: Strike) -> Iterator[Armed]:
    """Watch over ``root`` in this process, which `environment` was started with."""
    library = _library()
    library.lab_begin(
        os.fsencode(root), strike.action, strike.at, strike.code, strike.persistent,
        strike.classes, strike.trace, strike.no_exchange,
    )  # fmt: skip
    try:
        yield Armed(library)
    finally:
        library.lab_end()


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    if not hasattr(library, "lab_begin"):
        raise RuntimeError("This process was started without the shim; use shim.environment().")
    number = ctypes.c_int
    library.lab_begin.argtypes = [
        ctypes.c_char_p, number, ctypes.c_long, number, number, number, number, number,
    ]  # fmt: skip
    library.lab_begin.restype = None
    library.lab_mark.argtypes = [ctypes.c_char_p]
    library.lab_mark.restype = None
    for name in ("lab_end", "lab_struck", "lab_counted"):
        getattr(library, name).argtypes = []
        getattr(library, name).restype = ctypes.c_long
    return library

"""Processes as recorded in files, and whether they are alive: proven, or not known.

A writer, a trainer and an evaluator leave a note of which process they are. Whoever reads one may
be elsewhere: on another machine of the same name, or in another container of this one, where the
same number is another process. So a process counts as dead only where it could be seen: in the same
boot and the same PID namespace, with its number gone or somebody else's by now.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from ckptdb.core.text import is_storable

Life = Literal["alive", "dead", "unknown"]
"""State of a process: ``dead`` only when that is proven."""

_ENDED: Final = -1
"""For the start time of a process that is dead and has not been waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process, told apart from any that had its pid before or gets it later.

    Attributes:
        started: Start time in clock ticks after boot; tells a reused pid apart.
        boot: Id of the machine's boot; a pid means nothing after the next one.
        namespace: Inode of the PID namespace in which the pid means something.
    """

    host: str
    pid: int
    started: int | None
    boot: str | None
    namespace: int | None = None

    @property
    def is_here(self) -> bool:
        """True if this process could see it: same machine, same boot, same PID namespace."""
        return (
            self.host == socket.gethostname()
            and self.boot is not None
            and self.boot == _boot()
            and self.namespace is not None
            and self.namespace == _namespace()
        )

    @property
    def is_of_this_boot(self) -> bool:
        """True if it ran on this machine since its last boot, perhaps in another container."""
        return self.boot is not None and self.boot == _boot()

    @property
    def is_me(self) -> bool:
        """True for the calling process."""
        mine = this_process()
        return all(getattr(self, name) == mine[name] for name in mine)

    @property
    def life(self) -> Life:
        """State of the process, as far as its pid shows."""
        if self.is_me:
            return "alive"
        if not self.is_here:
            return "unknown"
        if not _exists(self.pid):
            return "dead"
        started = _started(self.pid)
        if started is None or self.started is None:
            # Hidden, as with hidepid: it may have gone, and its number be another one's by now.
            return "unknown"
        return "alive" if started == self.started else "dead"


def this_process() -> dict[str, Any]:
    """Return what a `Process` is made of, for the calling one."""
    return {"host": socket.gethostname(), **_born(os.getpid())}


@lru_cache(1)
def _born(pid: int) -> dict[str, Any]:
    return {"pid": pid, "started": _started(pid), "boot": _boot(), "namespace": _namespace()}


os.register_at_fork(after_in_child=_born.cache_clear)


def parse_process(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a `Process` is made of, out of what a file says.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It says no such thing.
    """
    namespace = content.get("namespace")
    return {
        "host": str(content["host"]),
        "pid": _pid(content["pid"]),
        "started": None if content["started"] is None else int(content["started"]),
        "boot": content["boot"] if _is_text(content["boot"]) else None,
        "namespace": None if namespace is None else int(namespace),
    }


def parse_text(value: Any) -> str:
    """Return a text as it is.

    Raises:
        ValueError: It is none, or none that a database can hold.
    """
    if not _is_text(value):
        raise ValueError(value)
    return str(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and is_storable(value)


def _pid(value: Any) -> int:
    # 0 and below mean groups of processes to the kernel.
    pid = int(value)
    if not 0 < pid < 2**31:
        raise ValueError(value)
    return pid


def _exists(pid: int) -> bool:
    # What /proc hides from this user, this call does not: it says that it may not.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _started(pid: int) -> int | None:
    """Return when a process started, `_ENDED` when it has ended, None when that cannot be seen."""
    name = "self" if pid == os.getpid() else str(pid)
    try:
        # In a /proc that is mounted for another namespace the number is another process.
        if name != "self" and os.readlink("/proc/self") != str(os.getpid()):
            return None
        # The command's name is in parentheses and may hold anything, spaces included.
        line = Path(f"/proc/{name}/stat").read_text(encoding="utf-8", errors="replace")
        fields = line.rpartition(")")[2].split()
        state, threads, started = fields[0], int(fields[17]), int(fields[19])
    except (OSError, IndexError, ValueError):
        return None
    # A zombie is dead, only its parent has not asked yet how it ended; but not as long as another
    # of its threads is still in the middle of something.
    return _ENDED if state == "Z" and threads <= 1 else started


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None


def _namespace() -> int | None:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None

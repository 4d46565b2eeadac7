"""A process that ends together with the power of the disk it works on."""

from __future__ import annotations

import itertools
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from lab.mounts import Disk
from lab.report import Row

Told = dict[str, Any]
"""What a process has said before it ended."""
Tell = Callable[..., None]
Work = Callable[[Tell], None]


def cut(
    disk: Disk, row: Row, where: str, work: Work, *, foreign: bool, after_told: int = 0
) -> list[Told] | None:
    """Do something that stops in the middle, or comes to its end; cut the power; mount again.

    Args:
        disk: Where it is done; its power is cut.
        row: Where it is counted.
        where: For people, should it not be struck.
        work: It has the shim, armed to stop the process somewhere.
        foreign: Somebody else flushes a file of his own just before the cut.
        after_told: It is stopped as soon as it has told so much, unless by the shim before.

    Returns:
        What was told; None when the power was not cut.
    """

    def to_the_end(tell: Tell) -> None:
        number = itertools.count(1)

        def tell_and_stop(**line: Any) -> None:
            tell(**line)
            if next(number) == after_told:
                os.kill(os.getpid(), signal.SIGSTOP)

        work(tell_and_stop)
        # Nothing has stopped it: then at its end.
        os.kill(os.getpid(), signal.SIGSTOP)

    row.points += 1
    status, told = in_child(to_the_end, lambda: disk.cut(foreign=foreign))
    struck = status == signal.SIGKILL and disk.is_cut()
    disk.unmount()
    disk.mount()
    if not struck:
        row.failures.append(f"{where}: the power was not cut, wait status {status}")
        return None
    row.struck += 1
    return told


def in_child(work: Work, when_stopped: Callable[[], None] | None = None) -> tuple[int, list[Told]]:
    """Run ``work`` in a forked process; return its wait status and what it told.

    Args:
        work: Gets a function that sends a line of keywords.
        when_stopped: Called when the process stops itself, before it is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _end_with(lambda: work(lambda **line: _send(writing, line)))
    os.close(writing)
    status = os.waitpid(child, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        # All its threads stand still: between its last change and the cut there is nothing.
        if when_stopped is not None:
            when_stopped()
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    with os.fdopen(reading) as lines:
        return status, [json.loads(line) for line in lines]


def _send(handle: int, line: Told) -> None:
    os.write(handle, json.dumps(line).encode() + b"\n")


def _end_with(work: Callable[[], None]) -> None:
    status = 70
    try:
        work()
        status = 0
    except Exception:  # noqa: BLE001  # whatever it is, it is to be read by a person
        traceback.print_exc()
    finally:
        os._exit(status)

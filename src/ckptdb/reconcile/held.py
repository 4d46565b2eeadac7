"""What is done to a run while nobody else of ours changes it."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ckptdb.disk import durable, identity, journal
from ckptdb.disk.journal import Fact
from ckptdb.disk.lock import run_lock
from ckptdb.reconcile.plan import Action
from ckptdb.records import Checkpoint, utc

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a run's lock, where there is one and it can be taken.

    Raises:
        RunLocked: Somebody else keeps it.
    """
    hidden = identity.hidden(directory)
    with ExitStack() as stack:
        # Without the folder nobody of ours changes the run, and looking must not create it.
        if durable.is_folder(hidden):
            try:
                stack.enter_context(run_lock(hidden))
            except OSError as error:
                # Somebody else's run, or a read-only mount: what we see is all we can know.
                if error.errno not in _READ_ONLY:
                    raise
        yield


def bury(
    directory: Path, vanished: Sequence[Action], back: Sequence[Action], *, touch_disk: bool
) -> list[Checkpoint]:
    """Write to the journal what vanished and what came back; return how the former ended.

    Raises:
        OSError: It cannot be written.
    """
    if not vanished and not back:
        return []
    at, reason = utc(time.time()), "vanished: not on disk any more"
    found = [
        replace(
            checkpoint,
            status="deleted",
            deleted_at=checkpoint.deleted_at or at,
            deleted_reason=checkpoint.deleted_reason or reason,
            path=directory / f"step_{checkpoint.step}",
        )
        for checkpoint in (action.checkpoint for action in vanished)
        if checkpoint
    ]
    facts = [
        journal.gone(end, "vanished", end.deleted_reason or reason, end.deleted_at or at)
        for end in found
    ]
    facts += [Fact(at, "reappeared", action.uuid) for action in back if action.uuid]
    if touch_disk:
        journal.append(identity.hidden(directory), facts, make_durable=True)
    return found

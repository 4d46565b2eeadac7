"""Two processes that meet where it matters most; each function says what came out wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ckptdb.core.facts import Fact
from ckptdb.disk import journal, lock, manifest
from ckptdb.disk.evaluator import Evaluator
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import CkptdbError, RunInUse, StepInUse
from lab import loop

_STEP = 10


def judged_then_replaced(run: Path) -> str | None:
    """A checkpoint is judged, and replaced before it goes."""
    old = _uuid(run)
    new = _save(run)
    Publisher(run).retire([Deletion(_STEP, old, "judged")])
    return None if _uuid(run) == new else "what took the place of what was judged is gone"


def replaced_by_hand(run: Path) -> str | None:
    """Somebody without our lock puts another in its place while its record is written."""
    old, real = _uuid(run), journal.append

    def append(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        listed = json.loads((run / "step_10" / "manifest.json").read_bytes())
        listed["uuid"] = "00000000-0000-4000-8000-000000000000"
        (run / "step_10" / "manifest.json").write_text(json.dumps(listed))

    with patch.object(journal, "append", append):
        Publisher(run).retire([Deletion(_STEP, old, "judged")])
    return None if (run / "step_10").exists() else "what was put there by hand is gone"


def published_by_another(run: Path) -> str | None:
    """Another process comes between manifest and name, publishes, and saves once more."""
    publisher, real = Publisher(run), Publisher._seal
    path = _stage(publisher, 20)

    def seal(self: Publisher, *arguments: Any) -> Any:
        sealed = real(self, *arguments)
        Publisher(run).adopt(path)
        return sealed

    with patch.object(Publisher, "_seal", seal):
        try:
            publisher.publish(path)
        except CkptdbError as error:
            return f"it is published, and was refused: {error!r}"
    return None


def replaced_while_retired(run: Path) -> str | None:
    """One replaces what another is just moving into the trash."""
    real, told = Publisher._to_trash, list[str]()

    def meanwhile() -> str:
        with patch.object(Publisher, "_to_trash", real):
            return _save(run)

    def to_trash(self: Publisher, *arguments: Any, **options: Any) -> Any:
        told.append(_tell(meanwhile))
        return real(self, *arguments, **options)

    with (
        patch.object(lock, "TIMEOUT_SECONDS", 0.02),
        patch.object(Publisher, "_to_trash", to_trash),
    ):
        Publisher(run).retire([Deletion(_STEP, _uuid(run), "judged")])
    if told[0] and not (run / "step_10").exists():
        return "what was saved meanwhile is gone"
    return None


def two_trainers(run: Path) -> str | None:
    """A second trainer begins to save."""
    held = Publisher(run).lock_trainer()

    def second() -> str:
        try:
            Publisher(run).lock_trainer()
        except RunInUse:
            return ""
        return "claimed"

    wrong = "two trainers save into one run" if _tell(second) else None
    del held
    return wrong


def saved_by_two(run: Path) -> str | None:
    """A process begins a save that another has begun and is alive."""
    path = _stage(Publisher(run), 20)

    def second() -> str:
        try:
            _stage(Publisher(run), 20)
        except StepInUse:
            return ""
        return "staged"

    if _tell(second) or not path.exists():
        return "a save that is being written was thrown away"
    return None


def pinned_replaced_emptied(run: Path) -> str | None:
    """A pinned checkpoint is replaced, and somebody empties the trash."""
    old = _uuid(run)
    Publisher(run).record([Fact("2026-01-01T00:00:00Z", "pin", old)])
    _save(run)
    Publisher(run).empty_trash()
    left = any(old in entry.name for entry in (run / ".ckptdb" / "trash").iterdir())
    return None if left else "the bytes of a pinned checkpoint are gone"


def judged_then_leased(run: Path) -> str | None:
    """A checkpoint is judged, and an evaluator leases it before it goes."""
    judged = Deletion(_STEP, _uuid(run), "judged")
    turn = Evaluator(run, "mmlu").take(_STEP, judged.uuid)
    Publisher(run).retire([judged])
    left = (run / f"step_{_STEP}").exists()
    if turn is not None:
        turn.give_up()
    return None if turn and left else "a checkpoint that is being evaluated is gone"


def leased_replaced_emptied(run: Path) -> str | None:
    """A leased checkpoint is replaced, and somebody empties the trash."""
    old = _uuid(run)
    turn = Evaluator(run, "mmlu").take(_STEP, old)
    _save(run)
    Publisher(run).empty_trash()
    left = any(old in entry.name for entry in (run / ".ckptdb" / "trash").iterdir())
    if turn is not None:
        turn.give_up()
    return None if turn and left else "the bytes of what is being evaluated are gone"


def _uuid(run: Path) -> str:
    listed = manifest.find(run / f"step_{_STEP}")
    return listed.uuid if listed else ""


def _stage(publisher: Publisher, step: int) -> Path:
    path = publisher.stage(step, b'{"loss": 0.1}', None).checkpoint.path
    (path / "weights.bin").write_bytes(b"weights")
    return path


def _save(run: Path) -> str:
    publisher = Publisher(run)
    return publisher.publish(_stage(publisher, _STEP)).checkpoint.uuid


def _tell(work: Callable[[], str]) -> str:
    """Return what another process says; nothing when it was refused."""
    reading, writing = os.pipe()

    def say() -> None:
        with suppress(CkptdbError):
            os.write(writing, work().encode())

    loop.in_child(say)
    os.close(writing)
    with os.fdopen(reading) as answer:
        return answer.read()

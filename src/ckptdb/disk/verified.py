"""verified.json: when the checkpoints of a run were last verified.

A note to ourselves, so that verifying can go on where it stopped. Losing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from ckptdb.disk import fsutil
from ckptdb.disk.json_file import load_json
from ckptdb.errors import UnreadableInfo

VerifyDepth = Literal["sizes", "contents"]
DEPTHS: tuple[VerifyDepth, ...] = get_args(VerifyDepth)
_NAME = "verified.json"


@dataclass(slots=True)
class StoppedAt:
    """Files that were not verified for lack of time.

    Attributes:
        at: When one of them was read last.
        files: Their names; the one that was read last comes last.
    """

    at: str
    files: list[str]


@dataclass(slots=True)
class Verified:
    """Verifications of a run, to one depth.

    Attributes:
        at: Time of the last verification, by uuid.
        unfinished: Files already done of a checkpoint whose verification was stopped, by uuid.
        stopped: Files of a checkpoint that were not read to their end, by uuid.
    """

    at: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, list[str]] = field(default_factory=dict)
    stopped: dict[str, StoppedAt] = field(default_factory=dict)


def load(hidden: Path, depth: VerifyDepth, *, now: str) -> Verified:
    """Read what was noted; nothing where that is none of ours, or of the future.

    Args:
        hidden: The run's ``.ckptdb`` folder.
        depth: Depth of the verifications.
        now: The time; what is later was noted by another clock.
    """
    content = _load(hidden).get(depth)
    at, unfinished, stopped = (_mapping(content, key) for key in ("at", "unfinished", "stopped"))
    return Verified(
        {uuid: moment for uuid, moment in at.items() if _is_time(moment) and moment <= now},
        {uuid: list(map(str, done)) for uuid, done in unfinished.items() if isinstance(done, list)},
        {uuid: one for uuid, text in stopped.items() if (one := _stopped(text, now)) is not None},
    )


def store(hidden: Path, depth: VerifyDepth, verified: Verified, *, of: Container[str]) -> None:
    """Note it, in one step, for the checkpoints that there are.

    Raises:
        OSError: It cannot be noted, which only makes the next verification begin anew.
    """
    content = _load(hidden) | {
        depth: {
            "at": {uuid: at for uuid, at in verified.at.items() if uuid in of},
            "unfinished": {uuid: done for uuid, done in verified.unfinished.items() if uuid in of},
            "stopped": {uuid: asdict(one) for uuid, one in verified.stopped.items() if uuid in of},
        }
    }
    fsutil.write_json(hidden / _NAME, content, durable=False)


def _load(hidden: Path) -> dict[str, Any]:
    try:
        return load_json(hidden / _NAME)[0]
    except UnreadableInfo:
        return {}


def _mapping(content: object, key: str) -> Mapping[str, Any]:
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _stopped(content: object, now: str) -> StoppedAt | None:
    files = content.get("files") if isinstance(content, dict) else None
    at = content.get("at") if isinstance(content, dict) else None
    if not isinstance(files, list) or not isinstance(at, str) or not _is_time(at) or at > now:
        return None
    return StoppedAt(at, list(map(str, files)))


def _is_time(text: object) -> bool:
    if not isinstance(text, str) or not text.endswith("Z"):
        return False
    with suppress(ValueError):
        return datetime.fromisoformat(text).tzinfo is not None
    return False

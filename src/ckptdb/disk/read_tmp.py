"""Records of ``tmp_step_N`` directories, and what becomes of an unfinished save."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ckptdb.core.metrics import metrics_of
from ckptdb.core.observed import Identity, Manifest, Tmp
from ckptdb.core.records import Checkpoint
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    json_file,
    json_values,
    liveness,
    manifest,
    names,
    paths,
    training_info,
    writer,
)
from ckptdb.disk.read_checkpoint import derive_uuid
from ckptdb.errors import UnreadableInfo


def load_tmp(who: Identity, path: Path, step: int, *, may_touch: bool = False) -> Tmp:
    """Read one ``tmp_step_N``; size and count are unknown while it is being written.

    Args:
        who: The run.
        path: The directory.
        step: Its step.
        may_touch: For its age, see `fs_clock.find_time`.
    """
    by = writer.find(path)
    raw, content = b"", dict[str, Any]()
    found: Manifest | None = None
    with suppress(UnreadableInfo):
        found = checkpoint_identity.find_manifest(path)
    readable = found
    try:
        content, raw = training_info.load_info(path)
    except UnreadableInfo as error:
        json_file.raise_if_unknown(error)
        found = None  # not to be published as it is
    if found and found.step != step:
        found = None
    published_uuid = derive_uuid(who, readable, step, raw)
    uuid = found.uuid if found else (by.uuid if by else derive_uuid(who, None, step, raw, "tmp"))
    created = found.created_at if found else (by.created_at if by else None)
    created_at = created or _created_at(path)
    checkpoint = as_staged(who, path, step, (uuid, created_at), content)
    life = liveness.find_life(path, by)
    fate = None if life == "alive" else _fate(who, path, step, found, published_uuid)
    blocked = found is not None and _is_taken(path.with_name(names.final_name(step)))
    abandoned = not (fate or blocked) and (
        life == "dead"
        or (
            life == "unknown"
            and liveness.is_untouched(path, identity.hidden(path.parent), may_touch=may_touch)
        )
    )
    return Tmp(checkpoint, published_uuid, found, by, fate, life, abandoned, blocked)


def _is_taken(final: Path) -> bool:
    status = paths.find_status(final)
    return status is not None and not stat.S_ISDIR(status.st_mode)


def as_staged(
    who: Identity, path: Path, step: int, born: tuple[str, str], content: Mapping[str, Any]
) -> Checkpoint:
    """Return the record of a ``tmp_step_N`` of which all is known; ``born``: uuid and when."""
    return Checkpoint(
        run_uuid=who.run.uuid,
        run=who.run.name,
        uuid=born[0],
        step=step,
        path=path,
        status="tmp",
        created_at=born[1],
        info=json_values.for_catalog(content),
        metrics=metrics_of(content),
    )


def find_staged(who: Identity, path: Path, step: int) -> Checkpoint | None:
    """Read a ``tmp_step_N`` that is as staging left it; None when it needs `load_tmp`."""
    by = writer.find(path)
    if by is None or fsutil.is_there(path / names.MANIFEST):
        return None
    try:
        content, _ = training_info.load_info(path)
    except UnreadableInfo as error:
        json_file.raise_if_unknown(error)
        return None
    return as_staged(who, path, step, (by.uuid, by.created_at), content)


def _created_at(path: Path) -> str:
    try:
        return utc(os.lstat(f"{path}/{names.INFO}").st_mtime)
    except FileNotFoundError:
        return utc(os.lstat(path).st_mtime)


def _fate(
    who: Identity, path: Path, step: int, found: Manifest | None, uuid: str
) -> Literal["publish", "trash"] | None:
    """Decide by ``manifest.replaces`` alone what becomes of a ``tmp_step_N`` without a writer."""
    final = path.with_name(names.final_name(step))
    current = checkpoint_identity.find_uuid(who, final, step)
    if current == uuid or (current is None and fsutil.is_there(final)):
        return None  # a copy made by hand, or a stranger has the name
    if found and current in (None, found.replaces):
        return "publish"
    try:
        published = manifest.find(final)
    except UnreadableInfo:
        return None
    # The exchange happened and the crash came before the old one was put away. That one may have
    # been NeMo-RL's, and have no manifest.
    return "trash" if published and published.replaces == uuid else None

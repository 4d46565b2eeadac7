"""Identity of a run (run.json).

A run's identity is the uuid in its run.json, as long as that file speaks of this very
directory (same inode). A copy made with ``cp -r``, and a run that ckptdb has never written
to, get a uuid derived from their path; the first write makes it permanent.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdb.core.observed import Identity
from ckptdb.core.ranking import Mode, RankedBy
from ckptdb.core.records import Run
from ckptdb.core.text import is_storable
from ckptdb.core.times import utc
from ckptdb.disk import (
    fsutil,
    names,
    paths,
)
from ckptdb.disk.json_file import parse_object, raise_if_unknown, read_regular
from ckptdb.errors import Obstructed, UnreadableInfo

# A random constant: it only has to differ from everybody else's.
_NAMESPACE = uuid.UUID("2f6a3c1e-8d0b-4b7e-9a54-6c1f0e7d2b93")
_RUN = "run.json"
_YOUNG_SECONDS = 2.0
_MOST_IDENTITIES = 1024
_MOST_BYTES = 1024 * 1024
"""Largest run.json that is read; usual are a few hundred bytes and the name of a metric."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A run.json that was read.

    Attributes:
        inode: Inode of the run's directory.
        seen: Inode, size and times of the file; None when it was too young to be compared later.
    """

    inode: int
    raw: bytes
    seen: tuple[int, ...] | None
    identity: Identity


_read_before: dict[Path, _Read] = {}
"""Parsed run.json by directory."""


def hidden(directory: Path) -> Path:
    """Return the folder where ckptdb keeps what is not a checkpoint."""
    return directory / names.HIDDEN


def identify(directory: Path) -> Identity:
    """Tell which run a directory is; writes nothing.

    Raises:
        OSError: The directory, or its run.json, cannot be read now.
    """
    inode = paths.find_stat(directory).st_ino
    file = paths.find_status(f"{directory}/{names.HIDDEN}/{_RUN}")
    if file is None:
        unknown = _unknown(directory)
        return Identity(unknown, unknown.uuid, recorded=False, marked=False)
    # It is only ever replaced, never written to.
    seen = (file.st_ino, file.st_size, file.st_mtime_ns, file.st_ctime_ns)
    before = _read_before.get(directory)
    if before is not None and before.inode == inode and before.seen == seen:
        return before.identity
    path = hidden(directory) / _RUN
    try:
        raw = read_regular(path, _MOST_BYTES)
        if before is not None and before.inode == inode and before.raw == raw:
            found = before.identity
        else:
            found = _parse(directory, inode, parse_object(path, raw))
    except UnreadableInfo as error:
        raise_if_unknown(error)
        if isinstance(error.__cause__, Obstructed) and error.__cause__.filename != str(path):
            raise error.__cause__ from None  # it is the whole folder that is none of ours
        return _untrusted(directory, str(error))
    is_settled = time.time() - file.st_ctime > _YOUNG_SECONDS
    if found.recorded and (before is None or is_settled or before.identity is not found):
        if len(_read_before) >= _MOST_IDENTITIES:
            _read_before.clear()
        _read_before[directory] = _Read(inode, raw, seen if is_settled else None, found)
    return found


def find(directory: Path) -> Identity | None:
    """Tell which run a directory is, None when there is no such directory; writes nothing.

    Raises:
        OSError: It cannot be read now.
    """
    try:
        # A file in its place is none; `identify` asks only for what is in it.
        return identify(directory) if stat.S_ISDIR(paths.find_stat(directory).st_mode) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _untrusted(directory: Path, problem: str) -> Identity:
    unknown = _unknown(directory)
    return Identity(unknown, unknown.uuid, recorded=False, marked=True, problem=problem)


def _parse(directory: Path, inode: int, content: Mapping[str, Any]) -> Identity:
    unknown = _unknown(directory)
    try:
        known = str(uuid.UUID(content["uuid"]))
    except (KeyError, ValueError, AttributeError, TypeError):
        return _untrusted(directory, f"{hidden(directory) / _RUN} has no uuid.")
    run = replace(
        unknown,
        uuid=known,
        created_at=_text(content.get("created_at")),
        metric_name=_text(content.get("metric_name")),
        higher_is_better=bool(content.get("higher_is_better")),
        forked_from=_text(content.get("forked_from")),
    )
    origin = _text(content.get("origin")) or known
    pruned_by = _ranked_by(content.get("pruned_by"))
    if content.get("inode") == inode:
        return Identity(run, origin, recorded=True, marked=True, pruned_by=pruned_by)
    copy = replace(run, uuid=_derive(f"{known}\0{directory}"), forked_from=known)
    return Identity(copy, origin, recorded=False, marked=True, pruned_by=pruned_by)


def _ranked_by(content: Any) -> RankedBy | None:
    if not isinstance(content, Mapping):
        return None
    metric = _text(content.get("metric_name"))
    mode: Mode = "max" if content.get("higher_is_better") else "min"
    return RankedBy() if metric is None else RankedBy(metric, mode)


def find_direction(directory: Path, metric: str) -> bool | None:
    """Return whether higher is better, when a run is recorded as judged by that metric."""
    try:
        run = identify(Path(os.path.abspath(directory))).run
    except OSError:
        return None
    return run.higher_is_better if run.metric_name == metric else None


def _unknown(directory: Path) -> Run:
    # The name is for people and databases; the directory keeps bytes that are no text.
    name = os.fsencode(directory.name).decode(errors="replace")
    return Run(uuid=_derive(str(directory)), name=name, directory=directory)


def establish(
    directory: Path,
    *,
    metric_name: str | None,
    higher_is_better: bool,
    keep_metric: bool,
    make_durable: bool,
    first: bool = True,
    remember: bool = True,
) -> Identity:
    """Make a run's identity permanent; the caller holds the run's lock.

    Args:
        directory: The run; its ``.ckptdb`` folder exists.
        metric_name: The metric the run is judged by.
        higher_is_better: Direction of that metric.
        keep_metric: Leave metric and direction as they are when run.json has them.
        make_durable: Flush the file, so that it survives a power cut.
        first: This may be the first that anybody does here; otherwise an empty directory is a
            run that has lost its checkpoints.
        remember: When the metric is another one, by what the run was ranked until now.
    """
    found = identify(directory)
    keeps = keep_metric and found.marked
    metric = found.run.metric_name if keeps else metric_name
    higher = found.run.higher_is_better if keeps else higher_is_better
    run = replace(found.run, metric_name=metric, higher_is_better=higher)
    pruned_by = found.pruned_by if keeps else found.ranked_by if remember else None
    if pruned_by == run.ranked_by:
        pruned_by = None
    if found.recorded and (run, pruned_by) == (found.run, found.pruned_by):
        return found
    if found.problem:
        path = hidden(directory) / _RUN
        paths.replace(path, path.with_name(f"{_RUN}.broken-{uuid.uuid4()}"))
    # A fresh directory gets a random identity: another run may have lived at this path.
    fresh = first and not found.marked and not _has_checkpoints(directory)
    identity = str(uuid.uuid4()) if fresh else found.run.uuid
    origin = identity if fresh else found.origin
    _write(replace(run, uuid=identity), origin, pruned_by, make_durable=make_durable)
    return identify(directory)


def record_pruned_by(directory: Path, ranked_by: RankedBy, *, make_durable: bool) -> None:
    """Note by what a run was pruned; the caller holds the run's lock."""
    found = identify(directory)
    pruned_by = None if ranked_by == found.run.ranked_by else ranked_by
    if found.recorded and pruned_by != found.pruned_by:
        _write(found.run, found.origin, pruned_by, make_durable=make_durable)


def _write(run: Run, origin: str, pruned_by: RankedBy | None, *, make_durable: bool) -> None:
    content: dict[str, Any] = {
        "uuid": run.uuid,
        "name": run.name,
        "created_at": run.created_at or utc(time.time()),
        "metric_name": run.metric_name,
        "higher_is_better": run.higher_is_better,
        "forked_from": run.forked_from,
        "origin": origin,
        "inode": paths.find_stat(run.directory).st_ino,
    }
    if pruned_by is not None:
        higher = pruned_by.mode == "max"
        content["pruned_by"] = {"metric_name": pruned_by.metric, "higher_is_better": higher}
    fsutil.write_json(hidden(run.directory) / _RUN, content, durable=make_durable)


def derive_checkpoint_uuid(*facts: object) -> str:
    """Return the uuid of a checkpoint that has none of its own: the same for the same facts."""
    return _derive("\0".join(map(str, facts)))


def _derive(text: str) -> str:
    # Paths may hold bytes that are no UTF-8; Python 3.11 hashes only text.
    return str(uuid.uuid5(_NAMESPACE, os.fsencode(text).decode("latin-1")))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and is_storable(value) else None


def _has_checkpoints(directory: Path) -> bool:
    found = paths.list_names(directory)
    return any(
        names.find_final_step(name) is not None or names.find_tmp_step(name) is not None
        for name in found
    )

"""What is left after a fault, compared with what must be true."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ckptdb import Registry
from ckptdb.catalog.catalog import Catalog
from lab import loop
from lab.dump import dump_catalog
from lab.ledger import METRIC, Ledger

Kind = Literal["lost", "half_visible", "not_recovered"]
Answers = tuple[str | None, str | None]
Way = Literal["question", "reconcile"]
"""How a run is recovered: by the next question of a manager, or by reconciling the root."""


@dataclass(slots=True)
class Verdict:
    """What was found wrong; empty when all is well."""

    found: list[tuple[Kind, str]] = field(default_factory=list)
    tokens: dict[tuple[int, int, int], str | None] = field(default_factory=dict)
    """What a directory held when it was read; a published one never changes."""

    def say(self, kind: Kind, what: str) -> None:
        """Record one thing that is wrong."""
        self.found.append((kind, what))

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Record an exception in what has to work now."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            self.say("not_recovered", f"{what}: {error!r} at {place.filename}:{place.lineno}")


_DELETING = 0o5700


def published(run: Path) -> dict[int, Path]:
    """Return every ``step_N`` by step, but for what its mode says is being deleted."""
    if not run.is_dir():
        return {}
    with os.scandir(run) as listing:
        found = [entry for entry in listing if entry.is_dir(follow_symlinks=False)]
    steps = [entry for entry in found if entry.name.startswith("step_")]
    return {
        int(entry.name[5:]): run / entry.name
        for entry in steps
        if stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode) != _DELETING
    }


def whole_token(folder: Path, *, many: bool) -> str | None:
    """Return the one token that all files of a checkpoint hold, None when it is not whole."""

    def read(name: str) -> bytes:
        with open(f"{folder}/{name}", "rb") as file:
            return file.read()

    return token_of(read, many=many)


def token_of(read: Callable[[str], bytes], *, many: bool) -> str | None:
    """Return the token of a checkpoint whose files are read like this, None when not whole."""
    try:
        token = json.loads(read("training_info.json"))["token"]
        payload = loop.payload(token, many=many)
        listed = json.loads(read("manifest.json"))["files"]
        sizes = {name: len(read(name)) for name in listed}
        whole = all(read(name) == content for name, content in payload.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(token) if whole and sizes == listed and payload.keys() <= sizes.keys() else None


def known_as(step: int, folder: Path) -> tuple[int, int, int]:
    """Return what a directory that has been read is known by."""
    status = os.lstat(folder)
    return step, status.st_ino, status.st_mtime_ns


def check_names(verdict: Verdict, run: Path, *, many: bool) -> dict[int, str]:
    """Check that every published name is whole; return the tokens by step."""
    live: dict[int, str] = {}
    for step, folder in published(run).items():
        key = known_as(step, folder)
        if key not in verdict.tokens:
            verdict.tokens[key] = whole_token(folder, many=many)
        token = verdict.tokens[key]
        if token is None:
            verdict.say("half_visible", f"{folder.name} is not whole")
        else:
            live[step] = token
    return live


def recover(verdict: Verdict, root: Path, way: Way) -> Answers | None:
    """Do what the first one does who comes after the fault; return what a manager answers."""
    with verdict.doing(f"recovering by {way}"), loop.quiet():
        if way == "question":
            manager = loop.open_manager(root)
            answers = (manager.get_best_checkpoint_path(), manager.get_latest_checkpoint_path())
            manager.shutdown()
            return answers
        with Registry.open(root) as registry:
            report = registry.reconcile()
        if report.blocked:
            verdict.say("not_recovered", f"reconcile is blocked: {report.blocked}")
    return None


@dataclass(frozen=True, slots=True)
class Indexed:
    """What the catalog file says of one checkpoint, read without any help of ckptdb."""

    step: int
    token: str
    status: str
    reason: str | None
    pinned: bool
    late: float | None


_ROWS = """
    SELECT c.step, json_extract(c.info, '$.token'), c.status, c.deleted_reason, c.pinned,
        (SELECT m.value FROM metrics m WHERE m.checkpoint_id = c.id AND m.name = ?
         AND m.source <> 'training_info')
    FROM checkpoints c WHERE c.status <> 'tmp'
"""


def read_index(root: Path) -> list[Indexed]:
    """Return every row of the run that is not a ``tmp``, from the catalog's file."""
    with closing(sqlite3.connect(root / ".ckptdb" / "catalog.db")) as connection:
        return _indexed(connection.execute(_ROWS, (METRIC,)).fetchall())


def rows_of(catalog: Catalog) -> list[Indexed]:
    """Return the same of a catalog that is open."""
    with catalog.database.read() as connection:
        return _indexed(connection.exec_driver_sql(_ROWS, (METRIC,)).fetchall())


def _indexed(rows: Sequence[Sequence[Any]]) -> list[Indexed]:
    return [Indexed(s, str(t), status, r, bool(p), late) for s, t, status, r, p, late in rows]


def check_facts(
    verdict: Verdict, root: Path, before: Ledger, after: Ledger, *, many: bool,
    answers: Answers | None = None, rows: Sequence[Indexed] | None = None,
) -> None:  # fmt: skip
    """Compare disk and index with what is acknowledged.

    Args:
        before: What is acknowledged for certain.
        after: What holds if the interrupted operation counts; the same when there is none.
        answers: What a manager has said is the best and the latest.
        rows: What the index says; read from the catalog's file when None.
    """
    live = check_names(verdict, root / loop.RUN, many=many)
    _check_live(verdict, live, before, after)
    with verdict.doing("reading the index"):
        rows = read_index(root) if rows is None else rows
        indexed = {row.step: row.token for row in rows if row.status == "final"}
        if indexed != live:
            verdict.say("not_recovered", f"the index says {indexed}, the disk {live}")
        ends = {row.token: row.reason or "" for row in rows if row.status == "deleted"}
        _check_gone(verdict, ends, live, before, after)
        pinned = {row.token for row in rows if row.pinned}
        late = {row.token: row.late for row in rows if row.late is not None}
        _check_annotations(verdict, pinned, late, before, after)
        if answers is not None:
            values = {**before.values, **after.values}
            _check_ranking(verdict, root / loop.RUN, live, {**values, **late}, answers)


def _check_live(verdict: Verdict, live: Mapping[int, str], before: Ledger, after: Ledger) -> None:
    for step in sorted({*live, *before.live, *after.live}):
        allowed = {before.live.get(step), after.live.get(step)}
        if live.get(step) not in allowed:
            kind: Kind = "lost" if step in before.live else "not_recovered"
            verdict.say(
                kind, f"step {step} is {live.get(step)}, not one of {sorted(map(str, allowed))}"
            )


def _check_gone(
    verdict: Verdict,
    ends: Mapping[str, str],
    live: Mapping[int, str],
    before: Ledger,
    after: Ledger,
) -> None:
    # One that is being undeleted may be back.
    back = set(live.values()) & set(after.live.values())
    for token, end in before.gone.items():
        if token not in ends and token not in back:
            verdict.say("lost", f"that {token} was {end} is not recorded")
    for token, reason in ends.items():
        # A save that was interrupted may be recorded as discarded by whoever makes room.
        begun = token in after.values and token not in before.values
        if token not in before.gone and token not in after.gone and not begun:
            verdict.say("not_recovered", f"{token} is recorded as {reason!r}")
        if token in live.values():
            verdict.say("not_recovered", f"{token} is live and recorded as {reason!r}")
        if not reason:
            verdict.say("not_recovered", f"{token} went for no reason")
    replaced = set(before.live.values()) - set(live.values())
    for token in replaced - set(ends):
        verdict.say("lost", f"{token} is neither live nor recorded as gone")


def _check_annotations(
    verdict: Verdict, pinned: set[str], late: Mapping[str, float],
    before: Ledger, after: Ledger,
) -> None:  # fmt: skip
    if not before.pinned <= pinned <= after.pinned | before.pinned:
        verdict.say("lost", f"pinned are {sorted(pinned)}, not {sorted(before.pinned)}")
    for token, value in before.late.items():
        if late.get(token) != value:
            verdict.say("lost", f"the late metric of {token} is {late.get(token)}, not {value}")
    if not set(late) <= set(before.late) | set(after.late):
        verdict.say("not_recovered", f"late metrics of {sorted(late)}")


def _check_ranking(
    verdict: Verdict, run: Path, live: Mapping[int, str], scores: Mapping[str, float],
    answers: Answers,
) -> None:  # fmt: skip
    known = [step for step, token in live.items() if token in scores]
    best = min(known, key=lambda step: (scores[live[step]], -step), default=None)
    latest = max(known, default=None)
    expected = tuple(None if s is None else str(run / f"step_{s}") for s in (best, latest))
    if answers != expected:
        verdict.say("not_recovered", f"best and latest are {answers}, not {expected}")


def check_rest(verdict: Verdict, root: Path) -> None:
    """Check that nothing is left to do, and that the index can be made again from the files."""
    with verdict.doing("reconciling"), loop.quiet():
        with Registry.open(root) as registry:
            registry.reconcile()
        with Registry.open(root) as registry:
            again = registry.reconcile(dry_run=True)
        if again.has_changes or again.blocked:
            verdict.say("not_recovered", f"a second reconcile finds {again.as_dict()}")
        catalog = root / ".ckptdb" / "catalog.db"
        first = dump_catalog(catalog)
        catalog.unlink()
        with Registry.open(root) as registry:
            registry.reconcile()
        second = dump_catalog(catalog)
        for table, lines in first.items():
            if lines != second[table]:
                different = set(lines) ^ set(second[table])
                verdict.say("not_recovered", f"rebuilt, {table} differ: {sorted(different)[:4]}")


def check_life(verdict: Verdict, root: Path, *, many: bool) -> None:
    """Check that training goes on: save, replace, prune."""
    with verdict.doing("going on"), loop.quiet():
        live = check_names(verdict, root / loop.RUN, many=many)
        step = max(live, default=0)
        manager = loop.open_manager(root)
        for number, at in enumerate((step, step + 1000)):
            token = f"afterwards-{number}"
            with manager.save(at, {METRIC: 0.001 * (number + 1), "token": token}) as folder:
                loop.write_payload(folder, token, many=many)
        manager.keep_top_k = 1
        manager.remove_old_checkpoints()
        manager.shutdown()
        kept = check_names(verdict, root / loop.RUN, many=many)
        if (kept.get(step), kept.get(step + 1000)) != ("afterwards-0", "afterwards-1"):
            verdict.say("not_recovered", f"after two more saves there is {kept}")

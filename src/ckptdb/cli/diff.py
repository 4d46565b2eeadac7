"""Two checkpoints side by side: diff."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from ckptdb.cli.ask import Session, run_option
from ckptdb.cli.output import echo_json, output_option, print_table, say
from ckptdb.compare import Difference, FileChange, MetricChange
from ckptdb.records import Checkpoint
from ckptdb.shown import number
from ckptdb.units import human_bytes

_LONGEST_VALUE = 60


@click.command()
@click.argument("a")
@click.argument("b")
@run_option
@output_option("table", "json")
@click.pass_obj
def diff(session: Session, a: str, b: str, run: str | None, form: str) -> None:
    """Show how checkpoint B differs from A: metrics, configuration, files, by what matters.

    A and B are STEP, RUN:STEP, or the path of a checkpoint, which may lie anywhere.
    """
    with session.open() as registry:
        found = registry.diff(_from(session, a), _from(session, b), run=run)
    if form == "json":
        echo_json(found.as_dict())
        return
    for index, (title, rows) in enumerate(_sections(found)):
        if index:
            say()
        say(title)
        if rows:
            print_table([""] * len(rows[0]), rows)


COMMANDS = (diff,)


def _from(session: Session, text: str) -> str:
    path = Path(session.directory, text)
    return str(path) if not text.isdigit() and path.is_dir() else text


def _sections(found: Difference) -> Iterator[tuple[str, Sequence[Sequence[str]]]]:
    size = f"{human_bytes(found.a.size_bytes)} → {human_bytes(found.b.size_bytes)}"
    yield f"{_name(found.a)} → {_name(found.b)}, {size}", ()
    if found.metrics:
        yield "metrics", [_metric(change) for change in found.metrics]
    else:
        yield "metrics: no difference", ()
    if found.config is None:
        yield f"config: not known of {_lacking(found, ('config.yaml',))}", ()
    elif found.config:
        rows = [
            [f"  {c.key}", _value(c.a, c.kind == "added"), "→", _value(c.b, c.kind == "removed")]
            for c in found.config
        ]
        yield "config", rows
    else:
        yield "config: no difference", ()
    if found.files is None:
        yield f"files: not known of {_lacking(found, ())}", ()
    elif found.files:
        yield "files", [_file(change) for change in found.files]
    else:
        yield "files: no difference in names and sizes", ()


def _name(checkpoint: Checkpoint) -> str:
    gone = "" if checkpoint.status == "final" else f" ({checkpoint.status})"
    return f"{checkpoint.run}:{checkpoint.step}{gone}"


def _lacking(found: Difference, files: tuple[str, ...]) -> str:
    lacking = [
        _name(checkpoint)
        for checkpoint in (found.a, found.b)
        if not checkpoint.path.is_dir()
        or (files and not any((checkpoint.path / name).exists() for name in files))
    ]
    return " and ".join(lacking)


def _metric(change: MetricChange) -> list[str]:
    relative = change.relative
    if relative is None:
        how = "added" if change.a is None else "removed"
    else:
        how = f"{relative:+.1%}" if math.isfinite(relative) else ""
    return [f"  {change.name}", number(change.a) or "-", "→", number(change.b) or "-", how]


def _file(change: FileChange) -> list[str]:
    grown = change.grown_bytes
    how = change.kind if change.kind != "changed" else ""
    sign = "+" if grown > 0 else "-"
    return [
        f"  {change.path}", human_bytes(change.a) or "-", "→", human_bytes(change.b) or "-",
        f"{sign}{human_bytes(abs(grown))}", how,
    ]  # fmt: skip


def _value(value: Any, absent: bool) -> str:  # noqa: FBT001  # of which side it is
    if absent:
        return "-"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"

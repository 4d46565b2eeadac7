"""The command diff."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import takewhile

import click

from ckptdb.cli.formats import echo_json, print_table
from ckptdb.cli.options import Session, output_option, run_option
from ckptdb.cli.printing import say
from ckptdb.core.compare import (
    ConfigChange,
    Difference,
    FileChange,
    MetricChange,
)
from ckptdb.core.records import Checkpoint
from ckptdb.core.text import number
from ckptdb.core.units import human_bytes

_LONGEST_VALUE = 60
_BEFORE = 20
"""Characters printed before the first difference of two long texts."""


@click.command()
@click.argument("a")
@click.argument("b")
@run_option
@output_option("table", "json")
@click.pass_obj
def diff(session: Session, a: str, b: str, run: str | None, form: str) -> None:
    """Print how checkpoint B differs from A.

    Compared are metrics, configuration and files. A and B are STEP, RUN:STEP, or the path of a
    checkpoint, which may lie anywhere.
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
    path = os.path.join(session.directory, text)
    # Unlike a Path, this accepts a name that is too long for the file system.
    return path if not text.isdigit() and os.path.isdir(path) else text


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
        yield "config", [_config(change) for change in found.config]
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
    a, b = _number(change.a), _number(change.b)
    if a == b and change.kind == "changed":
        a, b = repr(change.a), repr(change.b)
    if change.kind == "added":
        a = "-"
    if change.kind == "removed":
        b = "-"
    return [f"  {change.name}", a, "→", b, _how(change)]


def _number(value: float | None) -> str:
    return "not finite" if value is None else number(value)


def _how(change: MetricChange) -> str:
    if change.kind != "changed":
        return change.kind
    relative = change.relative
    return f"{relative:+.1%}" if relative is not None and math.isfinite(relative) else ""


def _config(change: ConfigChange) -> list[str]:
    texts = [json.dumps(value, ensure_ascii=False) for value in (change.a, change.b)]
    begin = _begin(*texts) if change.kind == "changed" else 0
    a = "-" if change.kind == "added" else _window(texts[0], begin)
    b = "-" if change.kind == "removed" else _window(texts[1], begin)
    return [f"  {change.key}", a, "→", b]


def _begin(a: str, b: str) -> int:
    """Return the index from which to print two texts, so that the first difference is seen."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    first = sum(1 for _ in alike)
    return 0 if first < _LONGEST_VALUE - _BEFORE else first - _BEFORE


def _window(text: str, begin: int) -> str:
    excerpt = f"…{text[begin:]}" if begin else text
    return excerpt if len(excerpt) <= _LONGEST_VALUE else f"{excerpt[: _LONGEST_VALUE - 1]}…"


def _file(change: FileChange) -> list[str]:
    grown = change.grown_bytes
    how = change.kind if change.kind != "changed" else ""
    sign = "+" if grown > 0 else "-"
    return [
        f"  {change.path}", human_bytes(change.a) or "-", "→", human_bytes(change.b) or "-",
        f"{sign}{human_bytes(abs(grown))}", how,
    ]  # fmt: skip

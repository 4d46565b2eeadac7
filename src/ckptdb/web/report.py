"""The page as HTML: one template, its style and script, and the data that the script draws.

A report carries everything inside one file; a served page asks its server for the scripts.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup

from ckptdb.core.records import Run
from ckptdb.core.text import clean, copyable, number
from ckptdb.core.times import seconds
from ckptdb.core.units import human_bytes
from ckptdb.web.snapshot import Point, RunSnapshot, Snapshot

SCRIPT: Final = "page.js"
STYLE: Final = "page.css"
PLOTLY: Final = "plotly.min.js"
ASSETS: Final = (SCRIPT, STYLE, PLOTLY)

_LETTERS: Final = {"final": "f", "deleted": "d", "tmp": "t"}
# In a script element even JSON must not hold what ends it, and U+2028 ends a line of a script.
_ESCAPES: Final = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_report(snapshot: Snapshot) -> str:
    """Return the whole report as HTML that needs no other file and no network."""
    scripts = (read(SCRIPT), read(PLOTLY))
    policy = (
        f"default-src 'none'; script-src {' '.join(map(script_hash, scripts))}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _render(
        snapshot,
        policy=policy,
        style=Markup(read(STYLE)),  # noqa: S704  # ours
        script=Markup(read(SCRIPT)),  # noqa: S704  # ours
        plotly=base64.b64encode(packed(PLOTLY)).decode(),
    )


def render_page(snapshot: Snapshot, *, assets: str, tables: str) -> str:
    """Return the page as a server sends it.

    Args:
        snapshot: The content.
        assets: Address of `SCRIPT`, `STYLE` and `PLOTLY` on the server.
        tables: Address of the tables.
    """
    addresses = {name: f"{assets}{name}?{script_hash(read(name))[8:16]}" for name in ASSETS}
    return _render(snapshot, assets=addresses, tables=tables)


@cache
def read(name: str) -> str:
    """Return the text of `SCRIPT`, `STYLE` or `PLOTLY`."""
    if name == PLOTLY:
        # Found without being imported: of the library only this file is wanted.
        spec = importlib.util.find_spec("plotly")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return (Path(spec.origin).parent / "package_data" / PLOTLY).read_text("utf-8")
    return (files("ckptdb.web") / "static" / name).read_text("utf-8")


@cache
def packed(name: str) -> bytes:
    """Return the same as gzip, which every browser unpacks."""
    # Without a time in it, so that the same catalog gives the same report.
    return gzip.compress(read(name).encode(), 6, mtime=0)


_INEXACT: Final = 2**53
"""First whole number that a script cannot represent exactly; from here on it gets texts."""


def embed_json(content: object) -> Markup:
    """Return JSON that is safe inside a script element."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Markup(text.translate(_ESCAPES))  # noqa: S704  # that is what has just been escaped


def drawn(snapshot: Snapshot) -> Mapping[str, Any]:
    """Return the data of the script, in columns: a name is written once, not at every point."""
    return {
        "metrics": [clean(name) for name in snapshot.metrics],
        "directions": [_direction(snapshot, name) for name in snapshot.metrics],
        "runs": [_drawn_run(run, snapshot.metrics) for run in snapshot.runs],
        "saves": {
            "every": snapshot.saves_every_seconds,
            "since": [_milliseconds(saves.since) for saves in snapshot.saves],
            "kept": [saves.kept for saves in snapshot.saves],
            "deleted": [saves.deleted for saves in snapshot.saves],
        },
    }


def _drawn_run(run: RunSnapshot, metrics: Sequence[str]) -> Mapping[str, Any]:
    points = run.points
    columns = [[point.metrics.get(name) for point in points] for name in metrics]
    own = run.run.metric_name
    return {
        "label": clean(run.label),
        "metric": metrics.index(own) if own in metrics else None,
        "mode": run.run.mode,
        "bytes": run.bytes_on_disk,
        "final": run.final,
        "total": run.total,
        "active": _milliseconds(run.last_activity or "") or 0,
        "step": [point.step if point.step < _INEXACT else str(point.step) for point in points],
        "at": [_milliseconds(point.at) for point in points],
        "status": "".join(_LETTERS[point.status] for point in points),
        "size": [point.size_bytes for point in points],
        "value": [column if any(v is not None for v in column) else None for column in columns],
        "best": _index(points, run.best),
        "latest": _index(points, run.latest),
        "note": {str(i): note for i, point in enumerate(points) if (note := _note(point))},
        **_paths(run),
    }


def _paths(run: RunSnapshot) -> Mapping[str, Any]:
    """Return the paths of the points: only the directory, when each is named after its step."""
    names = {"final": "step_{}", "deleted": "step_{}", "tmp": "tmp_step_{}"}
    directory = run.run.directory
    plain = str(directory).isprintable() and all(
        point.path == directory / names[point.status].format(point.step) for point in run.points
    )
    if plain:
        return {"directory": str(directory)}
    return {"paths": [[clean(point.path), copyable(point.path)] for point in run.points]}


def _note(point: Point) -> str:
    return " · ".join(
        [
            *(["pinned"] if point.pinned else []),
            *([clean(point.reason)] if point.reason else []),
            *([f"problem: {clean(point.problem)}"] if point.problem else []),
        ]
    )


def _direction(snapshot: Snapshot, metric: str) -> str:
    """Return which direction is better, by the runs whose own metric it is."""
    modes = {run.run.mode for run in snapshot.runs if run.run.metric_name == metric}
    if len(modes) > 1:
        return "some runs want it low, some high"
    return {frozenset({"min"}): "lower is better", frozenset({"max"}): "higher is better"}.get(
        frozenset(modes), ""
    )


def _index(points: Sequence[Point], point: Point | None) -> int | None:
    return next((i for i, other in enumerate(points) if other is point), None)


def _milliseconds(at: str) -> int | None:
    timestamp = seconds(at)
    return None if timestamp is None else int(timestamp * 1000)


def script_hash(script: str) -> str:
    """Return the source expression of a script for a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _render(snapshot: Snapshot, **more: Any) -> str:
    data = embed_json(drawn(snapshot))
    return _template().render(snapshot=snapshot, data=data, version=version("ckptdb"), **more)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("ckptdb.web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "clean": clean,
        "copyable": copyable,
        "bytes": human_bytes,
        "number": number,
        "short_time": _short_time,
        "short": _short,
        "better": _better,
    }
    return environment.get_template("page.html")


def _short_time(at: str | None) -> str:
    return clean(at)[:16].replace("T", " ")


def _short(path: Path, where: str) -> str:
    """Return a path without the prefix that all paths of the page share."""
    text = clean(path)
    return text.removeprefix(f"{clean(where)}/")


def _better(run: Run) -> str:
    return "higher is better" if run.higher_is_better else "lower is better"

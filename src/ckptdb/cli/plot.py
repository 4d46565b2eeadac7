"""The command plot: curves of a metric, drawn on the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import click

from ckptdb.cli.formats import print_table
from ckptdb.cli.options import Session, metric_argument, mode_option
from ckptdb.cli.printing import echo_drawing, get_width, is_coloured, say
from ckptdb.core.downsample import downsample
from ckptdb.core.ranking import Mode, rank_key
from ckptdb.core.records import Curve
from ckptdb.core.text import clean, number
from ckptdb.core.times import seconds
from ckptdb.errors import LibraryMissing

Axis = Literal["step", "time"]

_COLOURS: Final = (32, 208, 36, 175, 117, 220, 160)
"""Among the 256 of a terminal; chosen for people with colour blindness, too."""
_DOTS: Final = "●■▲◆"
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FINE: Final = "braille"
_COARSE: Final = "·"
_FEW: Final = 12
"""Curves that can be told apart; for more of them fine lines cost time for nothing."""
_TICKS: Final = 5
_HEIGHTS: Final = 7
_LARGE: Final = 1e7
_HUGE: Final = 1e200
_DOWN: Final = 2.0**-400
"""A power of two: what is multiplied by it keeps its digits."""
_SMALL: Final = 1e-4
_HOUR: Final = 3600.0
_SEASON: Final = 60 * 24 * _HOUR
_HIGHEST: Final = 24
_WIDEST: Final = 200
_POINTS: Final = 4_000
"""Points of all lines together; more would cost time and show nothing."""


@dataclass(frozen=True, slots=True)
class PlotStyle:
    """Appearance of a curve: its colour and the sign of its dots."""

    dot: str
    colour: int | None


@click.command()
@metric_argument
@click.option("--run", "runs", metavar="RUN", multiple=True, help="Only this run; may be repeated.")
@click.option(
    "--x",
    "axis",
    type=click.Choice(["step", "time"]),
    default="step",
    show_default=True,
    help="Unit of the horizontal axis.",
)
@mode_option
@click.pass_obj
def plot(
    session: Session, metric: str | None, runs: tuple[str, ...], axis: Axis, mode: Mode | None
) -> None:
    """Draw METRIC over the steps of each run at or below here.

    Deleted checkpoints are included. Large dots are checkpoints on disk. METRIC defaults to the
    runs' own metric.
    """
    with session.open() as registry:
        name, curves = registry.curves(metric, runs=runs, mode=mode)
    looks = [look(index, coloured=is_coloured()) for index in range(len(curves))]
    echo_drawing(draw(name, curves, looks, axis, columns=min(get_width(otherwise=80), _WIDEST)))
    say()
    _print_legend(curves, looks)


COMMANDS = (plot,)


def look(index: int, *, coloured: bool) -> PlotStyle:
    """Return the appearance of a curve by its index."""
    if not coloured:
        return PlotStyle(_LETTERS[index % len(_LETTERS)], None)
    row, colour = divmod(index, len(_COLOURS))
    return PlotStyle(_DOTS[row % len(_DOTS)], _COLOURS[colour])


def draw(
    name: str, curves: Sequence[Curve], looks: Sequence[PlotStyle], axis: Axis, *, columns: int
) -> str:
    """Return the drawing as lines of text, with escapes for colour only where there is one."""
    canvas = _canvas()
    rows = min(_HIGHEST, max(shutil.get_terminal_size().lines - 8, 10))
    canvas.clear_figure()
    canvas.theme("clear")
    canvas.plot_size(columns, rows)
    canvas.title(clean(name))
    known = [list(_points(curve, axis)) for curve in curves]
    first = min((x for points in known for x, *_ in points), default=0)
    heights = [y for points in known for _, y, _ in points]
    scale = _scale(heights)
    # Large steps differ by less than a float resolves; their distance to the first does not.
    drawn_points = [
        [(float(x - first), y * scale, here) for x, y, here in points] for points in known
    ]
    line = _FINE if len(curves) <= _FEW else _COARSE
    room = max(min(_POINTS // len(curves), 2 * columns), 20)
    for points, style in zip(drawn_points, looks, strict=True):
        seen = [points[i] for i in downsample([y for _, y, _ in points], room)]
        colour = style.colour if style.colour is not None else "default"
        canvas.plot([x for x, *_ in seen], [y for _, y, _ in seen], marker=line, color=colour)
    # After all lines, of which none may hide one.
    for points, style in zip(drawn_points, looks, strict=True):
        kept = [(x, y) for x, y, here in points if here]
        colour = style.colour if style.colour is not None else "default"
        if kept:
            canvas.scatter(
                [x for x, _ in kept], [y for _, y in kept], marker=style.dot, color=colour
            )
    ticks, labels = _ticks([x for points in known for x, *_ in points], axis)
    canvas.xticks([float(tick - first) for tick in ticks], labels)
    if _is_long(heights):
        ticks, labels = _short_ticks(heights)
        canvas.yticks([tick * scale for tick in ticks], labels)
    drawn = str(canvas.build())
    if looks[0].colour is None:
        drawn = canvas.uncolorize(drawn)
    return "\n".join(line.rstrip() for line in drawn.splitlines())


def _canvas() -> Any:
    try:
        import plotext  # type: ignore[import-untyped]
    except ImportError as error:
        raise LibraryMissing("`ckptdb plot`", "plotext", "ckptdb[plot]") from error
    return plotext


def _scale(values: Sequence[float]) -> float:
    """Return the factor for values that are drawn: their span must be a finite float."""
    return _DOWN if max(map(abs, values), default=0.0) > _HUGE else 1.0


def _points(curve: Curve, axis: Axis) -> Iterator[tuple[float, float, bool]]:
    """Yield x, y and whether the checkpoint is kept; on a time axis only those with a time."""
    xs = curve.steps if axis == "step" else map(seconds, curve.times)
    for x, value, kept in zip(xs, curve.values, curve.kept, strict=True):
        if x is not None:
            yield x, value, kept


def _ticks(values: Sequence[float], axis: Axis) -> tuple[list[float], list[str]]:
    """Return positions and labels on the horizontal axis: whole steps, and no label twice."""
    ticks = _whole(values, _TICKS) if axis == "step" else _spread(values, _TICKS)
    at: dict[str, float] = {}
    for tick, label in zip(ticks, _labels(ticks, axis), strict=True):
        at.setdefault(label, tick)
    return list(at.values()), list(at)


def _is_long(values: Sequence[float]) -> bool:
    """Tell whether full labels of the values would leave no room for curves."""
    largest = max(map(abs, values), default=0.0)
    return largest >= _LARGE or 0.0 < largest < _SMALL


def _short_ticks(values: Sequence[float]) -> tuple[list[float], list[str]]:
    """Return positions and labels on the axis of values; labels as short as they stay distinct."""
    ticks = sorted(set(_spread(values, _HEIGHTS)))
    labels: list[str] = []
    for digits in range(3, 18):
        labels = [f"{tick:.{digits}g}" for tick in ticks]
        if len(set(labels)) == len(ticks):
            break
    return ticks, labels


def _spread(values: Sequence[float], count: int) -> list[float]:
    """Return numbers from the lowest value to the highest one, evenly."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low == high:
        return [low] * count
    parts = (n / (count - 1) for n in range(count))
    return [low * (1 - part) + high * part for part in parts]


def _whole(values: Sequence[float], count: int) -> list[float]:
    """Return whole numbers from the lowest step to the highest one, evenly, as exact as those."""
    low, high = int(min(values, default=0)), int(max(values, default=1))
    parts = count - 1
    return [low + (2 * (high - low) * n + parts) // (2 * parts) for n in range(count)]


def _labels(ticks: Sequence[float], axis: Axis) -> list[str]:
    if axis == "step":
        return [str(tick) for tick in ticks]
    span = ticks[-1] - ticks[0]
    form = "%H:%M:%S" if span < _HOUR else "%m-%d %H:%M" if span < _SEASON else "%Y-%m-%d"
    return [datetime.fromtimestamp(tick, tz=UTC).strftime(form) for tick in ticks]


def _print_legend(curves: Sequence[Curve], looks: Sequence[PlotStyle]) -> None:
    ranked = any(curve.mode is not None for curve in curves)
    columns = ["", "run", *(["best", "at step"] if ranked else ["lowest", "highest"]),
               "latest", "at step", "kept", "deleted"]  # fmt: skip
    rows = (
        [look.dot, *_row(curve, ranked=ranked)] for look, curve in zip(looks, curves, strict=True)
    )
    print_table(columns, rows, first_colours=[look.colour for look in looks])


def _row(curve: Curve, *, ranked: bool) -> list[str]:
    known = zip(curve.values, curve.steps, curve.ranked, strict=True)
    trusted = [(value, step) for value, step, is_ranked in known if is_ranked]
    if not ranked:
        first, second = number(min(curve.values)), number(max(curve.values))
    else:
        first, second = _best(trusted, curve.mode)
    kept = sum(curve.kept)
    latest = (number(trusted[-1][0]), str(trusted[-1][1])) if trusted else ("", "")
    return [curve.run, first, second, *latest, str(kept), str(len(curve.kept) - kept)]


def _best(trusted: Sequence[tuple[float, int]], mode: Mode | None) -> tuple[str, str]:
    """Return value and step of the best trusted checkpoint."""
    if mode is None or not trusted:
        return "", ""
    value, step = min(trusted, key=lambda pair: rank_key(pair[0], pair[1], mode))
    return number(value), str(step)

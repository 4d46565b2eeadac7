"""Printing: sentences, errors, paths and drawings, on standard output and standard error.

Names, paths and reasons come from anybody's disk: characters that a terminal would obey are shown,
not sent.
"""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ckptdb.cli import terminal
from ckptdb.core.text import clean, copyable
from ckptdb.errors import CkptdbError, QueryFailed

if TYPE_CHECKING:
    from rich.console import Console

_UNWRAPPED_COLUMNS = 100_000
_ECHOED_CHARACTERS: Final = 1 << 18
"""Characters of a long answer that are written at a time."""


def console(*, stderr: bool = False, fold: bool = True) -> Console:
    """Return a console; without colour and line breaks where the output is no terminal.

    Args:
        stderr: For standard error.
        fold: Break lines at the width of the terminal.
    """
    from rich.console import Console  # only for tables and progress: a path needs no 25 ms

    stream = terminal.behind(sys.stderr if stderr else sys.stdout)
    is_terminal = stream.isatty()
    return Console(
        file=stream,
        highlight=False,
        no_color=bool(os.environ.get("NO_COLOR")) or not is_terminal,
        width=None if is_terminal and fold else _UNWRAPPED_COLUMNS,
        soft_wrap=False,
    )


def say(sentence: object = "", *, err: bool = False) -> None:
    """Print a line for people; characters that a terminal would obey are shown, not sent."""
    click.echo(clean(sentence), err=err)


def echo_error(error: CkptdbError, *, prefix: str = "") -> None:
    """Print the sentence of an error to standard error, and the place in a query."""
    say(f"{prefix}{error}", err=True)
    if isinstance(error, QueryFailed) and error.excerpt:
        for line in error.excerpt.splitlines():
            say(line, err=True)


def get_width(*, otherwise: int = 100) -> int:
    """Return the columns of the terminal; ``otherwise`` where output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else otherwise


def echo_traceback(error: BaseException) -> None:
    """Print the tracebacks of an error and its causes to standard error."""
    for line in _trace(error, set()):
        say(line, err=True)


def _trace(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    before = error.__cause__
    how = "The above exception was the direct cause of the following exception:"
    if before is None and not error.__suppress_context__:
        before = error.__context__
        how = "During handling of the above exception, another exception occurred:"
    if before is not None and id(before) not in seen:
        yield from _trace(before, seen)
        yield from ("", how, "")
    yield "Traceback (most recent call last):"
    for frame in traceback.format_tb(error.__traceback__):
        yield from frame.rstrip("\n").split("\n")
    yield f"{type(error).__qualname__}: {error}"
    yield from getattr(error, "__notes__", ())


def echo_path(path: object) -> None:
    """Print one path alone: byte for byte where a program reads it, so that a shell can use it.

    On a terminal, a path that a shell or the terminal would take for something else is quoted.
    """
    click.echo(_for_terminal(path) if sys.stdout.isatty() else os.fsencode(str(path)))


def echo_paths(paths: Iterable[object]) -> None:
    """Print paths, one a line; a path with a line break is quoted, as on a terminal."""
    for path in paths:
        if "\n" in str(path) and not sys.stdout.isatty():
            click.echo(copyable(Path(str(path))))
        else:
            echo_path(path)


def _for_terminal(path: object) -> str:
    # Where letters are not UTF-8, copying them from a terminal would give another name.
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    return copyable(Path(str(path)), only_ascii=encoding != "utf-8")


def echo_bytes(content: bytes) -> None:
    """Print a document as it is."""
    click.echo(content, nl=False)


_UNIVERSAL: Final = frozenset({"utf-8", "utf-16", "utf-32", "gb18030"})
"""Encodings that lack no character."""
_PLAIN: Final = {
    **dict.fromkeys(map(ord, "┌┐└┘├┤┬┴┼"), "+"), ord("│"): "|", ord("─"): "-",
    **dict.fromkeys(map(ord, "●■▲◆"), "o"), **dict.fromkeys(range(0x2801, 0x2900), "."),
    0x2800: " ",
}  # fmt: skip
"""Replacements for the signs of a drawing in an encoding that lacks them."""


def echo_drawing(drawing: str) -> None:
    """Print lines of our own making, escapes for colour included.

    A character that the encoding lacks is replaced by one other, so that columns stay aligned.
    """
    encoding = codecs.lookup(sys.stdout.encoding or "utf-8").name
    if encoding not in _UNIVERSAL:
        drawing = drawing.translate(_PLAIN)
    if encoding not in (*_UNIVERSAL, "ascii"):  # click writes UTF-8 where the locale is ASCII
        drawing = drawing.encode(encoding, "replace").decode(encoding)
    with terminal.in_colour():
        click.echo(drawing)


def echo_parts(parts: Iterable[str]) -> None:
    """Print texts one after the other, many in one write."""
    waiting, length = list[str](), 0
    for part in parts:
        waiting.append(part)
        length += len(part)
        if length >= _ECHOED_CHARACTERS:
            click.echo("".join(waiting), nl=False)
            waiting, length = [], 0
    click.echo("".join(waiting), nl=False)


def echo_lines(lines: Iterable[str]) -> None:
    """Print lines of our own making, in which only escapes for colour reach a terminal."""
    with terminal.in_colour():
        for line in lines:
            click.echo(line)


def is_coloured() -> bool:
    """Tell whether standard output is a terminal and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

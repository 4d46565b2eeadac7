"""The progress bar of commands that look at many checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ckptdb.cli.printing import console
from ckptdb.core.text import clean


@contextmanager
def show_progress(what: str) -> Iterator[tuple[Callable[[Path], None], Callable[[], None]]]:
    """Yield what to call before each run and after each checkpoint."""
    if not sys.stderr.isatty():
        yield (lambda _: None), (lambda: None)
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.completed:,} checkpoints", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield (
            lambda run: bar.update(task, description=f"{what} {clean(run.name)}"),
            lambda: bar.advance(task),
        )

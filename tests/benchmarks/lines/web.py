"""The report as a process, and how long the page of a running server takes to begin."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.request import urlopen

from tests.benchmarks import large
from tests.benchmarks.results import Findings, Row, within
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians

_MOST_BYTES = 5_000_000


def measure(size: Size, scratch: Path) -> Findings:
    """Write the report and load the page of the same catalog."""
    root = scratch / "shown"
    root.mkdir()
    large.build(root, checkpoints=size.shown_runs * size.shown_each, runs=size.shown_runs)
    file = scratch / "report.html"
    command = [sys.executable, "-m", "ckptdb", "-C", str(root)]
    write = partial(
        subprocess.run, [*command, "report", "-o", file], check=True, stdout=subprocess.DEVNULL
    )
    turns = {"rounds": size.rounds, "seconds": size.seconds}
    written = medians({"report": Way(write)}, **turns)
    with _serving(command) as address:
        _load(address)  # what is made once, the templates above all, is not what is measured
        loaded = medians({"first byte": Way(partial(_first_byte, address))}, **turns)
        assert f'"total":{size.shown_each},' in _load(address)
    scale = f"{size.shown_runs} runs × {size.shown_each:,} checkpoints"
    size_bytes = file.stat().st_size
    shutil.rmtree(root)
    return Findings(
        rows=[
            within(f"report, {scale}", 3.0, written["report"], medians=written),
            _size(scale, size_bytes),
            within(f"page, first byte, {scale}", 1.5, loaded["first byte"], medians=loaded),
        ]
    )


def _size(scale: str, size_bytes: int) -> Row:
    return Row(
        what=f"size of the report, {scale}",
        target=f"≤ {_MOST_BYTES / 1e6:g} MB",
        measured=f"{size_bytes / 1e6:.3g} MB",
        verdict="met" if size_bytes <= _MOST_BYTES else "missed",
        medians={"report, bytes": size_bytes},
    )


@contextmanager
def _serving(command: list[str]) -> Iterator[str]:
    serve = [*command, "serve", "--port", "0", "--no-token"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _first_byte(address: str) -> None:
    with urlopen(address) as answer:
        answer.read(1)


def _load(address: str) -> str:
    with urlopen(address) as answer:
        return answer.read().decode()

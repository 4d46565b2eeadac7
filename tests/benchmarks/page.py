"""README.md of this folder: the table of the last whole run between two markers, and the plot."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy
from tests.benchmarks import plot, table
from tests.benchmarks.results import Row, Series
from tests.benchmarks.sizes import Size

PAGE = Path(__file__).with_name("README.md")
PLOT = Path(__file__).with_name("cost.svg")
_BEGIN = "<!-- what follows is written by `python -m tests.benchmarks --page` -->"
_END = "<!-- up to here -->"


def write(rows: Sequence[Row], series: Sequence[Series], size: Size, scratch: Path) -> None:
    """Put this run into the page."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    shown = f"{_machine(size, scratch)}\n\n{table.summary(rows)}\n\n{table.markdown(rows)}"
    PAGE.write_text(f"{before}{_BEGIN}\n\n{shown}\n\n{_END}{after}")
    plot.draw(series, PLOT)


def machine(scratch: Path) -> dict[str, str]:
    """Describe where and with what it was measured."""
    return {
        "date": datetime.now(tz=UTC).strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} × {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "file system": _file_system(scratch),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
        "load": f"{os.getloadavg()[1]:.1f}",
    }


def _machine(size: Size, scratch: Path) -> str:
    found = machine(scratch)
    return (
        f"{found['date']}, {size.name} size: {found['processor']}, {found['system']}, "
        f"{found['file system']}; Python {found['python']}, SQLite {found['sqlite']}, SQLAlchemy "
        f"{found['sqlalchemy']}. Load average {found['load']}."
    )


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(folder: Path) -> str:
    if sys.platform != "linux":
        return "local file system"
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().replace("ext2/ext3", "ext4") or "unknown file system"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []

"""Where something was measured, and with what."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy


def describe(scratch: Path) -> dict[str, str]:
    """Return what the numbers depend on; the load is that of the last five minutes."""
    return {
        "date": datetime.now(tz=UTC).strftime("%Y-%m-%d"),
        "processor": f"{os.cpu_count()} × {_processor()}",
        "system": f"{platform.system()} {platform.release()}",
        "file_system": _file_system(scratch),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
        "load": f"{os.getloadavg()[1]:.1f}",
    }


def sentence(found: Mapping[str, str], size: str) -> str:
    """Write it for people."""
    return (
        f"{found['date']}, {size} size: {found['processor']}, {found['system']}, "
        f"{found['file_system']}; Python {found['python']}, SQLite {found['sqlite']}, SQLAlchemy "
        f"{found['sqlalchemy']}. Load average at the beginning: {found['load']}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _file_system(folder: Path) -> str:
    if sys.platform != "linux":
        return "local file system"
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip().replace("ext2/ext3", "ext4") or "unknown file system"

"""Importing ckptdb, and asking it from a shell: fresh processes in turn."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.benchmarks import trees
from tests.benchmarks.results import Findings, at_most, duration
from tests.benchmarks.sizes import Size
from tests.benchmarks.timing import Way, medians

_KEPT = 100


def measure(size: Size, scratch: Path) -> Findings:
    """Start each process in turn; all of it is timed, the interpreter's own start too."""
    run = scratch / "asked"
    trees.write_run(run, _KEPT)
    trees.index(run)
    command = _command()
    asked = [*command, "-C", str(run), "latest"]
    shown = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    assert shown == f"{run / f'step_{_KEPT}'}\n", shown
    processes = {
        "nothing": [sys.executable, "-c", "pass"],
        "import sqlalchemy": [sys.executable, "-c", "import sqlalchemy"],
        "import ckptdb": [sys.executable, "-c", "import ckptdb"],
        "ckptdb latest": asked,
    }
    ways = {
        what: Way(partial(subprocess.run, process, check=True, stdout=subprocess.DEVNULL))
        for what, process in processes.items()
    }
    found = medians(ways, rounds=3 * size.rounds, seconds=2 * size.seconds, most=60)
    shutil.rmtree(run)
    least = found["import sqlalchemy"]
    rows = [
        at_most(
            f"{what} as a process, against import sqlalchemy", limit, found[what] / least,
            note=f"{duration(found[what])} against {duration(least)}; an interpreter alone "
            f"{duration(found['nothing'])}",
            medians=found,
        )
        for what, limit in (("import ckptdb", 1.25), ("ckptdb latest", 1.6))
    ]  # fmt: skip
    return Findings(rows=rows)


def _command() -> list[str]:
    script = Path(sys.executable).with_name("ckptdb")
    return [str(script)] if script.exists() else [sys.executable, "-m", "ckptdb"]

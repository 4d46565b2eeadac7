"""What is measured in a process of its own: its memory, its imports, its file system.

``python -m tests.benchmarks.child FUNCTION ARGUMENT…`` prints one JSON object.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TOP = Path(__file__).parents[2]


def call(
    function: str, *arguments: object, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Call ``module.function`` of this package in a fresh process; return what it returns.

    Raises:
        RuntimeError: It failed; with what it said.
    """
    command = [sys.executable, "-m", "tests.benchmarks.child", function, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=_TOP, env={**os.environ, **(environment or {})}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{function} failed: {done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Call what the arguments name."""
    module, _, name = sys.argv[1].rpartition(".")
    function = getattr(importlib.import_module(f"tests.benchmarks.{module}"), name)
    sys.stdout.write(json.dumps(function(*sys.argv[2:])) + "\n")


if __name__ == "__main__":
    main()

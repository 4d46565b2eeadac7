"""Run the fault laboratory: ``python tests/crash [--exhaustive]``; CONTRIBUTING.md tells more."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from lab import report, shim
from lab.report import NOT_TRIED, Row, Size

# The longest ones go first, so that no core is left waiting at the end.
HARNESSES = ("crowd", "kills", "faults", "power", "cuts", "mutations", "fuzz")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for, print the table, and return 1 when something does not hold."""
    options = _parse(argv)
    size: Size = options.size
    if options.shard:
        shard, shards = map(int, options.shard.split("/"))
        for row in _module(options.only[0]).run(size, options.seed, shard, shards):
            print(row.as_json(), flush=True)
        return 0
    started = time.monotonic()
    rows, broken, not_tried = _run_all(options.only or HARNESSES, size, options.seed, options.jobs)
    for failure in (line for row in rows if not row.is_control for line in row.failures):
        print(failure)
    print(f"\nSize {size}, seed {options.seed}, {time.monotonic() - started:.0f} s\n")
    print(report.table(rows))
    for row in rows:
        if row.notes:
            print(f"\n{report.details(row)}")
    for reason in not_tried:
        print(f"\n{NOT_TRIED.capitalize()}{reason}")
    wrong = [row.harness for row in rows if not row.holds] + broken + report.too_few(rows, size)
    if wrong:
        print(f"\nDoes not hold: {', '.join(wrong)}")
    return 1 if wrong else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/crash", description=__doc__)
    parser.add_argument("--exhaustive", action="store_const", dest="size", const="exhaustive")
    parser.add_argument("--smoke", action="store_const", dest="size", const="smoke")
    parser.add_argument("--only", action="append", choices=HARNESSES, default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    parser.set_defaults(size="ci")
    return parser.parse_args(argv)


def _run_all(
    chosen: Sequence[str], size: Size, seed: int, jobs: int
) -> tuple[list[Row], list[str], list[str]]:
    shim.build()
    tasks = [(name, i, n) for name in chosen for n in [_shards(name, jobs)] for i in range(n)]
    rows: list[Row] = []
    broken: list[str] = []
    not_tried: dict[str, None] = {}
    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(_run_shard, *task, size, seed): task[0] for task in tasks}
        for done in as_completed(pending):
            found, reasons, complaint = done.result()
            rows += found
            seconds = sum({row.seconds for row in found})
            print(f"{pending[done]}: a share done, {seconds:.0f} s", file=sys.stderr, flush=True)
            not_tried |= dict.fromkeys(reasons)
            if complaint or not (found or reasons):
                broken.append(pending[done])
                print(f"{pending[done]} broke: {complaint[-4000:]}", file=sys.stderr)
    order = {name: place for place, name in enumerate(chosen)}
    rows.sort(key=lambda row: (row.is_control, order.get(row.harness.split()[0], len(order))))
    return report.merged(rows), broken, list(not_tried)


def _shards(name: str, jobs: int) -> int:
    return 1 if getattr(_module(name), "ALONE", False) else 2 * jobs


def _run_shard(
    name: str, shard: int, shards: int, size: Size, seed: int
) -> tuple[list[Row], list[str], str]:
    command = [sys.executable, str(Path(__file__).parent), "--only", name, f"--seed={seed}"]
    command += [f"--shard={shard}/{shards}"] + ([] if size == "ci" else [f"--{size}"])
    done = subprocess.run(command, env=shim.environment(), capture_output=True, text=True,
                          check=False)  # fmt: skip
    rows = [Row.from_json(line) for line in done.stdout.splitlines() if line.startswith("{")]
    said = done.stderr.splitlines()
    reasons = [line.removeprefix(NOT_TRIED) for line in said if line.startswith(NOT_TRIED)]
    return rows, reasons, done.stderr if done.returncode else ""


def _module(name: str):
    return importlib.import_module(f"lab.{name}")


if __name__ == "__main__":
    sys.exit(main())

"""Measure ckptdb: ``python -m tests.benchmarks [--quick]``; README.md here tells more."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks import machine, page, plot, table
from tests.benchmarks.lines import ALL
from tests.benchmarks.report import Report
from tests.benchmarks.results import Findings, unmeasured
from tests.benchmarks.sizes import FULL, QUICK, Size

_BROKE = "it broke; what it said is above"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print the table; return 1 when something broke."""
    options = _parse(argv)
    report = Report.read(options.shown) if options.shown else _measure(options)
    print(f"{table.plain(report.rows)}\n\n{table.summary(report.rows)}")
    if options.json:
        report.write(options.json)
    try:
        if options.plot:
            plot.draw(report.series, options.plot)
        if options.page:
            page.write(report)
    except plot.NoPlot as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if any(row.note == _BROKE for row in report.rows) else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_const", dest="size", const=QUICK,
                        help="small sizes, below two minutes: for the counts")  # fmt: skip
    parser.add_argument("--only", action="append", choices=ALL, default=[], metavar="LINE",
                        help=f"one of {', '.join(ALL)}; may be repeated")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all medians")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw how cost grows (.svg, .png)"
    )
    parser.add_argument("--from", dest="shown", type=Path, metavar="FILE",
                        help="measure nothing; show what --json wrote")  # fmt: skip
    parser.add_argument("--page", action="store_true", help="write table and plot into README.md")
    parser.add_argument("--scratch", type=Path, metavar="DIR",
                        help="where to work, with 6 GB of space")  # fmt: skip
    parser.set_defaults(size=FULL)
    options = parser.parse_args(argv)
    if options.page and options.only:
        parser.error("--page shows all lines: leave out --only")
    return options


def _measure(options: argparse.Namespace) -> Report:
    scratch = Path(tempfile.mkdtemp(prefix="ckptdb-bench-", dir=options.scratch))
    try:
        found = machine.describe(scratch)
        names = options.only or list(ALL)
        with _compiled(scratch / "bytecode"):
            lines = {name: _try(name, options.size, scratch / name) for name in names}
        return Report(size=options.size.name, machine=found, lines=lines)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _compiled(folder: Path) -> Iterator[None]:
    """Have processes keep bytecode: pip compiles what it installs, and nobody a checkout."""
    before = dict(os.environ)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _try(name: str, size: Size, scratch: Path) -> Findings:
    started = time.monotonic()
    scratch.mkdir()
    try:
        return ALL[name](size, scratch)
    except Exception:  # noqa: BLE001  # the other lines can be measured all the same
        traceback.print_exc()
        return Findings(rows=[unmeasured(name, "", _BROKE)])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Measure ckptdb: ``python -m tests.benchmarks [--quick]``; README.md here tells more."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.benchmarks import page, plot, table
from tests.benchmarks.lines import ALL
from tests.benchmarks.results import Findings, unmeasured
from tests.benchmarks.sizes import FULL, QUICK, Size


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print the table; return 1 when something broke."""
    options = _parse(argv)
    scratch = Path(tempfile.mkdtemp(prefix="ckptdb-bench-", dir=options.scratch))
    try:
        found, broken = _measure(options.only or list(ALL), options.size, scratch)
        rows = [row for findings in found.values() for row in findings.rows]
        series = [one for findings in found.values() for one in findings.series]
        print(f"{table.plain(rows)}\n\n{table.summary(rows)}")
        if options.json:
            told = {name: findings.as_dict() for name, findings in found.items()}
            content = {"size": options.size.name, "machine": page.machine(scratch), "lines": told}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
        if options.plot:
            plot.draw(series, options.plot)
        if options.page:
            page.write(rows, series, options.size, scratch)
    except plot.NoPlot as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 1 if broken else 0


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
    parser.add_argument("--page", action="store_true", help="write table and plot into README.md")
    parser.add_argument("--scratch", type=Path, metavar="DIR",
                        help="where to work, with 6 GB of space")  # fmt: skip
    parser.set_defaults(size=FULL)
    options = parser.parse_args(argv)
    if options.page and options.only:
        parser.error("--page shows all lines: leave out --only")
    return options


def _measure(
    names: Sequence[str], size: Size, scratch: Path
) -> tuple[dict[str, Findings], list[str]]:
    found, broken = {}, []
    for name in names:
        started = time.monotonic()
        folder = scratch / name
        folder.mkdir()
        try:
            found[name] = ALL[name](size, folder)
        except Exception:  # noqa: BLE001  # the other lines can be measured all the same
            traceback.print_exc()
            broken.append(name)
            found[name] = Findings(rows=[unmeasured(name, "", "it broke; see above")])
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return found, broken


if __name__ == "__main__":
    sys.exit(main())

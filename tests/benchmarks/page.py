"""README.md of this folder: the table of the last whole run between two markers, and the plot."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks import machine, plot, table
from tests.benchmarks.report import Report

PAGE = Path(__file__).with_name("README.md")
PLOT = Path(__file__).with_name("cost.svg")
_BEGIN = "<!-- what follows is written by `python -m tests.benchmarks --page` -->"
_END = "<!-- up to here -->"


def write(report: Report) -> None:
    """Put a run into the page."""
    before, begin, rest = PAGE.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    assert begin
    assert end
    parts = (
        machine.sentence(report.machine, report.size),
        table.summary(report.rows),
        table.markdown(report.rows),
    )
    shown = "\n\n".join(parts)
    plot.draw(report.series, PLOT)
    PAGE.write_text(f"{before}{begin}\n\n{shown}\n\n{end}{after}")

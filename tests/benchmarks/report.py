"""One run of the benchmarks as a whole: where it was made, and what every line brought home."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.results import Findings, Row, Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What one run has measured.

    Attributes:
        size: Name of the sizes.
        machine: Where and with what, from `machine.describe`.
        lines: By the name of the module that measured it.
    """

    size: str
    machine: Mapping[str, str]
    lines: Mapping[str, Findings]

    @property
    def rows(self) -> list[Row]:
        """All lines of the table."""
        return [row for findings in self.lines.values() for row in findings.rows]

    @property
    def series(self) -> list[Series]:
        """All that is plotted."""
        return [one for findings in self.lines.values() for one in findings.series]

    def write(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read what `write` wrote."""
        content = json.loads(path.read_text())
        lines = {name: _findings(told) for name, told in content.pop("lines").items()}
        return cls(lines=lines, **content)


def _findings(told: Mapping[str, Any]) -> Findings:
    return Findings(
        rows=[Row(**row) for row in told["rows"]],
        series=[_series(one) for one in told["series"]],
        counts=told["counts"],
    )


def _series(told: Mapping[str, Any]) -> Series:
    # Keys of JSON are text.
    return Series(**{**told, "points": {int(count): s for count, s in told["points"].items()}})

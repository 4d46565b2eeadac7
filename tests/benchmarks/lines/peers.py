"""Other libraries beside ckptdb; those that are not installed are named and left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks import child, peers
from tests.benchmarks.results import Findings, Row, compared, duration, unmeasured
from tests.benchmarks.sizes import Size


def measure(size: Size, scratch: Path) -> Findings:
    """Take each library in a process of its own, in turns with ckptdb."""
    return Findings(rows=[row for name in peers.PEERS for row in _measure(name, size, scratch)])


def _measure(name: str, size: Size, scratch: Path) -> Iterator[Row]:
    missing = peers.missing(name)
    if missing:
        why = f"not installed: {', '.join(missing)} (pip install 'ckptdb[bench]')"
        yield unmeasured(f"{name}, against ckptdb", "", why)
        return
    folder = scratch / name.replace(" ", "-").lower()
    folder.mkdir()
    found = child.call("peers.measure", name, size.peers, size.rounds, size.seconds / 2, folder)
    for what, medians in found["medians"].items():
        note = f"{duration(medians[name])} against {duration(medians['ckptdb'])}"
        yield compared(
            f"{name} {found['version']}: {what}, N = {size.peers}",
            medians[name] / medians["ckptdb"],
            note=f"{note}; {found['note']}" if what == "save" else note,
            medians=medians,
        )

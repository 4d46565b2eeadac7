"""One module for each group of targets; `ALL` in the order of the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from tests.benchmarks.lines import (
    durable,
    payload,
    peers,
    processes,
    questions,
    reconcile,
    saves,
    scale,
    slow,
    stall,
    web,
)
from tests.benchmarks.results import Findings
from tests.benchmarks.sizes import Size

ALL: Final[Mapping[str, Callable[[Size, Path], Findings]]] = {
    "questions": questions.measure,
    "saves": saves.measure,
    "durable": durable.measure,
    "stall": stall.measure,
    "payload": payload.measure,
    "reconcile": reconcile.measure,
    "slow": slow.measure,
    "scale": scale.measure,
    "processes": processes.measure,
    "web": web.measure,
    "peers": peers.measure,
}

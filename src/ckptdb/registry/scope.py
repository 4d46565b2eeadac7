"""Which runs a question is about when it names none: those at or below what was opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckptdb.core.recorded import IndexedRun


@dataclass(frozen=True, slots=True)
class Scope:
    """What a question is about.

    Attributes:
        seen: The one run, when it is about one.
        among: Ids of the runs when it is about some; None for all of the catalog.
    """

    seen: IndexedRun | None = None
    among: tuple[int, ...] | None = None

    @property
    def run_id(self) -> int | None:
        """Id of the one run."""
        return None if self.seen is None else self.seen.id


@dataclass(slots=True)
class Below:
    """Tells whether directories lie at or below another one, whatever links lead there.

    Names are compared part by part: ``exp10`` is not below ``exp1``.
    """

    top: Path
    _real: dict[str, str] = field(default_factory=dict)

    def find(self, places: Mapping[int, Path]) -> tuple[int, ...]:
        """Return the ids of those at or below."""
        return tuple(number for number, place in places.items() if self.holds(place))

    def holds(self, place: Path) -> bool:
        """Tell whether a directory is or lies below the top, as it is named or as it is."""
        named, top = str(place), str(self.top)
        if _is_below(named, top):
            return True
        return _is_below(self._resolve(named), self._resolve(top))

    def _resolve(self, name: str) -> str:
        parent, _, last = name.rpartition("/")
        if not parent:
            return os.path.realpath(name)
        # Runs have few parents, and each of these has many parents of its own to be looked at.
        if parent not in self._real:
            self._real[parent] = os.path.realpath(parent)
        return os.path.realpath(os.path.join(self._real[parent], last))


def _is_below(name: str, top: str) -> bool:
    return name == top or name.startswith(top if top.endswith("/") else f"{top}/")

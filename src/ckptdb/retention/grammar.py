"""Grammar of rules: the one text of a rule in a config, on the command line and in a reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from ckptdb.core import units
from ckptdb.errors import InvalidPolicy
from ckptdb.retention.rules import (
    Ancestors,
    AtMost,
    Awaiting,
    Best,
    Clause,
    EveryHours,
    EverySteps,
    Latest,
    NewerThan,
    Steps,
    Tagged,
    Where,
)

_NUMBER = r"(\d+)"
_FORMS: Mapping[str, tuple[str, Callable[..., Clause]]] = {
    "best K [by METRIC min|max] [of every N steps]": (
        rf"best {_NUMBER}(?: by (.+?) (min|max))?(?: of every {_NUMBER} steps?)?",
        lambda count, metric, mode, period: Best(int(count), metric, mode, int(period or 1)),
    ),
    "latest K [of every N steps]": (
        rf"latest {_NUMBER}(?: of every {_NUMBER} steps?)?",
        lambda count, period: Latest(int(count), int(period or 1)),
    ),
    "every N steps": (f"every {_NUMBER} steps?", lambda steps: EverySteps(int(steps))),
    "every N hours": (
        f"every {units.DURATION}", lambda n, unit: EveryHours(units.hours(n, unit))
    ),
    "newer than N hours": (
        f"newer than {units.DURATION}", lambda n, unit: NewerThan(units.hours(n, unit))
    ),
    "awaiting METRIC for N hours": (
        f"awaiting (.+) for {units.DURATION}",
        lambda metric, n, unit: Awaiting(metric, units.hours(n, unit)),
    ),
    "steps N,N,...": (
        r"steps? (\d+(?:\s*,\s*\d+)*)",
        lambda listed: Steps(tuple(int(step) for step in listed.split(","))),
    ),
    "tagged [NAME]": ("tagged(?: (.+))?", Tagged),
    "ancestors": ("ancestors", Ancestors),
    "where CONDITION": ("where (.+)", Where),
    "at most N GB": (f"at most {units.SIZE}", lambda n, unit: AtMost(units.size_bytes(n, unit))),
}  # fmt: skip


def parse(text: str) -> Clause:
    """Read a rule from its text.

    Hours may also be seconds, minutes, days or weeks; GB also B, KB, MB, TB, KiB, MiB, GiB or TiB.

    Raises:
        InvalidPolicy: It is none; the message lists what there is.
    """
    for pattern, make in _FORMS.values():
        found = re.fullmatch(pattern, text.strip())
        if found:
            return make(*found.groups())
    forms = "; ".join(_FORMS)
    raise InvalidPolicy([f"{text!r} is no rule; there are: {forms}"])


def parse_all(rules: Iterable[Clause | str]) -> tuple[tuple[Clause, ...], tuple[str, ...]]:
    """Return rules for rules and texts of rules, and what is wrong with the texts that are none."""
    found: list[Clause] = []
    faults: list[str] = []
    for rule in rules:
        try:
            found.append(parse(rule) if isinstance(rule, str) else rule)
        except InvalidPolicy as error:
            faults += error.faults
    return tuple(found), tuple(faults)

"""What commands share: the place that was chosen, and options that several commands have."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from ckptdb.core import units
from ckptdb.core.ranking import MODES
from ckptdb.registry import Registry

DRIFT = 3
"""Exit code of a comparison that found a difference, or a lost or damaged checkpoint."""
PARTLY_DONE = 4
"""Exit code of a command that did a part of its work, and could not do the rest."""

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(slots=True)
class Session:
    """The place and the catalog that were chosen before the command."""

    directory: str
    catalog: str | None

    def open(self, path: str = "") -> Registry:
        """Open the registry that the command is about, or another one as seen from there."""
        if path and "://" not in path:
            path = os.path.join(self.directory, path)
        return Registry.open(path or self.directory, catalog=self.catalog)


class _Time(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click only
    """A time such as ``2 days``, in seconds."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        hours = units.find_hours(str(value))
        if hours is None:
            self.fail(f"{value!r} is not a time such as '2 days' or '12 hours'", param, ctx)
        return hours * 3600


def output_option(*forms: str) -> Callable[[_Function], _Function]:
    """Add ``-o FORM`` to a command; the first form is the default."""
    return click.option(
        "-o",
        "--output",
        "form",
        type=click.Choice(forms),
        default=forms[0],
        show_default=True,
        help="How to print the answer.",
    )


run_option = click.option(
    "--run",
    metavar="RUN",
    help="Name, path or uuid prefix of a run, wherever it lies; default: at or below here.",
)
mode_option = click.option(
    "--mode", type=click.Choice(MODES), help="Whether low or high values are better."
)
metric_option = click.option(
    "--metric", metavar="NAME", help="Rank by this metric; default: the run's own."
)
metric_argument = click.argument("metric", required=False)
step_argument = click.argument("step", type=click.IntRange(0))
trash_ttl_option = click.option(
    "--trash-ttl",
    type=_Time(),
    metavar="TIME",
    help='Keep the files of deleted checkpoints for this time, e.g. "2 days"; until then undelete '
    "works.",
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Only print what would be deleted.")

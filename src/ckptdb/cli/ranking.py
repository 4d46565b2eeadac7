"""The commands that rank: best, latest, top, pareto."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import click

from ckptdb.cli.checkpoint_tables import print_checkpoints
from ckptdb.cli.formats import FORMATS, echo_json, print_records
from ckptdb.cli.ls import metric_of, say_passed_over
from ckptdb.cli.options import Session, metric_option, mode_option, output_option, run_option
from ckptdb.cli.printing import echo_error, echo_path, echo_paths, say
from ckptdb.core.ranking import MODES
from ckptdb.core.records import Checkpoint
from ckptdb.core.text import number
from ckptdb.errors import CkptdbError, NothingFinite, PathTaken
from ckptdb.registry import Registry

_Function = TypeVar("_Function", bound=Callable[..., Any])

_BY: Final = (str, click.Choice(MODES))

where_option = click.option(
    "--where",
    metavar="CONDITION",
    help="Only checkpoints for which this SQL expression holds, "
    "e.g. 'kl < 0.1 AND \"val:loss\" < 0.5'.",
)


def narrowing_options(command: _Function) -> _Function:
    """Add the options that narrow a ranking beside its metric."""
    options = (
        where_option,
        click.option(
            "--tie",
            type=_BY,
            metavar="NAME MODE",
            help="Metric that decides between equal values, e.g. kl min.",
        ),
        click.option("--ever", is_flag=True, help="Rank deleted checkpoints, too."),
        click.option(
            "--at",
            metavar="TIME",
            help="Rank as of this time: 2026-11-22T16:00 (UTC without a zone) or '2 hours ago'.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@run_option
@metric_option
@mode_option
@narrowing_options
@click.option(
    "--each", is_flag=True, help="Print the best of each run at or below here, one path per line."
)
@output_option("path", "json")
@click.pass_obj
def best(session: Session, /, form: str, *, each: bool, **request: Any) -> None:
    """Print the path of the best checkpoint.

    Nothing else is printed: cp -r "$(ckptdb best)" elsewhere.

    With --ever or --at it may be deleted; standard error then names the best one that is
    available. If its step was saved again, the path is that of another checkpoint: nothing is
    printed, and the exit code is 1. With -o json the answer holds both.
    """
    others = [name for name in ("run", "where", "tie", "ever", "at") if request[name]]
    if each and others:
        raise click.UsageError(f"--each ranks several runs; leave out --{others[0]}.")
    with session.open() as registry:
        if each:
            each_best = registry.best_of_runs(request["metric"], mode=request["mode"])
            if not each_best:
                raise registry.explain_nothing(request["metric"])
            _print_each(each_best, form)
            return
        found = registry.best(**request)
        if found is None:
            raise _nothing(registry, request, request["metric"])
        if request["ever"] or request["at"]:
            _print_with_available(registry, found, form, request)
        else:
            _print_one(found, form)
        if request["metric"] is None and not metric_of(registry, (found,)):
            say(f"{found.run} has no metric; this is its latest.", err=True)


@click.command()
@run_option
@output_option("path", "json")
@click.pass_obj
def latest(session: Session, run: str | None, form: str) -> None:
    """Print the path of the latest checkpoint."""
    with session.open() as registry:
        found = registry.latest(run=run)
        say_passed_over(registry, () if found is None else (found,), run)
        if found is None:
            raise registry.explain_nothing(run=run)
    _print_one(found, form)


@click.command()
@click.argument("count", type=click.IntRange(1), default=10)
@run_option
@metric_option
@mode_option
@narrowing_options
@output_option(*FORMATS)
@click.pass_obj
def top(session: Session, /, count: int, form: str, **request: Any) -> None:
    """List the COUNT best checkpoints, best first."""
    with session.open() as registry:
        found = registry.top(count, **request)
        if not (request["ever"] or request["at"]):
            say_passed_over(registry, found, request["run"])
        if not found:
            _say_nothing(_nothing(registry, request, request["metric"]), form)
        if form in ("json", "jsonl") and (request["ever"] or request["at"]):
            print_records([_describe(registry, checkpoint) for checkpoint in found], form)
            return
        _print_list(registry, found, form, request["metric"], request["tie"])


@click.command()
@click.option(
    "--against",
    type=_BY,
    metavar="NAME MODE",
    required=True,
    help="The second metric, e.g. kl min.",
)
@run_option
@metric_option
@mode_option
@where_option
@output_option(*FORMATS)
@click.pass_obj
def pareto(session: Session, /, form: str, **request: Any) -> None:
    """List the checkpoints that are Pareto-optimal in two metrics.

    No other checkpoint is better in one of them and no worse in the other.
    """
    with session.open() as registry:
        found = registry.pareto(**request)
        if not found:
            _say_nothing(
                _nothing(registry, request, request["metric"], request["against"][0]), form
            )
        _print_list(registry, found, form, request["metric"], request["against"])


COMMANDS = (best, latest, top, pareto)


def _nothing(registry: Registry, request: dict[str, Any], *metrics: str | None) -> CkptdbError:
    """Return the error that explains why there is nothing to print."""
    options = {name: request[name] for name in ("run", "where", "ever", "at") if name in request}
    return registry.explain_nothing(*metrics, **options)


def _say_nothing(why: CkptdbError, form: str) -> None:
    """Explain an empty list: as an error to a person, on standard error to a program."""
    if form == "table":
        raise why
    echo_error(why, prefix="ckptdb: ")


def _print_one(checkpoint: Checkpoint, form: str) -> None:
    if form == "json":
        echo_json(checkpoint.as_dict())
    else:
        echo_path(checkpoint.path)


def _print_each(found: Sequence[Checkpoint], form: str) -> None:
    if form == "json":
        echo_json([checkpoint.as_dict() for checkpoint in found])
        return
    echo_paths(checkpoint.path for checkpoint in found)


def _print_list(
    registry: Registry,
    found: Sequence[Checkpoint],
    form: str,
    metric: str | None,
    other: tuple[str, str] | None,
) -> None:
    ranked_by = _ranked_by(registry, found, metric)
    others = () if other is None or other[0] in ranked_by else (other[0],)
    print_checkpoints(found, form, metrics=(*ranked_by, *others))


def _print_with_available(
    registry: Registry, found: Checkpoint, form: str, request: dict[str, Any]
) -> None:
    """Print a checkpoint that may be deleted, and the best one that is available now."""
    available: Checkpoint | None = None
    with suppress(NothingFinite):
        available = registry.best(**request | {"ever": False, "at": None})
    if form == "json":
        beside = None if available is None else available.as_dict()
        echo_json({"best": _describe(registry, found), "available": beside})
        return
    if found.status != "deleted":
        echo_path(found.path)
        return
    metrics = _ranked_by(registry, (found,), request["metric"])
    was = f"Step {found.step} of {found.run}{_values(found, metrics)}"
    went = f"is gone since {found.deleted_at} ({found.deleted_reason})"
    if available is None:
        left = "nothing is available instead"
    else:
        left = f"the best available is {available.path}{_values(available, metrics)}"
    other = registry.in_place_of(found)
    if other is not None or os.path.lexists(found.path):
        now = f"another one{_values(other, metrics)}" if other else "something else"
        raise PathTaken(f"{was} {went}", now, left)
    echo_path(found.path)
    say(f"{was} {went}; {left}.", err=True)


def _describe(registry: Registry, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the JSON of a checkpoint that may be deleted, with the uuid of its successor."""
    record = checkpoint.as_dict()
    if checkpoint.status != "deleted":
        return record
    other = registry.in_place_of(checkpoint)
    return record | {"in_its_place": None if other is None else other.uuid}


def _ranked_by(
    registry: Registry, found: Sequence[Checkpoint], metric: str | None
) -> tuple[str, ...]:
    return metric_of(registry, found) if metric is None else (metric,)


def _values(checkpoint: Checkpoint, metrics: Sequence[str]) -> str:
    return "".join(f" with {name} {number(checkpoint.metrics.get(name))}" for name in metrics)

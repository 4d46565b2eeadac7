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
    help="Only those for which this SQL expression holds, e.g. 'kl < 0.1 AND \"val:loss\" < 0.5'.",
)


def demand_options(command: _Function) -> _Function:
    """Add what a ranking may demand beside a metric."""
    options = (
        where_option,
        click.option(
            "--tie", type=_BY, metavar="NAME MODE", help="What decides among equals, e.g. kl min."
        ),
        click.option("--ever", is_flag=True, help="Deleted ones, too."),
        click.option(
            "--at",
            metavar="TIME",
            help="As of then: 2026-11-22T16:00 (in UTC unless it says where), '2 hours ago'.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@run_option
@metric_option
@mode_option
@demand_options
@click.option(
    "--each", is_flag=True, help="The best of each run at or below here, one path a line."
)
@output_option("path", "json")
@click.pass_obj
def best(session: Session, /, form: str, *, each: bool, **asked: Any) -> None:
    """Print the path of the best checkpoint, alone: cp -r "$(ckptdb best)" elsewhere.

    With --ever or --at it may be gone; then standard error says so, and which is the best
    available. Where its step was saved again, nothing is printed, and the exit code is 1: the path
    is that of another checkpoint. As JSON all of it is the answer.
    """
    others = [name for name in ("run", "where", "tie", "ever", "at") if asked[name]]
    if each and others:
        raise click.UsageError(f"--each is about several runs; leave out --{others[0]}.")
    with session.open() as registry:
        if each:
            each_best = registry.best_of_runs(asked["metric"], mode=asked["mode"])
            if not each_best:
                raise registry.explain_nothing(asked["metric"])
            _print_each(each_best, form)
            return
        found = registry.best(**asked)
        if found is None:
            raise _nothing(registry, asked, asked["metric"])
        if asked["ever"] or asked["at"]:
            _print_beside(registry, found, form, asked)
        else:
            _print_one(found, form)
        if asked["metric"] is None and not metric_of(registry, (found,)):
            say(f"{found.run} has no metric; this is its latest.", err=True)


@click.command()
@run_option
@output_option("path", "json")
@click.pass_obj
def latest(session: Session, run: str | None, form: str) -> None:
    """Print the path of the latest checkpoint, alone."""
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
@demand_options
@output_option(*FORMATS)
@click.pass_obj
def top(session: Session, /, count: int, form: str, **asked: Any) -> None:
    """List the COUNT best checkpoints, best first."""
    with session.open() as registry:
        found = registry.top(count, **asked)
        if not (asked["ever"] or asked["at"]):
            say_passed_over(registry, found, asked["run"])
        if not found:
            _say_nothing(_nothing(registry, asked, asked["metric"]), form)
        if form in ("json", "jsonl") and (asked["ever"] or asked["at"]):
            print_records([_recalled(registry, checkpoint) for checkpoint in found], form)
            return
        _print_list(registry, found, form, asked["metric"], asked["tie"])


@click.command()
@click.option(
    "--against", type=_BY, metavar="NAME MODE", required=True, help="The other metric, e.g. kl min."
)
@run_option
@metric_option
@mode_option
@where_option
@output_option(*FORMATS)
@click.pass_obj
def pareto(session: Session, /, form: str, **asked: Any) -> None:
    """List the checkpoints that no other one beats in two metrics at once."""
    with session.open() as registry:
        found = registry.pareto(**asked)
        if not found:
            _say_nothing(_nothing(registry, asked, asked["metric"], asked["against"][0]), form)
        _print_list(registry, found, form, asked["metric"], asked["against"])


COMMANDS = (best, latest, top, pareto)


def _nothing(registry: Registry, asked: dict[str, Any], *metrics: str | None) -> CkptdbError:
    """Return the error that says why there is nothing to print."""
    demanded = {name: asked[name] for name in ("run", "where", "ever", "at") if name in asked}
    return registry.explain_nothing(*metrics, **demanded)


def _say_nothing(why: CkptdbError, form: str) -> None:
    """Say why a list is empty: to a person instead of it, to a program beside it."""
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


def _print_beside(registry: Registry, found: Checkpoint, form: str, asked: dict[str, Any]) -> None:
    """Print what may be gone, and beside it the best that is available now."""
    available: Checkpoint | None = None
    with suppress(NothingFinite):
        available = registry.best(**asked | {"ever": False, "at": None})
    if form == "json":
        beside = None if available is None else available.as_dict()
        echo_json({"best": _recalled(registry, found), "available": beside})
        return
    if found.status != "deleted":
        echo_path(found.path)
        return
    metrics = _ranked_by(registry, (found,), asked["metric"])
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


def _recalled(registry: Registry, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the record of what may be gone for JSON, with the uuid of what is in its place."""
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

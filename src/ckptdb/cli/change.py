"""Commands that add to or take from what is kept: pin, tag, reject, log, rm, gc, forget."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ckptdb.cli.ask import Session, metric_option, mode_option, run_option
from ckptdb.cli.output import echo_json, human_bytes, output_option, print_table
from ckptdb.records import Checkpoint, Mode
from ckptdb.retention import Policy
from ckptdb.upkeep import Collected

step_argument = click.argument("step", type=click.IntRange(0))
dry_run_option = click.option("--dry-run", is_flag=True, help="Only say what would go.")


@click.command()
@step_argument
@click.option("--note", help="Why it is kept.")
@run_option
@click.pass_obj
def pin(session: Session, step: int, note: str | None, run: str | None) -> None:
    """Keep the checkpoint at STEP whatever retention says."""
    with session.open() as registry:
        _say(registry.pin(run, step, note=note), "pinned")


@click.command()
@step_argument
@run_option
@click.pass_obj
def unpin(session: Session, step: int, run: str | None) -> None:
    """Leave the checkpoint at STEP to retention again."""
    with session.open() as registry:
        _say(registry.unpin(run, step), "not pinned any more")


@click.command()
@step_argument
@click.argument("name")
@run_option
@click.pass_obj
def tag(session: Session, step: int, name: str, run: str | None) -> None:
    """Give the checkpoint at STEP the tag NAME."""
    with session.open() as registry:
        _say(registry.tag(run, step, name), f"tagged {name}")


@click.command()
@step_argument
@click.argument("name")
@run_option
@click.pass_obj
def untag(session: Session, step: int, name: str, run: str | None) -> None:
    """Take the tag NAME from the checkpoint at STEP."""
    with session.open() as registry:
        _say(registry.untag(run, step, name), f"without the tag {name}")


@click.command()
@step_argument
@click.argument("reason")
@run_option
@click.pass_obj
def reject(session: Session, step: int, reason: str, run: str | None) -> None:
    """Put the checkpoint at STEP aside, for a REASON: kept, but neither ranked nor counted."""
    with session.open() as registry:
        _say(registry.reject(run, step, reason), "rejected")


@click.command()
@step_argument
@run_option
@click.pass_obj
def unreject(session: Session, step: int, run: str | None) -> None:
    """Let the checkpoint at STEP count again."""
    with session.open() as registry:
        _say(registry.unreject(run, step), "not rejected any more")


@click.command()
@step_argument
@click.argument("values", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--source", default="cli", show_default=True, help="Who measured it.")
@run_option
@click.pass_obj
def log(session: Session, step: int, values: tuple[str, ...], source: str, run: str | None) -> None:
    """Record metrics measured after the save: ckptdb log 100 mmlu=0.61 --source lm-eval."""
    numbers = dict(_number(text) for text in values)
    with session.open() as registry:
        found = registry.log_metrics(run, step, numbers, source=source)
        _say(found, "has " + ", ".join(values))


@click.command()
@click.argument("steps", type=click.IntRange(0), nargs=-1, required=True, metavar="STEP...")
@run_option
@click.option("--force", is_flag=True, help="Also pinned ones.")
@dry_run_option
@output_option("table", "json")
@click.pass_obj
def rm(
    session: Session,
    steps: tuple[int, ...],
    run: str | None,
    form: str,
    *,
    force: bool,
    dry_run: bool,
) -> None:
    """Delete the checkpoints at the given steps: all of them, or none."""
    with session.open() as registry:
        _print_plans([registry.remove(steps, run=run, force=force, dry_run=dry_run)], form)


@click.command()
@run_option
@click.option("--keep-top-k", type=click.IntRange(0), help="Keep so many of the best.")
@click.option(
    "--keep-latest",
    type=click.IntRange(0),
    help="Keep so many of the newest; alone, only these.",
)
@click.option(
    "--save-period",
    type=click.IntRange(1),
    help="Rank only steps divisible by this; without --keep-top-k keep all of them.",
)
@click.option(
    "--keep",
    "rules",
    multiple=True,
    metavar="RULE",
    help='What else to keep, e.g. "every 6 hours"; may be repeated.',
)
@metric_option
@mode_option
@dry_run_option
@click.option(
    "--plan",
    "plans",
    multiple=True,
    metavar="ID",
    help="Do what --dry-run has shown under this id, or nothing; one for each run.",
)
@output_option("table", "json")
@click.pass_obj
def gc(  # noqa: PLR0917  # one parameter an option
    session: Session,
    run: str | None,
    keep_top_k: int | None,
    keep_latest: int | None,
    save_period: int | None,
    rules: tuple[str, ...],
    metric: str | None,
    mode: Mode | None,
    plans: tuple[str, ...],
    form: str,
    *,
    dry_run: bool,
) -> None:
    """Remove what crashes left, and what the given limits do not keep.

    Without any of them no published checkpoint goes. What one of them keeps stays; the latest
    and pinned ones always do. The best are ranked by the run's own metric, or by --metric with
    --mode, and gc refuses when there is none.

    \b
    A RULE is one of
      best K [by METRIC min|max] [of every N steps]
      latest K [of every N steps]
      every N steps
      every N hours
      newer than N hours
      steps N,N,...
      tagged [NAME]
    """  # noqa: D301  # the backspace is click's sign for lines that stay as they are
    if keep_top_k is None and keep_latest is None and save_period is not None:
        raise click.UsageError("--save-period needs --keep-top-k or --keep-latest.")
    if keep_top_k is None and metric is not None and not rules:
        raise click.UsageError("--metric needs --keep-top-k: it says which are the best.")
    if metric is not None and mode is None:
        raise click.UsageError("--metric needs --mode min or --mode max.")
    if mode is not None and metric is None:
        raise click.UsageError("--mode needs --metric: a run's own has its direction.")
    if keep_latest is not None and save_period is None:
        # In a training config a missing keep_top_k means all; here nobody has asked for those.
        keep_top_k = keep_top_k or 0
    policy = Policy(save_period or 1, keep_top_k, keep_latest, metric, mode, rules)
    with session.open() as registry:
        found = registry.gc(policy, run=run, dry_run=dry_run, plans=plans or None)
        _print_plans(found, form)
        if dry_run and form == "table" and found:
            ids = " ".join(f"--plan {plan.plan}" for plan in found)
            click.echo(f"To do exactly this or nothing: {ids}")


@click.command()
@click.argument("run")
@click.pass_obj
def forget(session: Session, run: str) -> None:
    """Drop RUN from the catalog; its directory is not touched."""
    with session.open() as registry:
        gone = registry.forget(run)
    click.echo(f"{gone.name} is out of the catalog; {gone.directory} was not touched.")


COMMANDS = (pin, unpin, tag, untag, reject, unreject, log, rm, gc, forget)


def _say(checkpoint: Checkpoint, what: str) -> None:
    click.echo(f"{checkpoint.run} step {checkpoint.step}: {what}")


def _number(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        number = float(value)
    except ValueError:
        equals = ""
        number = 0.0
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=NUMBER", param_hint="NAME=VALUE")
    return name, number


def _print_plans(plans: Sequence[Collected], form: str) -> None:
    if form == "json":
        echo_json([plan.as_dict() for plan in plans])
        return
    for plan in plans:
        _print_plan(plan)


def _print_plan(plan: Collected) -> None:
    gone = "gone" if plan.applied else "would go"
    rows = [
        [str(d.step), "keep" if d.keep else gone, human_bytes(d.size_bytes), d.reason]
        for d in plan.decisions
    ]
    rows += [[str(left.step), gone, human_bytes(left.size_bytes), left.kind]
             for left in plan.leftovers]  # fmt: skip
    if rows:
        print_table(["step", "", "size", "why"], rows)
    verb = "freed" if plan.applied else "would be freed"
    click.echo(f"{plan.run}: {human_bytes(plan.freed_bytes)} {verb}.")

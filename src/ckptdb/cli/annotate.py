"""The commands that annotate: pin, tag, reject and their opposites, log, accept; and forget."""

from __future__ import annotations

import click

from ckptdb.cli.options import Session, run_option, step_argument
from ckptdb.cli.printing import say
from ckptdb.core.records import Checkpoint


@click.command()
@step_argument
@click.option("--note", help="Reason, as a note.")
@run_option
@click.pass_obj
def pin(session: Session, step: int, note: str | None, run: str | None) -> None:
    """Pin the checkpoint at STEP: no retention rule deletes it."""
    with session.open() as registry:
        _say(registry.pin(run, step, note=note), "pinned")


@click.command()
@step_argument
@run_option
@click.pass_obj
def unpin(session: Session, step: int, run: str | None) -> None:
    """Remove the pin of the checkpoint at STEP."""
    with session.open() as registry:
        _say(registry.unpin(run, step), "not pinned any more")


@click.command()
@step_argument
@click.argument("name")
@run_option
@click.pass_obj
def tag(session: Session, step: int, name: str, run: str | None) -> None:
    """Add the tag NAME to the checkpoint at STEP."""
    with session.open() as registry:
        _say(registry.tag(run, step, name), f"tagged {name}")


@click.command()
@step_argument
@click.argument("name")
@run_option
@click.pass_obj
def untag(session: Session, step: int, name: str, run: str | None) -> None:
    """Remove the tag NAME from the checkpoint at STEP."""
    with session.open() as registry:
        _say(registry.untag(run, step, name), f"without the tag {name}")


@click.command()
@step_argument
@click.argument("reason")
@run_option
@click.pass_obj
def reject(session: Session, step: int, reason: str, run: str | None) -> None:
    """Reject the checkpoint at STEP for a REASON.

    It is kept, but neither ranked nor counted by retention.
    """
    with session.open() as registry:
        _say(registry.reject(run, step, reason), "rejected")


@click.command()
@step_argument
@run_option
@click.pass_obj
def unreject(session: Session, step: int, run: str | None) -> None:
    """Undo the rejection of the checkpoint at STEP."""
    with session.open() as registry:
        _say(registry.unreject(run, step), "not rejected any more")


@click.command()
@step_argument
@click.argument("values", nargs=-1, required=True, metavar="NAME=VALUE...")
@click.option("--source", default="cli", show_default=True, help="Who measured it.")
@click.option("--uuid", help="uuid of the checkpoint, in case STEP was saved again meanwhile.")
@run_option
@click.pass_obj
def log(  # noqa: PLR0917  # one parameter an option
    session: Session,
    step: int,
    values: tuple[str, ...],
    source: str,
    uuid: str | None,
    run: str | None,
) -> None:
    """Record metrics that were measured after the save.

    For example: ckptdb log 100 mmlu=0.61 --source lm-eval
    """
    numbers = dict(_number(text) for text in values)
    with session.open() as registry:
        found = registry.log_metrics(run, step, numbers, source=source, uuid=uuid)
        _say(found, "has " + ", ".join(values))


@click.command()
@click.argument("steps", nargs=-1, type=click.IntRange(0), metavar="STEP...")
@click.option("--all", "everything", is_flag=True, help="Accept all lost checkpoints.")
@run_option
@click.pass_obj
def accept(session: Session, steps: tuple[int, ...], run: str | None, *, everything: bool) -> None:
    """Accept that the checkpoints at STEP are lost.

    A lost checkpoint vanished without ckptdb deleting it. `check` names it and exits 3 until it
    is back or its loss is accepted. Its history stays.
    """
    if bool(steps) is everything:
        raise click.UsageError("Name the steps that are lost, or pass --all.")
    with session.open() as registry:
        found = registry.accept_loss(run, None if everything else steps)
    for checkpoint in found:
        _say(checkpoint, "accepted as lost")
    if not found:
        say("Nothing is lost here.")


@click.command()
@click.argument("run")
@click.pass_obj
def forget(session: Session, run: str) -> None:
    """Remove RUN from the catalog; its directory is not touched."""
    with session.open() as registry:
        gone = registry.forget(run)
    say(f"{gone.name} is out of the catalog; {gone.directory} was not touched.")


COMMANDS = (pin, unpin, tag, untag, reject, unreject, log, accept, forget)


def _say(checkpoint: Checkpoint, what: str) -> None:
    say(f"{checkpoint.run} step {checkpoint.step}: {what}")


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

"""The commands rm and undelete."""

from __future__ import annotations

import click

from ckptdb.cli.gc import print_results
from ckptdb.cli.options import (
    Session,
    dry_run_option,
    output_option,
    run_option,
    step_argument,
    trash_ttl_option,
)
from ckptdb.cli.printing import say
from ckptdb.errors import DeletionIncomplete


@click.command()
@click.argument("steps", type=click.IntRange(0), nargs=-1, required=True, metavar="STEP...")
@run_option
@click.option("--force", is_flag=True, help="Also pinned and leased ones; their pin or lease ends.")
@dry_run_option
@trash_ttl_option
@output_option("table", "json")
@click.pass_obj
def rm(
    session: Session,
    steps: tuple[int, ...],
    run: str | None,
    trash_ttl: float | None,
    form: str,
    *,
    force: bool,
    dry_run: bool,
) -> None:
    """Delete the checkpoints at the given steps.

    All are deleted, or none as far as that is known before; else the message lists them.
    """
    with session.open() as registry:
        try:
            removed = registry.remove(
                steps, run=run, force=force, dry_run=dry_run, trash_ttl_seconds=trash_ttl or 0.0
            )
        except DeletionIncomplete as error:
            print_results([error.done], form)
            raise
        print_results([removed], form)


@click.command()
@step_argument
@run_option
@click.pass_obj
def undelete(session: Session, step: int, run: str | None) -> None:
    """Restore the deleted checkpoint at STEP.

    This works as long as its files are kept (--trash-ttl).
    """
    with session.open() as registry:
        found = registry.undelete(step, run=run)
    say(f"{found.run} step {found.step}: back. Pin it, or retention may take it again.")


COMMANDS = (rm, undelete)

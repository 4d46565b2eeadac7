"""The command show."""

from __future__ import annotations

import click

from ckptdb.cli.checkpoint_tables import describe, print_lineage
from ckptdb.cli.formats import echo_json, print_table
from ckptdb.cli.options import Session, output_option, run_option, step_argument


@click.command()
@step_argument
@run_option
@click.option(
    "--lineage", is_flag=True, help="Print its ancestors instead, back to the first checkpoint."
)
@output_option("table", "json")
@click.pass_obj
def show(session: Session, step: int, run: str | None, form: str, *, lineage: bool) -> None:
    """Print all facts about the checkpoint at STEP.

    The checkpoint may be a deleted one.
    """
    with session.open() as registry:
        if lineage:
            print_lineage(registry.lineage(step, run=run), form)
            return
        checkpoint = registry.get(step, run=run)
    if form == "json":
        echo_json(checkpoint.as_dict())
        return
    print_table(["", ""], describe(checkpoint))


COMMANDS = (show,)

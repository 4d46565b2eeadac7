"""The command init."""

from __future__ import annotations

from pathlib import Path

import click

from ckptdb.cli.options import Session
from ckptdb.cli.printing import say
from ckptdb.cli.reconcile import print_report
from ckptdb.registry import Registry


@click.command()
@click.argument("directory", default=".", type=click.Path(file_okay=False))
@click.pass_obj
def init(session: Session, directory: str) -> None:
    """Make DIRECTORY a root: one catalog for all runs below it."""
    registry, report = Registry.init(Path(session.directory, directory))
    with registry:
        print_report(report, dry_run=False)
    say(f"{registry.location} is the catalog of {len(report.runs)} run(s).")


COMMANDS = (init,)

"""The commands db path, db status and db upgrade."""

from __future__ import annotations

import click

from ckptdb.cli.formats import echo_json, print_table
from ckptdb.cli.options import Session, output_option
from ckptdb.cli.printing import echo_path, say
from ckptdb.core.units import human_bytes


@click.group()
def db() -> None:
    """Locate, inspect and upgrade the catalog."""


@db.command()
@click.pass_obj
def path(session: Session) -> None:
    """Print the location of the catalog.

    Standard error explains why that one is used.
    """
    with session.open() as registry:
        for line in registry.explain_location():
            say(line, err=True)
        if not registry.status().exists:
            raise registry.explain_missing()
        echo_path(registry.location)


@db.command()
@output_option("table", "json")
@click.pass_obj
def status(session: Session, form: str) -> int:
    """Print revision, size and integrity of the catalog. Exits 1 when it is damaged."""
    with session.open() as registry:
        found = registry.status()
        if not found.exists:
            raise registry.explain_missing()
    if form == "json":
        echo_json(found.as_dict())
    else:
        values = found.as_dict() | {"size_bytes": human_bytes(found.size_bytes)}
        print_table(["", ""], ([name, str(value)] for name, value in values.items()))
    return 0 if found.integrity == "ok" else 1


@db.command()
@click.pass_obj
def upgrade(session: Session) -> None:
    """Upgrade an older catalog to the schema of this version.

    A copy is kept beside it.
    """
    with session.open() as registry:
        if not registry.status().exists:
            raise registry.explain_missing()
        before, after, copy = registry.upgrade()
    if before == after:
        say(f"The catalog is at revision {after} already.")
    else:
        say(f"Upgraded from revision {before} to {after}; the old one is {copy}.")


COMMANDS = (db,)

"""The command schema."""

from __future__ import annotations

import click

from ckptdb.catalog.relations import Relation
from ckptdb.cli.formats import print_records
from ckptdb.cli.options import Session, output_option
from ckptdb.cli.printing import get_width, say
from ckptdb.errors import UnknownRelation


@click.command()
@click.argument("name", required=False)
@output_option("table", "json")
@click.pass_obj
def schema(session: Session, name: str | None, form: str) -> None:
    """Print the tables and views for SQL, each with an example."""
    with session.open() as registry:
        relations = select(registry.schema(), name)
    if form == "json":
        print_records(
            [
                {
                    "name": relation.name,
                    "kind": relation.kind,
                    "purpose": relation.purpose,
                    "columns": {column.name: column.type for column in relation.columns},
                    "example": relation.example,
                }
                for relation in relations
            ],
            form,
        )
        return
    for relation in relations:
        echo_relation(relation)


COMMANDS = (schema,)


def select(relations: tuple[Relation, ...], name: str | None) -> tuple[Relation, ...]:
    """Return the table or view of a name, or all of them.

    Raises:
        UnknownRelation: None is called so.
    """
    found = tuple(relation for relation in relations if name in (None, relation.name))
    if not found and name is not None:
        raise UnknownRelation(name, [relation.name for relation in relations])
    return found


def echo_relation(relation: Relation) -> None:
    """Print a table or view for people: purpose, columns with their types, an example."""
    # A column stays on one line with its type.
    columns = ", ".join("\u00a0".join(filter(None, (c.name, c.type))) for c in relation.columns)
    say(f"{relation.name} ({relation.kind}): {relation.purpose}")
    wrapped = click.wrap_text(columns, get_width() - 1, "    ", "    ")
    for line in wrapped.split("\n"):
        say(line.replace("\u00a0", " "))
    say(f"    e.g. {relation.example}")
    say()

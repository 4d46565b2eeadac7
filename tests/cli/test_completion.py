"""What may come next in a query."""

import pytest

from ckptdb.catalog.relations import Relation, SchemaColumn
from ckptdb.cli.completion import Words


def relation(name, *columns):
    return Relation(name, "table", "", tuple(SchemaColumn(column, "") for column in columns), "")


WORDS = Words(
    [relation("runs", "id", "name"), relation("leaderboard", "run", "rank", "step")],
    ["grpo-8b", "grpo-70b", "it's", "evil\x1b[31m"],
    {".help": (), ".mode": ("table", "json"), ".schema": ("runs", "leaderboard")},
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("SEL", ["SELECT"]),
        ("sel", ["select"]),
        ("SELECT * FROM le", ["leaderboard", "left"]),
        ("SELECT * FROM leader", ["leaderboard"]),
        ("SELECT * FROM leaderboard WHERE ra", ["rank"]),
        ("SELECT * FROM leaderboard WHERE na", []),
        ("SELECT l.", []),
        ("SELECT * FROM leaderboard l WHERE l.", ["run", "rank", "step"]),
        ("SELECT * FROM runs JOIN leaderboard AS l ON l.st", ["step"]),
        ("SELECT runs.n", ["name"]),
        ("SELECT * FROM runs WHERE name = 'grpo-", ["grpo-70b'", "grpo-8b'"]),
        ("SELECT * FROM runs WHERE name = 'it", ["it''s'"]),
        ("SELECT * FROM runs WHERE name = 'ev", []),
        ("SELECT 'done' AS na", ["name"]),
        ("SELECT ", []),
        ("", []),
        (".", [".help", ".mode", ".schema"]),
        (".mo", [".mode"]),
        (".mode j", ["json"]),
        (".schema ru", ["runs"]),
        (".nix j", []),
    ],
)
def test_what_fits_is_offered(text, found):
    replaced, offered = WORDS.complete(text)
    assert list(offered) == found
    begun = text[len(text) - replaced :]
    assert all(word.lower().startswith(begun.lower()) for word in offered)

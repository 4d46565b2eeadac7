"""A message of the database is traced back to its place in the query."""

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.catalog.engine import Database
from ckptdb.catalog.error_position import excerpt, find_spots
from ckptdb.catalog.location import locate
from ckptdb.catalog.query import run as query
from ckptdb.errors import QueryFailed

FAULTS = [
    ("SELEC 1", "^^^^^"),
    ("SELECT nix FROM runs", "       ^^^"),
    ("SELECT 'FROM' FROM FROM runs", "                   ^^^^"),
    ("SELECT name FROM runs WHERE name 'x' OR name 'x'", "                                 ^^^"),
    ("SELECT * FROM runs a JOIN runs b ON name = 1", "                                    ^^^^"),
    ('SELECT r . "nix" FROM runs r', "       ^^^^^^^^^"),
    ("SELECT 'nix', \"a.b\", nix.x FROM runs -- nix.x", "                     ^^^^^"),
    ("SELECT foo(1)", "       ^^^"),
    ("SELECT sum(max(id)) FROM runs", "           ^^^"),
    ("SELECT @", "       ^"),
    ("SELECT 'abc", "       ^^^^"),
    ("SELECT (1", "         ^"),
    ("EXPLAIN SELECT 1 1", "                 ^"),
    ("SELECT\tnix", "       ^^^"),
    ("SELECT nix + NIX FROM runs", "       ^^^   ^^^"),
]


@pytest.mark.parametrize(("sql", "marks"), FAULTS, ids=[sql for sql, _ in FAULTS])
def test_the_fault_is_marked(sql, marks):
    with closing(Database.in_memory()) as database, pytest.raises(QueryFailed) as caught:
        query(database, sql)
    assert caught.value.excerpt == f"{sql.replace(chr(9), ' ')}\n{marks}"
    assert ("at line 1, column" in str(caught.value)) == (marks.count(" ^") < 2)


def test_only_the_line_at_fault_is_shown_and_nothing_that_a_terminal_obeys():
    with closing(Database.in_memory()) as database, pytest.raises(QueryFailed) as caught:
        query(database, "SELECT name\nFROM runs\nWHERE '\x1b[31m' = nix\nORDER BY 1")
    assert "at line 3, column 17: no such column: nix" in str(caught.value)
    assert caught.value.excerpt == "WHERE ' [31m' = nix\n                ^^^"


def test_what_has_no_place_is_not_marked():
    with closing(Database.in_memory()) as database, pytest.raises(QueryFailed) as caught:
        query(database, "SELECT zeroblob(1000000000)")
    assert caught.value.excerpt == ""


def test_a_long_query_is_not_compiled_for_each_of_its_words():
    asked = []

    def compiles(sql):
        asked.append(sql)
        return 'near ",": syntax error' if len(sql) > 5_000 else "incomplete input"

    sql = "SELECT " + "1, " * 100_000
    (spot,) = find_spots(sql, 'near ",": syntax error', compiles)
    assert spot.begin == 5_000
    assert len(asked) < 20


@given(st.text(), st.text(max_size=20))
def test_whatever_is_complained_of_the_marks_lie_within_the_query(sql, token):
    for why in (
        f'near "{token}": syntax error',
        f"no such column: {token}",
        "incomplete input",
        token,
    ):
        spots = find_spots(sql, why)
        assert all(0 <= spot.begin <= spot.end <= len(sql) for spot in spots)
        assert bool(excerpt(sql, spots)) == bool(spots)


def test_postgresql_points_as_well(postgres_url):
    with closing(Database.open(locate(postgres_url), create=True)) as database:
        for sql in ("SELECT nix FROM runs", "SELECT 1 FROM nix", "SELECT 1 1"):
            with pytest.raises(QueryFailed) as caught:
                query(database, sql)
            assert "^" in caught.value.excerpt


def test_compiling_a_beginning_runs_nothing():
    endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT n FROM t"
    with closing(Database.in_memory()) as database, pytest.raises(QueryFailed) as caught:
        query(database, f"{endless} t t", timeout_seconds=60)
    assert caught.value.excerpt.endswith(f"\n{' ' * len(endless)}   ^")

"""A condition is taken apart before a database sees it: only one expression gets through."""

import sqlite3
from contextlib import closing, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.core.conditions import COLUMNS, parse, written
from ckptdb.errors import InvalidCondition


@pytest.mark.parametrize(
    ("text", "sql", "metrics", "strings"),
    [
        ("kl < 0.1", "known.m0 < 0.1", ["kl"], []),
        ("kl<.1 AND step%100==0", "known.m0 < .1 AND known.step % 100 = 0", ["kl"], []),
        ('"val:loss" < 0.5 AND pinned = 0', "known.m0 < 0.5 AND known.pinned = 0", ["val:loss"],
         []),
        ("kl < 1e-3 or kl > 2.", "known.m0 < 1e-3 OR known.m0 > 2.", ["kl"], []),
        ("b > a", "known.m0 > known.m1", ["b", "a"], []),
        ("KL < kl", "known.m0 < known.m1", ["KL", "kl"], []),
        ("STEP > 1", "known.step > 1", [], []),
        ('"step" > 1', "known.step > 1", [], []),
        ('"Step" > 1', "known.m0 > 1", ["Step"], []),
        ('"a ""b""; --" > 1', "known.m0 > 1", ['a "b"; --'], []),
        ("notes LIKE '%it''s :x; --%'", "known.notes LIKE :string0", [], ["%it's :x; --%"]),
        ("notes IN ('a', 'b')", "known.notes IN ( :string0 , :string1 )", [], ["a", "b"]),
        ("abs (kl) < 1", "abs ( known.m0 ) < 1", ["kl"], []),
        ("max < 1", "known.m0 < 1", ["max"], []),
        ("case when kl is null then 1 else 0 end",
         "CASE WHEN known.m0 IS NULL THEN 1 ELSE 0 END", ["kl"], []),
        ("kl - -1 < 2", "known.m0 - - 1 < 2", ["kl"], []),
        ("\tλ\n< 1 ", "known.m0 < 1", ["λ"], []),
        ('"SELECT" < 1', "known.m0 < 1", ["SELECT"], []),
    ],
)  # fmt: skip
def test_an_expression_becomes_sql_over_columns_and_metrics(text, sql, metrics, strings):
    condition = parse(text)

    assert condition.sql == sql
    assert condition.metrics == tuple(metrics)
    assert condition.strings == tuple(strings)
    assert str(condition) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        (" \n", "it is empty"),
        ("1) OR (1", "closed that was not opened"),
        ("1) UNION SELECT uuid FROM checkpoints --", "closed that was not opened"),
        ("(kl < 1", "bracket is not closed"),
        ("kl < 1; DELETE FROM runs", "';' has no meaning"),
        ("kl < 1 -- all", "'--' begins a comment"),
        ("kl < 1 /* all", "'/*' begins a comment"),
        ("kl < 1 --", "'--' begins a comment"),
        ("kl < 1, step", "more than one expression"),
        ("kl < :limit", "':' has no meaning"),
        ("val:loss < 1", "a name such as val:loss stands in double quotes"),
        ("kl < ?", "'?' has no meaning"),
        ("kl < @x", "'@' has no meaning"),
        ("kl < $x", "'$' has no meaning"),
        ("[kl] < 1", "'[' has no meaning"),
        ("`kl` < 1", "'`' has no meaning"),
        ("kl < 1\0", "has no meaning"),
        ("checkpoints.info LIKE 'x'", "'.' has no meaning"),
        ("kl < 0x10", "'0' has no meaning"),
        ("kl < 1abc", "'1' has no meaning"),
        ("notes = 'a", "quote is not closed"),
        ('"kl < 1', "quote is not closed"),
        ('"" < 1', "quote is not closed"),
        ("load_extension('x')", "'load_extension' is no function of these: abs"),
        ("SELECT (1)", "'SELECT' is no function of these: abs"),
        ("kl IN (VALUES (1))", "'VALUES' is no function of these: abs"),
        ("EXISTS (SELECT 1)", "'EXISTS' is no function of these: abs"),
        ("abs(kl) OVER (ORDER BY step)", "'OVER' is no function of these: abs"),
    ],
)
def test_whatever_is_more_or_less_is_refused_with_the_reason(text, why):
    with pytest.raises(InvalidCondition) as refused:
        parse(text)

    before, _, told = str(refused.value).partition(" cannot be used: ")
    assert before == f"The condition {text!r}"
    assert why in told


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("(SELECT name FROM runs) = 'a'", ("SELECT", "name", "FROM", "runs")),
        ("1 UNION SELECT 1", ("UNION", "SELECT")),
        ("kl < 1 ORDER BY kl", ("kl", "ORDER", "BY")),
        ("kl < 1 LIMIT 1", ("kl", "LIMIT")),
        ("rowid = 1", ("rowid",)),
    ],
)
def test_words_that_would_reach_elsewhere_are_names_like_any_other(text, names):
    assert parse(text).metrics == names


pieces = st.sampled_from(
    ["kl", '"a b"', "step", "'", '"', "(", ")", "SELECT", "FROM", "checkpoints", "--", "/*", "*/",
     ";", ",", "1", "UNION", "=", "abs", "max", "IN", "'x'", "CASE", "END", " ", "NOT", "\\", ":x",
     "NULL", "*", "||"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=20), st.lists(pieces, max_size=12).map(" ".join)))
def test_nothing_that_passes_asks_another_table_or_is_two_statements(text):
    asked, denied = set(), []

    def watch(action, first, second, *_):
        if action == sqlite3.SQLITE_READ:
            asked.add(first)
        elif action not in {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_FUNCTION}:
            denied.append(action)
        return sqlite3.SQLITE_OK

    try:
        condition = parse(text)
    except InvalidCondition:
        return
    names = (*COLUMNS, *(f"m{number}" for number in range(len(condition.metrics))))
    strings = {f"string{number}": string for number, string in enumerate(condition.strings)}
    with closing(sqlite3.connect(":memory:")) as raw:
        raw.execute(f"CREATE TABLE known ({', '.join(names)})")
        raw.execute("CREATE TABLE other (known)")
        raw.execute("INSERT INTO known (step) VALUES (7)")
        raw.set_authorizer(watch)
        # What is no SQL, or none for this place, is said by the database.
        with suppress(sqlite3.OperationalError):
            raw.execute(f"SELECT 1 FROM known WHERE ({condition.sql})", strings).fetchall()
    assert denied == []
    assert asked <= {"known"}


@given(st.text(min_size=1).filter(lambda name: name.lower() not in COLUMNS))
def test_a_name_as_it_is_written_is_read_as_that_name(name):
    assert parse(f"{written(name)} < 1").metrics == (name,)


@pytest.mark.parametrize(
    ("name", "text"),
    [("kl", "kl"), ("val:loss", '"val:loss"'), ("max", "max"), ("case", '"case"'), ('"', '""""')],
)
def test_only_names_that_need_it_are_shown_in_quotes(name, text):
    assert written(name) == text

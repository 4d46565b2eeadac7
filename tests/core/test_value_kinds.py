"""A condition that compares a number with a text is refused, wherever in it that is."""

import pytest

from ckptdb.core import conditions
from ckptdb.errors import InvalidCondition, InvalidPolicy
from ckptdb.retention import Policy

MIXED = [
    ("loss < '0.001'", "loss < '0.001'", "write 0.001 without quotes"),
    ("'0.001' > loss", "'0.001' > loss", "write 0.001 without quotes"),
    ("kl < 1 AND loss <= '1e-3'", "loss <= '1e-3'", "write 1e-3 without quotes"),
    ("step IN (1, '2')", "step IN (1, '2')", "write 2 without quotes"),
    ("step NOT BETWEEN '1' AND 3", "step NOT BETWEEN '1'", "write 1 without quotes"),
    ("step BETWEEN 1 AND '3'", "step BETWEEN 1 AND '3'", "write 3 without quotes"),
    ("abs(loss) < 'a'", "abs(loss) < 'a'", "a number is compared with a number, without quotes"),
    ("(loss) < ('0.1')", "(loss) < ('0.1')", "write 0.1 without quotes"),
    ("loss + kl * 2 < '0.1'", "loss + kl * 2 < '0.1'", "write 0.1 without quotes"),
    ("coalesce(loss, 1) < '0.5'", "coalesce(loss, 1) < '0.5'", "write 0.5 without quotes"),
    ("max(loss, '0.1') < 1", "loss, '0.1'", "write 0.1 without quotes"),
    ("loss IS NOT '0.1'", "loss IS NOT '0.1'", "write 0.1 without quotes"),
    ("NOT loss < '1'", "loss < '1'", "write 1 without quotes"),
    ("CASE step WHEN '1' THEN 1 END", "step WHEN '1'", "write 1 without quotes"),
    ("CASE WHEN step > '1' THEN 1 END", "step > '1'", "write 1 without quotes"),
    ("pinned = 'true'", "pinned = 'true'", "a number is compared with a number, without quotes"),
    ("created_at > 2026", "created_at > 2026", "write '2026' in quotes"),
    ("strftime('%H', created_at) > 12", "strftime('%H', created_at) > 12", "write '12' in quotes"),
]
FINE = [
    "loss < 0.001",
    "created_at > '2026' AND pinned",
    "created_at BETWEEN '2026-01' AND '2026-02'",
    "status = 'final' OR notes LIKE '%good%' AND step LIKE '1%'",
    "notes LIKE '50!%' ESCAPE '!' AND loss < 1",
    "date(created_at) IN ('2026-01-01', '2026-01-02')",
    "CASE WHEN loss < 1 THEN 'a' ELSE 'b' END = 'a'",
    "coalesce(notes, '') = '' AND nullif(loss, 0) IS NOT NULL",
    "length(notes) > 3 AND notes = lower('A') || step",
    "loss IS NULL AND -loss < +1",
    "loss < -'1'",
]


@pytest.mark.parametrize(("condition", "where", "advice"), MIXED, ids=[m[0] for m in MIXED])
def test_a_number_that_is_compared_with_a_text_is_told_and_how_to_write_it(
    condition, where, advice
):
    with pytest.raises(InvalidCondition) as told:
        conditions.parse(condition)
    assert str(told.value) == (
        f"The condition {condition!r} cannot be used: {where!r} compares a number with a text; "
        f"{advice}."
    )


def test_a_column_that_is_a_text_is_no_metric():
    with pytest.raises(InvalidCondition, match=r"compares a number with a text[.]"):
        conditions.parse("notes < loss")


@pytest.mark.parametrize("condition", FINE)
def test_what_compares_alike_is_fine(condition):
    conditions.check(conditions.parse(condition))


@pytest.mark.parametrize("condition", ["loss <", "and", "case loss", "abs(loss, = 1", "step in 1"])
def test_what_is_no_expression_is_left_to_the_database(condition):
    with pytest.raises(InvalidCondition, match=r"not one whole expression|not closed"):
        conditions.check(conditions.parse(condition))


def test_however_deep_its_brackets_are_it_ends():
    deep = "(" * 20_000 + "loss" + ")" * 20_000
    with pytest.raises(InvalidCondition):
        conditions.check(conditions.parse(f"{deep} < 1"))


def test_no_rule_of_retention_decides_by_such_a_condition():
    with pytest.raises(InvalidPolicy, match=r"write 0[.]5 without quotes"):
        Policy(keep=["where loss < '0.5'"])

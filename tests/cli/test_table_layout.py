"""Tables fit the terminal, and what is to be copied stays whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.cli.table_layout import cells, cut, lay_out

NAMES = ["run", "step", "marks", "path"]
ROWS = [
    ["grpo-8b", "100", "", "/data/results/grpo-8b/step_100"],
    ["grpo-8b-with-a-very-long-name", "20", "", "/data/step_2"],
]


def test_without_a_terminal_nothing_is_left_out_or_cut():
    header, lines = lay_out(NAMES, ROWS)
    assert header == "run                            step  marks  path"
    assert lines == [
        "grpo-8b                         100         /data/results/grpo-8b/step_100",
        "grpo-8b-with-a-very-long-name    20         /data/step_2",
    ]


def test_columns_without_a_value_go_first():
    header, lines = lay_out(NAMES, ROWS, limit=70)
    assert header == "run                            step  path"
    assert max(map(len, lines)) == 67


def test_then_the_widest_text_is_cut_in_its_middle():
    _, lines = lay_out(NAMES, ROWS, limit=60)
    assert lines == [
        "grpo-8b                  100  /data/results/grpo-8b/step_100",
        "grpo-8b-wit…-long-name    20  /data/step_2",
    ]
    assert max(map(len, lines)) == 60


def test_where_that_is_not_enough_the_last_one_gets_a_line_of_its_own_and_stays_whole():
    header, lines = lay_out(NAMES, ROWS, limit=49)
    assert header == "run                            step  path"
    assert lines == [
        "grpo-8b                         100",
        "      /data/results/grpo-8b/step_100",
        "grpo-8b-with-a-very-long-name    20  /data/step_2",
    ]


def test_an_answer_to_sql_keeps_its_columns_and_values():
    header, lines = lay_out(NAMES, ROWS, limit=60, exact=True)
    assert "marks" in header
    assert any("grpo-8b-with-a-very-long-name" in line for line in lines)


@pytest.mark.parametrize("limit", [None, 10])
def test_no_rows_leave_the_header(limit):
    assert lay_out(["a", "b"], [], limit=limit) == ("a  b", [])


def test_wide_letters_take_two_columns():
    assert cells("日本") == 4
    _, lines = lay_out(["a", "b"], [["日本", "x"], ["abc", "y"]])
    assert lines == ["日本  x", "abc   y"]


@pytest.mark.slow
@given(st.text(), st.integers(3, 40))
def test_what_is_cut_is_no_wider_than_asked_and_keeps_both_ends(text, width):
    short = cut(text, width)
    assert cells(short) <= width or short == text
    if short != text:
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail)


text = st.text(st.characters(categories=("L", "N", "P")), max_size=30)
tables = st.integers(1, 5).flatmap(
    lambda width: st.tuples(
        st.lists(text, min_size=width, max_size=width),
        st.lists(st.lists(text, min_size=width, max_size=width), max_size=5),
    )
)


@given(tables, st.integers(20, 120))
def test_whatever_is_in_it_the_last_cell_is_whole(table, limit):
    names, rows = table
    _, lines = lay_out(names, rows, limit=limit)
    shown = "\n".join(lines)
    assert all(row[-1] in shown for row in rows)

import sqlite3
import time

import pytest
from datasette.database import QueryInterrupted

from ckptdb.catalog.worker import Place, Workers
from ckptdb.web import questions
from ckptdb.web.questions import Page, answer, current_page, make_question, making

ENDLESS = "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c"


@pytest.fixture
def place(tmp_path):
    sqlite3.connect(tmp_path / "some.db").execute("CREATE TABLE t (x)").connection.close()
    return Place(uri=f"file:{tmp_path / 'some.db'}?mode=ro", base=None, patience_seconds=1.0)


def question(page, sql="select 1 as a, 2 as b"):
    return make_question(page, sql, None, limit=10, milliseconds=2_000)


def test_all_queries_of_a_page_share_its_time(place):
    page, workers = Page(0.3), Workers()
    try:
        with pytest.raises(QueryInterrupted):
            answer(workers, place, question(page, ENDLESS), page)
        started = time.monotonic()
        with pytest.raises(QueryInterrupted):
            question(page)
        assert time.monotonic() - started < 0.3
    finally:
        workers.close()


def test_a_page_that_is_sent_in_parts_may_take_as_long_as_it_is():
    whole, parts = question(Page(1.0)), question(Page(None))

    assert (whole.timeout_seconds, parts.timeout_seconds) == (1.0, 2.0)
    assert (whole.most_values, parts.most_values) == (questions.MOST_VALUES, None)


def test_a_page_is_known_to_whatever_is_asked_while_it_is_made():
    page = Page(1.0)
    with making(page):
        assert current_page() is page
    assert current_page() is not page


def test_rows_have_names_as_those_of_sqlite(place):
    page, workers = Page(None), Workers()
    try:
        found = answer(
            workers, place, question(page, 'select 1 as "a""b", \'x\' as b, 3 as b'), page
        )
    finally:
        workers.close()
    assert found.columns == ['a"b', "b", "b"]
    assert (found.rows[0]['a"b'], found.rows[0]["b"], tuple(found.rows[0])) == (1, "x", (1, "x", 3))

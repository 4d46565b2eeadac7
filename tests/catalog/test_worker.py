import gc
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from ckptdb.catalog.bounded_query import BoundedQuery, Failed, Late, TooLarge
from ckptdb.catalog.worker import Place, Worker, Workers

SLOW_TO_COMPILE = (
    "WITH a0 AS (SELECT 1 AS x UNION ALL SELECT 2), "
    + ", ".join(f"a{i + 1} AS (SELECT * FROM a{i} UNION ALL SELECT * FROM a{i})" for i in range(16))
    + " SELECT 1 FROM a16"
)


@pytest.fixture
def place(tmp_path):
    file = tmp_path / "some.db"
    with closing(sqlite3.connect(file)) as raw, raw:
        raw.execute("CREATE TABLE t (x)")
        raw.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1000)])
    return Place(uri=f"file:{file}?mode=ro", base=Path("/results"), patience_seconds=0.1)


@pytest.fixture
def worker():
    with closing(Worker()) as made:
        yield made


def question(sql, *, parameters=None, limit=None, most=1 << 20, values=None, seconds=5.0):
    return BoundedQuery(
        sql=sql, parameters=parameters or {}, limit=limit, largest_bytes=most,
        timeout_seconds=seconds, most_values=values,
    )  # fmt: skip


def test_rows_columns_and_whether_the_limit_cut_them_come_back(worker, place):
    rows = []
    asked = question(
        "SELECT x, abspath('a') AS p FROM t WHERE x > :x", parameters={"x": 5}, limit=2
    )
    outcome = worker.query(place, asked, rows.extend)

    assert rows == [(6, "/results/a"), (7, "/results/a")]
    assert (outcome.columns, outcome.truncated) == (("x", "p"), True)


def test_one_process_answers_one_query_after_the_other(worker, place):
    numbers = set()
    for _ in range(3):
        worker.query(place, question("SELECT 1"), [].extend)
        numbers.add(worker._process.pid)
        with pytest.raises(Failed):
            worker.query(place, question("SELECT nosuch"), [].extend)
    assert len(numbers) == 1


def test_what_is_wrong_is_the_drivers_own_error(worker, place):
    with pytest.raises(Failed) as failed:
        worker.query(place, question("SELECT x FROM nosuch"), [].extend)
    assert isinstance(failed.value.error, sqlite3.OperationalError)
    assert str(failed.value.error) == "no such table: nosuch"
    assert [spot.column for spot in failed.value.spots] == [15]
    with pytest.raises(Failed) as failed:
        worker.query(place, question("DELETE FROM t"), [].extend)
    assert failed.value.refusal == "it would delete from t"


def test_an_answer_with_more_values_than_it_may_have_is_refused(worker, place):
    worker.query(place, question("SELECT x FROM t LIMIT 10", values=10), [].extend)
    with pytest.raises(Failed) as failed:
        worker.query(place, question("SELECT x FROM t LIMIT 11", values=10), [].extend)
    assert str(failed.value.error) == "its answer has more than 10 values"


def test_the_system_ends_what_does_not_look_at_the_clock(worker, place):
    started = time.monotonic()
    with pytest.raises(Failed) as failed:
        worker.query(place, question(SLOW_TO_COMPILE, seconds=0.05), [].extend)

    assert isinstance(failed.value.error, Late)
    assert time.monotonic() - started < 5
    rows = []
    worker.query(place, question("SELECT 1"), rows.extend)  # in another process
    assert rows == [(1,)]


def test_a_process_that_is_killed_is_named_and_replaced(worker, place):
    def kill(_):
        os.kill(worker._process.pid, signal.SIGKILL)

    long = "SELECT hex(zeroblob(200000)) FROM t"  # not all of it fits into the pipe
    with pytest.raises(Failed) as failed:
        worker.query(place, question(long, most=1 << 30), kill)
    assert isinstance(failed.value.error, TooLarge)
    assert str(failed.value.error) == "the process that answered it was ended by SIGKILL"

    worker.query(place, question("SELECT 1"), [].extend)
    process = worker._process
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    rows = []
    worker.query(place, question("SELECT 1"), rows.extend)
    assert rows == [(1,)]


def test_a_sink_that_raises_leaves_nothing_for_the_next_query(worker, place):
    def refuse(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.query(place, question("SELECT x FROM t"), refuse)
    rows = []
    worker.query(place, question("SELECT 'mine'"), rows.extend)
    assert rows == [("mine",)]


def test_the_lock_of_somebody_else_is_waited_for_but_not_for_ever(worker, place, tmp_path):
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Failed) as failed:
            worker.query(place, question("SELECT 1 FROM t"), [].extend)
    assert failed.value.error.sqlite_errorcode == sqlite3.SQLITE_BUSY


def test_the_process_ends_with_its_worker_also_when_nobody_closes_it(place):
    made = Worker()
    made.query(place, question("SELECT 1"), [].extend)
    process = made._process
    del made
    gc.collect()
    assert process.returncode == -signal.SIGKILL


def test_a_forked_child_leaves_the_processes_to_its_parent(place):
    workers = Workers()
    with closing(workers):
        workers.query(place, question("SELECT 1"), [].extend)
        child = os.fork()
        if child == 0:
            rows = []
            try:
                workers.query(place, question("SELECT 'child'"), rows.extend)
                workers.close()
            finally:
                os._exit(0 if rows == [("child",)] else 1)
        assert os.waitpid(child, 0)[1] == 0
        rows = []
        workers.query(place, question("SELECT 'parent'"), rows.extend)
        assert rows == [("parent",)]

import threading

import pytest

from ckptdb.disk import parallel
from ckptdb.disk.parallel import ParallelReader


@pytest.fixture(params=[True, False], ids=["slow", "fast"])
def slow(request, monkeypatch):
    monkeypatch.setattr(parallel, "SLOW_SECONDS", -1.0 if request.param else 1e9)
    return request.param


@pytest.mark.parametrize("count", [0, 1, 5, 6, 1000])
def test_everything_is_gone_through_once_and_in_order(slow, count):
    parts = list(ParallelReader().through(range(count), list))
    assert [item for part in parts for item in part] == list(range(count))


def test_only_a_slow_file_system_is_worth_threads(slow):
    threads = set()
    found = ParallelReader()
    for _ in found.through(range(1000), lambda _: threads.add(threading.current_thread())):
        pass
    assert found.is_slow is slow
    assert (threads == {threading.current_thread()}) is not slow


def test_what_was_found_out_holds_for_the_next_items(slow):
    found = ParallelReader()
    assert [len(part) for part in found.through(range(5), list)] == [1] * 5
    assert len(list(found.through(range(8), list))) == 1


def test_few_results_wait_for_being_taken(monkeypatch):
    monkeypatch.setattr(parallel, "SLOW_SECONDS", -1.0)
    done = []
    results = ParallelReader().through(range(100_000), done.append)
    for _ in range(6):
        next(results)
    assert len(done) <= 5 + 1 + 2 * parallel.THREADS
    results.close()
    assert len(done) <= 5 + 1 + 2 * parallel.THREADS


def test_an_error_comes_out_where_its_part_would(slow):
    def work(items):
        if 500 in items:
            raise KeyError(500)
        return items

    found = []
    with pytest.raises(KeyError):
        found.extend(ParallelReader().through(range(10_000), work))
    assert all(500 not in part for part in found)

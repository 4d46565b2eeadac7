from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ckptdb.disk.publish import Publisher
from ckptdb.errors import CatalogBroken, CatalogMissing
from ckptdb.reconcile import fallback
from ckptdb.reconcile.fallback import Fallback, index_in_memory

BROKEN = CatalogBroken("catalog.db", "malformed")


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(fallback.time, "monotonic", lambda: now[0])
    return now


def test_a_catalog_that_failed_is_left_alone_for_a_while(clock):
    answers = Fallback()
    assert not answers.is_active
    answers.activate(BROKEN)
    assert answers.is_active
    clock[0] += fallback.RETRY_SECONDS
    assert not answers.is_active


def test_a_failure_is_reported_once(clock):
    answers = Fallback()
    assert [answers.activate(BROKEN) for _ in range(3)] == [True, False, False]


def test_an_expected_failure_is_not_reported_and_hides_no_other(clock):
    answers = Fallback()
    assert not answers.activate(BROKEN, is_expected=True)
    assert answers.is_active
    assert answers.activate(BROKEN)


def test_a_catalog_that_a_reader_does_not_find_is_tried_again_at_once(clock):
    answers, missing = Fallback(), CatalogMissing(Path("/results"))
    answers.activate(missing, is_expected=True)
    assert not answers.is_active
    answers.activate(missing)
    assert answers.is_active


def test_the_catalog_in_memory_is_made_by_the_first_question_and_kept():
    answers = Fallback()
    assert answers.find_memory() is None
    memory = answers.get_memory()
    assert answers.find_memory() is answers.get_memory() is memory
    memory.database.close()


def test_one_run_is_indexed_in_memory(tmp_path):
    run = tmp_path / "grpo"
    run.mkdir()
    publisher = Publisher(run)
    publisher.publish(publisher.stage(3, b'{"loss": 0.5}', None).checkpoint.path)
    catalog, report = index_in_memory(run, tmp_path)
    with closing(catalog.database):
        assert report.applied
        assert [found.step for found in catalog.checkpoints.list_all(status="final")] == [3]

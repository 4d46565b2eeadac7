from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from tests.support.reconciling import (
    age,
    live,
    reconcile,
    save,
)

from ckptdb.catalog.catalog import Catalog
from ckptdb.core.facts import Fact
from ckptdb.disk import (
    identity,
    journal,
    journal_records,
    observation,
    run_stamp,
)
from ckptdb.disk.publish import Publisher
from ckptdb.reconcile import apply
from ckptdb.reconcile.run import reconcile_run

AT = "2026-11-22T16:01:24.000Z"


def test_a_settled_look_is_remembered_and_saves_the_next(catalog, run):
    save(run, 1)
    age(run)
    first = reconcile_run(catalog, run, depth="changes")
    assert first.verified == run_stamp.find_stamp(run)
    seen = catalog.runs.find(identity.identify(run).run.uuid)
    assert (seen.stamp, seen.verified) == (str(first.verified), True)

    again = reconcile_run(catalog, run, depth="changes")
    assert (again.applied, again.verified, again.run_id) == (False, first.verified, first.run_id)


def test_a_young_look_is_not_remembered_unless_assumed(catalog, run):
    save(run, 1)
    assert reconcile_run(catalog, run, depth="changes").verified is None
    assert catalog.runs.list_all()[0].stamp is None

    report = reconcile_run(catalog, run, depth="changes", assume=True)
    assert report.verified is None
    seen = catalog.runs.list_all()[0]
    assert (seen.stamp, seen.verified) == (str(run_stamp.find_stamp(run)), False)
    assert not reconcile_run(catalog, run, depth="changes", assume=True).applied


def test_fingerprints_are_remembered_once_they_are_sure(catalog, run):
    save(run, 1)
    reconcile_run(catalog, run)
    assert catalog.checkpoints.list_all()[0].fingerprint is None
    age(run)
    reconcile_run(catalog, run)
    assert catalog.checkpoints.list_all()[0].fingerprint is not None


def test_a_change_during_the_look_is_not_masked(catalog, run, monkeypatch):
    save(run, 1)
    age(run)
    real = observation.observe

    def observe_then_change(*arguments, **options):
        seen = real(*arguments, **options)
        (run / f"stranger{time.monotonic_ns()}").mkdir()
        age(run, 5)
        return seen

    monkeypatch.setattr(observation, "observe", observe_then_change)
    report = reconcile_run(catalog, run)
    assert report.verified is None
    assert catalog.runs.list_all()[0].stamp is None


def test_what_a_trainer_does_between_look_and_lock_is_seen(catalog, run, monkeypatch):
    save(run, 1)
    real = apply.lock_to_change

    def locked_after_a_save(directory):
        monkeypatch.setattr(apply, "lock_to_change", real)
        save(run, 2)
        return real(directory)

    monkeypatch.setattr(apply, "lock_to_change", locked_after_a_save)
    reconcile_run(catalog, run)
    assert set(live(catalog)) == {1, 2}


@pytest.fixture
def looks(monkeypatch):
    """Collect every look at a directory."""
    made, real = [], observation.observe

    def observe(directory, *arguments, **options):
        made.append(directory)
        return real(directory, *arguments, **options)

    monkeypatch.setattr(observation, "observe", observe)
    return made


@pytest.mark.parametrize("depth", ["changes", "files", "full"])
def test_a_settled_run_is_not_looked_at_again_under_the_lock(catalog, run, looks, depth):
    save(run, 1)
    age(run)
    assert reconcile_run(catalog, run, depth=depth).verified == run_stamp.find_stamp(run)
    assert looks == [run]
    save(run, 2)
    reconcile_run(catalog, run, depth=depth)
    assert looks == [run] * 3, "its stamp was too young to prove anything"
    assert set(live(catalog)) == {1, 2}


def forget(catalog: Catalog, run: Path) -> None:
    catalog.runs.delete(catalog.runs.list_all()[0].id)


def save_another(catalog: Catalog, run: Path) -> None:
    save(run, 2)


def pin(catalog: Catalog, run: Path) -> None:
    Publisher(run).record([Fact(AT, "pin", live(catalog)[1])])


@pytest.mark.parametrize(
    ("change", "expected"),
    [(forget, {1: False}), (save_another, {1: False, 2: False}), (pin, {1: True})],
    ids=["forgotten", "saved", "pinned"],
)
def test_what_comes_between_a_settled_look_and_the_lock_is_seen(
    catalog, run, monkeypatch, looks, change, expected
):
    save(run, 1)
    age(run)
    reconcile_run(catalog, run)
    (run / "stranger").mkdir()
    age(run, 5)
    real = apply.lock_to_change

    def locked_after_a_change(directory):
        monkeypatch.setattr(apply, "lock_to_change", real)
        change(catalog, run)
        return real(directory)

    monkeypatch.setattr(apply, "lock_to_change", locked_after_a_change)
    del looks[:]
    report = reconcile_run(catalog, run, depth="changes")
    assert looks == [run, run]
    assert report.applied
    assert {c.step: c.pinned for c in catalog.checkpoints.list_all(status="final")} == expected


def test_the_journal_says_why_one_is_gone_even_if_it_has_not_grown(catalog, run):
    one = save(run, 1)
    save(run, 2)
    ended = journal_records.gone(
        one.ended("retention", "retention: a crash came before the rename", AT)
    )
    journal.append(identity.hidden(run), [ended], make_durable=False)
    age(run)
    assert reconcile_run(catalog, run, depth="changes").verified
    shutil.rmtree(run / "step_1")
    age(run, 5)
    reconcile(catalog, run, depth="changes")
    (found,) = catalog.checkpoints.list_all(status="deleted")
    assert found.deleted_reason == "retention: a crash came before the rename"


def test_a_run_that_becomes_unreadable_before_the_lock_is_told(catalog, run, monkeypatch):
    save(run, 1)
    reconcile(catalog, run)
    save(run, 2)
    real = apply.lock_to_change

    def locked_after_a_loss(directory):
        (run / ".ckptdb" / "run.json").write_text("{")
        return real(directory)

    monkeypatch.setattr(apply, "lock_to_change", locked_after_a_loss)
    assert "restore the file" in reconcile_run(catalog, run).blocked
    assert set(live(catalog)) == {1}

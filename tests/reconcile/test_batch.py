"""A run that the index knows little of is taken in by portions, to the same end."""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.support.statements import sent

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.changes import Changes
from ckptdb.core.facts import Fact
from ckptdb.core.records import Checkpoint
from ckptdb.disk import (
    identity,
    journal,
    observation,
    parallel,
    read_checkpoint,
)
from ckptdb.disk.observation import PORTION
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import CatalogBroken, CatalogLocked
from ckptdb.reconcile import batch
from ckptdb.reconcile.run import reconcile_run

AT = "2026-11-22T16:01:24.000Z"


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(observation, "PORTION", 3)
    monkeypatch.setattr(parallel, "_PORTION", 2)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def catalog():
    database = Database.in_memory()
    yield Catalog(database)
    database.close()


def save(run: Path, step: int, loss: float = 0.5, parent: str | None = None) -> Checkpoint:
    publisher = Publisher(run)
    raw = json.dumps({"loss": loss, **{f"m{i}": i / 7 for i in range(7)}}).encode()
    path = publisher.stage(step, raw, b"lr: 0.1\n").checkpoint.path
    return publisher.publish(path, parent=parent).checkpoint


def put(run: Path, step: int, content: str = '{"loss": 0.5, "acc": NaN}') -> None:
    """A checkpoint as NeMo-RL leaves it."""
    (run / f"step_{step}").mkdir()
    (run / f"step_{step}" / "training_info.json").write_text(content)
    (run / f"step_{step}" / "model.pt").write_bytes(b"weights")


def settle(run: Path, seconds: float = 60) -> None:
    then = time.time() - seconds
    for folder, _, files in os.walk(run, topdown=False):
        for name in files:
            os.utime(os.path.join(folder, name), (then, then))
        os.utime(folder, (then, then))


def everything(catalog: Catalog):
    return [
        (seen.run, seen.stamp, seen.verified) for seen in catalog.runs.list_all()
    ], catalog.checkpoints.list_all()


def live(catalog: Catalog) -> dict[int, str]:
    return {cp.step: cp.uuid for cp in catalog.checkpoints.list_all(status="final")}


def told(report) -> list[tuple[str, int | None]]:
    return sorted((a.kind, -1 if a.step is None else a.step) for a in report.actions)


def write_a_bit_of_everything(run: Path) -> None:
    """Fill a run with all that may need more than one checkpoint to tell."""
    late = save(run, 12)
    save(run, 1, parent=late.uuid)  # comes before its parent
    first = save(run, 2)
    second = save(run, 2, 0.4)  # replaces
    for step in range(3, 9):
        save(run, step, step / 10, parent=second.uuid)
    gone = save(run, 9)
    save(run, 10, parent=gone.uuid)
    Publisher(run).retire([Deletion(9, gone.uuid, "by hand")])
    Publisher(run).empty_trash()
    Publisher(run).record(
        [
            Fact(AT, "pin", late.uuid),
            Fact(AT, "tag", first.uuid, {"name": "rc"}),
            Fact(AT, "metric", second.uuid, {"name": "loss", "value": 0.1, "source": "eval"}),
        ]
    )
    put(run, 20, "{")
    put(run, 21)
    (run / "step_007").mkdir()
    settle(run)


# --- the same end -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["changes", "files", "full"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_in_portions_it_is_the_same_as_at_once(run, monkeypatch, depth, dry_run):
    write_a_bit_of_everything(run)
    found = []
    for portion in (1, 3, 5, 10_000):
        monkeypatch.setattr(observation, "PORTION", portion)
        catalog = Catalog(Database.in_memory())
        first = reconcile_run(catalog, run, depth=depth, dry_run=dry_run)
        again = reconcile_run(catalog, run, depth=depth)
        assert again.has_changes is dry_run
        found.append((everything(catalog), told(first), first.verified, first.blocked))
    assert found == [found[0]] * 4
    assert found[0][0][0]


@pytest.mark.parametrize("portion", [1, 3])
def test_what_changed_meanwhile_is_learnt_in_portions_too(run, catalog, monkeypatch, portion):
    write_a_bit_of_everything(run)
    monkeypatch.setattr(observation, "PORTION", 10_000)
    reconcile_run(catalog, run)
    (run / "step_3").rename(run.parent / "aside")
    settle(run, 50)
    reconcile_run(catalog, run)
    (run.parent / "aside").rename(run / "step_3")
    for step in (4, 5, 6):
        (run / f"step_{step}" / "training_info.json").write_text('{"loss": 9.0}')
    shutil.rmtree(run / "step_7")
    put(run, 7)
    for step in range(30, 36):
        put(run, step)
    settle(run, 40)
    monkeypatch.setattr(observation, "PORTION", portion)

    report = reconcile_run(catalog, run)

    assert {("reappeared", 3), ("changed", 4), ("vanished", 7), ("added", 7), ("added", 35)} <= set(
        told(report)
    )
    assert report.verified
    assert not reconcile_run(catalog, run).has_changes
    rebuilt = Catalog(Database.in_memory())
    reconcile_run(rebuilt, run)
    assert everything(rebuilt) == everything(catalog)
    facts = journal.read(identity.hidden(run), identity.identify(run).run)
    assert 3 not in {cp.step for cp in facts.gone.values()}


# --- in little memory -------------------------------------------------------------------


@pytest.mark.slow
def test_few_checkpoints_are_in_memory_at_a_time(run, catalog):
    for step in range(60):
        put(run, step)
    settle(run)
    alive: list[int] = []

    def count() -> None:
        alive.append(sum(type(thing) is Checkpoint for thing in gc.get_objects()))

    gc.collect()
    count()
    report = reconcile_run(catalog, run, on_checkpoint=count)
    most, before = max(alive), alive[0]
    assert len(alive) == 61
    assert most - before <= 2 * (PORTION + parallel._PORTION)
    assert len(report.actions) == 61
    assert all(action.checkpoint is None for action in report.actions)
    assert len(live(catalog)) == 60


# --- what it costs ----------------------------------------------------------------------

CALLS = ("open", "read", "fstat", "lstat", "stat", "scandir", "listdir", "close", "access")


@contextmanager
def counted(monkeypatch):
    """Collect what is asked of the file system, and which statements are sent."""
    calls: list[str] = []

    def count(name, original):
        def call(*arguments, **options):
            calls.append(name)
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch, sent() as statements:
        for name in CALLS:
            patch.setattr(os, name, count(name, getattr(os, name)))
        yield calls, statements


WRITERS = {
    # By name, who writes a checkpoint, and what the first and every other look at it may ask.
    "NeMo-RL": (put, 8, 2),  # at first two for a configuration, which none has
    "ckptdb": (save, 10, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize(("write", "first", "later"), WRITERS.values(), ids=WRITERS)
def test_a_checkpoint_costs_a_few_calls_and_a_portion_a_few_statements(
    tmp_path, monkeypatch, write, first, later
):
    monkeypatch.setattr(observation, "PORTION", 20)
    costs = []
    for portions in (2, 5):
        run = tmp_path / str(portions)
        run.mkdir()
        for step in range(20 * portions):
            write(run, step)
        settle(run)
        catalog = Catalog(Database.in_memory())
        for depth in ("files", "changes", "files"):
            with counted(monkeypatch) as (calls, statements):
                reconcile_run(catalog, run, depth=depth)
            costs.append((len(calls), len(statements)))
    # A portion also takes the lock, and two stamps to see that nobody came in between.
    of_a_portion = 12
    anew, unchanged, compared = (
        [more - less for more, less in zip(costs[at + 3], costs[at], strict=True)]
        for at in range(3)
    )
    assert anew[0] <= 3 * (20 * first + of_a_portion)
    assert anew[1] <= 3 * 8
    assert unchanged == [3 * 20 * later, 0]
    # What the index holds may be wrong: all is read again, and nothing stored.
    assert compared[0] <= 3 * (20 * first + of_a_portion)
    assert compared[1] <= 3 * 6


# --- interrupted and overtaken ----------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_stops_in_between_is_completed_by_the_next(run, catalog, monkeypatch, at):
    write_a_bit_of_everything(run)
    real, calls = Catalog.apply, []

    def fail(self, changes: Changes, **options):
        calls.append(changes)
        if len(calls) == at:
            raise CatalogLocked("here")
        return real(self, changes, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "apply", fail)
        with pytest.raises(CatalogLocked):
            reconcile_run(catalog, run)
    assert len(live(catalog)) == [0, 3, 7][at - 1]
    assert not any(seen.verified or seen.stamp for seen in catalog.runs.list_all())

    reconcile_run(catalog, run)
    rebuilt = Catalog(Database.in_memory())
    reconcile_run(rebuilt, run)
    assert everything(catalog) == everything(rebuilt)


def retire(run: Path) -> None:
    deletions = read_checkpoint.load(identity.identify(run), run / "step_2", 2)
    Publisher(run).retire([Deletion(2, deletions.uuid, "by hand")])


def replace_it(run: Path) -> None:
    save(run, 2, 0.9)


def add(run: Path) -> None:
    save(run, 100)


@pytest.mark.parametrize("change", [retire, replace_it, add])
@pytest.mark.parametrize("settled", [True, False])
def test_what_a_trainer_does_before_a_portion_is_stored_is_seen(
    run, catalog, monkeypatch, change, settled
):
    for step in range(8):
        save(run, step)
    if settled:
        settle(run)
    real = batch.lock_to_change

    def held_after_a_change(directory):
        monkeypatch.setattr(batch, "lock_to_change", real)
        change(run)
        return real(directory)

    monkeypatch.setattr(batch, "lock_to_change", held_after_a_change)
    reconcile_run(catalog, run)
    here = observation.observe(run).finals
    assert live(catalog) == {step: checkpoint.uuid for step, checkpoint in here.items()}
    assert not reconcile_run(catalog, run).has_changes


@pytest.mark.parametrize("portion", [1, 100])
def test_nothing_is_done_before_the_catalog_is_known_to_be_sound(
    run, catalog, monkeypatch, portion
):
    monkeypatch.setattr(observation, "PORTION", portion)
    save(run, 1)
    save(run, 2)
    reconcile_run(catalog, run)
    (run / "step_1").rename(run / "aside")
    reconcile_run(catalog, run)
    (run / "aside").rename(run / "step_1")
    put(run, 3)
    before = everything(catalog), (run / ".ckptdb" / "journal.jsonl").read_bytes()

    def refuse(_):
        raise CatalogBroken("x", "it is")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "ensure_sound", refuse)
        with pytest.raises(CatalogBroken):
            reconcile_run(catalog, run)
    assert (everything(catalog), (run / ".ckptdb" / "journal.jsonl").read_bytes()) == before
    assert "reappeared" in dict(told(reconcile_run(catalog, run)))


def test_another_one_that_the_index_has_meanwhile_is_left_to_the_whole_look(
    run, catalog, monkeypatch
):
    for step in range(8):
        save(run, step)
    settle(run)
    who = identity.identify(run)
    other = read_checkpoint.load(who, run / "step_1", 1)
    real = Catalog.apply

    def be_overtaken(self, changes: Changes, **options):
        monkeypatch.setattr(Catalog, "apply", real)
        stranger = Checkpoint(
            run_uuid=other.run_uuid, run=other.run, uuid="a stranger", step=1, path=other.path,
            status="final", created_at=AT,
        )  # fmt: skip
        real(self, Changes(run=who.run, checkpoints=[stranger]))
        return real(self, changes, **options)

    monkeypatch.setattr(Catalog, "apply", be_overtaken)
    reconcile_run(catalog, run)
    assert len(live(catalog)) == 8
    assert live(catalog)[1] == other.uuid


def test_an_error_of_one_checkpoint_is_told_as_ever(run, catalog, monkeypatch):
    for step in range(8):
        put(run, step)
    settle(run)
    real = read_checkpoint.read

    def fail(who, path, step, **options):
        if step in (2, 5):
            raise OSError(5, "Input/output error")
        return real(who, path, step, **options)

    for slow_seconds in (-1.0, 1e9):
        monkeypatch.setattr(parallel, "SLOW_SECONDS", slow_seconds)
        with monkeypatch.context() as patch:
            patch.setattr(read_checkpoint, "read", fail)
            report = reconcile_run(catalog, run)
        assert {("unreadable", 2), ("unreadable", 5)} <= set(told(report))
        assert report.verified is None
        assert sorted(live(catalog)) == [0, 1, 3, 4, 6, 7]
    assert told(reconcile_run(catalog, run)) == [("added", 2), ("added", 5)]

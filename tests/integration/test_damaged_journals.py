"""A journal that lost lines: nothing is deleted by it, and what the catalog knows comes back."""

import json
import os
import random
import shutil
import sqlite3
import warnings
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import journal
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import JournalInDoubt
from ckptdb.reconcile import apply, journal_updates
from ckptdb.retention import Policy

METRIC = {"metric_name": "loss", "higher_is_better": False}
STEPS = (100, 200, 300, 400)
SENTENCE = "`ckptdb reconcile {run}` says what can be restored, and does it."


def save(run, *steps, **options):
    with CheckpointManager({"checkpoint_dir": run, **METRIC, **options}) as manager:
        for step in steps:
            # The later, the worse: whatever is not pinned goes by `keep_top_k`, but the latest.
            with manager.save(step, {"loss": step / 100}) as folder:
                (folder / "model.bin").write_bytes(b"m" * step)


@pytest.fixture
def run(tmp_path):
    """A run in a root: 300 is pinned, the others are annotated in all ways, 50 has been deleted."""
    root = tmp_path / "results"
    root.mkdir()
    Registry.init(root)[0].close()
    run = root / "grpo"
    save(run, 50, *STEPS)
    with Registry.open(root) as registry:
        registry.remove([50], run="grpo")
        registry.pin("grpo", 300, note="in the paper")
        registry.tag("grpo", 200, "release")
        registry.log_metrics("grpo", 200, {"mmlu": 0.5}, source="lm-eval")
        registry.reject("grpo", 100, "diverged")
    with CheckpointManager({"checkpoint_dir": run, **METRIC}) as manager:
        manager.resume()
    with Registry.open(root) as registry:
        registry.reconcile()
    return run


def path_of(run: Path) -> Path:
    return run / ".ckptdb" / "journal.jsonl"


def published(run: Path) -> set[int]:
    return {int(path.name[5:]) for path in run.glob("step_*")}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_one_bit_of_each_line(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(bytes([line[0], line[1] ^ 1]) + line[2:] for line in lines))


def fill_with_noise(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(path.stat().st_size))


def overwrite_the_middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 4)
        file.write(b"x" * (path.stat().st_size // 2))


def forget_the_pin(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for line in lines if b'"pin"' not in line))


def cut_in_the_middle_of_a_line(path: Path) -> None:
    os.truncate(path, path.read_bytes().index(b'"pin"') + 3)


def take_that_of_another_run(path: Path) -> None:
    other = path.parents[3] / "elsewhere"
    save(other, *range(1, 9), keep_top_k=1)
    shutil.copy(path_of(other), path)


DAMAGES = [
    Path.unlink, empty, flip_one_bit_of_each_line, fill_with_noise, overwrite_the_middle,
    forget_the_pin, cut_in_the_middle_of_a_line, take_that_of_another_run,
]  # fmt: skip
damaged = pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# --- nothing is deleted -----------------------------------------------------------------------


@pytest.mark.slow
@damaged
def test_a_pin_outlives_a_journal_that_is_damaged(run, damage):
    catalog = run.parent / ".ckptdb" / "catalog.db"
    before = histories(catalog)
    damage(path_of(run))

    texts = warned(lambda: save(run, 500, 600, keep_top_k=1))

    assert published(run) == {*STEPS, 500, 600}
    [text] = [text for text in texts if "Nothing is deleted" in text]  # once, not at every save
    assert text.startswith(f"Nothing is deleted in {run}: ")
    assert SENTENCE.format(run=run) in text
    with Registry.open(run.parent) as registry:
        for delete in (
            lambda: registry.gc(Policy(keep_top_k=1), run="grpo"),
            lambda: registry.remove([200], run="grpo"),
            lambda: registry.remove([200], run="grpo", force=True),
        ):
            with pytest.raises(JournalInDoubt, match=f"Nothing is deleted in {run}"):
                delete()
        # And questions are answered as before.
        assert registry.get(300, run="grpo").pinned
        assert registry.get(100, run="grpo").rejected == "diverged"
        assert registry.get(200, run="grpo").tags == ("release",)
    assert published(run) == {*STEPS, 500, 600}

    with Registry.open(run.parent) as registry:
        report = registry.reconcile()
        assert not report.blocked
        assert not registry.reconcile(full=True).has_drift
    warned(lambda: save(run, 700, keep_top_k=1))
    assert published(run) == {100, 200, 300, 400, 700}  # 400 was resumed from, 100 is rejected
    assert histories(catalog) >= before


@pytest.mark.slow
@damaged
def test_what_only_the_catalog_knew_is_rebuilt_after_reconcile(run, damage, dump):
    catalog = run.parent / ".ckptdb" / "catalog.db"
    before = dump(catalog)
    damage(path_of(run))
    with Registry.open(run.parent) as registry:
        registry.reconcile()
    catalog.unlink()
    with Registry.open(run.parent) as registry:
        assert not registry.reconcile().blocked
    after = dump(catalog)
    # A journal of another run tells of more than there was.
    assert all(set(before[table]) <= set(after[table]) for table in before)
    assert damage is take_that_of_another_run or after == before


def histories(catalog):
    with closing(sqlite3.connect(catalog)) as database:
        query = "SELECT uuid, pinned, notes, rejected FROM checkpoints"
        return set(database.execute(query))


def test_the_sentence_names_what_the_catalog_knows_and_the_journal_does_not(run):
    empty(path_of(run))
    with Registry.open(run) as registry, pytest.raises(JournalInDoubt) as raised:
        registry.gc(Policy(keep_top_k=1))
    assert str(raised.value).startswith(
        f"Nothing is deleted in {run}: the catalog knows the end of step 50, a rejection of step "
    ) or "the catalog knows " in str(raised.value)
    forgotten = run.parent / "again"
    save(forgotten, 1, 2)
    with Registry.open(run.parent) as registry:
        registry.pin("again", 1)
    path_of(forgotten).unlink()
    with Registry.open(forgotten) as registry, pytest.raises(JournalInDoubt) as raised:
        registry.remove([2])
    assert str(raised.value) == (
        f"Nothing is deleted in {forgotten}: the catalog knows a pin of step 1 that its journal "
        f"does not; `ckptdb reconcile {forgotten}` says what can be restored, and does it."
    )


def test_damage_is_noticed_without_any_catalog(run):
    flip_one_bit_of_each_line(path_of(run))
    (run.parent / ".ckptdb" / "catalog.db").unlink()
    texts = warned(lambda: save(run, 500, keep_top_k=1))
    assert published(run) == {*STEPS, 500}
    assert any("7 lines of its journal cannot be read" in text for text in texts), texts


def test_a_line_that_was_taken_out_is_noticed_without_any_catalog(run):
    forget_the_pin(path_of(run))
    [uuid] = pinned(run)
    (run.parent / ".ckptdb" / "catalog.db").unlink()
    with pytest.raises(JournalInDoubt, match="lines of its journal are missing at 1 place;"):
        Publisher(run).retire([Deletion(300, uuid, "retention: a test")])
    assert published(run) == set(STEPS)


def pinned(run):
    with closing(sqlite3.connect(run.parent / ".ckptdb" / "catalog.db")) as database:
        return [uuid for (uuid,) in database.execute("SELECT uuid FROM checkpoints WHERE pinned")]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [fill_with_noise, overwrite_the_middle, empty, Path.unlink],
                         ids=lambda d: d.__name__)  # fmt: skip
@pytest.mark.parametrize("indexed", [True, False])
def test_a_loop_that_is_running_notices_it_too(run, damage, indexed):
    catalog = run.parent / ".ckptdb" / "catalog.db"
    if not indexed:
        catalog.unlink()
        catalog.mkdir()

    def train():
        with CheckpointManager({"checkpoint_dir": run, **METRIC, "keep_top_k": 4}) as manager:
            for step in (500, 600, 700):
                with manager.save(step, {"loss": step / 100}):
                    pass
                if step == 500:
                    assert 500 in published(run)
                    damage(path_of(run))

    texts = warned(train)
    assert published(run) >= {100, 200, 300, 600, 700}
    assert sum("Nothing is deleted" in text for text in texts) == 1


@pytest.mark.slow
def test_what_was_replaced_while_pinned_keeps_its_bytes(run):
    warned(lambda: save(run, 300))
    trash = run / ".ckptdb" / "trash"
    [kept] = trash.iterdir()
    empty(path_of(run))
    with CheckpointManager({"checkpoint_dir": run, **METRIC}) as manager:
        warned(lambda: save(run, 300))
        warned(manager._pruner.empty_trash)
    assert kept in trash.iterdir()
    with Registry.open(run) as registry, pytest.raises(JournalInDoubt):
        registry.gc(empty_trash=True)
    assert kept in trash.iterdir()
    with Registry.open(run) as registry:
        registry.reconcile()
        registry.gc(empty_trash=True)
    assert list(trash.iterdir()) == [kept]


def test_a_plan_is_not_applied_and_a_leftover_not_discarded(run):
    with CheckpointManager({"checkpoint_dir": run, **METRIC, "keep_top_k": 0}) as manager:
        left = manager.init_tmp_checkpoint(900, {"loss": 1.0})
        planned = manager.plan_retention()
        empty(path_of(run))
        with pytest.raises(JournalInDoubt):
            manager.apply_retention(planned)
        with pytest.raises(JournalInDoubt):
            manager.remove_old_checkpoints()
    with pytest.raises(JournalInDoubt):
        Publisher(run).discard(left, reason="discarded: by a test")
    assert left.is_dir()
    assert published(run) == set(STEPS)


def test_the_other_runs_are_collected_all_the_same(run):
    save(run.parent / "other", 1, 2, 3)
    empty(path_of(run))
    with Registry.open(run.parent) as registry:
        texts = warned(lambda: registry.gc(Policy(keep_top_k=1), all_runs=True))
    assert [text for text in texts if f"Nothing is deleted in {run}" in text]
    assert published(run) == set(STEPS)
    assert published(run.parent / "other") == {1, 3}


# --- what is no damage ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("left", [b'{"at": "2026', b"\0" * 5000, b'{"at": "2026\0\0\0', b""])
def test_what_a_crash_leaves_is_no_damage_however_much_follows(run, left):
    for step in (500, 600):
        with path_of(run).open("ab") as file:
            file.write(left)
        assert warned(lambda step=step: save(run, step, keep_top_k=4)) == []
    with Registry.open(run) as registry:
        assert not registry.reconcile(dry_run=True).has_drift
        assert registry.get(300).pinned


@pytest.mark.slow
def test_an_index_that_is_behind_follows(run):
    catalog = run.parent / ".ckptdb" / "catalog.db"
    behind = catalog.read_bytes()
    with Registry.open(run) as registry:
        registry.unpin(None, 300)
        registry.untag(None, 200, "release")
        registry.unreject(None, 100)
        registry.pin(None, 400)
        registry.remove([200])
    catalog.write_bytes(behind)
    with Registry.open(run) as registry:
        report = registry.reconcile()
        assert {action.kind for action in report.runs[0].actions} == {"annotated", "deleted"}
        assert [cp.step for cp in registry.checkpoints() if cp.pinned] == [400]


# --- settling ---------------------------------------------------------------------------------


def kinds(report):
    return [action.kind for action in report.runs[0].actions]


@pytest.mark.slow
@damaged
def test_check_says_what_reconcile_would_restore_and_changes_nothing(run, damage):
    damage(path_of(run))
    content = path_of(run).read_bytes() if path_of(run).exists() else None
    with Registry.open(run) as registry:
        for _ in range(2):
            report = registry.reconcile(dry_run=True)
            assert report.has_drift
            known = {"contradicted", "damaged journal", "deleted", "rejected"}
            assert set(kinds(report)) <= known
            assert not {"contradicted", "damaged journal"}.isdisjoint(kinds(report))
    assert content == (path_of(run).read_bytes() if path_of(run).exists() else None)


def test_a_damaged_journal_is_kept_beside_the_clean_one(run):
    overwrite_the_middle(path_of(run))
    content = path_of(run).read_bytes()
    with Registry.open(run) as registry:
        [report] = registry.reconcile().runs
    assert report.journal_aside.read_bytes() == content
    assert report.journal_aside.parent == run / ".ckptdb"
    assert report.journal_aside.name.startswith("journal.jsonl.damaged-")
    assert Publisher(run).find_doubt() is None


def test_with_the_catalog_lost_too_it_is_said_what_that_may_mean(run):
    overwrite_the_middle(path_of(run))
    (run.parent / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(run) as registry:
        found = [a for a in registry.reconcile(dry_run=True).runs[0].actions
                 if a.kind == "damaged journal"]  # fmt: skip
        assert len(found) == 1
        assert "of its journal cannot be read" in found[0].what
        assert "Pins, tags, rejections, late metrics and history that" in found[0].what
        registry.reconcile()
        assert not registry.reconcile(dry_run=True).has_drift
        registry.gc(Policy(keep_top_k=4))


@pytest.mark.slow
@pytest.mark.parametrize("damage", [overwrite_the_middle, empty], ids=lambda d: d.__name__)
@pytest.mark.parametrize("at", range(12))
def test_settling_may_be_killed_between_any_two_steps(run, damage, dump, at, monkeypatch):
    catalog = run.parent / ".ckptdb" / "catalog.db"
    before = dump(catalog)
    damage(path_of(run))
    left = [at]

    class Killed(BaseException):
        pass

    def deadly(module, name):
        real = getattr(module, name)

        def call(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*arguments, **options)

        return call

    places = (
        (journal.os, "write"), (journal.os, "link"), (journal.os, "replace"),
        (journal.fsutil, "fsync"), (journal_updates, "restore"), (apply, "record_vanished"),
        (apply.Catalog, "apply"),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        for module, name in places:
            patch.setattr(module, name, deadly(module, name))
        with Registry.open(run) as registry, suppress(Killed):
            registry.reconcile()
    assert published(run) == set(STEPS)
    with Registry.open(run) as registry:
        assert not registry.reconcile().blocked
        assert not registry.reconcile(dry_run=True).has_drift
    assert dump(catalog) == before
    catalog.unlink()
    with Registry.open(run.parent) as registry:
        registry.reconcile()
    assert dump(catalog) == before


def test_another_catalog_has_no_doubt_once_it_is_settled(run, monkeypatch):
    other = run.parent.parent / "other.db"
    with Registry.open(run.parent, catalog=other) as registry:
        registry.reconcile()
    overwrite_the_middle(path_of(run))
    with Registry.open(run) as registry:
        registry.reconcile()
    with Registry.open(run.parent, catalog=other) as registry:
        assert registry.get(300, run="grpo").pinned
        registry.gc(Policy(keep_top_k=1), run="grpo")
        assert 300 in published(run)


@pytest.mark.slow
@damaged
@pytest.mark.parametrize("by_init", [False, True], ids=["reconcile", "init"])
def test_gathering_a_run_into_a_root_keeps_what_only_its_own_catalog_knew(
    tmp_path, damage, by_init
):
    run = tmp_path / "results" / "grpo"
    save(run, *STEPS)
    with Registry.open(run) as registry:
        registry.pin(None, 300)
        registry.remove([400])
    damage(path_of(run))
    with Registry.open(run.parent) as registry:
        kinds = [a.kind for one in registry.reconcile(dry_run=True).runs for a in one.actions]
        assert "contradicted" in kinds
        assert (run / ".ckptdb" / "catalog.db").exists()
        report = Registry.init(run.parent)[1] if by_init else registry.reconcile()
    assert report.has_drift
    assert not (run / ".ckptdb" / "catalog.db").exists()
    shutil.rmtree(run.parent / ".ckptdb")
    with Registry.open(run.parent) as registry:
        registry.reconcile()
        assert registry.get(300, run="grpo").pinned
        assert registry.get(400, run="grpo").deleted_reason == "by hand"


@pytest.mark.slow
@damaged
def test_from_above_nothing_is_deleted_that_a_runs_own_catalog_contradicts(tmp_path, damage):
    run = tmp_path / "results" / "grpo"
    save(run, *STEPS)
    with Registry.open(run) as registry:
        registry.pin(None, 300)
    damage(path_of(run))
    choices = {"nothing above": None, "another": tmp_path / "other.db"}
    for catalog in choices.values():
        with Registry.open(run.parent, catalog=catalog) as registry:
            if catalog is not None:
                registry.reconcile()
            with pytest.raises(JournalInDoubt, match="journal"):
                registry.remove([300], run="grpo", force=True)
            with pytest.raises(JournalInDoubt, match="journal"):
                registry.gc(Policy(ft_keep_latest_k=1, keep_top_k=0))
    assert published(run) == set(STEPS)


@pytest.mark.slow
def test_a_catalog_of_its_own_stays_while_it_is_locked(tmp_path):
    run = tmp_path / "results" / "grpo"
    save(run, *STEPS)
    own = run / ".ckptdb" / "catalog.db"

    def gather() -> None:
        Registry.init(run.parent)[0].close()

    with closing(sqlite3.connect(own, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        told = warned(gather)
    assert any("keeps a catalog of its own" in text for text in told)
    assert own.exists()
    gather()
    assert not own.exists()


def test_a_journal_that_may_not_be_restored_is_told(run, monkeypatch):
    empty(path_of(run))

    def refuse(*_, **__):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(journal, "append", refuse)
        with Registry.open(run) as registry:
            [sentence] = registry.reconcile().blocked
    assert sentence.startswith(f"{run}: its journal cannot be restored (No space left on device);")
    with Registry.open(run) as registry:
        assert not registry.reconcile().blocked


def test_lines_carry_checksums_and_what_they_come_after(run):
    lines = [json.loads(line) for line in path_of(run).read_text().splitlines()]
    assert lines[0]["after"] == "00000000"
    assert all(list(line)[-2:] == ["after", "crc"] for line in lines)

"""Continuing: from the newest checkpoint that is whole, and what becomes of the others."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from tests.support.warned import warned

from ckptdb import CheckpointManager, Registry
from ckptdb.core.facts import Fact
from ckptdb.disk import journal
from ckptdb.errors import ConfigChanged, InvalidChoice, NoCheckpointHere, UnwritableInfo
from ckptdb.training.config_change import differences
from ckptdb.training.resuming import format_reason

LOSS = "val:loss"
PATH = "passed over"


@pytest.fixture
def run(tmp_path):
    """A run with steps 1 to 3; 3 is the best and the latest."""
    directory = tmp_path / "results" / "run"
    with open_manager(directory) as manager:
        for step in (1, 2, 3):
            save(manager, step)
    return directory


def open_manager(run, **options):
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "durability": "none",
        **options,
    }
    return CheckpointManager(config)


def save(manager, step, **options):
    with manager.save(step, {LOSS: 1 / step}, **options) as folder:
        (folder / "model.bin").write_bytes(b"m" * 100)
    return folder.with_name(f"step_{step}")


def truncate(run, step):
    (run / f"step_{step}" / "model.bin").write_bytes(b"m")


def break_the_catalog(run):
    (run / ".ckptdb" / "catalog.db").write_bytes(b"no database" * 1000)


@pytest.fixture(params=["a catalog", "a broken catalog"])
def maybe_broken(request, run):
    """Whether the answers come from the catalog or, with one warning, from memory."""
    broken = request.param == "a broken catalog"
    if broken:
        break_the_catalog(run)
    return broken


# --- which one ----------------------------------------------------------------------------------


def test_training_continues_from_the_newest_and_that_is_recorded(run):
    with open_manager(run) as manager:
        found = manager.resume()
        assert (found.step, found.path, found.metrics) == (3, run / "step_3", {LOSS: 1 / 3})
        save(manager, 4)
        save(manager, 5)
    with Registry.open(run) as registry:
        line = registry.lineage(5)
        assert [one.step for one in line] == [5, 4, 3, 2, 1]
        assert [one.resumed_at is not None for one in line] == [False, False, True, False, False]
        assert registry.query("SELECT host, pid FROM resumes").rows == (
            (socket.gethostname(), os.getpid()),
        )


def test_what_is_being_finalized_is_waited_for(run):
    with open_manager(run) as manager:
        staged = manager.init_tmp_checkpoint(4, {LOSS: 1})
        manager.begin_finalization(staged)
        assert manager.resume().step == 4
        assert not manager.has_pending_finalization
        save(manager, 5)
    with Registry.open(run) as registry:
        assert [one.step for one in registry.lineage(5)][:2] == [5, 4]


def test_of_a_run_that_is_not_there_or_empty_there_is_none(tmp_path):
    with open_manager(tmp_path / "nowhere") as manager, warned(__file__) as texts:
        assert manager.resume() is None
        assert not (tmp_path / "nowhere").exists()
    with open_manager(tmp_path) as manager, warned(__file__) as more:
        assert manager.resume() is None
    assert texts == more == []
    assert list(tmp_path.iterdir()) == []


def test_one_truncated_after_publishing_is_passed_over_and_counts_no_more(run, maybe_broken):
    truncate(run, 3)
    with open_manager(run, keep_top_k=0, ft_keep_latest_k=2) as manager:
        with warned(__file__) as texts:
            assert manager.resume().step == 2
        assert texts[maybe_broken:] == [
            f"Step 3 is passed over ({run}/step_3): damaged: model.bin: 1 of 100 bytes"
        ]
        with warned(__file__) as texts:
            assert manager.get_latest_checkpoint_path() == str(run / "step_2")
            assert manager.get_best_checkpoint_path() == str(run / "step_2")
            save(manager, 4)
        assert texts == []
        assert sorted(path.name for path in run.glob("step_*")) == ["step_2", "step_3", "step_4"]
    if maybe_broken:
        return
    with Registry.open(run) as registry:
        for full in (False, True):
            registry.reconcile(full=full)
            assert registry.get(3).problem == "damaged: model.bin: 1 of 100 bytes"
            assert registry.best().step == 4
        assert [one.step for one in registry.lineage(4)] == [4, 2, 1]


@pytest.mark.slow
def test_a_load_that_fails_and_is_rejected_leads_to_the_next_one(run, maybe_broken):
    tried, checkpoint = [], None

    def load(path):
        tried.append(path.name)
        if path.name != "step_1":
            raise RuntimeError("shape\nmismatch")

    with open_manager(run, keep_top_k=0, ft_keep_latest_k=1) as manager, warned(__file__) as texts:
        checkpoint = manager.resume()
        while checkpoint is not None:
            try:
                load(checkpoint.path)
                break
            except RuntimeError as error:
                checkpoint = manager.reject(checkpoint, str(error))
        assert manager.get_latest_checkpoint_path() == str(run / "step_1")
        save(manager, 4)
    assert tried == ["step_3", "step_2", "step_1"]
    assert texts[maybe_broken:] == [
        f"Step {step} is passed over ({run}/step_{step}): it was rejected: shape mismatch"
        for step in (3, 2)
    ]
    # Step 1 training was resumed from; the rejected ones no rule counts or deletes.
    assert sorted(path.name for path in run.glob("step_*")) == [f"step_{n}" for n in (1, 2, 3, 4)]
    if maybe_broken:
        break_the_catalog(run)
        with Registry.open(run) as registry:
            registry.reconcile()
    with Registry.open(run) as registry:
        assert registry.get(3).rejected == "shape mismatch"
        assert {cp.step for cp in registry.top(9)} == {1, 4}
        assert [one.step for one in registry.lineage(4)] == [4, 1]


def test_when_all_are_rejected_training_begins_afresh(run):
    with open_manager(run) as manager, warned(__file__) as texts:
        checkpoint = manager.resume()
        for _ in range(3):
            checkpoint = manager.reject(checkpoint, "")
        assert checkpoint is None
        assert manager.resume() is None
        save(manager, 4)
    assert len(texts) == 3
    assert texts[0].endswith("it was rejected: no reason was given")
    with Registry.open(run) as registry:
        assert [one.step for one in registry.lineage(4)] == [4]


def test_another_process_passes_over_what_was_rejected_and_says_why(run):
    with open_manager(run) as manager, pytest.warns(UserWarning, match=PATH):
        manager.reject(manager.resume(), "diverged")
    with open_manager(run) as manager, warned(__file__) as texts:
        assert manager.resume().step == 2
        assert manager.resume().step == 2
    assert texts == [f"Step 3 is passed over ({run}/step_3): it was rejected: diverged"]
    with open_manager(run) as manager, warned(__file__) as texts:
        save(manager, 4)
        assert manager.resume().step == 4
    assert texts == []


def test_a_new_save_of_a_rejected_step_is_not_rejected(run):
    with open_manager(run) as manager:
        with pytest.warns(UserWarning, match=PATH):
            assert manager.reject(manager.resume(), "diverged").step == 2
        save(manager, 3)
        assert manager.resume().step == 3
        assert manager.get_best_checkpoint_path() == str(run / "step_3")
    with Registry.open(run) as registry:
        assert registry.get(3).rejected is None
        (old,) = registry.checkpoints(status="deleted")
        assert (old.step, old.rejected) == (3, "diverged")
        assert [one.step for one in registry.lineage(3)] == [3, 2, 1]


def test_what_only_nemo_rl_wrote_needs_a_readable_training_info(tmp_path):
    for step, content in ((1, '{"val:loss": 1}'), (2, '{"val:loss": 0.5}'), (3, "{")):
        folder = tmp_path / "run" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text(content)
    with open_manager(tmp_path / "run") as manager:
        with warned(__file__) as texts:
            assert manager.resume().step == 2
        assert len(texts) == 1
        assert "training_info.json is not JSON" in texts[0]
        with warned(__file__) as texts:
            save(manager, 4)
        assert texts == []
    with Registry.open(tmp_path / "run") as registry:
        assert [one.step for one in registry.lineage(4)] == [4, 2]


def test_however_many_are_damaged_the_one_before_them_is_found(tmp_path):
    run = tmp_path / "run"
    with open_manager(run) as manager:
        for step in range(1, 31):
            save(manager, step)
    for step in range(2, 31):
        truncate(run, step)
    with open_manager(run) as manager, warned(__file__) as texts:
        assert manager.resume().step == 1
        assert manager.get_latest_checkpoint_path() == str(run / "step_1")
    assert [text.split()[1] for text in texts] == [str(step) for step in range(30, 1, -1)]


def test_one_that_is_deleted_at_that_moment_is_not_returned(run, monkeypatch):
    real = journal.append

    def append(hidden, facts, **options):
        facts = list(facts)
        real(hidden, facts, **options)
        if facts[0].kind == "resumed" and (run / "step_3").exists():
            shutil.rmtree(run / "step_3")

    monkeypatch.setattr(journal, "append", append)
    with open_manager(run) as manager:
        assert manager.resume().step == 2


def test_a_copy_of_a_run_remembers_and_goes_its_own_way(run, tmp_path):
    with open_manager(run) as manager, pytest.warns(UserWarning, match=PATH):
        manager.reject(manager.resume(), "diverged")
    copy = tmp_path / "results" / "copy"
    shutil.copytree(run, copy)
    with open_manager(copy) as manager, warned(__file__) as texts:
        assert manager.resume().step == 2
        save(manager, 4)
    assert texts == [f"Step 3 is passed over ({copy}/step_3): it was rejected: diverged"]
    with Registry.open(copy) as registry:
        assert registry.unreject(None, 3).rejected is None
        assert [one.step for one in registry.lineage(4)] == [4, 2, 1]
    with Registry.open(run) as registry:
        assert registry.get(3).rejected == "diverged"
        assert len(registry.query("SELECT 1 FROM resumes")) == 2


# --- what cannot be recorded --------------------------------------------------------------------


def test_on_a_full_disk_training_continues_all_the_same(run, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(journal, "append", refuse)
    with open_manager(run) as manager, warned(__file__) as texts:
        found = manager.resume()
        assert found.step == 3
        found = manager.reject(found, "diverged")
        assert found.step == 2
        assert manager.reject(found, ValueError("diverged too")).step == 1
    lost = "could not be recorded"
    full = f"{lost} ([Errno 28] No space left on device); only this process passes it over."
    assert [text.partition(":")[0] for text in texts] == [
        f"That training resumes from step 3 {lost}",
        f"That step 3 was rejected {full}",
        f"Step 3 is passed over ({run}/step_3)",
        f"That training resumes from step 2 {lost}",
        f"That step 2 was rejected {full}",
        f"Step 2 is passed over ({run}/step_2)",
        f"That training resumes from step 1 {lost}",
    ]


def test_what_another_run_has_is_not_rejected_here(run, tmp_path):
    with open_manager(tmp_path / "other") as other, open_manager(run) as manager:
        save(other, 1)
        with pytest.raises(NoCheckpointHere, match="is not a checkpoint of"):
            manager.reject(other.resume(), "diverged")


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("a\nb\tc", "a b c"),
        ("", "no reason was given"),
        ("\0", "no reason was given"),
        ("\ud800", "\\ud800"),
        ("é" * 3000, "é" * 1999 + "…"),
    ],
    ids=["lines", "nothing", "NUL", "a lone surrogate", "long"],
)
def test_any_reason_becomes_a_line_that_can_be_kept(reason, line):
    assert format_reason(reason) == line


# --- the configuration --------------------------------------------------------------------------

CONFIG = {"lr": 1e-4, "optim": {"name": "adam", "betas": [0.9, 0.95]}, "seed": 1}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, ["a: 1 → true"]),
        ({"a": [1, {"b": 0}]}, {"a": [1, {"b": False}]}, ['a: [1, {"b": 0}] → [1, {"b": false}]']),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}, ["a.c: 2 → 3"]),
        ({"a": {"b": 1}}, {"a": None}, ['a: {"b": 1} → null']),
        ({"a": 1}, {"b": "x"}, ["a is gone, was 1", 'b is new: "x"']),
        ({"a.b": 1}, {"a.b": 2}, ['"a.b": 1 → 2']),
        ({"a": "x" * 99}, {"a": "y"}, [f'a: "{"x" * 58}… → "y"']),
        ({"a": "NaN"}, {"a": "NaN"}, []),
    ],
    ids=repr,
)
def test_differences_are_named_by_dotted_path(old, new, expected):
    assert list(differences(old, new)) == expected


@pytest.fixture
def configured(tmp_path):
    with open_manager(tmp_path / "run") as manager:
        save(manager, 1, config=CONFIG)
    return tmp_path / "run"


def test_a_changed_configuration_is_warned_about(configured):
    changed = {**CONFIG, "optim": {"name": "adam", "betas": (0.9, 0.999)}, "new": {"x": 1}}
    del changed["seed"]
    with open_manager(configured) as manager:
        with warned(__file__) as texts:
            assert manager.resume(config=CONFIG).step == 1
        assert texts == []
        with warned(__file__) as texts:
            assert manager.resume(config=changed).step == 1
    changes = 'new is new: {"x": 1}; optim.betas: [0.9, 0.95] → [0.9, 0.999]; seed is gone, was 1'
    where = f"{configured}/step_1"
    assert texts == [f"The configuration is not the one that {where} was saved with: {changes}."]


def test_it_may_be_refused_before_anything_is_recorded_or_ignored(configured):
    with open_manager(configured) as manager:
        with pytest.raises(ConfigChanged, match=r"lr: 0\.0001 → 0\.1") as refused:
            manager.resume(config={**CONFIG, "lr": 0.1}, on_change="refuse")
        assert refused.value.changes == ("lr: 0.0001 → 0.1",)
        assert not (configured / ".ckptdb" / "journal.jsonl").exists()
        with warned(__file__) as texts:
            assert manager.resume(config={**CONFIG, "lr": 0.1}, on_change="ignore").step == 1
        assert texts == []


def test_a_rejected_one_leads_to_the_next_with_the_same_question(configured):
    with open_manager(configured) as manager, warned(__file__) as texts:
        save(manager, 2, config={**CONFIG, "lr": 0.1})
        found = manager.resume(config={**CONFIG, "lr": 0.1}, on_change="refuse")
        with pytest.raises(ConfigChanged):
            manager.reject(found, "diverged")
    assert [PATH in text for text in texts] == [True]


def test_many_changes_are_told_in_part():
    changes = [f"key{number}: 1 → 2" for number in range(25)]
    error = ConfigChanged(Path("step_1"), changes)
    assert str(error).endswith("key19: 1 → 2; and 5 more.")
    assert error.changes == tuple(changes)


def test_what_cannot_be_compared_is_told(run):
    with open_manager(run) as manager:
        with warned(__file__) as texts:
            assert manager.resume(config=CONFIG, on_change="refuse").step == 3
        assert len(texts) == 1
        assert "cannot be told: that one has none" in texts[0]
        with pytest.raises(UnwritableInfo):
            manager.resume(config={"model": object()})
        with pytest.raises(InvalidChoice, match="'warn', 'refuse' or 'ignore', not 'panic'"):
            manager.resume(on_change="panic")


def make_unreadable(path):
    path.unlink()
    path.mkdir()


NOT_COMPARABLE = {
    "a python tag": (
        lambda path: path.write_text("betas: !!python/tuple [0.9, 0.95]\n"),
        r"config\.yaml cannot be loaded \(could not determine a constructor for the tag",
    ),
    "a tuple as key": (
        lambda path: path.write_text("? [a, b]\n: 1\n"),
        r"config\.yaml cannot be loaded \(",
    ),
    "too many values": (
        lambda path: path.write_text("a: [" + "1," * 500_000 + "]"),
        r"config\.yaml has too many values or levels to be compared",
    ),
    "a list": (lambda path: path.write_text("- a\n"), r"config\.yaml holds a list"),
    "empty": (lambda path: path.write_text(""), r"config\.yaml holds a NoneType"),
    "two keys of one text": (
        lambda path: path.write_text("1: a\n'1': b\n"),
        r"config\.yaml has two keys with the text '1'",
    ),
    "not UTF-8": (lambda path: path.write_bytes(b"a: \xff"), r"config\.yaml cannot be loaded"),
    "a directory": (make_unreadable, r"config\.yaml is a directory, not a regular file"),
    "a link": (
        lambda path: (path.rename(path.with_name("other")), path.symlink_to("other")),
        r"config\.yaml is a symlink, not a regular file",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("change", "why"), NOT_COMPARABLE.values(), ids=NOT_COMPARABLE)
def test_a_configuration_that_is_there_but_cannot_be_compared_is_not_equal(configured, change, why):
    (configured / "step_1" / "manifest.json").unlink()  # else it is damage
    change(configured / "step_1" / "config.yaml")
    (configured / "step_1" / "config.json").write_text(json.dumps(CONFIG))
    with open_manager(configured) as manager:
        with pytest.raises(ConfigChanged, match=why) as refused:
            manager.resume(config=CONFIG, on_change="refuse")
        assert refused.value.changes == ()
        assert str(refused.value).endswith("or pass on_change='warn' to go on all the same.")
        assert not (configured / ".ckptdb" / "journal.jsonl").exists()  # nothing was resumed
        with pytest.warns(UserWarning, match=f"since .*/step_1 cannot be told: {why}"):
            assert manager.resume(config=CONFIG).step == 1
        with warned(__file__) as texts:
            assert manager.resume(config=CONFIG, on_change="ignore").step == 1
        assert texts == []


@pytest.mark.slow
def test_a_configuration_that_is_too_large_now_is_not_equal_either(configured):
    large = {**CONFIG, "steps": list(range(200_000))}
    with open_manager(configured) as manager:
        with pytest.raises(ConfigChanged, match="cannot be told: the one passed has too many"):
            manager.resume(config=large, on_change="refuse")
        with pytest.warns(UserWarning, match="cannot be told: the one passed has too many"):
            assert manager.resume(config=large).step == 1


def test_a_configuration_of_ours_with_a_tuple_as_key_is_compared(tmp_path):
    config = {"edges": {(0, 1): "a"}, "betas": (0.9, 0.95)}
    with open_manager(tmp_path / "run") as manager:
        save(manager, 1, config=config)
        assert manager.resume(config=config, on_change="refuse").step == 1
        with pytest.raises(ConfigChanged, match=r'edges\.\(0, 1\): "a" → "b"'):
            manager.resume(config={**config, "edges": {(0, 1): "b"}}, on_change="refuse")


def test_resuming_costs_who_does_not_use_it_nothing(run):
    with open_manager(run) as manager:
        save(manager, 4)
    assert not (run / ".ckptdb" / "journal.jsonl").exists()
    manifest = json.loads((run / "step_4" / "manifest.json").read_text())
    assert manifest["parent"] is None


def test_lines_of_other_hands_are_no_resumption(run):
    with open_manager(run) as manager:
        found = manager.resume()
    odd = ({"pid": "1"}, {"host": "\ud800", "pid": 1}, {"host": "h", "pid": 2**70})
    lines = [Fact("2026", "resumed", found.uuid, more) for more in odd]
    lines.append(Fact("x", "rejected", found.uuid))
    journal.append(run / ".ckptdb", lines, make_durable=False)
    with open_manager(run) as manager, warned(__file__) as texts:
        assert manager.resume().step == 3
    assert texts == []

"""No lock-in: NeMo-RL's own scan-and-parse code and ckptdb understand each other's directories."""

import glob
import json
import math
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from ckptdb.disk import names
from ckptdb.manager import CheckpointManager
from ckptdb.registry import Registry

METRIC = "val:loss"


# --- what a loop with NeMo-RL's manager does, in its own words ----------------------------------


def history(run):
    found = []
    for path in glob.glob(str(run / "step_*")):
        with (Path(path) / "training_info.json").open() as file:
            found.append((int(path.rsplit("_", 1)[1]), path, json.load(file)))
    return found


def latest_like_nemo(run):
    found = history(run)
    return max(found)[1] if found else None


def best_like_nemo(run, metric, *, higher):
    having = [(step, path, info) for step, path, info in history(run) if metric in info]
    having.sort(key=lambda entry: (entry[2][metric], entry[0] if higher else -entry[0]))
    return having[-1 if higher else 0][1] if having else latest_like_nemo(run)


def save_like_nemo(run, step, info, *, config="config.yaml"):
    tmp, final = run / f"tmp_step_{step}", run / f"step_{step}"
    tmp.mkdir(parents=True)
    (tmp / "training_info.json").write_text(json.dumps(info))
    dump = yaml.safe_dump if config == names.CONFIG else json.dumps
    (tmp / config).write_text(dump({"policy": {"lr": 1e-6}, "seed": 1}))
    (tmp / "policy").mkdir()
    (tmp / "policy" / "weights.bin").write_bytes(b"w" * 10)
    if final.exists():
        old = run / f"old_step_{step}"
        final.rename(old)
        tmp.rename(final)
        shutil.rmtree(old)
    else:
        tmp.rename(final)
    return final


def prune_like_nemo(run, keep, *, higher):
    found = [(info.get(METRIC, -math.inf), step, path) for step, path, info in history(run)]
    found.sort(key=lambda entry: (entry[0] if higher else -entry[0], entry[1]), reverse=True)
    newest = max(found, key=lambda entry: entry[1])
    for entry in found[keep:]:
        if entry != newest:
            shutil.rmtree(entry[2])


@pytest.fixture
def run(tmp_path):
    return tmp_path / "results" / "grpo"


def open_manager(run, **options):
    return CheckpointManager(
        {
            "checkpoint_dir": run,
            "metric_name": METRIC,
            "higher_is_better": False,
            "durability": "none",
            **options,
        }
    )


def agree(run, *, higher):
    with warnings.catch_warnings(), open_manager(run, higher_is_better=higher) as manager:
        warnings.filterwarnings("ignore", "Ignoring .* checkpoint|No checkpoints contain metric")
        assert manager.get_latest_checkpoint_path() == latest_like_nemo(run)
        assert manager.get_best_checkpoint_path() == best_like_nemo(run, METRIC, higher=higher)


# --- ours, read by theirs -----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("higher", [True, False], ids=["max", "min"])
def test_plain_code_finds_the_same_best_and_latest_in_what_ckptdb_wrote(run, higher):
    rng = random.Random(int(higher))
    with open_manager(run, higher_is_better=higher, keep_top_k=4) as manager:
        for step in rng.sample(range(1, 400), 25):
            info = {"step": step} if rng.random() < 0.1 else {METRIC: rng.randrange(12) / 10}
            with manager.save(step, info, config={"lr": 0.1}) as folder:
                (folder / "model.bin").write_bytes(b"m")
            agree(run, higher=higher)
    assert {name for name in os.listdir(run) if not name.startswith("step_")} == {".ckptdb"}


def test_training_info_is_exactly_what_the_loop_passed(run):
    info = {METRIC: 0.25, "epoch": 3, "nested": {"a": [1, None, "x"]}, "done": False}
    with open_manager(run) as manager, manager.save(10, info):
        pass
    assert history(run) == [(10, str(run / "step_10"), info)]


# --- theirs, read by ours -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def thousand(tmp_path_factory):
    """One run of 1,000 checkpoints written the NeMo-RL way, values in ties."""
    directory = tmp_path_factory.mktemp("nemo") / "results" / "grpo"
    rng = random.Random(0)
    for number, step in enumerate(rng.sample(range(10, 100_000), 1000)):
        info = {"step": step, "consumed_samples": step * 64}
        if number % 20:
            info[METRIC] = rng.randrange(300) / 1000
        config = "config.json" if number % 3 else "config.yaml"
        save_like_nemo(directory, step, info, config=config)
    return directory


def snapshot(top):
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(top.rglob("*"))
        if ".ckptdb" not in path.parts
    }


def expected_top(run, count, *, higher):
    having = [(step, info[METRIC]) for step, _, info in history(run) if METRIC in info]
    having.sort(key=lambda entry: (-entry[1] if higher else entry[1], -entry[0]))
    return [step for step, _ in having[:count]]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_thousand_of_theirs_have_the_same_best_latest_and_top_ten_once_indexed(thousand, mode):
    before = snapshot(thousand)
    with Registry.open(thousand.parent) as registry:
        report = registry.reconcile()
        assert report.checkpoints == 1000
        assert report.blocked == ()
        assert not registry.reconcile().has_changes
        best = registry.best(METRIC, mode=mode)
        assert str(best.path) == best_like_nemo(thousand, METRIC, higher=mode == "max")
        assert best.info["consumed_samples"] == best.step * 64
        assert str(registry.latest(run="grpo").path) == latest_like_nemo(thousand)
        top = [checkpoint.step for checkpoint in registry.top(10, METRIC, mode=mode)]
        assert top == expected_top(thousand, 10, higher=mode == "max")
        (run,) = registry.runs()
        assert run.config == {"policy": {"lr": 1e-6}, "seed": 1}
    assert snapshot(thousand) == before


@pytest.mark.slow
def test_the_command_line_gives_the_same_answers(thousand):
    def ckptdb(*arguments):
        command = [sys.executable, "-m", "ckptdb", "-C", str(thousand.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    ckptdb("reconcile")
    ranking = ("--metric", METRIC, "--mode", "min")
    assert ckptdb("best", *ranking) == best_like_nemo(thousand, METRIC, higher=False) + "\n"
    assert ckptdb("latest", "--run", "grpo") == latest_like_nemo(thousand) + "\n"
    top = json.loads(ckptdb("top", "10", *ranking, "-o", "json"))
    assert [row["step"] for row in top] == expected_top(thousand, 10, higher=False)


@pytest.mark.slow
@pytest.mark.parametrize("higher", [True, False], ids=["max", "min"])
def test_a_manager_on_a_thousand_of_theirs_agrees_without_any_catalog(tmp_path, thousand, higher):
    run = tmp_path / "grpo"
    shutil.copytree(thousand, run, ignore=shutil.ignore_patterns(".ckptdb"))
    agree(run, higher=higher)
    assert not (run / ".ckptdb").exists()


# --- both on the same directory -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False], ids=["common root", "own root"])
def test_their_manager_may_take_over_and_ours_may_come_back(run, marked):
    run.mkdir(parents=True)
    if marked:
        Registry.init(run.parent)[0].close()
    with open_manager(run) as manager:
        for step, loss in ((10, 0.5), (20, 0.3), (30, 0.4)):
            with manager.save(step, {METRIC: loss}):
                pass
    agree(run, higher=False)
    save_like_nemo(run, 40, {METRIC: 0.2})
    agree(run, higher=False)
    save_like_nemo(run, 20, {METRIC: 0.9})  # through old_step_20, which they remove
    agree(run, higher=False)
    prune_like_nemo(run, 2, higher=False)
    assert {step for step, _, _ in history(run)} == {30, 40}
    agree(run, higher=False)
    with open_manager(run, keep_top_k=1) as manager:
        with manager.save(50, {METRIC: 0.1}):
            pass
        assert manager.get_best_checkpoint_path() == str(run / "step_50")
    assert {step for step, _, _ in history(run)} == {50}
    with Registry.open(run) as registry:
        registry.reconcile()
        assert not registry.reconcile().has_changes
        gone = {
            (checkpoint.step, checkpoint.deleted_reason.partition(":")[0])
            for checkpoint in registry.checkpoints(status="deleted")
        }
    assert gone >= {(10, "vanished"), (20, "vanished"), (30, "retention"), (40, "retention")}


def test_their_interrupted_replacement_is_reported_and_left_alone(run):
    for step in (1, 2):
        save_like_nemo(run, step, {METRIC: step})
    (run / "step_2").rename(run / "old_step_2")  # they died between their two renames
    with Registry.open(run.parent) as registry:
        (report,) = registry.reconcile().runs
        assert ("foreign", None) in {(action.kind, action.step) for action in report.actions}
        assert registry.latest().step == 1
    assert (run / "old_step_2" / names.INFO).exists()


def test_without_our_folders_nothing_has_to_be_converted(run):
    with open_manager(run) as manager:
        for step in (1, 2, 3):
            with manager.save(step, {METRIC: 1 / step}):
                pass
    shutil.rmtree(run / ".ckptdb")
    assert latest_like_nemo(run) == str(run / "step_3")
    assert best_like_nemo(run, METRIC, higher=False) == str(run / "step_3")
    agree(run, higher=False)

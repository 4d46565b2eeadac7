"""What is trusted, in SQL and in Python; tests/integration/test_trusted.py asks every question."""

import json

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.core.records import Checkpoint

LOSS = "val:loss"
# step: loss and what becomes of it. Without the doubted ones 5 is the best and 8 the latest.
SAVED = {
    1: (0.01, "rejected"),
    2: (0.02, "damaged"),
    3: (0.03, "rejected and deleted"),
    4: (0.04, "damaged and deleted"),
    5: (0.50, ""),
    6: (0.05, "deleted and rejected"),
    7: (0.60, ""),
    8: (0.70, ""),
    9: (0.06, "rejected"),
    10: (0.07, "damaged"),
}
DOUBTED = {step for step, (_, fate) in SAVED.items() if fate}
GOOD = [step for step in SAVED if step not in DOUBTED]


@pytest.fixture
def run(tmp_path):
    """A run whose doubted checkpoints are its best and its latest ones."""
    run = tmp_path / "results" / "run"
    with CheckpointManager(
        {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    ) as manager:
        for step, (loss, _) in SAVED.items():
            with manager.save(step, {LOSS: loss, "kl": loss}) as folder:
                (folder / "model.bin").write_bytes(b"model")
    with Registry.open(run) as registry:
        for step, (_, fate) in SAVED.items():
            if fate.startswith("rejected"):
                registry.reject(None, step, "too good to be true")
            elif fate.startswith("damaged"):
                (run / f"step_{step}" / "model.bin").write_bytes(b"")
        registry.verify()
        registry.remove([step for step in SAVED if "deleted" in SAVED[step][1]], force=True)
        registry.reject(None, 6, "found out later")
    return run


def steps(found):
    found = [found] if isinstance(found, Checkpoint) else found
    return [checkpoint.step for checkpoint in found]


def test_what_is_trusted_is_the_same_in_sql_and_in_python(run):
    with Registry.open(run) as registry:
        every = registry.checkpoints()
        assert [cp.step for cp in every if cp.is_trusted] == GOOD
        assert {cp.step for cp in every if cp.is_doubted} == DOUBTED
        live = registry.query("SELECT DISTINCT step FROM metrics WHERE live = 1 ORDER BY step")
        assert [step for (step,) in live] == GOOD


def test_it_stays_so_when_the_index_is_built_anew(run):
    (run / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(run) as registry:
        registry.reconcile(full=True)
        assert steps(registry.top(10, ever=True)) == [5, 7, 8]


# --- what is gone and has another one in its place ------------------------------------------


@pytest.fixture
def saved_again(tmp_path):
    run = tmp_path / "run"
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    for step, loss in ((1, 0.1), (2, 0.5), (1, 0.9)):
        with CheckpointManager(config) as manager:
            manager.resume()
            with manager.save(step, {LOSS: loss}) as folder:
                (folder / "model.bin").write_bytes(b"model")
    return run


def ask(capfd, monkeypatch, run, *arguments):
    monkeypatch.chdir(run)
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return stop.value.code, *capfd.readouterr()


def test_a_best_ever_whose_step_was_saved_again_has_no_path(capfd, monkeypatch, saved_again):
    run = saved_again
    code, out, err = ask(capfd, monkeypatch, run, "best", "--ever")
    assert (code, out) == (1, "")
    assert "Step 1 of run with val:loss 0.1 is gone since" in err
    assert "another one with val:loss 0.9 has its path now, so that no path is printed" in err
    assert err.endswith(f"the best available is {run}/step_2 with val:loss 0.5.\n")


def test_as_json_it_says_which_one_has_its_place(capfd, monkeypatch, saved_again):
    with Registry.open(saved_again) as registry:
        now = registry.get(1)
        assert registry.in_place_of(registry.best(ever=True)) == now
    _, out, _ = ask(capfd, monkeypatch, saved_again, "best", "--ever", "-o", "json")
    best = json.loads(out)["best"]
    assert (best["status"], best["in_its_place"]) == ("deleted", now.uuid)
    _, out, _ = ask(capfd, monkeypatch, saved_again, "top", "--ever", "-o", "jsonl")
    told = [json.loads(line).get("in_its_place") for line in out.splitlines()]
    assert told == [now.uuid, None, None]


def test_something_that_is_no_checkpoint_in_its_place_is_not_printed_either(
    capfd, monkeypatch, run
):
    with Registry.open(run) as registry:
        registry.remove([5], force=True)
    (run / "step_5").write_text("a file of somebody's")
    code, out, err = ask(capfd, monkeypatch, run, "best", "--ever")
    assert (code, out) == (1, "")
    assert "something else has its path now" in err


def test_damage_that_only_checksums_have_told_is_not_forgotten_with_the_checkpoint(tmp_path):
    run = tmp_path / "run"
    config = {
        "checkpoint_dir": run,
        "metric_name": LOSS,
        "higher_is_better": False,
        "checksums": True,
    }
    with CheckpointManager(config) as manager:
        for step, loss in ((1, 0.1), (2, 0.5)):
            with manager.save(step, {LOSS: loss}) as folder:
                (folder / "model.bin").write_bytes(b"model")
    (run / "step_1" / "model.bin").write_bytes(b"moles")
    with Registry.open(run) as registry:
        assert [cp.step for cp in registry.verify().damaged] == [1]
        registry.remove([1])
        assert registry.best(ever=True).step == 2
    (run / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert registry.get(1).problem == "damaged: model.bin differs from its checksum"
        assert registry.best(ever=True).step == 2

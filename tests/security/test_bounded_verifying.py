"""Verifying stops in time, also within a file, and no large file keeps others waiting."""

import os
import time

import pytest
from tests.support.bounds import bounded

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import checksums
from ckptdb.registry import verification

HUGE_BYTES = 200 * 1024**3
METRIC = {"metric_name": "loss", "higher_is_better": False}


def save(run, *steps, sizes=(10, 10)):
    config = {"checkpoint_dir": str(run), **METRIC, "checksums": True, "durability": "none"}
    with CheckpointManager(config) as manager:
        for step in steps:
            with manager.save(step, {"loss": step}) as folder:
                (folder / "config.yaml").write_text(f"step: {step}")
                for number, size in enumerate(sizes):
                    (folder / f"{number}.bin").touch()
                    os.truncate(folder / f"{number}.bin", size)


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", 1, 2, 3)
    return tmp_path / "run"


def make_huge(run, step, name="0.bin"):
    """Let a file of a checkpoint be of 200 GB, as its manifest says."""
    path = run / f"step_{step}" / "manifest.json"
    path.write_text(path.read_text().replace(f'"{name}": 10,', f'"{name}": {HUGE_BYTES},', 1))
    os.truncate(run / f"step_{step}" / name, HUGE_BYTES)


@pytest.mark.slow
def test_verifying_stops_within_a_file_and_says_which(run):
    make_huge(run, 1)

    def verify():
        begun = time.monotonic()
        with Registry.open(run) as registry:
            found = registry.verify(max_seconds=1)
        return time.monotonic() - begun, found.done, found.never, list(found.stopped.values())

    (took_seconds, done, never, [stopped]), _ = bounded(verify)
    assert took_seconds < 5
    assert (done, never) == (0, 3)
    assert stopped.startswith("only ")
    assert stopped.endswith(f"B of the 214.7 GB of {run}/step_1/0.bin were read")


def test_what_there_was_no_time_for_lets_all_others_have_their_turn(run, monkeypatch):
    monkeypatch.setattr(verification, "_LEAST_BYTES", 1024**2)
    make_huge(run, 1)
    make_huge(run, 1, "1.bin")
    make_huge(run, 3)
    for _ in range(20):
        with Registry.open(run) as registry:
            found = registry.verify(max_seconds=0)
    note = verification.verified.load(run / ".ckptdb", "contents", now="3")
    first, second, third = (cp.uuid for cp in sorted(found, key=lambda cp: cp.step))
    assert set(note.at) == {second}
    assert set(note.unfinished[first]) == {"config.yaml", "training_info.json"}
    assert sorted(note.stopped[first].files) == ["0.bin", "1.bin"]
    assert set(note.unfinished[third]) == {"1.bin", "config.yaml", "training_info.json"}
    assert note.stopped[third].files == ["0.bin"]
    assert found.never == 2


def test_what_was_stopped_is_verified_when_there_is_time(run, monkeypatch):
    monkeypatch.setattr(verification, "_LEAST_BYTES", 0)
    monkeypatch.setattr(checksums, "_PART_BYTES", 4)
    with Registry.open(run) as registry:
        assert len(registry.verify(max_seconds=0).stopped) == 1
        found = registry.verify()
    assert (found.done, found.never, found.stopped) == (3, 0, {})
    assert not verification.verified.load(run / ".ckptdb", "contents", now="3").stopped


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)])
def test_what_is_no_file_any_more_is_damage_at_once(run, put):
    path = run / "step_1" / "0.bin"
    path.unlink()
    put(path)

    def verify():
        with Registry.open(run) as registry:
            return [cp.problem for cp in registry.verify()]

    problems, _ = bounded(verify)
    assert problems[0].startswith("damaged: 0.bin")
    assert problems[1:] == [None, None]


def test_the_command_says_what_there_was_no_time_for(run, capsys):
    from ckptdb.cli.main import main

    make_huge(run, 1)
    with pytest.raises(SystemExit) as ended:
        main(["-C", str(run), "verify", "--max-seconds", "0.1"])
    assert ended.value.code == 0
    said = capsys.readouterr().err
    assert f"of the 214.7 GB of {run}/step_1/0.bin were read in that time: it is verified" in said
    assert "0 of 3 checkpoint(s) verified, none known to be damaged; 3 never yet." in said

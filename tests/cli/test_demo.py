"""The demo: really trained, really killed, and every answer it shows is the command's own."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptdb import CheckpointManager
from ckptdb.cli import demo
from ckptdb.cli.main import main


@dataclass
class Shown:
    directory: Path
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What a user sees who runs the demo into a pipe."""
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, "-m", "ckptdb", "demo"],
        cwd=folder, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    return Shown(folder / "ckptdb-demo", done.returncode, done.stdout, done.stderr)


def _environment():
    return {name: value for name, value in os.environ.items() if name != "CKPTDB_CATALOG"}


def _run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code


def _answers(out):
    """Return each command of a transcript with the lines that follow it."""
    for block in out.split("\n$ ")[1:]:
        command, _, rest = block.partition("\n")
        yield command, rest.partition("\n\n")[0].rstrip("\n")


@pytest.mark.slow
def test_it_ends_well_and_says_nothing_on_stderr(shown):
    assert (shown.code, shown.err) == (0, "")
    assert "to explore" in shown.out


def test_a_kill_really_hit_a_half_written_checkpoint(shown):
    left = next(line for line in shown.out.splitlines() if "tmp_step_700" in line)

    assert "weights.json" in left
    assert "sampler.json" not in left
    assert "manifest.json" not in left
    assert "step 700: abandoned tmp" in shown.out
    assert "continues from step_600" in shown.out
    with sqlite3.connect(shown.directory / ".ckptdb/catalog.db") as catalog:
        rows = catalog.execute("SELECT deleted_reason FROM deletions WHERE step = 700").fetchall()
    catalog.close()
    assert ("discarded: left unfinished, the step was saved again",) in rows


def test_the_answers_are_what_the_commands_say(shown, capfd, monkeypatch):
    monkeypatch.chdir(shown.directory.parent)
    questions = shown.out.partition("Now the questions.")[2]
    answers = list(_answers(questions))

    assert [shlex.split(command)[3] for command, _ in answers] == [
        "best", "latest", "top", "sql", "sql",
    ]  # fmt: skip
    for command, answer in answers:
        assert _run(*shlex.split(command)[1:]) == 0
        assert capfd.readouterr().out.rstrip("\n") == answer


def test_what_it_suggests_to_try_works(shown, capfd, monkeypatch):
    monkeypatch.chdir(shown.directory.parent)
    suggestions = shown.out.partition("Try:\n")[2].splitlines()

    assert len(suggestions) == 4
    for line in suggestions:
        assert _run(*shlex.split(line)[1:]) == 0
        assert capfd.readouterr().out


def test_best_and_latest_are_what_the_files_say(shown):
    for run in demo.RATES:
        infos = [json.loads(file.read_text())
                 for file in shown.directory.glob(f"{run}/step_*/training_info.json")]  # fmt: skip
        best = min(infos, key=lambda info: (info["val:loss"], -info["step"]))
        manager = CheckpointManager(
            {
                "checkpoint_dir": shown.directory / run,
                "metric_name": "val:loss",
                "higher_is_better": False,
            }
        )

        assert manager.get_best_checkpoint_path().endswith(f"/step_{best['step']}")
        assert manager.get_latest_checkpoint_path().endswith(f"/step_{demo.STEPS}")
        assert best["val:loss"] < 2.2  # guessing is 3.3
        manager.shutdown()


@pytest.mark.slow
def test_a_killed_run_ends_where_an_undisturbed_one_does(shown, tmp_path):
    demo.train(tmp_path / "undisturbed", demo.RATES["lr-0.5"])

    for name in ("weights.json", "sampler.json"):
        undisturbed = (tmp_path / "undisturbed/step_1000" / name).read_bytes()
        assert (shown.directory / "lr-0.5/step_1000" / name).read_bytes() == undisturbed


def test_an_earlier_demo_is_left_alone(shown, capfd, monkeypatch):
    monkeypatch.chdir(shown.directory.parent)

    assert _run("demo") == 1
    assert "`ckptdb demo ckptdb-demo-2` makes another" in capfd.readouterr().err


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path, capfd):
    (tmp_path / "thesis.tex").touch()

    assert _run("demo", str(tmp_path)) == 1
    assert capfd.readouterr().err == (
        f"ckptdb: {tmp_path} is not empty; name a new directory: `ckptdb demo DIRECTORY`.\n"
    )
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_it_stays_out_of_a_chosen_catalog(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CKPTDB_CATALOG", str(tmp_path / "precious.db"))

    assert _run("-C", str(tmp_path), "demo") == 1
    assert "CKPTDB_CATALOG is set" in capfd.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_process_that_survives_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "KILLED_AT", None)

    with pytest.raises(RuntimeError, match="ended with 0, not by SIGKILL"):
        demo.train_and_die(tmp_path / "run", 0.1)


def test_there_is_text_without_the_manual(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    text, held_out = demo.read_text()

    assert (len(text), len(held_out)) == (demo.TRAINED, demo.HELD_OUT)
    assert set(text + held_out) <= set(demo.ALPHABET)

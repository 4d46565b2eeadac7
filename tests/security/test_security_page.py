"""docs/security.md keeps its word: its commands find what a neighbour leaves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ckptdb import CheckpointManager, Registry

HERE = Path(__file__).parents[2]
PAGE = (HERE / "docs" / "security.md").read_text()
COMMANDS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def run(block, folder):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def tree(tmp_path):
    """A directory with the run results/grpo-8b."""
    (tmp_path / "results").mkdir()
    Registry.init(tmp_path / "results")[0].close()
    run = tmp_path / "results" / "grpo-8b"
    with CheckpointManager({"checkpoint_dir": run}) as manager, manager.save(100, {"loss": 0.5}):
        pass
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=["look", "keep private"])
def test_its_commands_run_and_find_nothing_in_a_tree_of_ours(block, tree):
    done = run(block, tree)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if line.startswith("results/")]


def test_its_commands_find_what_a_neighbour_has_left(tree):
    hidden = tree / "results" / "grpo-8b" / ".ckptdb"
    (tree / "victim").write_text("x")
    (hidden / "trash" / "step_5").symlink_to(tree)
    (tree / "results" / "other").mkdir()
    (tree / "results" / "other" / ".ckptdb").symlink_to(tree)
    os.mkfifo(hidden / "pipe")
    os.link(tree / "victim", hidden / "note")
    [look] = [block for block in COMMANDS if "find" in block]
    finds = "\n".join(line for line in look.splitlines() if line.startswith("find"))
    assert set(run(finds, tree).stdout.split()) == {
        "results/other/.ckptdb",
        *(f"results/grpo-8b/.ckptdb/{name}" for name in ("trash/step_5", "pipe", "note")),
    }

"""Every code block of README.md and docs/ runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.documents import BLOCKS, blocks

SHELL = [block for block in blocks("sh") if ".venv" not in block.code]

EXPECTED = r"^((5 of )?5 checkpoint\(s\) verified, .*|/.* is marked as a root by .*)\n"


def run_bash(code, folder, *options):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", *options, "-c", code],
        cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(block, tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo_rl.utils.checkpoint", None)  # put back afterwards
    block.execute()


@pytest.mark.slow  # a process a command
@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_run(block, tree):
    done = run_bash(block.code, tree, "-euo", "pipefail")

    stderr = re.sub(EXPECTED, "", done.stderr, flags=re.MULTILINE)
    assert (done.returncode, stderr) == (0, "")
    for step in (200, 300, 500):
        assert (tree / f"results/grpo-8b/step_{step}/training_info.json").is_file()


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_a_batch_script_can_be_parsed(block, tmp_path):
    done = run_bash(block.code, tmp_path, "-n")

    assert (done.returncode, done.stderr) == (0, "")


def test_no_block_is_of_another_language():
    """test_guide.py answers the queries; a text is a drawing."""
    assert {block.language for block in BLOCKS} == {"python", "sh", "bash", "sql", "text"}
    assert len(blocks("bash")) == len(blocks("text")) == 1

"""A locale that is not UTF-8: names and files are the same, and no command ends in a traceback."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

METRIC = "gütë"
ASCII = {
    "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
}  # fmt: skip
UTF8 = {"PYTHONUTF8": "1"}

# Saves where neither the run, nor its files, nor its metric, nor its configuration are ASCII; then
# says whether all of it is found again.
TRAINER = """
import os, sys
from ckptdb import CheckpointManager, Registry
name = os.fsdecode(b"gr\\xc3\\xb6\\xc3\\x9fe")
config = {"checkpoint_dir": os.path.join(sys.argv[1], name), "metric_name": "g\\u00fct\\u00eb",
          "higher_is_better": False, "durability": "none", "checksums": True}
with CheckpointManager(config) as manager:
    for step in map(int, sys.argv[2:]):
        info = {"g\\u00fct\\u00eb": 1 / step}
        with manager.save(step, info, config={"n": "\\u65e5\\u672c"}) as folder:
            for file in (b"m\\xc3\\xb6del.bin", b"no\\xff.bin"):
                with open(os.path.join(os.fsencode(folder), file), "wb") as target:
                    target.write(b"w" * step)
with Registry.open(sys.argv[1]) as registry:
    registry.reconcile()
    assert not registry.reconcile(dry_run=True).has_drift
    assert {cp.problem for cp in registry.verify()} == {None}
    assert all(os.path.isdir(cp.path) for cp in registry.checkpoints())
"""


def call(command, environment, **options):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        [sys.executable, *command], env=kept | environment, capture_output=True, check=False,
        **options,
    )  # fmt: skip


def train(root, environment, *steps):
    done = call(["-c", TRAINER, str(root), *map(str, steps)], environment)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture
def root(tmp_path):
    top = tmp_path / "results"
    top.mkdir()
    train(top, UTF8, 1, 2)
    assert call(["-m", "ckptdb", "init", "."], UTF8, cwd=top).returncode == 0
    return top


def test_what_one_locale_has_written_another_one_reads(root):
    train(root, ASCII, 3, 4)
    train(root, UTF8, 5)
    train(root, {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, 6)
    found = call(["-m", "ckptdb", "sql", "SELECT directory FROM runs", "-o", "csv"], UTF8, cwd=root)
    assert found.stdout.decode() == "directory\ngröße\n"


COMMANDS = [
    ["ls"],
    ["ls", "-o", "json"],
    ["ls", "-o", "csv"],
    ["ls", "größe"],
    ["latest", "--run", "größe"],
    ["best", "--run", "größe", "--where", f"{METRIC} < 1"],
    ["best", "--each", "--metric", METRIC, "--mode", "min"],
    ["top", "2", "--run", "größe"],
    ["show", "1", "--run", "größe"],
    ["diff", "1", "2", "--run", "größe"],
    ["plot", METRIC],
    ["sql", f"SELECT name FROM metrics WHERE name = '{METRIC}'"],
    ["pin", "1", "--run", "größe"],
    ["tag", "1", "grün", "--run", "größe"],
    ["log", "1", "äcc=0.5", "--run", "größe"],
    ["gc", "--dry-run", "--keep-latest", "1", "--run", "größe"],
    ["watch", "größe", "--once"],
    ["check"],
    ["verify"],
    ["report", "-o", "report.html"],
    ["-C", "größe", "latest"],
    ["schema"],
    ["--help"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_says_in_any_locale_what_it_says_in_utf_8(root, command):
    before = call(["-m", "ckptdb", *command], UTF8, cwd=root)
    found = call(["-m", "ckptdb", *map(os.fsencode, command)], ASCII, cwd=root)
    assert found.returncode == before.returncode == 0, found.stderr.decode()
    assert found.stderr == before.stderr or command[0] in ("check", "verify")
    if command[0] not in ("check", "plot", "ls"):  # these tell times, or draw
        assert found.stdout == before.stdout


def test_what_is_recorded_in_one_locale_is_there_in_another(root):
    call(["-m", "ckptdb", "tag", "1", os.fsencode("grün"), "--run", os.fsencode("größe")], ASCII,
         cwd=root)  # fmt: skip
    found = call(["-m", "ckptdb", "sql", "SELECT name FROM tags", "-o", "csv"], UTF8, cwd=root)
    assert found.stdout.decode() == "name\ngrün\n"


def test_a_drawing_of_letters_only_can_still_be_read(root):
    drawn = call(["-m", "ckptdb", "plot", os.fsencode(METRIC)], ASCII, cwd=root).stdout.decode()
    lines = drawn.partition("\n\n")[0].splitlines()
    assert "?" not in drawn
    assert lines[0].strip() == METRIC
    assert lines[1].strip().strip("+-") == ""
    assert any("a" in line and "." in line and "|" in line for line in lines)

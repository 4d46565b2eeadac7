import os
import pty
import re
import shutil
import subprocess
import sys

import pytest


def test_init_marks_a_root_and_indexes_what_is_there(ckptdb, tmp_path, write_nemo):
    write_nemo(tmp_path / "new" / "run", 1, {"loss": 1.0})
    answer = ckptdb("init", "new", cwd=tmp_path)
    assert answer.code == 0
    assert answer.out.splitlines()[-1] == (
        f"{tmp_path}/new/.ckptdb/catalog.db is the catalog of 1 run(s)."
    )
    assert ckptdb("init", "new", cwd=tmp_path).code == 0


def test_check_names_every_difference_and_reconcile_settles_them(ckptdb, root, write_nemo):
    shutil.rmtree(root / "alpha" / "step_1")
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    found = ckptdb("check", cwd=root)
    assert found.code == 3
    assert "alpha step 1: vanished: " in found.out
    assert "nemo step 3: added: " in found.out
    assert found.out.splitlines()[-1].endswith("2 difference(s) found.")
    assert ckptdb("reconcile", "--dry-run", cwd=root).code == 3
    settled = ckptdb("reconcile", cwd=root)
    assert settled.code == 0
    assert settled.out.splitlines()[-1].endswith("2 difference(s) settled.")
    assert ckptdb("check", cwd=root).code == 0


def test_reports_come_as_json(ckptdb, root, write_nemo):
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    report = ckptdb("check", "-o", "json", cwd=root).json
    assert report["drift"] is True
    actions = [action for run in report["runs"] for action in run["actions"]]
    assert [(action["kind"], action["step"]) for action in actions] == [("added", 3)]


def test_reconcile_of_a_path_looks_only_there(ckptdb, root, write_nemo):
    write_nemo(root / "nemo", 3, {"val:loss": 3.0})
    write_nemo(root / "other", 1, {"val:loss": 3.0})
    assert "1 run(s)" in ckptdb("reconcile", "other", cwd=root).out
    assert ckptdb("check", cwd=root).code == 3


def test_many_differences_are_counted_not_listed(ckptdb, root, write_nemo):
    for step in range(10, 40):
        write_nemo(root / "nemo", step, {"val:loss": 1.0})
    out = ckptdb("check", cwd=root).out
    assert "nemo: … and 10 more added" in out


def test_verify_names_damage_and_ends_with_one(ckptdb, root):
    assert ckptdb("verify", cwd=root).code == 0
    (root / "alpha" / "step_2" / "model.bin").write_bytes(b"short")
    answer = ckptdb("verify", "--run", "alpha", cwd=root)
    assert answer.code == 1
    assert "model.bin: 5 of 1000 bytes" in answer.out
    assert answer.err == "3 checkpoint(s) verified, 1 damaged.\n"
    assert ckptdb("best", "--run", "alpha", cwd=root).out == f"{root}/alpha/step_3\n"
    assert "PROBLEM damaged" in ckptdb("ls", "alpha", cwd=root).out
    shown = ckptdb("verify", "-o", "json", cwd=root).json
    assert [cp["step"] for cp in shown if cp["problem"]] == [2]


def test_verify_in_parts_says_how_far_it_has_come(ckptdb, root):
    answer = ckptdb("verify", "--run", "alpha", "--max-seconds", "0", cwd=root)
    assert (answer.code, answer.err) == (
        0, "0 of 3 checkpoint(s) verified, none known to be damaged; 3 never yet.\n",
    )  # fmt: skip
    answer = ckptdb("verify", "--run", "alpha", "--max-seconds", "600", cwd=root)
    assert re.fullmatch(
        r"3 of 3 checkpoint\(s\) verified, none known to be damaged; "
        r"the oldest verification is \d+ seconds old\.\n",
        answer.err,
    )
    (root / "alpha" / "step_2" / "model.bin").write_bytes(b"short")
    answer = ckptdb("verify", "--sizes-only", "--max-seconds", "600", cwd=root / "alpha")
    assert answer.code == 1
    assert "3 of 3 checkpoint(s) verified, 1 known to be damaged" in answer.err
    assert ckptdb("verify", "--max-seconds", "-1", cwd=root).code == 2


def test_a_lost_run_json_blocks_and_ends_with_four(ckptdb, root):
    (root / "alpha" / ".ckptdb" / "run.json").unlink()
    shutil.rmtree(root / "alpha" / "step_1")
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 4
    assert "has lost its .ckptdb/run.json" in answer.err
    assert answer.err.count("\n") == 1


def test_a_run_that_is_gone_keeps_its_history_until_it_is_forgotten(ckptdb, root):
    (root / "alpha").rename(root.parent / "elsewhere")
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 4
    assert f"{root}/alpha is not there" in answer.err
    assert ckptdb("forget", "alpha", cwd=root).code == 0
    assert ckptdb("reconcile", cwd=root).code == 0


def test_a_broken_catalog_is_set_aside_and_rebuilt(ckptdb, root):
    file = root / ".ckptdb" / "catalog.db"
    file.write_bytes(b"this is no database, but it is mine\n" * 100)
    asked = ckptdb("best", cwd=root)
    assert asked.code == 1
    assert "`ckptdb reconcile` sets it aside" in asked.err
    answer = ckptdb("reconcile", cwd=root)
    assert answer.code == 0
    assert "was set aside as" in answer.out.splitlines()[0]
    kept = list(file.parent.glob("catalog.db.broken-*Z"))
    assert len(kept) == 1
    assert kept[0].read_bytes().startswith(b"this is no database")
    assert ckptdb("best", cwd=root).code == 0


@pytest.mark.parametrize("command", ["check", "reconcile", "verify"])
def test_progress_is_shown_on_a_terminal_and_only_there(root, command):
    parent, child = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "ckptdb", command],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(child)
    seen = b""
    try:
        while chunk := os.read(parent, 4096):
            seen += chunk
    except OSError:
        pass  # the other end of a pseudo-terminal closes with an error
    os.close(parent)
    out, _ = done.communicate()
    assert done.returncode == 0
    assert b"checkpoints" in seen
    assert b"\x1b" not in out


def test_a_named_file_that_is_no_catalog_is_never_moved(ckptdb, root, tmp_path):
    script = tmp_path / "train.py"
    script.write_text("print('not a catalog')\n" * 100)
    answer = ckptdb("--catalog", script, "reconcile", cwd=root)
    assert answer.code == 12
    assert script.read_text().startswith("print")
    assert not list(tmp_path.glob("train.py.*"))

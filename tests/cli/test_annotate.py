import re
from pathlib import Path

import pytest
from tests.support.saving import save

from ckptdb.cli import printing


def steps(ckptdb, run, status="final"):
    return [cp["step"] for cp in ckptdb("ls", "--status", status, "-o", "json", cwd=run).json]


def test_unpin_untag_and_log_say_what_they_did(ckptdb, root):
    alpha = root / "alpha"
    ckptdb("pin", "1", cwd=alpha)
    assert ckptdb("unpin", "1", cwd=alpha).out == "alpha step 1: not pinned any more\n"
    assert ckptdb("tag", "2", "rc", cwd=alpha).out == "alpha step 2: tagged rc\n"
    assert ckptdb("untag", "2", "rc", cwd=alpha).out == "alpha step 2: without the tag rc\n"
    assert ckptdb("log", "2", "mmlu=0.61", "x:y=nan", cwd=alpha).out == (
        "alpha step 2: has mmlu=0.61, x:y=nan\n"
    )
    record = ckptdb("show", "2", "-o", "json", cwd=alpha).json
    assert (record["pinned"], record["tags"]) == (False, [])
    assert record["metrics"] == {"mmlu": 0.61, "val:loss": 0.2, "x:y": None}


def test_reject_puts_aside_until_unreject(ckptdb, root):
    alpha = root / "alpha"
    answer = ckptdb("reject", "2", "loss is fake", cwd=alpha)
    assert (answer.code, answer.out) == (0, "alpha step 2: rejected\n")
    assert ckptdb("best", cwd=alpha).out == f"{alpha}/step_3\n"
    assert "loss is fake" in ckptdb("show", "2", cwd=alpha).out
    assert "REJECTED" in ckptdb("ls", cwd=alpha).out
    listed = {cp["step"]: cp["rejected"] for cp in ckptdb("ls", "-o", "json", cwd=alpha).json}
    assert listed == {1: None, 2: "loss is fake", 3: None}
    assert "step 2: rejected: loss is fake; kept, not ranked" in ckptdb("check", cwd=alpha).out
    ckptdb("gc", "--keep-latest", "1", cwd=alpha)
    assert steps(ckptdb, alpha) == [2, 3]
    assert ckptdb("unreject", "2", cwd=alpha).out == "alpha step 2: not rejected any more\n"
    assert ckptdb("best", cwd=alpha).out == f"{alpha}/step_2\n"
    ckptdb("reject", "2", "after all", cwd=alpha)
    assert ckptdb("rm", "2", cwd=alpha).code == 0
    assert steps(ckptdb, alpha) == [3]


@pytest.mark.parametrize("reason", ["", " ", "two\nlines"])
def test_a_reason_is_a_line(ckptdb, root, reason):
    answer = ckptdb("reject", "2", reason, cwd=root / "alpha")
    assert answer.code == 1
    assert "a reason must be a line of printable text" in answer.err


def test_a_late_metric_can_be_ranked_by(ckptdb, root):
    ckptdb("log", "1", "mmlu=0.7", cwd=root / "alpha")
    ckptdb("log", "3", "mmlu=0.6", cwd=root / "alpha")
    best = ckptdb("best", "--metric", "mmlu", "--mode", "max", cwd=root / "alpha")
    assert best.out == f"{root}/alpha/step_1\n"


@pytest.mark.parametrize("value", ["mmlu", "=1", "mmlu=high"])
def test_log_of_no_number_is_wrong_usage(ckptdb, root, value):
    answer = ckptdb("log", "1", value, cwd=root / "alpha")
    assert answer.code == 2
    assert "is not NAME=NUMBER" in answer.err


def test_forget_drops_a_run_from_the_catalog_alone(ckptdb, root):
    answer = ckptdb("forget", "beta", cwd=root)
    assert answer.out == f"beta is out of the catalog; {root}/beta was not touched.\n"
    assert (root / "beta" / "step_5" / "model.bin").exists()
    assert "beta" not in ckptdb("ls", cwd=root).out
    assert ckptdb("reconcile", cwd=root).code == 0
    assert "beta" in ckptdb("ls", cwd=root).out


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("rm", "1", "--dry-run"), ("gc", "--keep-latest", "1", "--dry-run"),
        ("gc", "--keep-latest", "1", "--replay"), ("pin", "1"), ("unpin", "1"), ("tag", "1", "rc"),
        ("untag", "1", "rc"), ("reject", "1", "bad"), ("unreject", "1"),
        ("log", "1", "m\x1b[31m=1"),
        ("diff", "1", "2"), ("plot",), ("watch", "--once"), ("verify",), ("reconcile",), ("init",),
        ("best",), ("ls", "--\x1b[31m"), ("\x1b[31m\x07",), ("forget", "."), ("db", "path"),
        ("report", "-o", "red\x1b[31m\x07.html"), ("undelete", "1"), ("log", "1", "\x1b[31m\x07"),
    ],
)  # fmt: skip
def test_no_command_lets_a_name_drive_the_terminal(ckptdb, tmp_path, command):
    run = tmp_path / "\x1b[31mred\x07"
    for step in (1, 2):
        save(run, step, {"val:loss": step})
    printed = ckptdb(*command, cwd=run)
    shown = printed.err if command[0] in ("best", "watch", "db") else printed.out + printed.err
    assert not {"\x1b", "\x07"} & set(shown)
    assert "This is a bug" not in printed.err


def test_only_one_module_prints_and_so_cleans_what_others_have_named():
    folder = Path(printing.__file__).parent
    prints = re.compile(r"\b(click\.s?echo|print)\(")
    assert {file.name for file in folder.glob("*.py") if prints.search(file.read_text())} == {
        "printing.py"
    }

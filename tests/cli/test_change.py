import json
import os

import pytest


def steps(ckptdb, run, status="final"):
    return [cp["step"] for cp in ckptdb("ls", "--status", status, "-o", "json", cwd=run).json]


def test_rm_deletes_the_named_steps_and_says_what_it_freed(ckptdb, root):
    answer = ckptdb("rm", "1", "3", cwd=root / "alpha")
    assert answer.code == 0
    assert "by hand" in answer.out
    assert answer.out.splitlines()[-1] == "alpha: 2.1 kB freed."
    assert steps(ckptdb, root / "alpha") == [2]
    assert not (root / "alpha" / "step_1").exists()


def test_rm_dry_run_says_the_same_and_deletes_nothing(ckptdb, root):
    would = ckptdb("rm", "1", "--dry-run", "-o", "json", cwd=root / "alpha").json[0]
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]
    did = ckptdb("rm", "1", "-o", "json", cwd=root / "alpha").json[0]
    assert (would.pop("applied"), did.pop("applied")) == (False, True)
    assert would == did


def test_rm_deletes_all_or_nothing(ckptdb, root):
    assert ckptdb("rm", "1", "9", cwd=root / "alpha").code == 1
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]


def test_rm_refuses_a_pinned_one_unless_forced(ckptdb, root):
    assert ckptdb("pin", "1", cwd=root / "alpha").out == "alpha step 1: pinned\n"
    refused = ckptdb("rm", "1", cwd=root / "alpha")
    assert refused.code == 1
    assert "Step 1 of 'alpha' is pinned" in refused.err
    assert ckptdb("rm", "1", "--force", cwd=root / "alpha").code == 0


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


def test_gc_keeps_what_the_limits_keep_and_says_why(ckptdb, root):
    arguments = ("gc", "--keep-top-k", "1", "--run", "alpha")
    plan = ckptdb(*arguments, "--dry-run", "-o", "json", cwd=root).json[0]
    assert {cp["step"]: cp["keep"] for cp in plan["checkpoints"]} == {1: False, 2: True, 3: True}
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]
    answer = ckptdb(*arguments, cwd=root)
    assert "kept: the latest" in answer.out
    assert "not best 1 by val:loss min (0.5)" in answer.out
    assert steps(ckptdb, root / "alpha") == [2, 3]
    assert steps(ckptdb, root / "beta") == [5]


def test_gc_ranks_by_another_metric_when_told(ckptdb, root):
    answer = ckptdb(
        "gc", "--keep-top-k", "0", "--keep-latest", "1", "--metric", "acc", "--mode", "max",
        "--run", "nemo", cwd=root,
    )  # fmt: skip
    assert answer.code == 0
    assert steps(ckptdb, root / "nemo") == [2]
    assert ckptdb("gc", "--keep-top-k", "1", "--metric", "acc", cwd=root).code == 2


def test_gc_keeps_so_many_of_the_newest_and_nothing_else(ckptdb, root):
    kept = ("gc", "--run", "alpha", "--dry-run", "-o", "json")

    def survivors(*limits):
        plan = ckptdb(*kept, *limits, cwd=root).json[0]
        return [cp["step"] for cp in plan["checkpoints"] if cp["keep"]]

    assert survivors("--keep-latest", "2") == [2, 3]
    assert survivors("--keep-latest", "1") == [3]
    assert survivors("--keep-latest", "1", "--save-period", "2") == [2, 3]
    assert survivors("--keep-latest", "1", "--keep-top-k", "1") == [2, 3]
    shown = ckptdb("gc", "--run", "alpha", "--keep-latest", "1", cwd=root)
    assert "retention: not latest 1\n" in shown.out
    assert steps(ckptdb, root / "alpha") == [3]


def test_gc_keeps_what_any_rule_keeps_and_names_it(ckptdb, root):
    rules = ("--keep", "best 1", "--keep", "steps 1")
    plan = ckptdb("gc", "--run", "alpha", *rules, "--dry-run", "-o", "json", cwd=root).json[0]
    assert {cp["step"]: cp["reason"] for cp in plan["checkpoints"]} == {
        1: "kept: steps 1",
        2: "kept: best 1 by val:loss min",
        3: "kept: the latest",
    }
    ckptdb("tag", "1", "rc", cwd=root / "alpha")
    answer = ckptdb("gc", "--keep", "tagged rc", cwd=root / "alpha")
    assert answer.code == 0
    assert "retention: not tagged rc" in answer.out
    assert steps(ckptdb, root / "alpha") == [1, 3]


def test_gc_does_what_was_planned_or_nothing(ckptdb, root):
    arguments = ("gc", "--run", "alpha", "--keep", "best 1", "-o", "json")
    (planned,) = ckptdb(*arguments, "--dry-run", cwd=root).json
    ckptdb("pin", "1", cwd=root / "alpha")
    refused = ckptdb(*arguments, "--plan", planned["plan"], cwd=root)
    assert (refused.code, refused.out) == (1, "")
    assert "What would go from 'alpha' is not what was planned" in refused.err
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]
    ckptdb("unpin", "1", cwd=root / "alpha")
    (done,) = ckptdb(*arguments, "--plan", planned["plan"], cwd=root).json
    assert done == {**planned, "applied": True}
    assert steps(ckptdb, root / "alpha") == [2, 3]
    again = ckptdb(*arguments, "--plan", planned["plan"], cwd=root)
    assert again.code == 1


def test_the_help_of_gc_has_a_line_for_each_rule(ckptdb, root):
    lines = [line.strip() for line in ckptdb("gc", "--help", cwd=root).out.splitlines()]
    assert "best K [by METRIC min|max] [of every N steps]" in lines
    assert "tagged [NAME]" in lines


def test_gc_shows_how_to_do_exactly_that(ckptdb, root):
    shown = ckptdb("gc", "--dry-run", "--keep", "latest 1", cwd=root).out.splitlines()[-1]
    start = "To do exactly this or nothing: "
    assert shown.startswith(start)
    answer = ckptdb("gc", "--keep", "latest 1", *shown.removeprefix(start).split(), cwd=root)
    assert answer.code == 0
    assert steps(ckptdb, root / "alpha") == [3]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("best of all", "'best of all' is no rule; there are: best K"),
        ("best 1 by los min", "has the metric 'los'; known metrics: "),
    ],
)
def test_gc_by_a_rule_that_cannot_be_followed_deletes_nothing(ckptdb, root, rule, why):
    answer = ckptdb("gc", "--run", "alpha", "--keep", rule, cwd=root)
    assert answer.code == 1
    assert why in answer.err
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--keep-top-k", "1", "--mode", "max"], "--mode needs --metric"),
        (["--keep-top-k", "1", "--metric", "acc"], "--metric needs --mode"),
        (["--keep-latest", "1", "--metric", "acc", "--mode", "max"], "--metric needs --keep-top-k"),
        (["--save-period", "5"], "--save-period needs --keep-top-k or --keep-latest"),
    ],
)
def test_gc_refuses_options_that_would_do_nothing(ckptdb, root, options, why):
    answer = ckptdb("gc", *options, cwd=root)
    assert answer.code == 2
    assert why in answer.err


def test_gc_does_not_take_the_newest_for_the_best(ckptdb, root):
    answer = ckptdb("gc", "--keep-top-k", "1", "--run", "nemo", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: No metric to rank 'nemo' by: name one (--metric NAME --mode min|max).\n"
    )
    assert steps(ckptdb, root / "nemo") == [1, 2]


def test_gc_without_limits_removes_only_what_crashes_left(ckptdb, root):
    left = root / "alpha" / "tmp_step_9"
    left.mkdir()
    dead = {"uuid": "12345678-1234-1234-1234-123456789abc", "created_at": "2026-01-01T00:00:00Z",
            "host": "elsewhere", "pid": 1, "started": 1, "boot": "gone"}  # fmt: skip
    (left / ".writer.json").write_text(json.dumps(dead))
    assert "unfinished save" not in ckptdb("gc", cwd=root / "alpha").out  # may live elsewhere
    for path in (left / ".writer.json", left):
        os.utime(path, (1, 1))
    assert "would go" in ckptdb("gc", "--dry-run", cwd=root / "alpha").out
    assert left.exists()
    assert "unfinished save" in ckptdb("gc", cwd=root / "alpha").out
    assert not left.exists()
    assert steps(ckptdb, root / "alpha") == [1, 2, 3]


def test_forget_drops_a_run_from_the_catalog_alone(ckptdb, root):
    answer = ckptdb("forget", "beta", cwd=root)
    assert answer.out == f"beta is out of the catalog; {root}/beta was not touched.\n"
    assert (root / "beta" / "step_5" / "model.bin").exists()
    assert "beta" not in ckptdb("ls", cwd=root).out
    assert ckptdb("reconcile", cwd=root).code == 0
    assert "beta" in ckptdb("ls", cwd=root).out

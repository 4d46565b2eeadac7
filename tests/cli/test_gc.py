import errno
import json
import os

import pytest

from ckptdb.disk import fsutil


def steps(ckptdb, run, status="final"):
    return [cp["step"] for cp in ckptdb("ls", "--status", status, "-o", "json", cwd=run).json]


def test_rm_deletes_the_named_steps_and_says_what_it_freed(ckptdb, root):
    answer = ckptdb("rm", "1", "3", cwd=root / "alpha")
    assert answer.code == 0
    assert "by hand" in answer.out
    assert answer.out.splitlines()[-1] == (
        "alpha: 2.1 kB freed. Best stays step 2; latest was step 3 and becomes step 2."
    )
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


def test_gc_tells_what_other_rules_would_have_made_of_a_run(ckptdb, root):
    ckptdb("rm", "2", "--run", "alpha", cwd=root)
    told = ckptdb("gc", "--run", "alpha", "--replay", "--keep", "latest 1", cwd=root)
    assert told.code == 0
    first, second = told.out.splitlines()
    assert first.startswith("alpha: of 3 saved, 1 would be left (steps 3), ")
    assert second.strip() == (
        "Step 2 (0.2) is better than all that would be left, and would have gone after step 3: "
        "retention: not latest 1"
    )
    kept = ckptdb("gc", "--run", "alpha", "--replay", "--keep", "best 1", cwd=root)
    assert "The best ever, step 2, would still be there." in kept.out
    (found,) = ckptdb("gc", "--run", "alpha", "--replay", "--keep", "best 1", "-o", "json",
                      cwd=root).json  # fmt: skip
    assert (found["kept"], found["lost"]) == ([2, 3], [])
    assert [cp.name for cp in sorted((root / "alpha").glob("step_*"))] == ["step_1", "step_3"]
    refused = ckptdb("gc", "--replay", cwd=root)
    assert (refused.code, "--replay needs rules" in refused.err) == (2, True)


def test_what_is_deleted_with_a_time_can_be_undeleted(ckptdb, root):
    gone = ckptdb("rm", "2", "--run", "alpha", "--trash-ttl", "2 days", cwd=root)
    last = gone.out.splitlines()[-1]
    assert last.startswith("alpha: 0 B freed now, ")
    assert "after 2 days. Best was step 2 and becomes step 3; latest stays step 3" in last
    assert "can still be undeleted (steps 2)" in ckptdb("gc", "--run", "alpha", cwd=root).out
    back = ckptdb("undelete", "2", "--run", "alpha", cwd=root)
    assert back.out == "alpha step 2: back. Pin it, or retention may take it again.\n"
    assert ckptdb("best", "--run", "alpha", cwd=root).out.strip() == str(root / "alpha" / "step_2")
    again = ckptdb("undelete", "2", "--run", "alpha", cwd=root)
    assert (again.code, "it is there" in again.err) == (1, True)
    ckptdb("rm", "2", "--run", "alpha", "--trash-ttl", "2 days", cwd=root)
    emptied = ckptdb("gc", "--run", "alpha", "--empty-trash", "-o", "json", cwd=root).json
    assert [left["step"] for left in emptied[0]["leftovers"]] == [2]
    assert ckptdb("undelete", "2", "--run", "alpha", cwd=root).code == 1
    wrong = ckptdb("rm", "3", "--run", "alpha", "--trash-ttl", "soon", cwd=root)
    assert (wrong.code, "'soon' is not a time such as '2 days'" in wrong.err) == (2, True)


# --- what fails -------------------------------------------------------------------------------


@pytest.fixture
def refuse(monkeypatch):
    """Let the moving of some steps into the trash fail."""
    real = fsutil.rename_new

    def refuse(*steps):
        def rename_new(source, target):
            if source.name in {f"step_{step}" for step in steps}:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
            real(source, target)

        monkeypatch.setattr(fsutil, "rename_new", rename_new)

    return refuse


def test_rm_that_fails_midway_exits_with_partly_done_and_names_what_went(ckptdb, root, refuse):
    refuse(2)
    answer = ckptdb("rm", "1", "2", cwd=root / "alpha")
    assert answer.code == 4
    assert answer.err == (
        f"ckptdb: Not everything was deleted. {root}/alpha: step 1 is gone; step 2 is untouched "
        f"({root}/alpha/step_2: Input/output error).\n"
    )
    lines = [line.split() for line in answer.out.splitlines()]
    assert ["1", "gone"] in [words[:2] for words in lines]
    assert ["2", "keep"] in [words[:2] for words in lines]
    assert steps(ckptdb, root / "alpha") == [2, 3]


def test_rm_that_removes_nothing_is_an_error_and_not_partly_done(ckptdb, root, refuse):
    refuse(1, 2)
    answer = ckptdb("rm", "1", "2", cwd=root / "alpha")
    assert answer.code == 1
    assert answer.err.startswith(f"ckptdb: Nothing was deleted. {root}/alpha: steps 1, 2 are unt")


def test_gc_prints_what_it_did_in_the_other_runs_when_one_fails(ckptdb, root, refuse):
    refuse(2)
    answer = ckptdb(
        "gc", "--keep-latest", "1", "--run", "alpha", "--run", "nemo", "--yes", "-o", "json",
        cwd=root,
    )  # fmt: skip
    assert answer.code == 4
    done = {one["run"]: one for one in answer.json}
    assert [one["step"] for one in done["alpha"]["checkpoints"] if not one["keep"]] == [1]
    assert [one["step"] for one in done["alpha"]["failed"]] == [2]
    assert "step 2 is untouched" in answer.err
    assert steps(ckptdb, root / "alpha") == [2, 3]


def test_an_error_of_the_disk_says_nothing_that_nobody_has_looked_at(ckptdb, root, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "somewhere")

    monkeypatch.setattr("ckptdb.registry.deletion.judge.judge_by_hand", fail)
    answer = ckptdb("rm", "1", cwd=root / "alpha")
    assert (answer.code, answer.err) == (1, "ckptdb: somewhere: Input/output error.\n")

"""best, top and pareto with conditions, ties, history and other times, as they are typed."""

import json
import math
import subprocess
import sys

import pytest
from tests.support.saving import save


@pytest.fixture
def run(root):
    """A run of the steps 1 to 3 with val:loss and kl; the best one, 1, was deleted by hand."""
    run = root / "gamma"
    for step, loss, kl in ((1, 0.05, 0.3), (2, 0.3, 0.1), (3, 0.3, 0.2)):
        save(run, step, {"val:loss": loss, "kl": kl})
    return run


@pytest.fixture
def pruned(ckptdb, run):
    assert ckptdb("rm", "1", cwd=run).code == 0
    return run


def test_best_and_top_take_a_condition(ckptdb, run):
    assert ckptdb("best", "--where", "kl < 0.25", cwd=run).out == f"{run}/step_3\n"
    assert ckptdb("best", "--where", 'kl < 0.25 AND "step" < 3', cwd=run).out == f"{run}/step_2\n"
    found = ckptdb("top", "--where", "kl >= 0.2", "-o", "json", cwd=run).json
    assert [record["step"] for record in found] == [1, 3]


COLUMNS = "step, size_bytes, created_at, finalized_at, pinned, status, problem, notes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("kl <", "it is not one whole expression"),
        ("kl < 1; DROP TABLE runs", "';' has no meaning here"),
        (
            '"val:los" < 1',
            f"'val:los' is neither a column ({COLUMNS}) nor a metric (kl, \"val:loss\")",
        ),
        (
            "val:loss < 1",
            "':' has no meaning here; a name such as val:loss stands in double quotes",
        ),
    ],
)
def test_a_condition_that_is_none_is_one_sentence(ckptdb, run, condition, why):
    answer = ckptdb("best", "--where", condition, cwd=run)
    sentence = f"ckptdb: The condition {condition!r} cannot be used: {why}.\n"
    assert (answer.code, answer.out, answer.err) == (1, "", sentence)


def test_a_condition_that_holds_for_nothing_is_said_too(ckptdb, run):
    answer = ckptdb("best", "--where", "kl < 0", cwd=run)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: 'kl < 0' holds for no checkpoint; `ckptdb top` lists what there is.\n"
    )
    assert ckptdb("top", "--where", "kl < 0", "-o", "json", cwd=run).json == []


def test_a_tie_goes_by_a_second_metric_and_shows_it(ckptdb, pruned):
    assert ckptdb("best", "--tie", "kl", "min", cwd=pruned).out == f"{pruned}/step_2\n"
    table = ckptdb("top", "--tie", "kl", "min", cwd=pruned).out.splitlines()
    assert table[0].split() == [
        "step", "status", "val:loss", "kl", "size", "finalized", "marks", "path",
    ]  # fmt: skip
    assert [line.split()[0] for line in table[1:]] == ["2", "3"]
    assert ckptdb("best", "--tie", "kl", "low", cwd=pruned).code == 2
    assert ckptdb("best", "--tie", "kll", "min", cwd=pruned).err == (
        "ckptdb: No checkpoint has the metric 'kll'; known metrics: kl, val:loss.\n"
    )


def test_the_front_shows_both_metrics(ckptdb, run):
    table = ckptdb("pareto", "--against", "kl", "min", cwd=run).out.splitlines()
    assert table[0].split()[2:4] == ["val:loss", "kl"]
    assert [line.split()[0] for line in table[1:]] == ["1", "2"]
    rows = ckptdb("pareto", "--metric", "kl", "--mode", "min", "--against", "val:loss", "min",
                  "--where", "step > 1", "-o", "csv", cwd=run)  # fmt: skip
    assert [line.split(",")[1] for line in rows.out.splitlines()] == ["step", "2"]
    assert ckptdb("pareto", cwd=run).code == 2


def test_the_best_ever_says_that_it_is_gone_why_and_what_is_left(ckptdb, pruned):
    answer = ckptdb("best", "--ever", cwd=pruned)
    deleted_at = ckptdb("show", "1", "-o", "json", cwd=pruned).json["deleted_at"]
    assert answer.code == 0
    assert answer.out == f"{pruned}/step_1\n"
    assert answer.err == (
        f"Step 1 of gamma with val:loss 0.05 is gone since {deleted_at} (by hand); "
        f"the best available is {pruned}/step_3 with val:loss 0.3.\n"
    )
    beside = ckptdb("best", "--ever", "-o", "json", cwd=pruned).json
    assert {name: record["step"] for name, record in beside.items()} == {
        "best": 1, "available": 3,
    }  # fmt: skip


def test_the_best_ever_that_is_there_needs_no_word(ckptdb, run):
    answer = ckptdb("best", "--ever", cwd=run)
    assert (answer.out, answer.err) == (f"{run}/step_1\n", "")
    beside = ckptdb("best", "--ever", "-o", "json", cwd=run).json
    assert beside["best"] == beside["available"]


def test_when_everything_is_gone_the_best_ever_says_that_too(ckptdb, pruned):
    assert ckptdb("rm", "2", "3", "--force", cwd=pruned).code == 0
    answer = ckptdb("best", "--ever", cwd=pruned)
    assert answer.err.endswith("; nothing is available instead.\n")
    assert ckptdb("best", "--ever", "-o", "json", cwd=pruned).json["available"] is None


def test_top_ever_lists_what_is_gone_with_its_reason(ckptdb, pruned):
    lines = ckptdb("top", "--ever", cwd=pruned).out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["1", "deleted"], ["3", "final"], ["2", "final"],
    ]  # fmt: skip
    assert lines[1].endswith("by hand")


def test_as_of_a_time_it_is_what_was_there_then(ckptdb, pruned):
    records = ckptdb("ls", "--all", "-o", "json", cwd=pruned).json
    third = max(record["finalized_at"] for record in records)
    answer = ckptdb("best", "--at", third, cwd=pruned)
    assert answer.out == f"{pruned}/step_1\n"
    assert "is gone since" in answer.err
    beside = ckptdb("best", "--at", "0 seconds ago", "-o", "json", cwd=pruned).json
    assert beside["best"]["step"] == beside["available"]["step"] == 3
    assert ckptdb("top", "--at", "1 hour ago", "-o", "json", cwd=pruned).json == []
    assert ckptdb("best", "--at", "1 hour ago", cwd=pruned).err == (
        "ckptdb: There is no checkpoint to choose from; see `ckptdb ls --all`.\n"
    )
    assert ckptdb("best", "--at", "noon", cwd=pruned).err == (
        "ckptdb: 'noon' is no time: write it like 2026-11-22T16:00:00Z (in UTC when it does not "
        "say where) or '2 hours ago'.\n"
    )


@pytest.mark.parametrize(
    "demand",
    [("--where", "kl < 1"), ("--tie", "kl", "min"), ("--ever",), ("--at", "2026-01-01")],
    ids=lambda demand: demand[0],
)
def test_the_best_of_each_run_takes_no_demands(ckptdb, root, demand):
    answer = ckptdb("best", "--each", *demand, cwd=root)
    assert answer.code == 2
    assert f"leave out {demand[0]}." in answer.err


@pytest.mark.slow
def test_a_shell_passes_quotes_on(run):
    command = f"""{sys.executable} -m ckptdb top --where 'kl < .25 AND "val:loss" > 0' -o jsonl"""
    done = subprocess.run(
        ["bash", "-c", command], cwd=run, capture_output=True, text=True, check=True
    )
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [3, 2]


def test_only_values_that_are_not_finite_are_said_to_be_so(ckptdb, root):
    for step in (1, 2):
        save(root / "broken", step, {"val:loss": math.nan})
    sentence = (
        "ckptdb: No checkpoint of 'broken' (NaN or infinite at step(s) 1, 2) has a finite value of "
        "the metric 'val:loss'.\n"
    )
    for command in ("best", "top"):
        answer = ckptdb(command, cwd=root / "broken")
        assert (answer.code, answer.out, answer.err) == (1, "", sentence)
    assert ckptdb("latest", cwd=root / "broken").out == f"{root}/broken/step_2\n"

"""A metric on the terminal: looked at, counted, and harmless."""

import math
import re
import sqlite3
import sys
from contextlib import closing

import pytest
from tests.support.saving import save
from tests.support.terminal import Terminal

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.plot import look


@pytest.fixture
def pruned(root):
    """The run gamma: ten steps, of which the best, 4, and the latest are kept."""
    config = {
        "checkpoint_dir": root / "gamma", "metric_name": "val:loss",
        "higher_is_better": False, "keep_top_k": 1,
    }  # fmt: skip
    with CheckpointManager(config) as manager:
        for step in range(1, 11):
            with manager.save(step, {"val:loss": (step - 4) ** 2 / 10, "acc": step / 10}):
                pass
    return root


def legend(text):
    return [line.split() for line in text.partition("\n\n")[2].splitlines()]


def test_every_run_has_a_curve_dots_and_a_line_in_the_legend(ckptdb, pruned):
    answer = ckptdb("plot", "val:loss", cwd=pruned)
    assert answer.code == 0
    assert legend(answer.out) == [
        ["run", "best", "at", "step", "latest", "at", "step", "kept", "deleted"],
        ["a", "alpha", "0.2", "2", "0.4", "3", "3", "0"],
        ["b", "beta", "0.1", "5", "0.1", "5", "1", "0"],
        ["c", "gamma", "0", "4", "3.6", "10", "2", "8"],
        ["d", "nemo", "2", "2", "2", "0"],
    ]  # fmt: skip
    drawn = answer.out.partition("\n\n")[0]
    # Dots are drawn after all lines; those of one place hide each other.
    assert {letter: drawn.count(letter) for letter in "bc"} == {"b": 1, "c": 2}


def test_into_a_pipe_goes_no_escape_and_nothing_wider_than_80(ckptdb, pruned):
    out = ckptdb("plot", "val:loss", cwd=pruned).out
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert all(line == line.rstrip() for line in out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_it_is_as_wide_as_that_and_in_colour(pruned, columns):
    command = [sys.executable, "-m", "ckptdb", "plot", "val:loss"]
    with Terminal(command, columns=columns, cwd=pruned) as terminal:
        assert terminal.wait() == 0
    lines = terminal.text.partition("\n\n")[0].splitlines()
    assert {len(line) for line in lines if "│" in line} == {columns}
    dots = set(re.findall(r"\x1b\[38;5;(\d+)m●", terminal.raw))
    assert dots == {str(look(index, coloured=True).colour) for index in range(4)}


@pytest.mark.slow
def test_no_color_means_none(pruned):
    command = [sys.executable, "-m", "ckptdb", "plot", "val:loss"]
    with Terminal(command, cwd=pruned, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw


def test_runs_are_chosen_and_time_goes_to_the_right(ckptdb, pruned):
    out = ckptdb(
        "plot", "val:loss", "--run", "gamma", "--run", "beta", "--x", "time", cwd=pruned
    ).out
    assert [line[1] for line in legend(out)[1:]] == ["gamma", "beta"]
    assert re.search(r"^( +\d\d:\d\d:\d\d)+$", out, re.MULTILINE)


def test_the_metric_of_the_run_need_not_be_named(ckptdb, pruned):
    named = ckptdb("plot", "val:loss", cwd=pruned / "gamma").out
    assert ckptdb("plot", cwd=pruned / "gamma").out == named
    assert [line[1] for line in legend(named)[1:]] == ["gamma"]
    # At the root as well, where all runs that have one have the same.
    assert ckptdb("plot", cwd=pruned).out == ckptdb("plot", "val:loss", cwd=pruned).out


def test_no_direction_is_guessed(ckptdb, pruned):
    out = ckptdb("plot", "acc", "--run", "gamma", cwd=pruned).out
    assert legend(out) == [
        ["run", "lowest", "highest", "latest", "at", "step", "kept", "deleted"],
        ["a", "gamma", "0.1", "1", "1", "10", "2", "8"],
    ]  # fmt: skip
    told = ckptdb("plot", "acc", "--run", "gamma", "--mode", "max", cwd=pruned).out
    assert legend(told)[1] == ["a", "gamma", "1", "10", "1", "10", "2", "8"]


def test_a_metric_that_nobody_has_is_one_sentence(ckptdb, root):
    answer = ckptdb("plot", "nix", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: No checkpoint has the metric 'nix'; known metrics: acc, val:loss.\n"
    )


def test_names_cannot_drive_the_terminal(ckptdb, tmp_path, write_nemo):
    for step in (1, 2):
        write_nemo(tmp_path / "root" / "run\x1b[31m\u202e", step, {"x\x1b[31m\x07": step})
    out = ckptdb("plot", "x\x1b[31m\x07", cwd=tmp_path / "root").out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert "x\\x1b[31m\\x07" in out
    assert "run\\x1b[31m\\u202e" in out


def test_what_was_rejected_is_a_dot_but_neither_best_nor_latest(ckptdb, pruned):
    for step in (4, 10):
        ckptdb("reject", str(step), "diverged", cwd=pruned / "gamma")
    answer = ckptdb("plot", "val:loss", "--run", "gamma", cwd=pruned)
    assert legend(answer.out)[1] == ["a", "gamma", "2", "8"]
    assert answer.out.partition("\n\n")[0].replace("val:loss", "").count("a") == 2


def test_without_the_library_it_says_what_to_install(ckptdb, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotext", None)
    answer = ckptdb("plot", "val:loss", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: `ckptdb plot` needs plotext, not installed here: `pip install 'ckptdb[plot]'`.\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["step = 3", "status = 'deleted'"])
def test_what_has_no_time_is_left_out_of_an_axis_of_times(ckptdb, pruned, steps):
    catalog = pruned / ".ckptdb" / "catalog.db"
    with closing(sqlite3.connect(catalog)) as raw, raw:
        raw.execute(f"UPDATE checkpoints SET finalized_at = 'noon' WHERE {steps}")
    answer = ckptdb("plot", "val:loss", "--run", "gamma", "--x", "time", cwd=pruned)
    assert (answer.code, answer.err) == (0, "")
    assert legend(answer.out)[1] == ["a", "gamma", "0", "4", "3.6", "10", "2", "8"]
    drawn = answer.out.partition("\n\n")[0]
    assert drawn.replace("val:loss", "").count("a") == 2


def test_more_runs_than_colours_or_letters_are_still_told_apart():
    coloured = {look(index, coloured=True) for index in range(28)}
    assert len(coloured) == 28
    assert len({look(index, coloured=False) for index in range(52)}) == 52


def test_curves_hold_what_was_deleted_too(pruned):
    with Registry.open(pruned) as registry:
        name, (curve,) = registry.curves("acc", runs=["gamma"])
    assert name == "acc"
    assert curve.steps == tuple(range(1, 11))
    assert curve.kept == tuple(step in (4, 10) for step in curve.steps)
    assert curve.mode is None


@pytest.mark.parametrize("axis", ["step", "time"])
def test_one_checkpoint_is_a_curve_too(ckptdb, root, axis):
    out = ckptdb("plot", "val:loss", "--run", "beta", "--run", "beta", "--x", axis, cwd=root).out
    assert legend(out)[1:] == [["a", "beta", "0.1", "5", "0.1", "5", "1", "0"]]
    assert out.partition("\n\n")[0].count("a") - out.partition("\n\n")[0].count("val") == 1


def below(text):
    """Return what stands below the drawing, as words."""
    return text.partition("\n\n")[0].splitlines()[-1].split()


def beside(text):
    """Return the labels at the left of the drawing, from the top."""
    return [line.split("┤")[0].strip() for line in text.splitlines() if "┤" in line]


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ((1, 2, 3), "1 2 3"),
        ((7,), "7"),
        ((1, 2), "1 2"),
        ((0, 100), "0 25 50 75 100"),
        ((2**53 + 1, 2**53 + 2), f"{2**53 + 1} {2**53 + 2}"),  # which a float cannot tell apart
        ((2**63 - 3, 2**63 - 1), f"{2**63 - 3} {2**63 - 2} {2**63 - 1}"),
    ],
)
def test_each_step_is_labelled_once_and_where_it_is(ckptdb, tmp_path, write_nemo, steps, labels):
    for step in steps:
        write_nemo(tmp_path / "run", step, {"loss": step})
    assert below(ckptdb("plot", "loss", cwd=tmp_path / "run").out) == labels.split()


def test_no_second_is_told_twice(ckptdb, tmp_path):
    for step in (1, 2):
        save(tmp_path / "run", step, {"val:loss": step})
    labels = below(ckptdb("plot", "--x", "time", cwd=tmp_path / "run").out)
    assert labels
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    "values",
    [
        (1e32, 1.5e32), (1e32, 1.0000001e32), (1e-9, 3e-9), (-1e300, 1e300), (2e32, 2e32),
        (-1.7e308, 1.7e308), (1.7e308, 1.7e308), (5e-324, 1.7e308),
    ],
)  # fmt: skip
def test_labels_of_large_and_small_values_are_short_and_differ(
    ckptdb, tmp_path, write_nemo, values
):
    for step, value in enumerate(values, 1):
        write_nemo(tmp_path / "run", step, {"loss": value})
    labels = beside(ckptdb("plot", "loss", cwd=tmp_path / "run").out)
    assert labels
    assert len(labels) == len(set(labels))
    assert max(map(len, labels)) <= 16
    assert {float(labels[0]), float(labels[-1])} == set(values)


@pytest.mark.parametrize("lowest", [-sys.float_info.max, 0.0, sys.float_info.max])
def test_values_up_to_the_largest_number_there_is_are_drawn(ckptdb, tmp_path, write_nemo, lowest):
    for step, value in enumerate((sys.float_info.max, 1.0, lowest)):
        write_nemo(tmp_path / "run", step, {"loss": value})
    answer = ckptdb("plot", "loss", cwd=tmp_path / "run")
    assert (answer.code, answer.err) == (0, "")
    drawn = answer.out.partition("\n\n")[0]
    assert drawn.count("a") >= 2
    assert "nan" not in drawn
    assert "inf" not in drawn


@pytest.mark.parametrize(
    ("metrics", "why"),
    [(("loss", "kl"), "are judged by several (kl, loss)"), ((), "have none of their own")],
)
def test_where_no_metric_is_the_runs_own_it_says_how_to_name_one(
    ckptdb, tmp_path, write_nemo, metrics, why
):
    for metric in metrics:
        save(tmp_path / "tree" / metric, 1, {metric: 1.0}, metric_name=metric)
    write_nemo(tmp_path / "tree" / "nemo", 1, {"acc": 1.0})
    answer = ckptdb("plot", cwd=tmp_path / "tree")
    assert answer.code == 1
    assert answer.err == f"ckptdb: The runs here {why}; name a metric: `ckptdb plot METRIC`.\n"


def test_where_there_is_no_run_it_says_so(ckptdb, tmp_path):
    ckptdb("init", tmp_path)
    answer = ckptdb("plot", cwd=tmp_path)
    assert answer.code == 1
    assert "holds no run yet" in answer.err


def test_where_no_value_is_finite_it_says_so(ckptdb, root):
    for step in (1, 2):
        save(root / "broken", step, {"val:loss": math.nan})
    answer = ckptdb("plot", "--run", "broken", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: No checkpoint of 'broken' has a finite value of the metric 'val:loss'.\n"
    )

"""Two checkpoints side by side, as their user would name them."""

import math

import pytest
from tests.support.saving import save

from ckptdb import CheckpointManager, Registry
from ckptdb.errors import InvalidStep, NotACheckpoint, UnknownCheckpoint, UnknownRun


def test_it_tells_metrics_configuration_and_files(ckptdb, root):
    with CheckpointManager(
        {"checkpoint_dir": root / "alpha", "metric_name": "val:loss", "higher_is_better": False}
    ) as manager:
        config = {"lr": 0.2, "model": {"name": "llama"}}
        with manager.save(4, {"val:loss": 0.2, "acc": 0.7}, config=config) as folder:
            (folder / "model.bin").write_bytes(b"m" * 3000)
            (folder / "optimizer.bin").write_bytes(b"o" * 500)
    answer = ckptdb("diff", "3", "4", cwd=root / "alpha")
    assert answer.code == 0
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[0][:3] == ["alpha:3", "→", "alpha:4,"]
    assert ["val:loss", "0.4", "→", "0.2", "-50.0%"] in lines
    assert ["acc", "-", "→", "0.7", "added"] in lines
    assert ["lr", "0.1", "→", "0.2"] in lines
    assert ["model", "-", "→", '{"name":', '"llama"}'] in lines
    assert ["model.bin", "1.0", "kB", "→", "3.0", "kB", "+2.0", "kB"] in lines
    assert ["optimizer.bin", "-", "→", "500", "B", "+500", "B", "added"] in lines

    found = ckptdb("diff", "alpha:3", "alpha:4", "-o", "json", cwd=root).json
    assert found["metrics"][0] == {
        "name": "val:loss", "kind": "changed", "a": 0.4, "b": 0.2, "relative": -0.5,
    }  # fmt: skip
    assert found["config"][0] == {"key": "lr", "kind": "changed", "a": 0.1, "b": 0.2}
    assert found["files"][0] == {"path": "model.bin", "kind": "changed", "a": 1000, "b": 3000}


def test_a_checkpoint_is_named_by_step_by_run_and_step_or_by_path(ckptdb, root):
    ways = [
        ckptdb("diff", "1", "2", "--run", "alpha", cwd=root),
        ckptdb("diff", "alpha:1", "alpha:2", cwd=root),
        ckptdb("diff", "alpha/step_1", root / "alpha" / "step_2", cwd=root),
        ckptdb("-C", root, "diff", "alpha/step_1", "alpha/step_2"),
        ckptdb("diff", "step_1", "2", cwd=root / "alpha"),
    ]
    assert [way.code for way in ways] == [0] * len(ways)
    assert len({way.out for way in ways}) == 1


def test_one_of_them_may_lie_in_another_tree(ckptdb, root, tmp_path, write_nemo):
    elsewhere = write_nemo(tmp_path / "elsewhere" / "run", 7, {"val:loss": 0.1})
    out = ckptdb("diff", "alpha:1", elsewhere, cwd=root).out
    assert out.startswith("alpha:1 → run:7")
    assert "val:loss  0.5  →  0.1  -80.0%" in out
    assert "config: not known of run:7" in out


def test_of_a_deleted_one_files_and_configuration_are_not_known(ckptdb, root):
    ckptdb("rm", "1", "--run", "alpha", cwd=root)
    out = ckptdb("diff", "alpha:1", "alpha:2", cwd=root).out
    assert out.startswith("alpha:1 (deleted) → alpha:2")
    assert "val:loss  0.5  →  0.2  -60.0%" in out
    assert "config: not known of alpha:1 (deleted)" in out
    assert "files: not known of alpha:1 (deleted)" in out
    assert ckptdb("diff", "alpha:1", "alpha:2", "-o", "json", cwd=root).json["files"] is None


def test_the_same_one_differs_in_nothing(ckptdb, root):
    out = ckptdb("diff", "2", "2", cwd=root / "alpha").out
    assert "metrics: no difference" in out
    assert "config: no difference" in out
    assert "files: no difference" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "error"),
    [
        ("nonsense", NotACheckpoint), ("alpha:x", NotACheckpoint), ("alpha:99", UnknownCheckpoint),
        ("nix:1", UnknownRun), (".", NotACheckpoint), ("9" * 20, InvalidStep),
        ("9" * 5000, NotACheckpoint), (f"alpha:{'9' * 5000}", NotACheckpoint),
    ],
)  # fmt: skip
def test_whatever_else_is_no_checkpoint(root, monkeypatch, which, error):
    monkeypatch.chdir(root)
    with Registry.open(root) as registry, pytest.raises(error):
        registry.diff(which, "alpha:1", run="alpha")


def test_names_cannot_drive_the_terminal(ckptdb, tmp_path, write_nemo):
    for step in (1, 2):
        write_nemo(tmp_path / "run\x1b[31m", step, {"x\x1b[31m": step})
    printed = ckptdb("diff", "1", "2", cwd=tmp_path / "run\x1b[31m").out
    assert "\x1b" not in printed
    assert "x\\x1b[31m" in printed


@pytest.fixture
def diff(ckptdb, tmp_path):
    """Say how two checkpoints with these metrics and configurations differ, line by line."""

    def compare(*, metrics=({}, {}), configs=({}, {}), form="table"):
        for step, (info, config) in enumerate(zip(metrics, configs, strict=True), 1):
            save(tmp_path / "run", step, {"val:loss": 1.0, **info}, training=config)
        answer = ckptdb("diff", "1", "2", "-o", form, cwd=tmp_path / "run")
        return answer.json if form == "json" else answer.out.splitlines()

    return compare


@pytest.mark.slow
@pytest.mark.parametrize("same", [0, 30, 39, 40, 41, 55, 58, 59, 60, 500])
def test_long_values_are_shown_where_they_begin_to_differ(diff, same):
    a, b = "x" * same + "1" + "y" * 500, "x" * same + "2" + "y" * 500
    (line,) = (line for line in diff(configs=({"k": a}, {"k": b})) if line.startswith("  k "))
    _, before, _, after = line.split()
    assert before != after
    assert before.replace("1", "2") == after
    assert len(before) == len(after) == 60


def test_a_long_value_that_only_goes_on_is_seen_to_go_on(diff):
    a, b = ["x"] * 100, ["x"] * 101
    (line,) = (line for line in diff(configs=({"k": a}, {"k": b})) if line.startswith("  k "))
    before, after = line.removeprefix("  k").split("→")
    assert before.strip() != after.strip()


def test_values_of_a_metric_that_differ_are_shown_so(diff):
    lines = diff(metrics=({"m": 0.12345678}, {"m": 0.12345679}))
    assert "  m  0.12345678  →  0.12345679  +0.0%" in lines


def test_what_became_not_finite_is_not_called_removed(diff):
    metrics = ({"a": 1.0, "b": math.nan, "gone": 1.0}, {"a": math.nan, "b": 2.0, "new": math.nan})
    lines = [line.split("  ")[1:] for line in diff(metrics=metrics)]
    lines = [[cell.strip() for cell in line if cell] for line in lines]
    assert ["a", "1", "→", "not finite"] in lines
    assert ["b", "not finite", "→", "2"] in lines
    assert ["gone", "1", "→", "-", "removed"] in lines
    assert ["new", "-", "→", "not finite", "added"] in lines


def test_json_tells_the_missing_from_the_not_finite(diff):
    found = diff(metrics=({"a": 1.0, "gone": 1.0}, {"a": math.nan}), form="json")["metrics"]
    assert {m["name"]: (m["kind"], m["b"]) for m in found} == {
        "a": ("changed", None), "gone": ("removed", None),
    }  # fmt: skip


@pytest.mark.parametrize("which", ["9" * 5000, f"alpha:{'9' * 5000}"])
def test_a_step_of_very_many_digits_is_one_sentence(ckptdb, root, which):
    answer = ckptdb("diff", which, "1", cwd=root / "alpha")
    assert answer.code == 1
    assert "names no checkpoint" in answer.err

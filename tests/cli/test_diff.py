"""Two checkpoints side by side, as their user would name them."""

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.errors import NotACheckpoint, UnknownCheckpoint, UnknownRun


def test_it_tells_metrics_configuration_and_files(ckptdb, root):
    with CheckpointManager(
        {"checkpoint_dir": root / "alpha", "metric_name": "val:loss"}
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
    assert found["metrics"][0] == {"name": "val:loss", "a": 0.4, "b": 0.2, "relative": -0.5}
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


@pytest.mark.parametrize(
    ("which", "error"),
    [
        ("nonsense", NotACheckpoint), ("alpha:x", NotACheckpoint), ("alpha:99", UnknownCheckpoint),
        ("nix:1", UnknownRun), (".", NotACheckpoint),
    ],
)  # fmt: skip
def test_whatever_else_is_no_checkpoint(root, monkeypatch, which, error):
    monkeypatch.chdir(root)
    with Registry.open(root) as registry, pytest.raises(error):
        registry.diff(which, "alpha:1")


def test_names_cannot_drive_the_terminal(ckptdb, tmp_path, write_nemo):
    for step in (1, 2):
        write_nemo(tmp_path / "run\x1b[31m", step, {"x\x1b[31m": step})
    printed = ckptdb("diff", "1", "2", cwd=tmp_path / "run\x1b[31m").out
    assert "\x1b" not in printed
    assert "x\\x1b[31m" in printed

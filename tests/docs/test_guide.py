"""The guide keeps its word: its examples do what the text around them says."""

import signal
import sys
import threading
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.documents import blocks, find_block, names_in, read_table

from ckptdb import CheckpointManager, Registry
from ckptdb.manager import CheckpointManager as DropIn

ANSWERS = [
    ("leaderboard WHERE rank = 1", [
        ("grpo-8b", 200, 0.5, "grpo-8b/step_200"),
        ("sft-1b", 20, 1.2, "sft-1b/step_20"),
    ]),
    ("LIMIT 3", [
        ("grpo-8b", 200, 0.5), ("grpo-8b", 300, 0.6), ("grpo-8b", 500, 0.8),
    ]),
    ("FROM disk_usage", [("sft-1b",), ("grpo-8b",)]),
    ("FROM checkpoint_history", [
        (100, "deleted", 0.9, '{"kl":0.09,"train:loss":0.8,"val:loss":0.9}'),
        (200, "final", 0.5, '{"kl":0.05,"train:loss":0.5,"val:loss":0.5}'),
        (300, "final", 0.6, '{"kl":0.06,"train:loss":0.55,"val:loss":0.6}'),
        (400, "deleted", 0.7, '{"kl":0.07,"train:loss":0.6,"val:loss":0.7}'),
        (500, "final", 0.8, '{"kl":0.08,"train:loss":0.5,"val:loss":0.8}'),
    ]),
    ("AS apart", [("grpo-8b", 500), ("grpo-8b", 300), ("grpo-8b", 200)]),
    ("FROM saves", [
        ("grpo-8b", 100, None), ("grpo-8b", 200, 100), ("grpo-8b", 300, 200),
        ("grpo-8b", 400, 300), ("grpo-8b", 500, 400),
    ]),
    ("FROM config_changes", [
        ("sft-1b", "grpo-8b", "optimizer.lr", 0.1, 0.2),
        ("sft-1b", "grpo-8b", "optimizer.warmup", None, 50),
    ]),
    ("GROUP BY key", [("optimizer.lr", 0.1, 0.2), ("optimizer.warmup", None, 50)]),
    ("AS rate", [(0.1, "grpo-8b", 0.5), (0.2, "sft-1b", 1.2)]),
    ("bytes_on_disk DESC", [("sft-1b", 2), ("grpo-8b", 3)]),
    ("FROM deletions", [("grpo-8b", 400), ("grpo-8b", 100)]),
    ("SELECT step, value, status FROM metric_history", [
        (100, 0.9, "deleted"), (200, 0.5, "final"), (300, 0.6, "final"),
        (400, 0.7, "deleted"), (500, 0.8, "final"),
    ]),
    ("best_step < latest_step", [("grpo-8b", 200, 500)]),
    ("RECURSIVE line", [
        (500, "final", 400), (400, "deleted", 300), (300, "final", 200), (200, "final", 100),
        (100, "deleted", None),
    ]),
    ("ORDER BY size_bytes", [
        ("sft-1b", 20), ("sft-1b", 10), ("grpo-8b", 500), ("grpo-8b", 300), ("grpo-8b", 200),
    ]),
]  # fmt: skip


def test_the_loop_that_asks_saves_by_period_and_in_the_end(tree):
    before = signal.getsignal(signal.SIGTERM)
    find_block("python", "should_stop").execute()

    assert sorted(path.name for path in Path("results/timed").glob("step_*")) == [
        "step_100", "step_200", "step_250",
    ]  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) is before


def test_hooks_are_called(tree, capsys):
    find_block("python", "on_problem").execute()

    calls = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert calls == [["published", "10"], ["published", "20"], ["deleted", "10"]]


def test_the_resuming_loop_resumes_and_passes_over_what_cannot_be_loaded(tree):
    loop = find_block("python", "manager.resume(")
    for _ in range(3):
        loop.execute()
    Path("results/resumed/step_3/weights.npy").write_bytes(b"no array" * 24)
    with pytest.warns(UserWarning, match=r"Step 3 is passed over .*: it was rejected: ValueError"):
        assert loop.execute()["step"] == 2
    with Registry.open("results") as registry:
        assert [one.step for one in registry.lineage(3, run="resumed")] == [3, 2, 1]


def test_the_rules_keep_what_they_say(tree):
    find_block("python", "plan_retention").execute()

    assert sorted(path.name for path in Path("results/rules").glob("step_*")) == [
        "step_100", "step_101", "step_102",
    ]  # fmt: skip


@pytest.mark.parametrize(("keys", "rules"), [
    ({"keep_top_k": 3, "save_period": 100, "ft_keep_latest_k": 2},
     ["best 3 of every 100 steps", "latest 2"]),
    ({"save_period": 100, "ft_keep_latest_k": 2}, ["every 100 steps", "latest 2"]),
])  # fmt: skip
def test_keys_and_rules_are_equivalent(keys, rules, tmp_path):
    by_keys, by_rules = (
        {cp.step for cp in kept(tmp_path / name, config)}
        for name, config in (("keys", keys), ("rules", {"keep": rules}))
    )
    row = ", ".join(f"{key}={value}" for key, value in keys.items())

    assert by_keys == by_rules
    assert [row, ", ".join(f"`{rule}`" for rule in rules)] in [
        [names_in(first)[0], second]
        for first, second in read_table("guide/retention.md", "keys")
    ]  # fmt: skip


def kept(directory, config):
    numbers = {"metric_name": "loss", "higher_is_better": False}
    with CheckpointManager({"checkpoint_dir": directory, **numbers, **config}) as manager:
        for step, loss in ((100, 3), (150, 1), (200, 2), (300, 4), (400, 5), (450, 6), (460, 7)):
            with manager.save(step, {"loss": loss}):
                pass
    with Registry.open(directory) as registry:
        return registry.checkpoints(status="final")


def test_the_alias_serves_an_unchanged_import():
    try:
        find_block("python", "sys.modules").execute()
        variables: dict[str, object] = {}
        exec("from nemo_rl.utils.checkpoint import CheckpointManager", variables)
    finally:
        sys.modules.pop("nemo_rl.utils.checkpoint", None)

    assert variables["CheckpointManager"] is DropIn


def test_every_rank_writes_its_shard(tree):
    save = find_block("python", "barrier").execute()["save_sharded"]
    barrier = threading.Barrier(3, timeout=30)
    config = {"checkpoint_dir": "results/ddp", "metric_name": "val:loss", "higher_is_better": False}

    def rank(number):
        with CheckpointManager(config) as manager:
            save(manager, 7, {"val:loss": 0.1}, rank=number, barrier=barrier.wait, shard=b"x")

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(3)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()

    names = {path.name for path in Path("results/ddp/step_7").iterdir()}
    assert {"shard_0.bin", "shard_1.bin", "shard_2.bin", "manifest.json"} <= names


@pytest.mark.slow
@pytest.mark.parametrize(("part", "expected"), ANSWERS, ids=[part for part, _ in ANSWERS])
def test_queries_answer(part, expected, read_only_tree):
    with Registry.open(read_only_tree / "results") as registry:
        rows = registry.query(find_block("sql", part).code).rows

    assert [row[: len(expected[0])] for row in rows] == expected


def test_every_query_has_a_known_answer():
    assert len(blocks("sql")) == len(ANSWERS)


def test_every_deletion_has_its_reason(read_only_tree):
    with Registry.open(read_only_tree / "results") as registry:
        answer = registry.query(find_block("sql", "FROM deletions").code).as_dicts()

    assert [row["deleted_reason"] for row in answer] == [
        "retention: not best 2 by val:loss min (0.7)",
        "retention: not best 2 by val:loss min (0.9)",
    ]


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")


def test_freeable_bytes_are_those_neither_best_nor_latest(read_only_tree):
    with Registry.open(read_only_tree / "results") as registry:
        sft, grpo = registry.query(find_block("sql", "FROM disk_usage").code).as_dicts()
        deleted = registry.checkpoints(run="grpo-8b", status="deleted")

    assert sft["freeable_bytes"] == size_of(read_only_tree / "results/sft-1b/step_10")
    assert grpo["freeable_bytes"] == size_of(read_only_tree / "results/grpo-8b/step_300")
    assert (sft["freed_bytes"], grpo["freed_bytes"]) == (0, sum(cp.size_bytes for cp in deleted))
    assert [cp.step for cp in deleted] == [100, 400]


@pytest.mark.slow
def test_how_far_apart_metrics_are_and_how_long_saves_took(read_only_tree):
    with Registry.open(read_only_tree / "results") as registry:
        apart = registry.query(find_block("sql", "AS apart").code)
        assert [row[-1] for row in apart] == pytest.approx([0.3, 0.05, 0.0])
        first, *others = registry.query(find_block("sql", "FROM saves").code).as_dicts()
        rows = registry.checkpoints(run="grpo-8b")

    times = [datetime.fromisoformat(cp.finalized_at).timestamp() for cp in rows]
    took = [after - before for before, after in pairwise(times)]
    usual = (times[-1] - times[0]) / 4
    assert first["seconds"] is None
    assert [row["seconds"] for row in others] == pytest.approx(took, abs=0.001)
    assert [row["times_usual"] for row in others] == pytest.approx(
        [seconds / usual for seconds in took], abs=0.01
    )

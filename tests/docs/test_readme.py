"""README.md keeps its word: its code runs, its commands work, its queries answer."""

import os
import re
import signal
import subprocess
import sys
import threading
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import click
import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import EXIT_CODES, cli
from ckptdb.manager import CheckpointManager as DropIn
from ckptdb.training import config as configuration

HERE = Path(__file__).parents[2]
README = (HERE / "README.md").read_text()
CI = (HERE / ".ci/run").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def first_line(block):
    return block.strip().splitlines()[0][:40]


SHELL = [block for block in blocks("sh") if ".venv" not in block]
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


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A directory with results/grpo-8b, which has pruned two checkpoints, and results/sft-1b."""
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    Registry.init(results)[0].close()
    training = {100: 0.8, 200: 0.5, 300: 0.55, 400: 0.6, 500: 0.5}
    for run, losses, size, optimizer in (
        ("grpo-8b", {100: 0.9, 200: 0.5, 300: 0.6, 400: 0.7, 500: 0.8}, 1_000, {"lr": 0.1}),
        ("sft-1b", {10: 1.5, 20: 1.2}, 5_000, {"lr": 0.2, "warmup": 50}),
    ):
        config = {
            "checkpoint_dir": results / run,
            "metric_name": "val:loss",
            "higher_is_better": False,
            "keep_top_k": 2,
        }
        with CheckpointManager(config) as manager:
            for step, loss in losses.items():
                metrics = {"val:loss": loss, "kl": round(loss / 10, 3)}
                if step in training:
                    metrics["train:loss"] = training[step]
                settings = {"optimizer": optimizer, "model": "llama"}
                with manager.save(step, metrics, config=settings) as folder:
                    (folder / "model.bin").write_bytes(bytes(size + step))
    return tmp_path


def execute(block):
    space = {"__name__": "__main__"}
    exec(compile(block, "README.md", "exec"), space)
    return space


@pytest.mark.parametrize("block", blocks("python"), ids=first_line)
def test_python_runs(block, tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo_rl.utils.checkpoint", None)  # put back afterwards
    execute(block)


def test_the_loop_trains_prunes_and_resumes(tree, capsys):
    loop = next(block for block in blocks("python") if "rng" in block)
    execute(loop)
    best = capsys.readouterr().out.strip()
    execute(loop)

    assert best == capsys.readouterr().out.strip() == "results/linear/step_50"
    assert sorted(path.name for path in Path("results/linear").glob("step_*")) == [
        "step_30", "step_40", "step_50",
    ]  # fmt: skip


def test_the_loop_that_asks_saves_by_period_and_in_the_end(tree):
    before = signal.getsignal(signal.SIGTERM)
    execute(next(block for block in blocks("python") if "should_stop" in block))

    assert sorted(path.name for path in Path("results/timed").glob("step_*")) == [
        "step_100", "step_200", "step_250",
    ]  # fmt: skip
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_hooks_tell(tree, capsys):
    execute(next(block for block in blocks("python") if "on_problem" in block))

    told = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert told == [["published", "10"], ["published", "20"], ["deleted", "10"]]


def test_every_key_of_ours_is_documented():
    for name in configuration._OURS.keys() - {"enabled"}:
        assert f"`{name}`" in README, name


def test_the_resuming_loop_resumes_and_passes_over_what_cannot_be_loaded(tree):
    loop = next(block for block in blocks("python") if "manager.resume(" in block)
    for _ in range(3):
        execute(loop)
    Path("results/resumed/step_3/weights.npy").write_bytes(b"no array" * 24)
    with pytest.warns(UserWarning, match=r"Step 3 is passed over .*: it was rejected: ValueError"):
        assert execute(loop)["step"] == 2
    with Registry.open("results") as registry:
        assert [one.step for one in registry.lineage(3, run="resumed")] == [3, 2, 1]


def test_the_alias_serves_an_unchanged_import(tree):
    alias = next(block for block in blocks("python") if "sys.modules" in block)
    try:
        execute(alias)
        space = execute("from nemo_rl.utils.checkpoint import CheckpointManager")
    finally:
        sys.modules.pop("nemo_rl.utils.checkpoint", None)

    assert space["CheckpointManager"] is DropIn


def test_every_rank_writes_its_shard(tree):
    save = execute(next(block for block in blocks("python") if "barrier" in block))["save_sharded"]
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


@pytest.mark.parametrize("block", SHELL, ids=first_line)
def test_commands_run(block, tree):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tree, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    told = re.sub(r"^(5 of )?5 checkpoint\(s\) verified, .*\n", "", done.stderr)
    assert (done.returncode, told) == (0, "")
    for step in (200, 300, 500):
        assert (tree / f"results/grpo-8b/step_{step}/training_info.json").is_file()


@pytest.mark.parametrize(("told", "expected"), ANSWERS, ids=[told for told, _ in ANSWERS])
def test_queries_answer(told, expected, tree):
    queries = [block for block in blocks("sql") if told in block]
    assert len(queries) == 1
    with Registry.open("results") as registry:
        rows = registry.query(queries[0]).rows

    assert [row[: len(expected[0])] for row in rows] == expected


def test_every_query_has_a_known_answer():
    assert len(blocks("sql")) == len(ANSWERS)


def test_what_was_deleted_says_why(tree):
    query = next(block for block in blocks("sql") if "FROM deletions" in block)
    with Registry.open("results") as registry:
        reasons = [row["deleted_reason"] for row in registry.query(query).as_dicts()]

    assert reasons == [
        "retention: not best 2 by val:loss min (0.7)",
        "retention: not best 2 by val:loss min (0.9)",
    ]


def size_of(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")


def test_what_would_be_freed_is_what_is_neither_best_nor_latest(tree):
    query = next(block for block in blocks("sql") if "FROM disk_usage" in block)
    with Registry.open("results") as registry:
        sft, grpo = registry.query(query).as_dicts()
        gone = registry.checkpoints(run="grpo-8b", status="deleted")

    assert sft["freeable_bytes"] == size_of(tree / "results/sft-1b/step_10")
    assert grpo["freeable_bytes"] == size_of(tree / "results/grpo-8b/step_300")
    assert (sft["freed_bytes"], grpo["freed_bytes"]) == (0, sum(cp.size_bytes for cp in gone))
    assert [cp.step for cp in gone] == [100, 400]


def test_how_far_apart_metrics_are_and_how_long_saves_took(tree):
    apart = next(block for block in blocks("sql") if "AS apart" in block)
    saves = next(block for block in blocks("sql") if "FROM saves" in block)
    with Registry.open("results") as registry:
        assert [row[-1] for row in registry.query(apart)] == pytest.approx([0.3, 0.05, 0.0])
        first, *others = registry.query(saves).as_dicts()
        rows = registry.checkpoints(run="grpo-8b")

    moments = [datetime.fromisoformat(cp.finalized_at).timestamp() for cp in rows]
    took = [after - before for before, after in pairwise(moments)]
    usual = (moments[-1] - moments[0]) / 4
    assert first["seconds"] is None
    assert [row["seconds"] for row in others] == pytest.approx(took, abs=0.001)
    assert [row["times_usual"] for row in others] == pytest.approx(
        [seconds / usual for seconds in took], abs=0.01
    )


def commands(group, prefix="ckptdb"):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = sorted(commands(cli), key=lambda pair: pair[0])


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_is_documented_and_has_help(name, command):
    assert re.search(rf"^\| `{name}[` ]", README, re.MULTILINE)
    assert command.get_short_help_str()
    assert all(p.help for p in command.params if isinstance(p, click.Option) and p.name != "run")


def test_nothing_is_documented_that_is_not_there():
    documented = re.findall(r"^\| `(ckptdb(?: [a-z]+)+)", README, re.MULTILINE)

    assert sorted(documented) == [name for name, _ in COMMANDS]


def test_exit_codes_are_documented():
    for text in (README, cli.epilog):
        told = text.partition("Exit codes:")[2].partition(".")[0]
        codes = {int(code) for code in re.findall(r"\b\d+\b", told)}
        assert codes == {0, 1, 2, 3, 4} | set(EXIT_CODES.values())


def test_columns_in_the_table_exist(tree):
    with Registry.open("results") as registry:
        relations = {r.name: {c.name for c in r.columns} for r in registry.schema()}
    table = re.findall(r"^\| `(\w+)` \| (?:one|a) .*? \| (.*) \|$", README, re.MULTILINE)

    assert {name for name, _ in table} == set(relations) - {"ckptdb_version"}
    for name, told in table:
        columns = set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", told)))
        assert columns <= relations[name], name


def test_ci_runs_the_commands_that_stand_here():
    patterns = re.findall(r"readme '(.*)'", CI)

    assert len(patterns) == 2
    for pattern in patterns:
        assert len(re.findall(pattern, README, re.MULTILINE)) == 1

"""What a command reaches: the runs at or below where it stands, and no other."""

import sys

import pytest
from tests.support.terminal import Terminal

from ckptdb import CheckpointManager, Registry
from ckptdb.errors import AmbiguousRun, NoRuns, RunsNotNamed
from ckptdb.retention import Policy

LOSS = "val:loss"


def save(run, step, loss):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    with (
        CheckpointManager(config, durability="none") as manager,
        manager.save(step, {LOSS: loss}) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * 100)


@pytest.fixture
def root(tmp_path):
    """Experiments, each with its runs some way below, and one without any."""
    top = tmp_path / "results"
    top.mkdir()
    Registry.init(top)[0].close()
    for number, place in enumerate(("exp1/checkpoints", "exp10/checkpoints", "exp3/a", "exp3/b")):
        for step in (1, 2, 3):
            save(top / place, step + number, 1 / (step + number))
    (top / "exp2").mkdir()
    return top


def steps_below(top):
    return sorted(str(path.relative_to(top)) for path in top.rglob("step_*"))


QUESTIONS = {
    "ls": ("ls",),
    "ls --all": ("ls", "--all"),
    "best": ("best",),
    "best --each": ("best", "--each"),
    "best --where": ("best", "--where", "step > 0"),
    "best --ever": ("best", "--ever"),
    "latest": ("latest",),
    "top": ("top", "100"),
    "pareto": ("pareto", "--against", LOSS, "min"),
    "plot": ("plot",),
    "verify": ("verify", "-o", "json"),
    "gc --dry-run": ("gc", "--dry-run", "--keep-latest", "1"),
    "gc --replay": ("gc", "--replay", "--keep", "latest 1"),
    "check": ("check",),
    "watch": ("watch", "--once"),
    "report": ("report", "-o", "-"),
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_is_about_the_runs_at_or_below_where_it_is_asked(root, ckptdb, asked):
    answer = ckptdb(*asked, cwd=root / "exp3")
    assert answer.code == 0, answer.err
    told = answer.out + answer.err
    assert "exp1" not in told
    if asked[0] != "ls" or len(asked) > 1:
        assert "checkpoints/" not in told
    one = ckptdb(*asked, cwd=root / "exp1")
    assert one.code == 0, one.err
    assert "exp10" not in one.out + one.err, "a name that only begins like it is another one"
    assert "exp3" not in one.out + one.err


@pytest.mark.slow
@pytest.mark.parametrize("asked", QUESTIONS.values(), ids=QUESTIONS)
def test_where_no_run_is_nothing_is_answered_from_elsewhere(root, ckptdb, asked):
    answer = ckptdb(*asked, cwd=root / "exp2")
    told = answer.out + answer.err
    assert "exp1/" not in told
    assert "exp3" not in told
    if asked[0] not in ("check", "report", "watch"):
        assert answer.code == 1
        assert answer.err == (
            f"ckptdb: No run of the catalog {root}/.ckptdb/catalog.db lies at or below "
            f"{root}/exp2; name one with --run, or change into a directory that has some.\n"
        )


def test_a_run_may_be_named_from_anywhere_in_the_catalog(root, ckptdb):
    here = root / "exp2"
    assert ckptdb("latest", "--run", "exp3/a", cwd=here).out == f"{root}/exp3/a/step_5\n"
    assert ckptdb("latest", "--run", root / "exp3" / "a", cwd=here).out.endswith("a/step_5\n")
    assert ckptdb("latest", "--run", "b", cwd=here).out == f"{root}/exp3/b/step_6\n"


def test_of_several_runs_with_a_name_the_one_below_is_meant(root, ckptdb):
    for place in ("exp1", "exp10"):
        answer = ckptdb("latest", "--run", "checkpoints", cwd=root / place)
        assert answer.out.startswith(f"{root}/{place}/checkpoints/")
        same = ckptdb("-C", root / place, "latest", "--run", "checkpoints")
        assert same.out == answer.out


def test_deleting_by_hand_where_no_run_is_deletes_nothing(root, ckptdb):
    before = steps_below(root)
    answer = ckptdb("-C", root / "exp2", "rm", "5")
    assert (answer.code, answer.out) == (1, "")
    assert "lies at or below" in answer.err
    assert "--run" in answer.err
    assert steps_below(root) == before


def test_the_only_run_of_a_catalog_is_not_meant_from_beside_it(tmp_path, ckptdb):
    (tmp_path / "a").mkdir()
    Registry.init(tmp_path)[0].close()
    save(tmp_path / "f", 5, 1.0)
    answer = ckptdb("-C", tmp_path / "a", "rm", "5")
    assert answer.code == 1
    assert f"at or below {tmp_path}/a" in answer.err
    assert (tmp_path / "f" / "step_5").is_dir()


def test_a_directory_behind_a_link_is_the_one_that_it_leads_to(root, tmp_path, ckptdb):
    (tmp_path / "link").symlink_to(root / "exp3")
    answer = ckptdb("-C", tmp_path / "link", "best", "--each")
    assert answer.out == f"{root}/exp3/a/step_5\n{root}/exp3/b/step_6\n"
    (root / "to").symlink_to(root / "exp1")
    assert ckptdb("-C", root / "to", "latest").out == f"{root}/exp1/checkpoints/step_3\n"


def test_a_relative_directory_is_the_one_that_it_names(root, ckptdb):
    assert ckptdb("-C", "exp3/../exp1/.", "latest", cwd=root).out.endswith(
        "exp1/checkpoints/step_3\n"
    )
    assert ckptdb("-C", "..", "ls", "-o", "json", cwd=root / "exp2").code == 0


def test_a_catalog_that_is_opened_is_all_of_its_runs(root):
    for opened in (root / ".ckptdb" / "catalog.db", f"sqlite:///{root}/.ckptdb/catalog.db", root):
        with Registry.open(opened) as registry:
            assert len(registry.runs()) == 4
            assert len(registry.best_of_runs()) == 4


def test_choosing_another_catalog_does_not_change_where_one_stands(root, ckptdb, monkeypatch):
    file = root / ".ckptdb" / "catalog.db"
    with Registry.open(root / "exp3", catalog=file) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b"]
    assert ckptdb("--catalog", file, "latest", cwd=root / "exp2").code == 1
    monkeypatch.setenv("CKPTDB_CATALOG", str(file))
    assert ckptdb("latest", cwd=root / "exp2").code == 1
    assert ckptdb("-C", file, "best", "--each").out.count("\n") == 4


def test_sql_asks_the_whole_catalog_and_says_so(root, ckptdb):
    counted = ckptdb("sql", "SELECT COUNT(*) AS n FROM runs", "-o", "json", cwd=root / "exp2")
    assert counted.json == [{"n": 4}]
    assert "whole catalog" in " ".join(ckptdb("sql", "--help").out.split())


def test_python_asks_about_what_was_opened(root):
    with Registry.open(root / "exp3") as registry:
        assert [run.name for run in registry.runs()] == ["a", "b"]
        assert {cp.run for cp in registry.checkpoints()} == {"a", "b"}
        assert {cp.run for cp in registry.top(100)} == {"a", "b"}
        assert registry.latest().run == "b"
        assert len(registry.summary()) == 2
        assert [curve.run for curve in registry.curves()[1]] == ["a", "b"]
        with pytest.raises(AmbiguousRun):
            registry.get(4)
    with Registry.open(root / "exp2") as registry:
        assert registry.runs() == ()
        for ask in (registry.latest, registry.best, registry.best_of_runs, registry.checkpoints):
            with pytest.raises(NoRuns, match="at or below"):
                ask()


def test_a_watcher_sees_the_runs_that_begin_below_later(root):
    with (
        Registry.open(root / "exp2") as registry,
        registry.watch(poll_seconds=0.01, existing=True) as arrivals,
    ):
        save(root / "exp3" / "new", 1, 1.0)
        save(root / "exp2" / "new", 7, 1.0)
        assert next(arrivals).path == root / "exp2" / "new" / "step_7"


def test_reconciling_below_a_root_leaves_the_rest_as_it_is(root, ckptdb):
    (root / "exp1" / "checkpoints" / "step_1").rename(root / "gone")
    (root / "exp3" / "a" / "step_3").rename(root / "gone too")
    answer = ckptdb("check", cwd=root / "exp3")
    assert "in 2 run(s)" in answer.out
    assert "step 3" in answer.out
    assert "step 1" not in answer.out


def test_a_catalog_that_is_built_anew_below_a_root_holds_all_of_it(root, ckptdb):
    (root / ".ckptdb" / "catalog.db").unlink()
    assert ckptdb("reconcile", cwd=root / "exp3").code == 0
    assert ckptdb("sql", "SELECT COUNT(*) AS n FROM runs", "-o", "json", cwd=root).json == [
        {"n": 4}
    ]


# --- deleting in several runs --------------------------------------------------------------------


def test_deleting_in_several_runs_wants_them_named(root, ckptdb):
    before = steps_below(root)
    for rules in (("--keep-latest", "1"), ()):
        answer = ckptdb("gc", *rules, cwd=root / "exp3")
        assert (answer.code, answer.out) == (2, "")
        assert answer.err == (
            f"ckptdb: This would delete in several runs: {root}/exp3/a, {root}/exp3/b; name those "
            "that are meant (--run RUN, which may be repeated), or pass --all-runs. "
            "Nothing was deleted.\n"
        )
    assert steps_below(root) == before
    with Registry.open(root / "exp3") as registry:
        with pytest.raises(RunsNotNamed):
            registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1))
        assert steps_below(root) == before
        named = registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1), run=["a"])
        assert [one.run for one in named] == ["a"]
        every = registry.gc(Policy(keep_top_k=0, ft_keep_latest_k=1), all_runs=True)
        assert [one.run for one in every] == ["a", "b"]


def test_what_would_go_may_be_asked_of_all_and_names_each_path(root, ckptdb):
    before = steps_below(root)
    answer = ckptdb("gc", "--dry-run", "--keep-latest", "1", cwd=root / "exp3")
    assert answer.code == 0
    assert f"a ({root}/exp3/a): " in answer.out
    assert f"b ({root}/exp3/b): " in answer.out
    assert steps_below(root) == before


@pytest.mark.parametrize("named", [("--all-runs",), ("--run", "a", "--run", "b")])
def test_a_script_deletes_in_several_runs_only_with_yes(root, ckptdb, named):
    before = steps_below(root)
    rules = ("gc", "--keep-latest", "1", *named)
    refused = ckptdb(*rules, cwd=root / "exp3")
    assert refused.code == 2
    assert refused.err.startswith(f"ckptdb: This would delete in several runs: {root}/exp3/a, ")
    assert "--yes" in refused.err
    assert steps_below(root) == before
    assert ckptdb(*rules, "--yes", cwd=root / "exp3").code == 0
    assert steps_below(root / "exp3") == ["a/step_5", "b/step_6"]
    assert len(steps_below(root)) == 8, "what lies elsewhere is not touched"


def test_a_plan_names_what_goes(root, ckptdb):
    shown = ckptdb("gc", "--dry-run", "--keep-latest", "1", cwd=root / "exp3").out.splitlines()[-1]
    plans = shown.partition(": ")[2].split()
    assert len(plans) == 4
    assert ckptdb("gc", "--keep-latest", "1", *plans, cwd=root / "exp3").code == 0
    assert steps_below(root / "exp3") == ["a/step_5", "b/step_6"]


def test_of_a_single_run_below_nothing_has_to_be_named(root, ckptdb):
    assert ckptdb("gc", "--keep-latest", "1", cwd=root / "exp1").code == 0
    assert steps_below(root / "exp1") == ["checkpoints/step_3"]


@pytest.mark.slow
@pytest.mark.parametrize(("said", "code", "left"), [("y", 0, 2), ("n", 1, 6), ("", 1, 6)])
def test_a_terminal_is_asked_before_anything_goes(root, said, code, left):
    command = [sys.executable, "-m", "ckptdb", "gc", "--keep-latest", "1", "--all-runs"]
    with Terminal(command, columns=400, cwd=root / "exp3") as terminal:
        terminal.wait_for(
            f"a ({root}/exp3/a): 2 checkpoint(s)",
            f"b ({root}/exp3/b): 2 checkpoint(s)",
            "Delete in these 2 runs? [y/N]",
        )
        terminal.type(f"{said}\r")
        assert terminal.wait() == code
    assert len(steps_below(root / "exp3")) == left

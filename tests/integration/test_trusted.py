"""One definition of "trusted", asked of every question there is.

A checkpoint may be an answer when it is published, has no problem and is not rejected; in answers
about history, when it was published, has no problem and is not rejected. Of each state there is one
checkpoint with a better metric than the good ones, and one with a higher step: a question that
forgets a part of the definition answers with it.
"""

import json
import os
import shutil
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import cli
from ckptdb.core.records import Checkpoint
from ckptdb.retention import Policy
from ckptdb.web import data

LOSS = "val:loss"


@dataclass(frozen=True)
class State:
    """A state of a checkpoint, and whether it may be an answer in it.

    Attributes:
        steps: One with the best metrics, one with the highest steps.
        live: Whether questions about what is published may answer with it.
        ever: Whether questions about history may.
    """

    steps: tuple[int, int]
    live: bool
    ever: bool


STATES = {
    "final": State((1, 30), live=True, ever=True),
    "tmp": State((2, 39), live=False, ever=False),
    "deleted": State((3, 37), live=False, ever=True),
    "problem": State((4, 32), live=False, ever=False),
    "rejected": State((5, 33), live=False, ever=False),
    "rejected then deleted": State((6, 34), live=False, ever=False),
    "problem then deleted": State((7, 35), live=False, ever=False),
    "deleted then rejected": State((8, 36), live=False, ever=False),
    "rejected then unrejected": State((9, 31), live=True, ever=True),
}
STEPS = sorted(step for state in STATES.values() for step in state.steps)
LIVE = {step for state in STATES.values() if state.live for step in state.steps}
EVER = {step for state in STATES.values() if state.ever for step in state.steps}


def loss_of(step):
    # Low steps are the best ones, the good ones behind all others of their kind.
    (name,) = (name for name, state in STATES.items() if step in state.steps)
    bonus = {"tmp": 9, "deleted": 1, "final": 0, "rejected then unrejected": 0}.get(name, 5)
    return round((step if step < 30 else 100 + step) - 10.0 * bonus, 3)


def manager_of(run, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False}
    return CheckpointManager({"exclusive": False, **config, **options})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two checkpoints in each state."""
    run = tmp_path_factory.mktemp("trusted") / "results" / "run"
    with manager_of(run) as manager:
        for step in STEPS:
            folder = manager.init_tmp_checkpoint(step, {LOSS: loss_of(step), "kl": loss_of(step)})
            (folder / "model.bin").write_bytes(b"model")
            if step not in STATES["tmp"].steps:
                manager.finalize_checkpoint(folder)

    def of(*names):
        return [step for name in names for step in STATES[name].steps]

    with Registry.open(run) as registry:
        for step in of("rejected", "rejected then deleted", "rejected then unrejected"):
            registry.reject(None, step, "too good to be true")
        for step in of("rejected then unrejected"):
            registry.unreject(None, step)
        for step in of("problem", "problem then deleted"):
            (run / f"step_{step}" / "model.bin").write_bytes(b"")
        registry.verify()
        registry.remove(of("rejected then deleted", "problem then deleted"), force=True)
        registry.remove(of("deleted", "deleted then rejected"), force=True)
        for step in of("deleted then rejected"):
            registry.reject(None, step, "found out later")
    return run


# --- questions, and which steps they answer with -------------------------------------------


def steps(found):
    found = [found] if isinstance(found, Checkpoint) else found
    return {checkpoint.step for checkpoint in found}


def step_of(path):
    return int(str(path).rpartition("_")[2])


def at_any_time(registry):
    times = sorted(cp.finalized_at for cp in registry.checkpoints() if cp.finalized_at)
    found = (registry.best(at=time) for time in times)
    return steps([checkpoint for checkpoint in found if checkpoint])


def curve(registry):
    _, (found,) = registry.curves(LOSS)
    return {step for step, ranked in zip(found.steps, found.ranked, strict=True) if ranked}


def judged(registry):
    policy = Policy(keep=["best 1"], metric=LOSS, mode="min")
    (found,) = registry.gc(policy, dry_run=True)
    return {decision.step for decision in found.decisions}


def replayed(registry):
    (found,) = registry.replay(Policy(keep=["best 1"], metric=LOSS, mode="min"))
    return {found.best_ever, *(lost.step for lost in found.lost)}


def snapshot(registry):
    (found,) = data.take_snapshot(registry).runs
    return {found.best.step, found.latest.step}


def first_arrivals(registry):
    return steps(list(registry.watch(poll_seconds=None)))


def leased_arrivals(registry):
    return steps(list(registry.watch(poll_seconds=None, lease="mmlu")))


REGISTRY = {
    "best": (lambda r: steps(r.best()), "live"),
    "best where": (lambda r: steps(r.best(where="kl < 1000")), "live"),
    "best tie": (lambda r: steps(r.best(tie=("kl", "min"))), "live"),
    "best high": (lambda r: steps(r.best(LOSS, mode="max")), "live"),
    "best ever": (lambda r: steps(r.best(ever=True)), "ever"),
    "best ever where": (lambda r: steps(r.best(ever=True, where="kl < 1000")), "ever"),
    "best at": (lambda r: steps(r.best(at="0 seconds ago")), "live"),
    "best at any time": (at_any_time, "ever"),
    "top": (lambda r: steps(r.top(99)), "live"),
    "top ever": (lambda r: steps(r.top(99, ever=True)), "ever"),
    "top at": (lambda r: steps(r.top(99, at="0 seconds ago")), "live"),
    "pareto": (lambda r: steps(r.pareto(against=("kl", "max"))), "live"),
    "best_of_runs": (lambda r: steps(r.best_of_runs()), "live"),
    "latest": (lambda r: steps(r.latest()), "live"),
    "curves": (curve, "live"),
    "gc": (judged, "live"),
    "replay": (replayed, "ever"),
    "watch": (first_arrivals, "live"),
    "page": (snapshot, "live"),
}
REGISTRY_WITHOUT_CHOICE = {
    "accept_loss", "checkpoints", "close", "diff", "directory", "explain_location",
    "explain_missing", "explain_nothing", "forget", "get", "in_place_of", "init", "lineage",
    "location", "log_metrics", "open", "own_metric", "passed_over", "pin", "query",
    "query_apart", "query_here", "reconcile", "reject", "remove", "run", "runs", "schema",
    "status", "summary", "tag", "undelete", "unpin", "unreject", "untag", "upgrade", "verify",
    "whereabouts",
}  # fmt: skip
"""What of a registry lists everything, is told which checkpoint, or names none."""


def kept_by_rule(manager):
    return {decision.step for decision in manager.plan_retention().decisions}


def left_by_rule(manager):
    before = {step_of(path) for path in manager.checkpoint_dir.glob("step_*")}
    manager.remove_old_checkpoints()
    return before - {step_of(path) for path in manager.checkpoint_dir.glob("step_*")}


MANAGER = {
    "get_best_checkpoint_path": lambda m: {step_of(m.get_best_checkpoint_path())},
    "get_latest_checkpoint_path": lambda m: {step_of(m.get_latest_checkpoint_path())},
    "get_top_checkpoint_paths": lambda m: set(map(step_of, m.get_top_checkpoint_paths(99))),
    "plan_retention": kept_by_rule,
    "remove_old_checkpoints": left_by_rule,
    "resume": lambda m: steps(m.resume()),
}
MANAGER_WITHOUT_CHOICE = {
    "apply_retention", "begin_finalization", "finalize_checkpoint", "finalize_pending",
    "get_resume_paths", "has_pending_finalization", "init_tmp_checkpoint", "load_training_info",
    "reject", "save", "should_save", "should_stop", "shutdown",
}  # fmt: skip


def ask(run, *arguments):
    before = os.getcwd()
    try:
        done = CliRunner().invoke(cli, ["-C", str(run), *arguments], catch_exceptions=False)
    finally:
        os.chdir(before)
    assert done.exit_code == 0, done.output
    return done.stdout


def printed(*arguments):
    return lambda run: {step_of(line) for line in ask(run, *arguments).split()}


def rows(*arguments):
    return lambda run: {row["step"] for row in json.loads(ask(run, *arguments, "-o", "json"))}


def unmarked(run):
    """Return the steps that `ls` lists without a mark against them."""
    lines = ask(run, "ls", "run", "--status", "final").splitlines()[1:]
    return {int(line.split()[0]) for line in lines if "PROBLEM" not in line and "REJEC" not in line}


def judged_by_gc(run):
    found = json.loads(ask(run, "gc", "--dry-run", "--keep-top-k", "1", "-o", "json"))
    return {decision["step"] for one in found for decision in one["checkpoints"]}


COMMANDS = {
    "best": (printed("best"), "live"),
    "best --each": (printed("best", "--each"), "live"),
    "latest": (printed("latest"), "live"),
    "top": (rows("top", "99"), "live"),
    "top --ever": (rows("top", "99", "--ever"), "ever"),
    "pareto": (rows("pareto", "--against", "kl", "max"), "live"),
    "watch": (printed("watch", "--once"), "live"),
}
VIEWS = {
    "leaderboard": ("SELECT step FROM leaderboard", "live"),
    "run_summary best": ("SELECT best_step FROM run_summary", "live"),
    "run_summary latest": ("SELECT latest_step FROM run_summary", "live"),
}
VIEWS_WITHOUT_CHOICE = {
    "checkpoint_history", "config_changes", "config_values", "deletions", "disk_usage", "lineage",
    "metric_history", "saves",
}  # fmt: skip
COMMANDS_BY_METHOD = {
    "check", "gc", "ls", "plot", "reconcile", "report", "serve", "show", "sql", "verify",
}  # fmt: skip
"""Commands whose answer is one of a method's above, or every checkpoint with its state."""
COMMANDS_WITHOUT_CHOICE = {
    "accept", "db", "demo", "diff", "forget", "init", "log", "pin", "reject", "rm", "schema", "tag",
    "undelete", "unpin", "unreject", "untag",
}  # fmt: skip


def test_each_public_question_is_in_a_table():
    def named(table):
        return {name.split()[0] for name in table} - {"page"}

    public = {name for name in dir(Registry) if not name.startswith("_")}
    assert named(REGISTRY) | REGISTRY_WITHOUT_CHOICE == public
    public = {name for name in dir(CheckpointManager) if not name.startswith("_")}
    # Attributes of the configuration are set when one is made; they are no questions.
    assert set(MANAGER) | MANAGER_WITHOUT_CHOICE == public
    assert isinstance(cli, click.Group)
    assert named(COMMANDS) | COMMANDS_BY_METHOD | COMMANDS_WITHOUT_CHOICE == set(cli.commands)


def test_each_view_is_in_a_table(run):
    with Registry.open(run) as registry:
        views = {found.name for found in registry.schema() if found.kind == "view"}
    assert {name.split()[0] for name in VIEWS} | VIEWS_WITHOUT_CHOICE == views


# --- the answers ----------------------------------------------------------------------------


def check(answer, scope):
    assert answer, "no answer at all"
    allowed = LIVE if scope == "live" else EVER
    wrong = {name for name, state in STATES.items() if set(state.steps) & (answer - allowed)}
    assert not wrong, f"{sorted(answer - allowed)} may not be the answer: {sorted(wrong)}"


WHOLE = {"top", "top ever", "top at", "curves", "gc", "watch", "get_top_checkpoint_paths",
         "plan_retention", "leaderboard", "top --ever"}  # fmt: skip
"""Questions that answer with every checkpoint that may be an answer."""


def check_whole(name, answer, scope):
    check(answer, scope)
    if name in WHOLE:
        assert answer == (LIVE if scope == "live" else EVER)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_question_to_a_registry(run, name):
    question, scope = REGISTRY[name]
    with Registry.open(run) as registry:
        check_whole(name, question(registry), scope)


@pytest.mark.filterwarnings("ignore:Step .* is passed over")
@pytest.mark.parametrize("name", MANAGER)
def test_a_question_to_a_manager(run, name, tmp_path):
    copy = shutil.copytree(run.parent, tmp_path / "results") / run.name
    with manager_of(copy, keep_top_k=1) as manager:
        check_whole(name, MANAGER[name](manager), "live")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command(run, name):
    question, scope = COMMANDS[name]
    check_whole(name, question(run), scope)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view(run, name):
    query, scope = VIEWS[name]
    with Registry.open(run) as registry:
        check_whole(name, {step for (step,) in registry.query(query)}, scope)


def test_an_evaluator_gets_what_is_trusted(run, tmp_path):
    copy = shutil.copytree(run.parent, tmp_path / "results") / run.name
    with Registry.open(copy) as registry:
        assert leased_arrivals(registry) == LIVE


def test_gc_by_command_judges_what_is_trusted(run):
    assert judged_by_gc(run) == LIVE


def test_ls_marks_what_is_not_trusted(run):
    assert unmarked(run) == LIVE


@pytest.mark.parametrize("state", STATES)
def test_a_state_is_the_same_in_every_place(run, state):
    expected = STATES[state]
    with Registry.open(run) as registry:
        found = [cp for cp in registry.checkpoints() if cp.step in expected.steps]
        assert len(found) == len(expected.steps)
        assert {cp.is_trusted for cp in found} == {expected.live}
        live = registry.query(
            "SELECT DISTINCT m.live FROM metrics m JOIN checkpoints c ON c.id = m.checkpoint_id"
            " WHERE c.step IN (:a, :b)",
            {"a": expected.steps[0], "b": expected.steps[1]},
        )
        assert [bool(value) for (value,) in live] == [expected.live]


def test_all_of_it_holds_for_an_index_that_is_built_anew(run, tmp_path):
    copy = shutil.copytree(run.parent, tmp_path / "results") / run.name
    (copy / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(copy) as registry:
        registry.reconcile(full=True)
        for question, scope in REGISTRY.values():
            check(question(registry), scope)

"""Where there is nothing to choose, the command line and Python say why in one sentence."""

import math

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.errors import CkptdbError

LOSS = "val:loss"
OWN = {"metric_name": LOSS, "higher_is_better": False}
NONE = "There is no checkpoint to choose from; see `ckptdb ls --all`."


def save(run, step, metrics, **config):
    config = {"checkpoint_dir": run, **(config or OWN)}
    with (
        CheckpointManager(config, durability="none") as manager,
        manager.save(step, metrics) as folder,
    ):
        (folder / "model.bin").write_bytes(b"m" * 100)


@pytest.fixture
def root(tmp_path):
    """Runs of one kind each, all below one root."""
    top = tmp_path / "root"
    top.mkdir()
    Registry.init(top)[0].close()
    for step in (1, 2):
        save(top / "nan", step, {LOSS: math.nan, "acc": step, "kl": 1.0})
        save(top / "good", step, {LOSS: step, "acc": math.nan, "kl": 1.0})
        save(top / "unjudged", step, {"acc": step}, metric_name=None)
        save(top / "emptied", step, {LOSS: step, "kl": 1.0})
        save(top / "gone", step, {LOSS: step, "old": step, "kl": 1.0})
    save(top / "gone", 3, {LOSS: 3.0, "kl": 1.0})
    save(top / "mixed", 1, {LOSS: 1.0, "kl": math.nan})
    save(top / "mixed", 2, {LOSS: math.nan, "kl": 1.0})
    (top / "beside").mkdir()
    with Registry.open(top) as registry:
        registry.remove([1, 2], run="emptied")
        registry.remove([1], run="gone")
        registry.reject("gone", 2, "no good")
    return top


NOT_FINITE = (
    f"No checkpoint of 'nan' (NaN or infinite at step(s) 1, 2) has a finite value of the metric "
    f"'{LOSS}'."
)
GONE = (
    "No live checkpoint of 'gone' has a value of the metric 'old': those that have it are deleted, "
    f"rejected or damaged (`ckptdb best --ever` ranks deleted ones); other metrics: kl, {LOSS}."
)
UNKNOWN = "No checkpoint has the metric 'no'; known metrics: "
DIRECTION = "Say whether 'acc' is better low or high (--mode min|max)."
HOLDS = "'step > 9' holds for no checkpoint; `ckptdb top` lists what there is."

UNRANKED = (
    f"No checkpoint for which 'step = 2' holds has a finite value of '{LOSS}'; "
    "`ckptdb ls` lists what there is."
)

# Run, options of the command line, arguments in Python, the sentence, whether Python raises it.
SITUATIONS = {
    "only NaN": ("nan", (), {}, NOT_FINITE, True),
    "only NaN, named": ("nan", ("--metric", LOSS, "--mode", "min"),
                        {"metric": LOSS, "mode": "min"}, NOT_FINITE, True),
    "only NaN, with a condition": ("nan", ("--where", "step > 0"), {"where": "step > 0"},
                                   NOT_FINITE, True),
    "no direction": ("good", ("--metric", "acc"), {"metric": "acc"}, DIRECTION, True),
    "no metric of that name": ("good", ("--metric", "no", "--mode", "min"),
                               {"metric": "no", "mode": "min"}, UNKNOWN, True),
    "no metric of that name, no direction": ("good", ("--metric", "no"), {"metric": "no"},
                                             UNKNOWN, True),
    "nothing left": ("emptied", (), {}, NONE, False),
    "no such run": ("nobody", (), {}, "No run is called 'nobody'; known runs: ", True),
    "only deleted and rejected ones have it": (
        "gone", ("--metric", "old", "--mode", "min"), {"metric": "old", "mode": "min"}, GONE, False
    ),
    "a condition that none meets": ("good", ("--where", "step > 9"), {"where": "step > 9"}, HOLDS,
                                    False),
    "a condition that only what is not ranked meets": (
        "mixed", ("--where", "step = 2"), {"where": "step = 2"},
        UNRANKED, False,
    ),
}  # fmt: skip


def said_in_python(ask):
    try:
        return ask()
    except CkptdbError as error:
        return str(error)


TABLE = {
    f"{command}: {name}": (command, *situation)
    for name, situation in SITUATIONS.items()
    for command in ("best", "top", "pareto")
    # There a front names both metrics; see below.
    if (command, situation[3]) != ("pareto", UNRANKED)
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "run", "options", "asked", "sentence", "raised"), TABLE.values(), ids=TABLE
)
def test_a_situation_has_one_sentence(root, ckptdb, command, run, options, asked, sentence, raised):
    against = ("--against", "kl", "min") if command == "pareto" else ()
    answer = ckptdb(command, "--run", run, *options, *against, cwd=root)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith(f"ckptdb: {sentence}")
    assert answer.err.count("\n") == 1
    with Registry.open(root) as registry:
        ask = {
            "best": lambda: registry.best(run=run, **asked),
            "top": lambda: registry.top(10, run=run, **asked),
            "pareto": lambda: registry.pareto(run=run, against=("kl", "min"), **asked),
        }[command]
        found = said_in_python(ask)
        if raised:
            assert answer.err == f"ckptdb: {found}\n"
            return
        assert not found
        metrics = (asked.get("metric"), *(["kl"] if command == "pareto" else []))
        why = registry.explain_nothing(*metrics, run=run, where=asked.get("where"))
        assert answer.err == f"ckptdb: {why}\n"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["nan", "emptied", "gone"])
def test_best_of_each_inside_a_run_says_what_best_does(root, ckptdb, run):
    one = ckptdb("best", cwd=root / run)
    each = ckptdb("best", "--each", cwd=root / run)
    assert (one.code, one.out, one.err) == (each.code, each.out, each.err)


def test_best_of_each_says_the_same_of_several(root, ckptdb):
    for options, asked, sentence in (
        (("--metric", "no", "--mode", "min"), {"metric": "no", "mode": "min"}, UNKNOWN),
        (("--metric", "acc"), {"metric": "acc"}, DIRECTION),
    ):
        answer = ckptdb("best", "--each", *options, cwd=root)
        assert answer.code == 1
        assert answer.err.startswith(f"ckptdb: {sentence}")
        with Registry.open(root) as registry:
            told = said_in_python(lambda asked=asked, of=registry: of.best_of_runs(**asked))
        assert answer.err == f"ckptdb: {told}\n"


def test_the_latest_where_nothing_is_left(root, ckptdb):
    answer = ckptdb("latest", "--run", "emptied", cwd=root)
    assert (answer.code, answer.err) == (1, f"ckptdb: {NONE}\n")
    with Registry.open(root) as registry:
        assert registry.latest(run="emptied") is None
        assert str(registry.explain_nothing(run="emptied")) == NONE
    assert ckptdb("latest", "--run", "nan", cwd=root).out == f"{root}/nan/step_2\n"
    unknown = ckptdb("latest", "--run", "nobody", cwd=root).err
    assert unknown == ckptdb("best", "--run", "nobody", cwd=root).err


def test_where_no_run_is_all_say_so(root, tmp_path, ckptdb):
    commands = (("best",), ("top",), ("latest",), ("pareto", "--against", "kl", "min"),
                ("best", "--each"))  # fmt: skip
    said = {ckptdb(*command, cwd=root / "beside").err for command in commands}
    assert len(said) == 1
    assert "at or below" in said.pop()
    bare = tmp_path / "bare"
    bare.mkdir()
    Registry.init(bare)[0].close()
    said = {ckptdb(*command, cwd=bare).err for command in commands}
    assert len(said) == 1, said
    assert "holds no run yet" in said.pop()


def test_two_metrics_that_no_checkpoint_has_both(root, ckptdb):
    answer = ckptdb("pareto", "--run", "mixed", "--against", "kl", "min", cwd=root)
    assert answer.err == (
        f"ckptdb: No checkpoint has finite values of '{LOSS}' and 'kl'; "
        "`ckptdb ls` lists what there is.\n"
    )
    where = ("--where", "step = 2")
    answer = ckptdb("pareto", "--run", "mixed", "--against", "kl", "min", *where, cwd=root)
    assert "for which 'step = 2' holds has finite values of" in answer.err
    only_nan = ckptdb("pareto", "--run", "good", "--against", "acc", "min", cwd=root)
    assert only_nan.err.startswith("ckptdb: No checkpoint of 'good' (NaN or infinite at step(s)")
    with Registry.open(root) as registry:
        told = said_in_python(lambda: registry.pareto(run="good", against=("acc", "min")))
    assert only_nan.err == f"ckptdb: {told}\n"


@pytest.mark.parametrize("form", ["json", "csv"])
def test_a_program_gets_an_empty_list_and_the_sentence_beside_it(root, ckptdb, form):
    answer = ckptdb("top", "--run", "good", "--where", "step > 9", "-o", form, cwd=root)
    assert (answer.code, answer.err) == (0, f"ckptdb: {HOLDS}\n")
    assert answer.out.count("\n") == 1


def test_without_a_metric_the_best_is_the_latest_and_there_is_no_top(root, ckptdb):
    assert ckptdb("best", "--run", "unjudged", cwd=root).out == f"{root}/unjudged/step_2\n"
    answer = ckptdb("top", "--run", "unjudged", cwd=root)
    with Registry.open(root) as registry:
        told = said_in_python(lambda: registry.top(1, run="unjudged"))
    assert answer.err == f"ckptdb: {told}\n"
    assert "--metric NAME --mode min|max" in answer.err

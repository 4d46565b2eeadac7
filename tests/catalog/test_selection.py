"""Rankings with conditions, ties, history and other times: SQL against a naive oracle."""

import json
import math
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.rows import gone, make

from ckptdb.catalog import selection as selecting
from ckptdb.catalog.selection import Ranked, Selection, matching, pareto_front, ranked
from ckptdb.core.changes import Changes
from ckptdb.core.conditions import parse
from ckptdb.core.metrics import Metric, metrics_of
from ckptdb.core.ranking import rank_key
from ckptdb.core.records import Annotations, Run
from ckptdb.errors import InvalidCondition

LOSS = "val:loss"
RUNS = [Run(uuid=f"run-{name}", name=name, directory=Path("/r", name)) for name in "ab"]


def moment(second):
    return f"2026-01-01T00:00:{second:02}.000Z"


# --- the oracle ---------------------------------------------------------------------------------


def value_of(checkpoint, name, at):
    late = checkpoint.late.get(name)
    if at is None or late is None or late.reported_at <= at:
        return checkpoint.metrics.get(name)
    return metrics_of(checkpoint.info).get(name)


def counts(checkpoint, asked):
    if checkpoint.status == "tmp" or checkpoint.problem is not None:
        return False
    if asked.at is None:
        return asked.ever or checkpoint.status == "final"
    there = checkpoint.finalized_at <= asked.at
    return there and (
        asked.ever or checkpoint.status == "final" or checkpoint.deleted_at > asked.at
    )


def below(value, limit):
    return value is not None and value < limit


class Row:
    """What a condition is about: metrics by name when called, columns as attributes."""

    def __init__(self, checkpoint, at):
        self.at = at
        self.columns = checkpoint

    def __call__(self, name):
        return value_of(self.columns, name, self.at)

    def __getattr__(self, name):
        return getattr(self.columns, name)


CONDITIONS = {
    "kl < 1": lambda row: below(row("kl"), 1),
    "NOT kl < 1": lambda row: row("kl") is not None and not row("kl") < 1,
    "kl IS NULL": lambda row: row("kl") is None,
    '"val:loss" < kl': lambda row: row("kl") is not None and below(row(LOSS), row("kl")),
    '"val:loss" <= 1 AND step % 2 = 0': lambda row: (
        row(LOSS) is not None and row(LOSS) <= 1 and row.step % 2 == 0
    ),
    "kl < 1 OR pinned = 1": lambda row: below(row("kl"), 1) or row.pinned,
    "notes LIKE '%it''s :x; %'": lambda row: row.notes is not None,
    "finalized_at >= '2026-01-01T00:00:04'": lambda row: row.finalized_at >= moment(4),
    "coalesce(kl, 3) > 1 AND nobody IS NULL": lambda row: (
        row("kl") is None or row("kl") > 1
    ),
    "status IN ('deleted', '\"') OR size_bytes = 20": lambda row: (
        row.status == "deleted" or row.step == 2
    ),
}  # fmt: skip


def expected(history, asked, run=None):
    found = []
    for place, cp in enumerate(history):
        if run is not None and cp.run_uuid != run.uuid:
            continue
        if not counts(cp, asked):
            continue
        value, tie = (by and value_of(cp, by[0], asked.at) for by in (asked.by, asked.tie))
        if asked.by is not None and value is None:
            continue
        if asked.where and not CONDITIONS[asked.where.text](Row(cp, asked.at)):
            continue
        mode, tie_mode = (by[1] if by else "min" for by in (asked.by, asked.tie))
        key = rank_key(value, cp.step, mode, tie=asked.by and tie, tie_mode=tie_mode)
        found.append(((*key, -place), cp.uuid, value, tie))
    return [(uuid, value, tie) for _, uuid, value, tie in sorted(found)]


# --- histories ----------------------------------------------------------------------------------

seconds = st.integers(0, 8)
numbers = st.sampled_from([0.0, 1.0, 1.0, 1.0, 2.5, -0.0, 1e308, math.nan])
others = st.sampled_from([7, 10**400, True, "2.5", None])
infos = st.one_of(
    st.fixed_dictionaries({LOSS: numbers, "kl": numbers}),
    st.fixed_dictionaries({}, optional={LOSS: numbers | others, "kl": numbers | others}),
)
late = st.dictionaries(
    st.sampled_from([LOSS, "kl"]), st.tuples(st.sampled_from([0.5, 1.0, None]), seconds), max_size=1
)
births = st.fixed_dictionaries(
    {
        "run": st.sampled_from(RUNS),
        "step": st.integers(0, 12),
        "info": infos,
        "late": late,
        "published": seconds,
        "lasted": st.none() | st.integers(0, 5),
        "problem": st.sampled_from([None, None, None, "damaged: w"]),
        "pinned": st.booleans(),
        "notes": st.sampled_from([None, "so it's :x; noted"]),
        "tmp": st.sampled_from([False, False, False, True]),
    }
)
selections = st.fixed_dictionaries(
    {
        "by": st.sampled_from([(LOSS, "min"), (LOSS, "max"), (LOSS, "max"), ("kl", "max"), None]),
        "tie": st.sampled_from([None, ("kl", "min"), ("kl", "max"), ("no", "min")]),
        "where": st.none() | st.sampled_from(sorted(CONDITIONS)).map(parse),
        "ever": st.booleans(),
        "at": st.none() | seconds.map(moment),
    }
).map(lambda asked: Selection(**asked))


def as_stored(info):
    """What the index keeps of a training_info: numbers that are not finite are texts."""
    return {
        name: str(value) if isinstance(value, float) and math.isnan(value) else value
        for name, value in info.items()
    }


def born(number, birth):
    run, published = birth["run"], birth["published"]
    found = make(
        run, birth["step"], uuid=f"{number}", info=as_stored(birth["info"]),
        finalized_at=moment(published), problem=birth["problem"], pinned=birth["pinned"],
        notes=birth["notes"],
        late={name: Metric(name, value, "eval", moment(second))
              for name, (value, second) in birth["late"].items()},
        metrics=metrics_of(birth["info"])
        | {name: value for name, (value, _) in birth["late"].items()},
    )  # fmt: skip
    if birth["tmp"]:
        return replace(found, status="tmp", finalized_at=None, problem=None)
    if birth["lasted"] is None:
        return found
    return replace(gone(found), deleted_at=moment(published + birth["lasted"]))


def store(catalog, births):
    """Make this history the catalog's only one; return it in the order of its rows."""
    for seen in catalog.runs.list_all():
        catalog.runs.delete(seen.id)
    history, ids = [], {}
    for run in RUNS:
        mine, live = [], set()
        for number, birth in enumerate(births):
            if birth["run"] is run:
                found = born(number, birth)
                if found.status != "final" or found.step not in live:
                    mine.append(found)
                live |= {found.step} if found.status == "final" else set()
        # What is gone is stored first.
        mine.sort(key=lambda checkpoint: checkpoint.status != "deleted")
        said = {cp.uuid: Annotations(cp.pinned, cp.notes, (), tuple(cp.late.values()))
                for cp in mine}  # fmt: skip
        ids[run.uuid] = catalog.apply(Changes(run=run, checkpoints=mine))
        catalog.apply(Changes(run=run, annotations=said))
        history += mine
    return history, ids


def answer(catalog, asked, count=None):
    found = ranked(catalog.database, asked, count)
    records = catalog.checkpoints.by_id([one.id for one in found])
    assert list(records) == [one.id for one in found]
    return [(records[one.id].uuid, one.value, one.tie) for one in found]


slowly = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.slow
@given(st.lists(births, max_size=25), st.lists(selections, min_size=15, max_size=15))
@slowly
def test_sql_ranks_as_the_oracle_does_whatever_is_demanded(catalog, births, selections):
    history, ids = store(catalog, births)
    for demanded, run in zip(selections, cycle([None, *RUNS]), strict=False):
        asked = replace(demanded, run_id=None if run is None else ids[run.uuid])
        found = expected(history, asked, run)
        assert answer(catalog, asked) == found, asked
        assert answer(catalog, asked, 2) == found[:2], asked


@pytest.mark.slow
@given(st.lists(births, max_size=20), st.sampled_from(sorted(CONDITIONS)))
@slowly
def test_what_matches_is_what_the_oracle_says(catalog, births, text):
    history, ids = store(catalog, births)
    asked = Selection(by=None, where=parse(text))
    for run in RUNS:
        found = matching(catalog.database, ids[run.uuid], parse(text))
        assert found == {uuid for uuid, _, _ in expected(history, asked, run)}


@pytest.mark.slow
@given(st.lists(births, max_size=20), st.sampled_from([(LOSS, "min"), ("kl", "max")]))
@slowly
def test_a_record_as_of_a_moment_has_the_values_that_sql_ranks_by(catalog, births, by):
    store(catalog, births)
    for second in range(9):
        for one in ranked(catalog.database, Selection(by=by, at=moment(second))):
            (record,) = catalog.checkpoints.by_id([one.id]).values()
            assert record.as_of(moment(second)).metrics[by[0]] == one.value


# --- Pareto -------------------------------------------------------------------------------------


grades = st.integers(0, 4).map(float)
points = st.tuples(grades, st.none() | grades)


@pytest.mark.slow
@given(st.lists(points, max_size=12), st.sampled_from(["min", "max"]),
       st.sampled_from(["min", "max"]))  # fmt: skip
def test_the_front_is_what_nothing_beats_in_both(values, mode, tie_mode):
    def worth(value, tie):
        return (value if mode == "min" else -value, tie if tie_mode == "min" else -tie)

    pairs = [(value, tie) for value, tie in values if tie is not None]
    beaten = {
        pair for pair in pairs for other in pairs
        if worth(*other) != worth(*pair)
        and all(a <= b for a, b in zip(worth(*other), worth(*pair), strict=True))
    }  # fmt: skip
    in_order = [Ranked(number, *pair) for number, pair in enumerate(values)]
    in_order.sort(key=lambda p: rank_key(p.value, p.id, mode, tie=p.tie, tie_mode=tie_mode))
    front = pareto_front(in_order, tie_mode)

    assert sorted((p.value, p.tie) for p in front) == sorted(p for p in pairs if p not in beaten)
    assert list(front) == [point for point in in_order if point in front]


# --- what is no condition for a database --------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kl <", "it is not one whole expression"),
        ("kl step", "it is not one whole expression"),
        ("()", "it is not one whole expression"),
        ("abs(kl, kl, kl) < 1", "abs"),
        ("max(kl) < 1", "."),
        ("kl IN (1, 2", "bracket is not closed"),
        ("1" + " + 1" * 20_000 + " = 1", "."),
        ("(" * 5_000 + "1 = 1" + ")" * 5_000, "."),
    ],
    ids=lambda given: given[:20],
)
def test_what_makes_no_sense_is_one_sentence_of_ours(catalog, text, why):
    run_id = catalog.apply(Changes(run=RUNS[0], checkpoints=[make(RUNS[0], 1, 0.5)]))
    try:
        found = matching(catalog.database, run_id, parse(text))
    except InvalidCondition as error:
        told = str(error).partition(" cannot be used: ")[2]
        assert why in told
        assert "known" not in told
        assert told.count("\n") == 0
    else:
        # PostgreSQL takes more; it is then an expression after all.
        assert text[0] in "(1"
        assert found == {"run-a-1"}


@pytest.mark.slow
def test_a_condition_that_takes_too_long_is_stopped(catalog, monkeypatch):
    monkeypatch.setattr(selecting, "TIMEOUT_SECONDS", 0.02)
    live = [make(RUNS[0], step, 0.5, notes="x") for step in range(300)]
    run_id = catalog.apply(Changes(run=RUNS[0], checkpoints=live))
    said = {cp.uuid: Annotations(notes="a" * 20_000) for cp in live}
    catalog.apply(Changes(run=RUNS[0], annotations=said))
    slow = " OR ".join(["upper(lower(" * 5 + "notes" + "))" * 5 + " = 'x'"] * 60)
    with pytest.raises(InvalidCondition, match=r"it was stopped after 0\.02 s"):
        matching(catalog.database, run_id, parse(slow))


def test_a_condition_changes_nothing(catalog):
    run_id = catalog.apply(Changes(run=RUNS[0], checkpoints=[make(RUNS[0], 1, 0.5)]))
    before = catalog.checkpoints.list_all()
    for text, found in (("loss < 1", {"run-a-1"}), ("notes IS NOT NULL", set())):
        assert matching(catalog.database, run_id, parse(text)) == found
    assert catalog.checkpoints.list_all() == before
    # And it leaves the connection as it was: writing goes on.
    catalog.apply(Changes(run=RUNS[0], checkpoints=[make(RUNS[0], 2, 0.4)]))


# --- names --------------------------------------------------------------------------------------


def test_a_metric_that_nobody_ever_had_is_found_and_history_counts(catalog):
    stored = [
        make(RUNS[0], 1, metrics={"old": 1.0, "never finite": None}), make(RUNS[0], 2, 0.5)
    ]  # fmt: skip
    of_a = catalog.apply(Changes(run=RUNS[0], checkpoints=stored))
    of_b = catalog.apply(Changes(run=RUNS[1], checkpoints=[make(RUNS[1], 1, 0.5)]))
    catalog.apply(Changes(run=RUNS[0], checkpoints=[gone(stored[0])]))
    for run_id in (None, of_a):
        assert catalog.metrics.find_unknown(["loss", "old", "never finite"], run_id) is None
        assert catalog.metrics.find_unknown(["loss", "los", "x"], run_id) == "los"
        assert catalog.metrics.find_unknown(["\ud800"], run_id) == "\ud800"
    assert catalog.metrics.find_unknown(["loss", "old"], of_b) == "old"
    assert catalog.metrics.find_unknown([]) is None


def test_a_value_that_came_later_counts_from_then_on_and_the_first_one_before(catalog):
    odd = "kl\"'$.[é\N{SNOWMAN}"
    info = {odd: -(2**63), "big": 10**400, "flag": True, "text": "1.0"}
    names = (odd, "big", "flag", "text", "new")
    report = {name: Metric(name, 5.0, "eval", moment(5)) for name in names}
    checkpoint = make(
        RUNS[0], 1, info=info, finalized_at=moment(1), late=report,
        metrics=dict.fromkeys(names, 5.0),
    )  # fmt: skip
    catalog.apply(Changes(run=RUNS[0], checkpoints=[checkpoint]))
    said = Annotations(late=tuple(report.values()))
    catalog.apply(Changes(run=RUNS[0], annotations={checkpoint.uuid: said}))

    def known(second):
        return {
            name: one.value
            for name in names
            for one in ranked(catalog.database, Selection(by=(name, "min"), at=moment(second)))
        }

    assert json.loads(json.dumps(info)) == info
    assert known(0) == {}
    assert known(4) == {odd: -(2.0**63)}
    assert known(5) == dict.fromkeys(names, 5.0)

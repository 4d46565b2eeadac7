from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from tests.support.rows import AT, gone, make

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.candidates import Candidate, Wanted
from ckptdb.core.changes import Changes
from ckptdb.core.metrics import Metric
from ckptdb.core.ranking import rank_key
from ckptdb.core.recorded import Unranked
from ckptdb.core.records import Annotations, Resumption, Run
from ckptdb.errors import IndexStale


@pytest.fixture
def run(tmp_path):
    return Run(uuid="run-a", name="a", directory=tmp_path / "a", created_at=AT, metric_name="loss")


def test_what_is_stored_comes_back_as_it_was(catalog, run):
    stored = make(run, 7, 0.5, info={"loss": 0.5, "x": ["NaN", None]}, problem=None)
    catalog.apply(Changes(run=run, checkpoints=[stored], config={"lr": 0.1}))
    assert catalog.checkpoints.list_all() == (stored,)
    assert catalog.runs.find("run-a").run == replace(run, config={"lr": 0.1})
    assert [seen.run.name for seen in catalog.runs.list_all()] == ["a"]


def test_storing_it_again_changes_its_row_and_adds_none(catalog, run):
    first = make(run, 1, 0.5, status="tmp", finalized_at=None, size_bytes=None, file_count=None)
    catalog.apply(Changes(run=run, checkpoints=[first]))
    final = make(run, 1, 0.5, metrics={"loss": 0.5, "acc": None})
    catalog.apply(Changes(run=run, checkpoints=[final]))
    assert catalog.checkpoints.list_all() == (final,)


def test_the_largest_step_and_a_name_that_is_no_utf8_are_stored(catalog, tmp_path):
    odd = Run(uuid="odd", name="bad\udcff", directory=tmp_path / "bad\udcff")
    checkpoint = make(odd, 2**63 - 1, 0.1, size_bytes=2**62)
    catalog.apply(Changes(run=odd, checkpoints=[checkpoint]))
    (found,) = catalog.checkpoints.list_all()
    assert found.step == 2**63 - 1
    assert found.path == checkpoint.path
    assert (found.run, catalog.runs.list_all()[0].run) == ("bad\udcff", odd)
    assert catalog.runs.find_at(odd.directory) is not None


def test_best_latest_and_top_see_only_what_is_live_and_trusted(catalog, run):
    found = [
        make(run, 1, 0.3),
        make(run, 2, 0.1, problem="damaged: w"),
        make(run, 3, 0.2),
        make(run, 4, None, metrics={"loss": None}),
        make(run, 5, 0.05, status="tmp"),
        gone(make(run, 6, 0.01)),
        make(run, 7, 0.2),
    ]
    run_id = catalog.apply(Changes(run=run, checkpoints=found))
    # A tie goes to the higher step.
    assert catalog.ranking.find_best_step(run_id, "loss", "min") == 7
    assert catalog.ranking.find_best_step(run_id, "loss", "max") == 1
    assert catalog.ranking.find_best_step(run_id, "acc", "max") is None
    assert catalog.ranking.find_latest_step(run_id) == 7
    assert catalog.checkpoints.newest(1, run_id=run_id)[0].step == 7
    assert catalog.checkpoints.newest(1)[0].step == 7
    assert [c.step for c in catalog.ranking.top(9, "loss", "min", run_id=run_id)] == [7, 3, 1]
    assert [c.step for c in catalog.ranking.top(2, "loss", "max")] == [1, 7]
    assert catalog.ranking.unranked(run_id, "loss") == Unranked(not_finite=(4,))
    assert [c.step for c in catalog.candidates.of_run(run_id, Wanted(metrics=("loss",)))] == [
        1,
        3,
        4,
        7,
    ]
    assert catalog.candidates.of_run(run_id, Wanted())[0] == Candidate(
        1, "run-a-1", {}, size_bytes=10, finalized_at="2026-01-01T00:00:01.000Z"
    )


def test_what_has_a_problem_ranks_again_once_it_is_mended(catalog, run):
    run_id = catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.1, problem="damaged: x")]))
    assert catalog.ranking.find_best_step(run_id, "loss", "min") is None
    catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.1)]))
    assert catalog.ranking.find_best_step(run_id, "loss", "min") == 1


values = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, 1e308, -1e308, 5e-324]),
    st.floats(allow_nan=False, allow_infinity=False),
)


@pytest.mark.slow
@given(st.dictionaries(st.integers(0, 50), values, max_size=15), st.sampled_from(["min", "max"]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sql_ranks_as_the_key_does(catalog, losses, mode):
    run = Run(uuid="ranked", name="ranked", directory=Path("/ranked"))
    for seen in catalog.runs.list_all():
        catalog.runs.delete(seen.id)
    checkpoints = [make(run, s, None, metrics={"loss": v}) for s, v in losses.items()]
    run_id = catalog.apply(Changes(run=run, checkpoints=checkpoints))
    finite = {step: value for step, value in losses.items() if value is not None}
    expected = sorted(finite, key=lambda step: rank_key(finite[step], step, mode))
    assert [c.step for c in catalog.ranking.top(50, "loss", mode, run_id=run_id)] == expected
    assert [c.step for c in catalog.ranking.top(50, "loss", mode)] == expected
    best = catalog.ranking.find_best_step(run_id, "loss", mode)
    assert best == (expected[0] if expected else None)
    assert [c.step for c in catalog.ranking.best_of_runs("loss", mode)] == expected[:1]


def test_a_step_has_one_live_checkpoint_and_the_replaced_one_is_history(catalog, run):
    old = make(run, 1, 0.5)
    run_id = catalog.apply(Changes(run=run, checkpoints=[old]))
    new = make(run, 1, 0.4, uuid="new", parent=old.uuid)
    with pytest.raises(IndexStale):
        catalog.apply(Changes(run=run, checkpoints=[new]))
    catalog.apply(Changes(run=run, checkpoints=[gone(old, "replaced"), new]))
    assert [(c.uuid, c.status) for c in catalog.checkpoints.list_all(run_id=run_id)] == [
        ("run-a-1", "deleted"),
        ("new", "final"),
    ]
    assert catalog.checkpoints.list_all(status="final")[0].parent == old.uuid


def test_checkpoints_are_filtered_by_run_status_step_and_number(catalog, run, tmp_path):
    other = Run(uuid="run-b", name="b", directory=tmp_path / "b")
    run_id = catalog.apply(
        Changes(run=run, checkpoints=[make(run, 1), make(run, 2), gone(make(run, 3))])
    )
    catalog.apply(Changes(run=other, checkpoints=[make(other, 9)]))
    assert [c.step for c in catalog.checkpoints.list_all()] == [1, 2, 3, 9]
    assert [c.step for c in catalog.checkpoints.list_all(run_id=run_id)] == [1, 2, 3]
    assert [c.step for c in catalog.checkpoints.list_all(status="deleted")] == [3]
    assert [c.step for c in catalog.checkpoints.list_all(steps=[2, 9])] == [2, 9]
    assert [c.step for c in catalog.checkpoints.list_all(run_id=run_id, limit=2)] == [2, 3]


def test_annotations_outlive_another_look_at_the_files(catalog, run):
    checkpoint = make(run, 1, 0.5)
    said = Annotations(
        pinned=True,
        notes="keep",
        tags=(("rc", AT),),
        late=(Metric("loss", 0.1, "eval", AT), Metric("mmlu", None, "eval", AT)),
    )
    run_id = catalog.apply(
        Changes(run=run, checkpoints=[checkpoint], annotations={checkpoint.uuid: said})
    )
    catalog.apply(Changes(run=run, checkpoints=[checkpoint]))
    (found,) = catalog.checkpoints.list_all()
    assert (found.pinned, found.notes, found.tags) == (True, "keep", ("rc",))
    assert found.metrics == {"loss": 0.1, "mmlu": None}
    assert catalog.ranking.top(1, "loss", "min")[0].uuid == checkpoint.uuid
    recorded = catalog.recorded.run(catalog.runs.find("run-a"), history=True)
    assert recorded.annotations == {checkpoint.uuid: said}
    catalog.apply(Changes(run=run, checkpoints=[gone(checkpoint)]))
    assert catalog.checkpoints.pinned_gone(run_id) == (checkpoint.uuid,)
    assert catalog.ranking.top(1, "loss", "min") == ()
    catalog.apply(Changes(run=run, annotations={checkpoint.uuid: Annotations()}))
    assert catalog.checkpoints.list_all()[0].tags == ()
    assert catalog.checkpoints.pinned_gone(run_id) == ()


def test_what_is_rejected_counts_as_one_with_a_problem(catalog, run):
    found = [make(run, step, 1 / step) for step in (1, 2, 3)]
    said = {"run-a-3": Annotations(rejected="loss is fake")}
    run_id = catalog.apply(Changes(run=run, checkpoints=found, annotations=said))

    assert catalog.ranking.find_best_step(run_id, "loss", "min") == 2
    assert catalog.ranking.find_latest_step(run_id) == 2
    assert [c.step for c in catalog.checkpoints.newest(9)] == [2, 1]
    assert [c.step for c in catalog.ranking.best_of_runs()] == [2]
    assert catalog.ranking.newest_steps(run_id, 9) == (2, 1)
    assert [c.step for c in catalog.candidates.of_run(run_id, Wanted())] == [1, 2]
    assert [c.step for c in catalog.ranking.top(9, "loss", "min")] == [2, 1]
    with catalog.database.read() as connection:
        asked = "SELECT problems, best_step, latest_step FROM run_summary"
        assert connection.exec_driver_sql(asked).one() == (1, 2, 2)
        ranked = connection.exec_driver_sql("SELECT step FROM leaderboard").scalars().all()
    assert sorted(ranked) == [1, 2]
    rejected = catalog.checkpoints.list_all(run_id=run_id, steps=[3])[0]
    assert (rejected.rejected, rejected.as_dict()["rejected"]) == ("loss is fake",) * 2

    again = make(run, 3, 0.1, uuid="another save")
    catalog.apply(Changes(run=run, checkpoints=[gone(found[2]), again]))
    assert catalog.ranking.find_best_step(run_id, "loss", "min") == 3
    assert catalog.checkpoints.list_all(run_id=run_id, steps=[3])[-1].rejected is None


late = (Metric("mmlu", 0.5, "eval", AT),)
moves = st.one_of(
    st.builds(
        lambda status, problem, values: ("put", status, problem, values),
        st.sampled_from(["tmp", "final", "deleted"]),
        st.sampled_from([None, "damaged: x"]),
        st.sampled_from([{}, {"loss": 0.1}, {"loss": 0.2, "mmlu": 0.1}]),
    ),
    st.builds(
        lambda why, found: ("say", Annotations(rejected=why, late=found)),
        st.sampled_from([None, "", "it is bad"]),
        st.sampled_from([(), late]),
    ),
)


@pytest.mark.slow
@given(st.lists(st.lists(moves, min_size=1, max_size=3), max_size=5))
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_in_whatever_order_it_is_told_only_what_can_be_trusted_is_ranked(catalog, transactions):
    run = Run(uuid="told", name="told", directory=Path("/told"))
    for seen in catalog.runs.list_all():
        catalog.runs.delete(seen.id)
    for transaction in transactions:
        puts, said = [], {}
        for move in transaction:
            if move[0] == "put":
                _, status, problem, values = move
                puts = [make(run, 1, status=status, problem=problem, metrics=values)]
            else:
                said = {"told-1": move[1]}
        catalog.apply(Changes(run=run, checkpoints=puts, annotations=said))
        for row in catalog.checkpoints.list_all():
            trusted = row.status == "final" and row.problem is None and row.rejected is None
            with catalog.database.read() as connection:
                marks = connection.exec_driver_sql("SELECT live FROM metrics").scalars().all()
            assert set(marks) <= {int(trusted)}
            assert len(marks) == len(row.metrics)
            steps = catalog.ranking.newest_steps(catalog.runs.find("told").id, 1)
            assert steps == ((1,) if trusted else ())


TOLD = st.dictionaries(st.sampled_from("abc"), st.sampled_from([None, 0.5, 1.0]))


@pytest.mark.slow
@given(TOLD, TOLD, st.sampled_from(["tmp", "final", "deleted"]), st.booleans(), st.booleans())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_its_metrics_become_what_was_told_last(catalog, first, then, status, later, late):
    """By every column: as if what was told before had never been."""
    run = Run(uuid="told", name="told", directory=Path("/told"))
    said = Annotations(late=(Metric("c", 7.0, "mmlu", AT),)) if late else Annotations()
    tmp = make(run, 1, status="tmp", finalized_at=None, metrics=first)
    moment = {"finalized_at": second(30)} if later else {}
    last = make(run, 1, status=status, metrics=then, **moment)
    found = []
    for told in ([last], [tmp, last]):
        for seen in catalog.runs.list_all():
            catalog.runs.delete(seen.id)
        for checkpoint in told:
            annotations = {"told-1": said} if checkpoint is told[0] else {}
            catalog.apply(Changes(run=run, checkpoints=[checkpoint], annotations=annotations))
        sql = "SELECT name, step, value, source, reported_at, live FROM metrics ORDER BY name"
        with catalog.database.read() as connection:
            found.append(connection.exec_driver_sql(sql).all())
    assert found[0] == found[1]


# --- lineage ------------------------------------------------------------------------------------


def second(number):
    return f"2026-01-01T00:00:{number:02}.000Z"


def resumed(number):
    return Resumption(second(number), "host", 7)


def test_training_is_followed_back_to_where_it_began(catalog, run):
    line = [
        make(run, 1),
        make(run, 2, parent="run-a-1"),
        make(run, 5, parent="run-a-2", created_at=second(20)),
    ]
    other = [
        make(run, 3, parent="run-a-2", created_at=second(5)),
        make(run, 4, parent="run-a-3", created_at=second(6)),
    ]
    # Before 3 was saved nobody had resumed; what was resumed last came to nothing.
    said = {"run-a-2": Annotations(resumptions=(resumed(10), resumed(15), resumed(30)))}
    run_id = catalog.apply(
        Changes(run=run, checkpoints=[gone(line[0]), *line[1:], *other], annotations=said)
    )

    found = catalog.lineage.ancestors(run_id, "run-a-5")
    assert [(one.step, one.status) for one in found] == [(5, "final"), (2, "final"), (1, "deleted")]
    assert [one.resumed_at for one in found] == [None, second(15), None]
    assert [one.resumed_at for one in catalog.lineage.ancestors(run_id, "run-a-4")] == [None] * 4
    assert catalog.lineage.ancestors(run_id, "run-a-2")[0].resumed_at == second(30)
    assert found[2].deleted_reason == "retention: test"
    assert catalog.lineage.ancestors(run_id, "nobody") == ()
    assert catalog.lineage.resumptions(run_id) == tuple(
        ("run-a-2", second(number)) for number in (10, 15, 30)
    )
    assert catalog.lineage.ancestors_of_live(run_id) == {"run-a-1", "run-a-2", "run-a-3"}
    assert catalog.database.integrity() == "ok"
    catalog.apply(Changes(run=run, checkpoints=[gone(other[1]), gone(line[2])]))
    assert catalog.lineage.ancestors_of_live(run_id) == {"run-a-1", "run-a-2"}
    with catalog.database.read() as connection:
        asked = "SELECT step, parent_step, parent_status, parent_resumed_at FROM lineage"
        rows = connection.exec_driver_sql(f"{asked} ORDER BY step").all()
    assert rows == [
        (1, None, None, None),
        (2, 1, "deleted", None),
        (3, 2, "final", None),
        (4, 3, "final", None),
        (5, 2, "final", second(15)),
    ]


def test_when_it_was_resumed_is_what_the_last_look_says(catalog, run):
    catalog.apply(Changes(run=run, checkpoints=[make(run, 1)]))
    for found in ((resumed(1),), (resumed(1), resumed(2)), (), (resumed(2),)):
        said = {"run-a-1": Annotations(resumptions=found)}
        run_id = catalog.apply(Changes(run=run, annotations=said))
        assert catalog.lineage.resumptions(run_id) == tuple(
            ("run-a-1", one.resumed_at) for one in found
        )
        recorded = catalog.recorded.run(catalog.runs.find("run-a"), history=True)
        assert recorded.annotations == ({} if not found else said)


def test_a_line_that_leads_into_itself_ends(catalog, run):
    ring = [make(run, 1, parent="run-a-3"), make(run, 2, parent="run-a-1"),
            make(run, 3, parent="run-a-2")]  # fmt: skip
    run_id = catalog.apply(Changes(run=run, checkpoints=ring))
    assert [one.step for one in catalog.lineage.ancestors(run_id, "run-a-2")] == [2, 1, 3]
    assert catalog.lineage.ancestors_of_live(run_id) == {"run-a-1", "run-a-2", "run-a-3"}


def test_annotations_of_an_unknown_checkpoint_wait_for_it(catalog, run):
    catalog.apply(Changes(run=run, annotations={"nobody": Annotations(pinned=True)}))
    assert catalog.checkpoints.list_all() == ()


def test_the_stamp_moves_only_from_the_one_that_was_known(catalog, run):
    catalog.apply(Changes(run=run, stamp_moved=("1:1:1", "2:2:2")))
    assert catalog.runs.find("run-a").stamp is None
    catalog.apply(Changes(run=run, stamp="1:1:1"))
    assert (catalog.runs.find("run-a").stamp, catalog.runs.find("run-a").verified) == (
        "1:1:1",
        True,
    )
    catalog.apply(Changes(run=run, stamp_moved=("0:0:0", "2:2:2")))
    assert catalog.runs.find("run-a").stamp == "1:1:1"
    catalog.apply(Changes(run=run, stamp_moved=("1:1:1", "2:2:2")))
    assert (catalog.runs.find("run-a").stamp, catalog.runs.find("run-a").verified) == (
        "2:2:2",
        False,
    )


def test_the_configuration_is_that_of_the_newest_live_step(catalog, run):
    catalog.apply(Changes(run=run, checkpoints=[make(run, 5)], config={"step": 5}, config_step=5))
    catalog.apply(Changes(run=run, checkpoints=[make(run, 3)], config={"step": 3}, config_step=3))
    assert catalog.runs.find("run-a").run.config == {"step": 5}
    catalog.apply(Changes(run=run, checkpoints=[gone(make(run, 5))]))
    assert catalog.runs.find("run-a").run.config is None  # to be read again


def test_a_moved_run_takes_its_paths_along(catalog, run, tmp_path):
    catalog.apply(Changes(run=run, checkpoints=[make(run, 1), gone(make(run, 2))]))
    catalog.apply(Changes(run=replace(run, directory=tmp_path / "far" / "b", name="b")))
    assert [c.path for c in catalog.checkpoints.list_all()] == [
        tmp_path / "far" / "b" / "step_1",
        tmp_path / "far" / "b" / "step_2",
    ]
    assert [c.run for c in catalog.checkpoints.list_all()] == ["b", "b"]


def test_a_run_can_be_its_own_root_and_become_one_below(tmp_path):
    catalog = Catalog(Database.in_memory(tmp_path))
    own = Run(uuid="own", name="own", directory=tmp_path)
    catalog.apply(Changes(run=own, checkpoints=[make(own, 1)]))
    assert catalog.checkpoints.list_all()[0].path == tmp_path / "step_1"
    catalog.apply(Changes(run=replace(own, directory=tmp_path / "sub")))
    assert catalog.checkpoints.list_all()[0].path == tmp_path / "sub" / "step_1"
    catalog.apply(Changes(run=own))
    assert catalog.checkpoints.list_all()[0].path == tmp_path / "step_1"


def test_a_copied_tree_keeps_its_rows_and_another_run_does_not_get_them(catalog, run):
    catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.1)]))
    copy = replace(run, uuid="copy", forked_from="run-a")
    catalog.apply(Changes(run=copy))
    assert [seen.run.uuid for seen in catalog.runs.list_all()] == ["copy"]
    assert catalog.checkpoints.list_all()[0].run_uuid == "copy"
    stranger = replace(run, uuid="stranger")
    catalog.apply(Changes(run=stranger, checkpoints=[make(stranger, 1, 0.2)]))
    assert [(c.run_uuid, c.status) for c in catalog.checkpoints.list_all()] == [
        ("copy", "deleted"),
        ("stranger", "final"),
    ]
    assert [c.run_uuid for c in catalog.ranking.top(5, "loss", "min")] == ["stranger"]


def test_forgetting_a_run_leaves_nothing_of_it(catalog, run):
    said = {"run-a-1": Annotations(tags=(("x", AT),))}
    run_id = catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.1)], annotations=said))
    catalog.runs.delete(run_id)
    assert catalog.runs.list_all() == ()
    assert catalog.metrics.names() == ()
    with catalog.database.read() as connection:
        for table in ("runs", "checkpoints", "metrics", "tags"):
            count = connection.exec_driver_sql(f"SELECT COUNT(*) FROM {table}").scalar_one()
            assert count == 0, table


@pytest.mark.slow
def test_more_rows_than_a_statement_takes_parameters_are_stored(catalog, run):
    many = [make(run, step, step / 7) for step in range(1203)]
    run_id = catalog.apply(Changes(run=run, checkpoints=many))
    catalog.apply(Changes(run=run, checkpoints=[gone(c) for c in many[:601]]))
    assert len(catalog.checkpoints.list_all(run_id=run_id, status="final")) == 602
    assert catalog.ranking.find_best_step(run_id, "loss", "min") == 601
    assert len(catalog.ranking.top(2000, "loss", "min")) == 602
    assert catalog.metrics.names(run_id) == ("loss",)


def test_a_ranking_names_nothing_that_goes_meanwhile_for_it_is_one_statement(catalog, run):
    catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.5), make(run, 2, 0.1)]))
    sent = []
    with catalog.database.read() as connection:
        engine = connection.engine

    def note(connection, cursor, statement, *more):
        sent.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    assert [c.step for c in catalog.ranking.top(2, "loss", "min")] == [2, 1]
    assert [c.step for c in catalog.ranking.best_of_runs("loss", "min")] == [2]
    event.remove(engine, "before_cursor_execute", note)
    assert len([sql for sql in sent if "FROM checkpoints" in sql]) == 2
    assert len([sql for sql in sent if "FROM metrics" in sql]) == 4  # ranked by, and shown

"""What the catalog asks is answered through an index, however much there is."""

from dataclasses import replace

import pytest
from tests.support.plans import plans
from tests.support.rows import AT, gone, make

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.candidates import Wanted
from ckptdb.core.changes import Changes
from ckptdb.core.metrics import Metric
from ckptdb.core.records import Annotations, Resumption, Run


@pytest.fixture
def catalog(tmp_path):
    return Catalog(Database.in_memory(tmp_path))


@pytest.fixture
def run(tmp_path):
    return Run(uuid="run-a", name="a", directory=tmp_path / "a", created_at=AT)


def scans(found):
    tables = ("checkpoints", "metrics", "tags", "resumes", "runs", "parents")
    return [line for plan in found.values() for line in plan.splitlines()
            if line.startswith(tuple(f"SCAN {table}" for table in tables))]  # fmt: skip


SAID = Annotations(
    pinned=True,
    tags=(("rc", AT),),
    late=(Metric("mmlu", 0.5, "eval", AT),),
    rejected="bad",
    resumptions=(Resumption(AT, "host", 1),),
)


def test_no_change_scans_a_table(catalog, run):
    live = [make(run, 1, 0.5), make(run, 2, 0.4, parent="run-a-1")]
    with plans(catalog) as found:
        catalog.apply(Changes(run=run, checkpoints=live, config={"lr": 1}, config_step=2))
        catalog.apply(Changes(run=run, annotations={"run-a-1": SAID}))
        catalog.apply(Changes(run=run, checkpoints=live, stamp="1:1:1"))
        catalog.apply(Changes(run=run, checkpoints=[gone(live[0])], stamp_moved=("1:1:1", "2:2:2")))
        catalog.apply(Changes(run=replace(run, directory=run.directory / "moved")))
    assert len(found) > 15
    assert scans(found) == []


def test_no_look_at_a_run_scans_a_table(catalog, run):
    live = [make(run, 1, 0.5), make(run, 2, 0.4), make(run, 3, status="tmp")]
    run_id = catalog.apply(Changes(run=run, checkpoints=live, annotations={"run-a-1": SAID}))
    with plans(catalog) as found:
        seen = catalog.runs.find("run-a")
        catalog.runs.find_at(run.directory)
        catalog.recorded.run(seen, history=False)
        catalog.recorded.run(seen, history=True)
        catalog.recorded.records(run_id, steps=[1, 2], gone=["run-a-1"])
        catalog.ranking.find_best_step(run_id, "loss", "min")
        catalog.ranking.find_latest_step(run_id)
        catalog.ranking.unranked(run_id, "loss")
        catalog.candidates.of_run(run_id, Wanted(metrics=("loss",), tags=True))
        catalog.checkpoints.count_live(run_id)
        catalog.ranking.top(5, "loss", "max")
        catalog.ranking.top(5, "loss", "max", run_id=run_id)
        catalog.checkpoints.list_all(run_id=run_id)
        catalog.checkpoints.list_all(run_id=run_id, status="final", steps=[1], limit=1)
        catalog.checkpoints.newest(1, run_id=run_id)
        catalog.metrics.names(run_id)
        catalog.checkpoints.pinned_gone(run_id)
        catalog.lineage.resumptions(run_id)
        catalog.lineage.ancestors(run_id, "run-a-2")
        catalog.lineage.ancestors_of_live(run_id)
        catalog.lineage.members(run_id)
    assert len(found) > 15
    assert scans(found) == []


def test_what_is_live_is_found_without_looking_at_history(catalog, run):
    run_id = catalog.apply(Changes(run=run, checkpoints=[make(run, 1, 0.5)]))
    with plans(catalog) as found:
        catalog.recorded.run(catalog.runs.find("run-a"), history=False)
    (plan,) = (plan for sql, plan in found.items() if "FROM checkpoints" in sql)
    assert "uq_checkpoints_final (run_id=?)" in plan
    assert "ix_checkpoints_tmp (run_id=?)" in plan
    with plans(catalog) as found:
        catalog.apply(Changes(run=run, checkpoints=[make(run, 2, 0.5)]))
    (plan,) = (plan for sql, plan in found.items() if "uuid IN" in sql)
    assert "(run_id=? AND uuid=?)" in plan
    with plans(catalog) as found:
        catalog.recorded.records(run_id, steps=[1], gone=["x"])
    (plan,) = (plan for sql, plan in found.items() if "step IN" in sql)
    assert "ix_checkpoints_run_id_step (run_id=? AND step=?)" in plan

"""Judging only what ranks below the best comes to the same as judging a whole run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.candidates import Wanted
from ckptdb.core.changes import Changes
from ckptdb.core.records import Annotations, Checkpoint, Run
from ckptdb.retention import Policy, decide, decide_below

AT = "2026-01-01T00:00:00.000Z"
NUMBERS = itertools.count()
# Few values, so that many are equal; 2**53 and what it cannot be told from as a float.
VALUES = st.sampled_from([0.1, 0.2, 0.3, -0.0, 0.0, 1e308, -1e308, 2.0**53])


@pytest.fixture(scope="module")
def catalog():
    database = Database.in_memory()
    yield Catalog(database)
    database.close()


def add_run(catalog, values, pinned):
    name = f"run-{next(NUMBERS)}"
    run = Run(uuid=name, name=name, directory=Path("/") / name, created_at=AT)
    found = [
        Checkpoint(
            run_uuid=name,
            run=name,
            uuid=f"{name}-{step}",
            step=step,
            path=run.directory / f"step_{step}",
            status="final",
            created_at=AT,
            finalized_at=AT,
            metrics={"loss": value, "other": -value},
        )
        for step, value in values.items()
    ]
    said = {f"{name}-{step}": Annotations(pinned=True) for step in pinned & values.keys()}
    return catalog.apply(Changes(run=run, checkpoints=found, annotations=said))


@given(
    values=st.dictionaries(st.integers(0, 40), VALUES, max_size=12),
    pinned=st.sets(st.integers(0, 40), max_size=5),
    best=st.integers(0, 14),
    newest=st.none() | st.integers(0, 14),
    mode=st.sampled_from(["min", "max"]),
    exclude_latest=st.booleans(),
)
def test_what_goes_is_the_same(catalog, values, pinned, best, newest, mode, exclude_latest):
    run_id = add_run(catalog, values, pinned)
    policy = Policy(keep_top_k=best, ft_keep_latest_k=newest, metric="loss", mode=mode)
    every = decide(
        catalog.candidates.of_run(run_id, Wanted(metrics=("loss",))),
        policy,
        exclude_latest=exclude_latest,
    )
    below = catalog.candidates.below_best(run_id, "loss", mode, best)
    assert len(below) == max(len(values) - best, 0)
    latest = catalog.ranking.newest_steps(run_id, max(newest or 0, 1))
    some = decide_below(below, policy, latest, exclude_latest=exclude_latest)
    judged = {decision.step: decision for decision in some}
    assert {d.step for d in every if not d.keep} == {d.step for d in some if not d.keep}
    # Of those that are kept for their rank, and judged not at all, nothing else is said.
    for decision in every:
        assert decision == judged.get(decision.step, decision)
        assert decision.step in judged or decision.keep

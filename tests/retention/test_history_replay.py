"""Rules at work on recorded history: what they would have kept, and thrown away."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptdb import CheckpointManager, Registry
from ckptdb.core.metrics import Metric
from ckptdb.core.records import Checkpoint
from ckptdb.errors import UnknownDirection, UnknownMetric
from ckptdb.retention import Policy, replay

START = datetime(2026, 11, 1, tzinfo=UTC).timestamp()


def at(hour):
    return datetime.fromtimestamp(START + hour * 3600, tz=UTC).isoformat()


def saved(step, loss=None, *, hour=None, size=10, late=(), **more):
    """A checkpoint; ``late`` are (name, value, hour) of metrics that came later."""
    own = {} if loss is None else {"loss": loss}
    later = {name: Metric(name, value, "eval", at(when)) for name, value, when in late}
    return Checkpoint(
        run_uuid="r",
        run="run",
        uuid=more.pop("uuid", f"uuid {step}"),
        step=step,
        path=Path(f"/results/run/step_{step}"),
        status="final",
        created_at=at(step),
        finalized_at=at(step if hour is None else hour),
        size_bytes=size,
        info=own,
        metrics=own | {name: value for name, value, _ in late},
        late=later,
        **more,
    )


LOSS = {"metric": "loss", "mode": "min"}


def test_what_was_thrown_away_and_won_later_is_told():
    history = [saved(1, 0.9), saved(2, 0.1), saved(3, 0.5), saved(4, 0.4), saved(5, 0.3)]
    found = replay("run", history, Policy(keep=["latest 2"], **LOSS))
    assert (found.saved, found.kept, found.end_bytes, found.best_ever) == (5, (4, 5), 20, 2)
    assert (found.peak_bytes, found.peak_step) == (30, 3)
    assert [(lost.step, lost.value, lost.after_step, lost.reason) for lost in found.lost] == [
        (2, 0.1, 4, "retention: not latest 2")
    ]
    kept = replay("run", history, Policy(keep=["best 1", "latest 2"], **LOSS))
    assert (kept.kept, kept.lost) == ((2, 4, 5), ())


def test_a_clock_that_was_set_back_changes_neither_the_order_nor_what_time_keeps():
    hours = [0, 1, 2, 3, 0.5, 1.5, 2.5, 3.5]
    history = [
        saved(step, hour=hour, parent=f"uuid {step - 1}" if step else None)
        for step, hour in enumerate(hours)
    ]
    found = replay("run", history[::-1], Policy(keep=["every 1 hours"]))
    assert found.kept == tuple(range(8))
    latest = replay("run", history[::-1], Policy(keep=["latest 2"]))
    assert (latest.kept, latest.peak_step) == ((6, 7), 2)
    young = replay("run", history[::-1], Policy(keep=["newer than 1 hours"]))
    assert young.kept == (3, 4, 5, 6, 7)  # none is older than the one before it


def test_a_line_of_saves_that_bites_its_own_tail_ends():
    history = [saved(1, parent="uuid 2"), saved(2, parent="uuid 1")]
    assert replay("run", history, Policy(keep=["latest 1"])).saved == 2


def test_a_late_metric_counts_from_when_it_came():
    # Step 1 looks worst when step 3 is saved, and turns out to be the best after that.
    history = [
        saved(1, late=[("loss", 0.1, 3.5)]),
        saved(2, late=[("loss", 0.5, 2.5)]),
        saved(3, 0.6),
        saved(4, 0.7),
    ]
    found = replay("run", history, Policy(keep=["best 1"], **LOSS))
    assert found.kept == (2, 4)
    assert [(lost.step, lost.after_step) for lost in found.lost] == [(1, 2)]
    graced = Policy(keep=["best 1", "awaiting loss for 3 hours"], **LOSS)
    assert replay("run", history, graced).kept == (1, 4)
    assert replay("run", history, graced).lost == ()


def test_what_a_late_metric_hides_counts_until_it_comes():
    history = [
        saved(1, 0.1, late=[("loss", 0.9, 2.5)]), saved(2, 0.5), saved(3, 0.6), saved(4, 0.7),
    ]  # fmt: skip
    found = replay("run", history, Policy(keep=["best 1"], **LOSS))
    assert found.kept == (2, 4)
    # At hour 2 it was still the best.
    assert replay("run", history[:2], Policy(keep=["best 1"], **LOSS)).kept == (1, 2)
    sooner = replay(
        "run", [history[0], saved(2, 0.5), saved(2.4, 0.6)], Policy(keep=["best 1"], **LOSS)
    )
    assert sooner.kept == (1, 2.4)


def test_a_step_that_is_saved_again_takes_the_place_of_the_first():
    history = [saved(1, 0.1, hour=1, uuid="a"), saved(1, 0.5, hour=2, uuid="b"), saved(2, 0.4)]
    found = replay("run", history, Policy(keep=["latest 5"], **LOSS))
    assert (found.saved, found.kept, found.lost) == (3, (1, 2), ())


def test_the_recorded_peak_is_what_the_disk_did_hold():
    history = [
        saved(1, size=10, deleted_at=at(2)), saved(2, size=20), saved(3, size=5, deleted_at=at(9)),
        saved(4, size=1),
    ]  # fmt: skip
    assert replay("run", history, Policy(keep=["latest 1"])).recorded_peak_bytes == 30
    assert replay("run", (), Policy(keep=["latest 1"])).peak_bytes == 0


def test_without_a_metric_nothing_is_said_of_winners():
    found = replay("run", [saved(1, 0.1), saved(2, 0.5)], Policy(keep=["latest 1"]))
    assert (found.best_ever, found.lost) == (None, ())


@given(
    st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.3]), max_size=12),
    st.lists(
        st.sampled_from(["best 2", "latest 2", "every 3 steps", "newer than 2 hours"]),
        min_size=1,
        unique=True,
    ),
)
def test_a_replay_goes_as_a_manager_that_prunes_after_each_save(values, keep):
    history = [saved(step, value) for step, value in enumerate(values, 1)]
    policy = Policy(keep=keep, **LOSS)
    found = replay("run", history, policy)
    # Each save alone is judged with what the saves before it have left.
    left = []
    for checkpoint in history:
        so_far = replay("run", [*left, checkpoint], policy)
        left = [cp for cp in (*left, checkpoint) if cp.step in so_far.kept]
    assert found.kept == tuple(cp.step for cp in left)
    best = min((v for v in values if v is not None), default=None)
    assert bool(found.lost) == (
        best is not None and all(cp.metrics.get("loss") != best for cp in left)
    )


@pytest.fixture
def run(tmp_path):
    directory = tmp_path / "run"
    options = {
        "metric_name": "loss",
        "higher_is_better": False,
        "keep_top_k": 2,
        "durability": "none",
    }
    with CheckpointManager({"checkpoint_dir": directory}, **options) as manager:
        for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, 0.4)):
            with manager.save(step, {"loss": loss}) as folder:
                (folder / "model").write_bytes(b"x" * 1000)
    return directory


def test_history_is_replayed_with_what_was_deleted(run):
    with Registry.open(run) as registry:
        assert [cp.step for cp in registry.checkpoints(status="final")] == [2, 4]
        (found,) = registry.replay(Policy(keep=["every 3 steps"]))
        assert (found.saved, found.kept, found.best_ever) == (4, (3, 4), 2)
        assert [lost.step for lost in found.lost] == [2]
        assert found.recorded_peak_bytes > 3000
        # Nothing has happened.
        assert [cp.step for cp in registry.checkpoints(status="final")] == [2, 4]
        with pytest.raises(UnknownMetric, match=r"'los'.*loss"):
            registry.replay(Policy(keep=["best 1 by los min"]))


def test_a_condition_is_tried_on_what_is_gone_too(run):
    with Registry.open(run) as registry:
        (found,) = registry.replay(Policy(keep=["where loss > 0.45"]))
        assert found.kept == (1, 3, 4)
        assert [(lost.step, lost.reason) for lost in found.lost] == [
            (2, "retention: not where loss > 0.45")
        ]
        assert [
            d.step
            for d in registry.gc(Policy(keep=["where loss > 0.2"]), dry_run=True)[0].decisions
            if d.keep
        ] == [4]


def test_who_asks_for_the_best_of_nothing_is_told(tmp_path):
    with CheckpointManager({"checkpoint_dir": tmp_path / "run"}) as manager, manager.save(1, {}):
        pass
    with Registry.open(tmp_path / "run") as registry, pytest.raises(UnknownDirection):
        registry.replay(Policy(keep=["best 1"]))

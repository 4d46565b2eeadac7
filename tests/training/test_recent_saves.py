import time

import pytest

from ckptdb import CheckpointManager
from ckptdb.core.records import Checkpoint
from ckptdb.training.recent_saves import KEPT, RecentSaves, SaveCost


def make(**given):
    return Checkpoint(
        run_uuid="r", run="r", uuid="u", step=1, path="p", status="final", **given
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "save"),
    [
        ({"finalized_at": "2026-01-01T00:01:00.500Z", "size_bytes": 7}, SaveCost(60.5, 7)),
        ({"finalized_at": "2026-01-01T00:00:00.000Z"}, SaveCost(None, None)),
        ({"finalized_at": "2025-01-01T00:00:00.000Z"}, SaveCost(None, None)),
        ({}, SaveCost(None, None)),
    ],
    ids=["ours", "another program's", "the clock was put back", "unfinished"],
)
def test_what_a_save_took_is_on_record(given, save):
    assert SaveCost.of(make(created_at="2026-01-01T00:00:00.000Z", **given)) == save


def test_the_slowest_and_the_largest_of_the_last_few_count():
    recent = RecentSaves(list)
    assert (recent.slowest_seconds, recent.largest_bytes) == (None, None)
    recent.add(SaveCost(90.0, 900))
    for number in range(KEPT):
        assert (recent.slowest_seconds, recent.largest_bytes) == (90.0, 900)
        recent.add(SaveCost(float(number), None if number else 10))
    assert (recent.slowest_seconds, recent.largest_bytes) == (4.0, 10)


def test_what_is_on_record_is_asked_for_once_and_only_before_the_first_save():
    asked = []

    def find():
        asked.append(1)
        return [SaveCost(9.0, 9)]

    recent = RecentSaves(find)
    assert (recent.slowest_seconds, recent.largest_bytes, asked) == (9.0, 9, [1])
    recent.add(SaveCost(1.0, 1))
    assert (recent.slowest_seconds, asked) == (9.0, [1]), "it is one of the last few"

    later = RecentSaves(find)
    later.add(SaveCost(1.0, 1))
    assert (later.slowest_seconds, asked) == (1.0, [1])


def test_a_manager_knows_what_earlier_ones_have_saved(tmp_path):
    with CheckpointManager({"checkpoint_dir": tmp_path, "durability": "none"}) as manager:
        for step in range(1, 4):
            began = time.time() - step
            manager._publisher._clock = lambda began=began: began
            folder = manager.init_tmp_checkpoint(step, {})
            manager._publisher._clock = time.time
            (folder / "model.bin").write_bytes(bytes(1000 * step))
            manager.finalize_checkpoint(folder)
        sizes = [save.size_bytes for save in manager._recent._saves]
    with CheckpointManager({"checkpoint_dir": tmp_path}) as manager:
        assert manager._recent.largest_bytes == max(sizes) > 3000
        assert [save.size_bytes for save in manager._recent._saves] == sizes
        assert 3 <= manager._recent.slowest_seconds < 60

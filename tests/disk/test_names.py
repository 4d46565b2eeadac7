from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ckptdb.disk import names
from ckptdb.errors import InvalidStep, NoCheckpointHere

UUID = "0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"
LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step_0", 0),
        ("step_100", 100),
        (f"step_{LARGEST}", LARGEST),
        (f"step_{2**63}", None),
        ("step_99999999999999999999", None),
        ("step_007", None),
        ("step_00", None),
        ("step_\u0661", None),
        ("step_1\n", None),
        ("step_1_0", None),
        ("step_+1", None),
        ("step_-1", None),
        ("step_1e3", None),
        ("step_1-hf", None),
        ("step_1 ", None),
        (" step_1", None),
        ("Step_1", None),
        ("step_", None),
        ("tmp_step_1", None),
        ("latest_checkpoint_status.json", None),
    ],
)
def test_only_a_plain_number_makes_a_step(name, step):
    assert names.find_final_step(name) == step
    assert names.find_tmp_step(f"tmp_{name}") == step
    assert names.find_old(f"old_{name}.{UUID}") == (None if step is None else (step, UUID))
    assert names.find_trash(f"{name}.{UUID}") == (None if step is None else (step, UUID))


@pytest.mark.parametrize(
    "name",
    [
        "old_step_1",
        "old_step_1.",
        "old_step_1.abc",
        f"old_step_1.{UUID.upper()}",
        f"old_step_1.{UUID}x",
    ],
)
def test_an_old_name_carries_a_whole_uuid(name):
    assert names.find_old(name) is None


def test_names_in_the_trash_may_be_numbered():
    assert names.find_trash(f"step_3.{UUID}.12") == (3, UUID)
    assert names.find_trash(f"step_3.{UUID}.x") is None
    name = names.trash_name(3, UUID, recorded=False, attempt=12)
    assert (name, names.find_trash(name)) == (f"step_3.{UUID}.12.unrecorded", (3, UUID))
    assert names.is_recorded(f"step_3.{UUID}.12")
    assert not names.is_recorded(name)
    assert names.find_trash("step_3") is None


@pytest.mark.parametrize("step", [0, 7, LARGEST])
def test_a_name_that_was_made_is_found_again(step):
    assert names.find_final_step(names.final_name(step)) == step
    assert names.find_tmp_step(names.tmp_name(step)) == step
    assert names.find_old(names.old_name(step, UUID)) == (step, UUID)
    assert names.find_trash(names.trash_name(step, UUID)) == (step, UUID)


@pytest.mark.parametrize(
    "step", [0, 5, LARGEST, np.int64(5), np.uint8(5)], ids=["0", "5", "largest", "int64", "uint8"]
)
def test_whole_numbers_are_steps(step):
    found = names.as_step(step)
    assert found == step
    assert type(found) is int


@pytest.mark.parametrize(
    "step", [True, False, 1.0, "1", None, -1, 2**63, np.float32(1), np.True_, [1]], ids=repr
)
def test_anything_else_is_no_step(step):
    with pytest.raises(InvalidStep, match="is not a step"):
        names.as_step(step)


def test_a_path_to_publish_has_to_be_a_tmp_name():
    assert names.get_tmp_step(Path("/run/tmp_step_5")) == 5
    with pytest.raises(NoCheckpointHere, match="pass what init_tmp_checkpoint returned"):
        names.get_tmp_step(Path("/run/step_5"))

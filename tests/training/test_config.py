import os
import signal
from pathlib import Path
from types import MappingProxyType
from typing import get_type_hints

import numpy as np
import pydantic
import pytest

from ckptdb.errors import CkptdbError, InvalidConfig
from ckptdb.training.config import CheckpointingConfig, parse
from ckptdb.training.hooks import Hooks

DEFAULTS = {
    "metric_name": None,
    "higher_is_better": False,
    "save_period": 1,
    "keep_top_k": None,
    "ft_keep_latest_k": None,
    "ft_save_period": None,
    "checkpoint_must_save_by": None,
    "save_optimizer": True,
    "model_save_format": "safetensors",
    "save_consolidated": False,
    "model_cache_dir": "",
    "model_repo_id": "",
    "is_peft": False,
}


def test_only_the_directory_is_required_and_all_else_has_the_documented_default():
    settings = parse({"checkpoint_dir": "runs/a"}, {})
    assert settings.checkpoint_dir == Path("runs/a")
    assert settings.attributes == DEFAULTS
    assert settings.durable
    assert settings.exclusive
    assert settings.catalog is None
    assert settings.enabled
    assert settings.slurm_deadline
    assert settings.check_space
    assert (settings.must_save_by_seconds, settings.signals) == (None, ())
    assert settings.hooks == Hooks(None, None, None)


@pytest.mark.parametrize(
    "config",
    [
        {"checkpoint_dir": "a", "keep_top_k": 3},
        MappingProxyType({"checkpoint_dir": Path("a"), "keep_top_k": np.int64(3)}),
        pydantic.create_model("M", checkpoint_dir=(str, "a"), keep_top_k=(int, 3))(),
    ],
    ids=["dict", "mapping, path and numpy", "pydantic"],
)
def test_a_mapping_and_a_model_are_both_a_config(config):
    settings = parse(config, {})
    assert settings.checkpoint_dir == Path("a")
    assert settings.attributes["keep_top_k"] == 3
    assert type(settings.attributes["keep_top_k"]) is int


@pytest.mark.parametrize("config", [None, 5, "results", ["checkpoint_dir"], object()])
def test_anything_else_is_refused(config):
    with pytest.raises(InvalidConfig, match="neither a mapping nor a model"):
        parse(config, {})


def test_keywords_win_over_the_config():
    settings = parse({"checkpoint_dir": "a", "save_period": 5}, {"save_period": 7})
    assert settings.attributes["save_period"] == 7


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("checkpoint_dir", "", "checkpoint_dir must be a path"),
        ("checkpoint_dir", None, "checkpoint_dir must be a path"),
        ("checkpoint_dir", 3, "checkpoint_dir must be a path"),
        ("save_period", 0, "save_period must be a whole number of at least 1, not 0"),
        ("save_period", -1, "save_period must be a whole number of at least 1, not -1"),
        ("save_period", None, "save_period must be a whole number of at least 1, not None"),
        ("save_period", True, "save_period must be a whole number of at least 1, not True"),
        ("save_period", 1.5, "save_period must be a whole number of at least 1, not 1.5"),
        ("save_period", "10", "save_period must be a whole number of at least 1, not '10'"),
        ("keep", ["latest 1", "best"], "'best' is no rule; there are: best K"),
        ("keep", 3, "keep must be rules such as 'latest 3', not 3"),
        ("keep", ["latest 1", 3], "keep must be rules"),
        ("keep_top_k", -1, "keep_top_k must be a whole number of at least 0, not -1"),
        ("keep_top_k", True, "keep_top_k must be a whole number of at least 0, not True"),
        ("ft_keep_latest_k", -1, "ft_keep_latest_k must be a whole number of at least 0, not -1"),
        ("ft_keep_latest_k", 2.0, "ft_keep_latest_k must be a whole number of at least 0, not 2.0"),
        ("metric_name", "", "metric_name must be a name or None, not ''"),
        ("metric_name", 3, "metric_name must be a name or None, not 3"),
        ("higher_is_better", "max", "higher_is_better must be a bool, not 'max'"),
        ("exclusive", None, "exclusive must be a bool, not None"),
        ("exclusive", 0, "exclusive must be a bool, not 0"),
        ("durability", "some", "durability must be 'full' or 'none', not 'some'"),
        ("durability", None, "durability must be 'full' or 'none', not None"),
        ("durability", [], r"durability must be 'full' or 'none', not \[\]"),
        ("catalog", 3, "catalog must be a path or a database URL, not 3"),
        ("enabled", "no", "enabled must be a bool, not 'no'"),
        ("slurm_deadline", None, "slurm_deadline must be a bool, not None"),
        ("check_space", 1, "check_space must be a bool, not 1"),
        ("ft_save_period", 0, "ft_save_period must be a whole number of at least 1, not 0"),
        ("ft_save_period", -1, "ft_save_period must be a whole number of at least 1, not -1"),
        ("ft_save_period", "5", "ft_save_period must be a whole number of at least 1, not '5'"),
        ("checkpoint_must_save_by", "", "checkpoint_must_save_by must be 'DD:HH:MM:SS', not ''"),
        ("checkpoint_must_save_by", "03:45:00", "must be 'DD:HH:MM:SS', not '03:45:00'"),
        ("checkpoint_must_save_by", "0:0:-1:0", "must be 'DD:HH:MM:SS', not '0:0:-1:0'"),
        ("checkpoint_must_save_by", 216_000, "'DD:HH:MM:SS', not 216000; put it in quotes"),
        ("checkpoint_must_save_by", 1.5, "checkpoint_must_save_by must be 'DD:HH:MM:SS', not 1.5"),
        ("save_on_signals", "SIGFOO", "save_on_signals must be names of signals .*, not 'SIGFOO'"),
        ("save_on_signals", ["SIGKILL"], "a process can wait for, such as 'SIGTERM' and"),
        ("save_on_signals", ["SIGTERM", 15], "save_on_signals must be names of signals"),
        ("save_on_signals", 15, "save_on_signals must be names of signals .*, not 15"),
        ("on_published", "print", "on_published must be a function, not 'print'"),
        ("on_problem", 3, "on_problem must be a function, not 3"),
    ],
)
def test_a_wrong_value_is_named_with_what_it_must_be(key, value, why):
    with pytest.raises(InvalidConfig, match=why) as caught:
        parse({"checkpoint_dir": "a", key: value}, {})
    assert isinstance(caught.value, CkptdbError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("make", [Path.touch, os.mkfifo], ids=["file", "fifo"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint_dir_that_is_no_directory_is_refused(tmp_path, make, kind):
    make(tmp_path / "run")
    with pytest.raises(InvalidConfig) as caught:
        parse({"checkpoint_dir": kind(tmp_path / "run"), "save_period": 0}, {})
    fault = f"checkpoint_dir must be a directory, and '{tmp_path}/run' is none."
    assert str(caught.value).endswith(fault)
    assert "save_period" in str(caught.value)
    parse({"checkpoint_dir": tmp_path}, {})


@pytest.mark.parametrize("given", [{}, {"higher_is_better": None}], ids=["absent", "None"])
def test_a_metric_without_a_direction_is_refused_unless_the_run_has_recorded_it(given):
    config = {"checkpoint_dir": "runs/a", "metric_name": "val_acc", **given}
    fault = "higher_is_better is missing: say True if 'val_acc' is better high, False if it is"
    with pytest.raises(InvalidConfig, match=fault):
        parse(config, {})
    with pytest.raises(InvalidConfig, match=rf"save_period must be .*; .*{fault}"):
        parse(config, {"save_period": 0})
    for recorded in (True, False):
        asked = []

        def find(*what, recorded=recorded, asked=asked):
            asked.append(what)
            return recorded

        settings = parse(config, {}, find_direction=find)
        assert settings.attributes["higher_is_better"] is recorded
        assert asked == [(Path("runs/a"), "val_acc")]
        settings = parse(config, {"higher_is_better": not recorded}, find_direction=find)
        assert settings.attributes["higher_is_better"] is not recorded
    assert parse({"checkpoint_dir": "a", **given}, {}).attributes["higher_is_better"] is False


def test_all_faults_are_told_at_once():
    with pytest.raises(InvalidConfig) as caught:
        parse({"save_period": 0, "keep_top_k": -1, "metric_name": 3, "durability": "?"}, {})
    for name in ("checkpoint_dir is missing", "save_period", "keep_top_k", "metric_name"):
        assert name in str(caught.value)
    assert "durability" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("keep_topk", "; did you mean 'keep_top_k'?"),
        ("checkpoint_dirs", "; did you mean 'checkpoint_dir'?"),
        ("durabilty", "; did you mean 'durability'?"),
        ("zzz", ""),
    ],
)
def test_an_unknown_key_warns_with_the_nearest_known_one(key, hint):
    with pytest.warns(UserWarning, match="Unknown checkpointing key") as caught:
        parse({"checkpoint_dir": "a", key: 1}, {})
    assert [str(w.message) for w in caught] == [
        f"Unknown checkpointing key {key!r} is ignored{hint}"
    ]


def test_a_key_that_is_no_text_warns_too():
    with pytest.warns(UserWarning, match="Unknown checkpointing key '3' is ignored"):
        parse({"checkpoint_dir": "a", 3: 1}, {})


VALUES = {
    "accept_metric_change": True,
    "checksums": False,
    "checkpoint_dir": "a",
    "higher_is_better": True,
    "save_period": 1,
    "durability": "none",
    "exclusive": False,
    "slurm_deadline": False,
    "check_space": False,
}


@pytest.mark.parametrize("key", sorted(get_type_hints(CheckpointingConfig)))
def test_every_documented_key_is_known(key):
    parse({"checkpoint_dir": "a", key: VALUES.get(key)}, {})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:03:45:00", 3 * 3600 + 45 * 60),
        ("01:00:00:01", 86_401),
        ("0:0:225:0", 225 * 60),
        (" 0: 0: 1: 0", 60),
        (None, None),
    ],
)
def test_when_to_have_saved_by_is_told_as_nemo_rl_takes_it(text, seconds):
    settings = parse({"checkpoint_dir": "a", "checkpoint_must_save_by": text}, {})
    assert settings.must_save_by_seconds == seconds
    assert settings.attributes["checkpoint_must_save_by"] == text


@pytest.mark.parametrize(
    ("value", "signals"),
    [
        ("SIGTERM", (signal.SIGTERM,)),
        (["sigterm", "USR1", signal.SIGTERM], (signal.SIGTERM, signal.SIGUSR1)),
        ((), ()),
        (None, ()),
    ],
)
def test_signals_go_by_their_names(value, signals):
    assert parse({"checkpoint_dir": "a", "save_on_signals": value}, {}).signals == signals


def test_durability_none_is_a_choice_in_the_config_and_as_a_keyword():
    assert not parse({"checkpoint_dir": "a", "durability": "none"}, {}).durable
    assert not parse({"checkpoint_dir": "a"}, {"durability": "none"}).durable

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from ckptdb.disk import config_file, config_yaml, json_file, json_values, training_info
from ckptdb.disk.json_file import MAX_BYTES
from ckptdb.errors import UnreadableInfo, UnwritableInfo


class Tensor:
    """Like a torch scalar: not a number, but has .item()."""

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        # Part of a test's id, which must be the same in every worker.
        return f"Tensor({self.value!r})"

    def item(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


# --- writing training_info --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1, 1),
        (0.1, 0.1),
        ("text", "text"),
        (None, None),
        (True, True),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.True_, True),
        (np.array(0.5), 0.5),
        (np.array([3]), 3),
        (Tensor(0.25), 0.25),
        ((1, 2), [1, 2]),
        ([np.int8(1), {"a": np.float64(2.0)}], [1, {"a": 2.0}]),
        ({"a": {"b": [None]}}, {"a": {"b": [None]}}),
        (2**80, 2**80),
    ],
    ids=repr,
)
def test_what_json_can_keep_is_written_as_it_is(value, written):
    assert json.loads(training_info.dump_info({"key": value})) == {"key": written}


def test_numbers_that_are_not_finite_are_kept():
    found = json.loads(
        training_info.dump_info({"a": math.nan, "b": math.inf, "c": np.float64("-inf")})
    )
    assert math.isnan(found["a"])
    assert (found["b"], found["c"]) == (math.inf, -math.inf)


def test_keys_may_be_what_json_turns_into_text():
    found = json.loads(training_info.dump_info({"a": 1, 2: 2, None: 3, "n": {True: 4}}))
    assert found == {"a": 1, "2": 2, "null": 3, "n": {"true": 4}}


def test_everything_that_cannot_be_written_is_named_at_once():
    bad = {
        "array": np.zeros(3),
        "set": {1},
        "object": object(),
        "nested": [{"deep": b"bytes"}],
        "lazy": Tensor(RuntimeError("on the meta device")),
        "odd item": Tensor([1]),
        ("tuple",): 1,
        "keys": {(1, 2): 3},
        "fine": 1,
    }

    with pytest.raises(UnwritableInfo) as caught:
        training_info.dump_info(bad)

    message = str(caught.value)
    for part in ("array", "set", "object", "nested", "deep", "lazy", "on the meta", "odd item",
                 "tuple", "(1, 2)", "nothing was saved"):  # fmt: skip
        assert part in message
    assert "fine" not in message


def test_a_value_that_holds_itself_is_refused():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UnwritableInfo, match="nested deeper than 100 levels"):
        training_info.dump_info({"loop": loop})


def test_an_integer_that_nobody_could_read_back_is_refused():
    with pytest.raises(UnwritableInfo, match="4300 digits"):
        training_info.dump_info({"huge": 10**5000})


def test_what_would_be_too_large_to_read_back_is_refused(monkeypatch):
    monkeypatch.setattr(json_file, "MAX_BYTES", 100)
    with pytest.raises(UnwritableInfo, match="more than 100"):
        training_info.dump_info({"text": "x" * 100})


def test_passed_values_become_plain_numbers():
    assert training_info.plain_numbers({"a": np.float32(0.5), "b": Tensor(1)}) == {"a": 0.5, "b": 1}


# --- reading training_info --------------------------------------------------------------


def test_what_was_written_is_read_with_its_bytes(tmp_path: Path):
    raw = training_info.dump_info({"loss": 0.5})
    (tmp_path / "training_info.json").write_bytes(raw)
    assert training_info.load_info(tmp_path) == ({"loss": 0.5}, raw)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is not JSON"),
        (b"\0\0\0\0", "is not JSON"),
        (b'{"loss": 0.', "is not JSON"),
        (b"\xff\xfe{\0}\0", "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b'{"a": ' + b"9" * 4301 + b"}", "is not JSON"),
        (b"[" * 200_000 + b"]" * 200_000, "is not JSON"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
    ],
    ids=["empty", "NULs", "truncated", "UTF-16", "BOM", "no UTF-8", "huge integer", "deep", "list",
         "null"],
)  # fmt: skip
def test_a_file_that_is_no_json_object_cannot_be_trusted(tmp_path: Path, content, why):
    (tmp_path / "training_info.json").write_bytes(content)
    with pytest.raises(UnreadableInfo, match=why):
        training_info.load_info(tmp_path)


@pytest.mark.parametrize(
    ("content", "read"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b'{"a": 1e999, "b": -Infinity}', {"a": math.inf, "b": -math.inf}),
        (b'{"a": "\\ud800"}', {"a": "\ud800"}),
        (b'{"step": 7}', {"step": 7}),
    ],
    ids=["duplicate keys", "infinite", "lone surrogate", "other step"],
)
def test_odd_json_is_still_json(tmp_path: Path, content, read):
    (tmp_path / "training_info.json").write_bytes(content)
    assert training_info.load_info(tmp_path)[0] == read


def put_fifo(path: Path):
    os.mkfifo(path)


def put_symlink(path: Path):
    path.with_name("elsewhere").write_text("{}")
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("put", "why"),
    [
        (Path.absolute, "is missing"),
        (Path.mkdir, "is a directory, not a regular file"),
        (put_fifo, "is a pipe, not a regular file"),
        (put_symlink, "is a symlink, not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a symlink, not a regular file"),
    ],
    ids=["missing", "directory", "FIFO", "symlink", "device"],
)
def test_only_a_regular_file_is_read(tmp_path: Path, put, why):
    put(tmp_path / "training_info.json")
    with pytest.raises(UnreadableInfo, match=why):
        training_info.load_info(tmp_path)


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(UnreadableInfo, match="is larger than"):
        json_file.read_regular(path, MAX_BYTES)


def test_an_error_while_reading_is_told(tmp_path: Path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"{}")

    def fail(handle, count):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(json_file.os, "read", fail)
        with pytest.raises(UnreadableInfo) as caught:
            json_file.read_regular(path, 10)
    assert caught.value.why == "cannot be read (Input/output error)"


# --- for the catalog --------------------------------------------------------------------


def test_the_catalog_gets_numbers_that_are_not_finite_as_words():
    given = {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": 1, "e": None, 3: "x"}
    expected = {"a": "NaN", "b": ["Infinity", {"c": "-Infinity"}], "d": 1, "e": None, "3": "x"}
    assert json_values.for_catalog(given) == expected


def test_the_catalog_gets_nothing_of_what_is_absurdly_large(monkeypatch):
    monkeypatch.setattr(json_values, "_MAX_NODES", 3)
    assert json_values.for_catalog({"a": [1, 2, 3, 4]}) == {}
    assert json_values.for_catalog({"a": 1 << 20_000}) == {}


def test_what_is_deep_enough_to_be_written_is_deep_enough_for_the_catalog():
    value: object = {"loss": 0.5}
    for _ in range(99):
        value = [value]
    given = {"nested": value}
    assert json_values.for_catalog(json.loads(training_info.dump_info(given))) == given


# --- config.yaml ------------------------------------------------------------------------


class Model:
    def model_dump(self, mode="python"):
        return {"lr": 0.1, "mode": mode}


class OldModel:
    def model_dump(self):
        return {"lr": 0.2}


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({"b": 1, "a": {"c": [1, 2]}}, {"a": {"c": [1, 2]}, "b": 1}),
        (Model(), {"lr": 0.1, "mode": "json"}),
        (OldModel(), {"lr": 0.2}),
        ({}, {}),
        ({"text": "ü", "none": None}, {"text": "ü", "none": None}),
    ],
    ids=["mapping", "model", "old model", "empty", "text"],
)
def test_a_config_comes_back_as_it_was(tmp_path: Path, config, read):
    (tmp_path / "config.yaml").write_bytes(config_file.serialize_config(config).content)
    assert config_file.find_config(tmp_path) == read
    assert config_file.serialize_config(config).mapping == read


@pytest.mark.parametrize("config", [[1], "text", 3, None], ids=repr)
def test_a_config_has_to_be_a_mapping(config):
    with pytest.raises(UnwritableInfo, match="is not a mapping"):
        config_file.serialize_config(config)


def test_config_values_that_no_yaml_can_keep_are_named():
    with pytest.raises(UnwritableInfo, match=r"'colour' \(Colour\)") as caught:
        config_file.serialize_config({"colour": Colour.RED, "fine": 1})
    assert "fine" not in str(caught.value)


def test_a_config_too_deep_for_yaml_is_refused():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    try:
        with pytest.raises(UnwritableInfo, match=r"'deep' \(list\)"):
            config_file.serialize_config({"deep": deep})
    finally:
        while deep:  # taken apart by hand: freeing it at once recurses too
            deep = deep.pop()


def test_a_config_whose_fault_is_nowhere_refers_to_itself(monkeypatch):
    calls = iter([yaml.YAMLError()])

    def fail_once(content):
        for error in calls:
            raise error
        return b""

    monkeypatch.setattr(config_yaml, "dump", fail_once)
    with pytest.raises(UnwritableInfo, match="refers to itself"):
        config_file.serialize_config({"a": 1})


def test_nemo_rl_config_json_counts_when_there_is_no_yaml(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"lr": 0.3}')
    assert config_file.find_config(tmp_path) == {"lr": 0.3}

    (tmp_path / "config.yaml").write_text("lr: 0.4")
    assert config_file.find_config(tmp_path) == {"lr": 0.4}


def test_dates_and_odd_keys_become_text(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("day: 2026-11-22\n1: {2: .nan}\nset: !!set {a}\n")
    assert config_file.find_config(tmp_path) == {
        "day": str(dt.date(2026, 11, 22)),
        "1": {"2": "NaN"},
        "set": ["a"],
    }


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


MERGES = "b0: &b0 {x: 1, y: 2}\n" + "".join(
    f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 10)
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        "a: !!python/object/apply:os.system ['true']",
        LAUGHS,
        "a: &a {<<: [*a, *a]}",
        "[" + "1," * 500_000 + "]",
        "a: &a [*a]",
        "{unclosed",
        "- a list",
        "just text",
        "",
        "\0",
        'a: !!int ""',
        "a: !!timestamp soon",
        "a: !!bool perhaps",
        "a: 2026-99-99",
        "? [a, b]\n: c",
        "a: 0x" + "f" * 10_000,
        "a: " + "9" * 5_000,
        "[" * 50_000,
    ],
    ids=[
        "python tag", "billion laughs", "merged into itself", "too many values",
        "self alias", "syntax", "list", "text", "empty", "NUL",
        "empty int", "no timestamp", "no bool", "no date", "list as key",
        "huge hex", "huge int", "deep",
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_read_is_no_reason_for_anything(tmp_path: Path, content):
    (tmp_path / "config.yaml").write_text(content)
    assert config_file.find_config(tmp_path) is None
    with pytest.raises(UnreadableInfo, match=r"config\.yaml (cannot be loaded|holds a|has too)"):
        config_file.get_config(tmp_path)


def test_merges_that_fill_any_memory_are_refused_or_unfolded_once(tmp_path: Path):
    # From 6.0.4 on PyYAML merges each key once.
    (tmp_path / "config.yaml").write_text(MERGES)
    found = config_file.find_config(tmp_path)
    assert found is None or found == {f"b{i}": {"x": 1, "y": 2} for i in range(10)}


def test_what_a_config_merges_is_read(tmp_path: Path):
    (tmp_path / "config.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: [*a, {z: 4}], x: 3}\n")
    assert config_file.find_config(tmp_path) == {
        "a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2, "z": 4}
    }  # fmt: skip


def test_without_a_config_there_is_none(tmp_path: Path):
    assert config_file.find_config(tmp_path) is None
    assert config_file.get_config(tmp_path) is None

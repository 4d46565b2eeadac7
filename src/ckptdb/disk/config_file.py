"""The configuration of a run, ``config.yaml`` or ``config.json``: written, read and compared."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ckptdb.disk import json_file, json_values, names
from ckptdb.disk.json_values import Budget
from ckptdb.disk.plain_values import (
    MAX_CONFIG_NODES,
    MAX_DEPTH,
    plain_config,
)
from ckptdb.errors import UnreadableInfo, UnwritableInfo

_MAX_CONFIG_BYTES = 8 * 1024 * 1024
_LONGEST_WHY = 300
_TOO_LARGE = (
    f"has too many values or levels to be compared (at most {MAX_CONFIG_NODES} and {MAX_DEPTH})"
)
CONFIGS = (names.CONFIG, names.CONFIG_JSON)


# What PyYAML lets escape for a scalar that its tag does not fit, like `!!int ""`.
_CONSTRUCTION = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class SerializedConfig:
    """A configuration that a loop passed.

    Attributes:
        content: Bytes of the YAML file.
        mapping: The same values as `find_config` will read them.
    """

    content: bytes
    mapping: dict[str, Any]


def serialize_config(config: object) -> SerializedConfig:
    """Serialise a run's configuration as YAML: a mapping or anything with ``model_dump()``.

    Tuples become lists, paths text; `get_config` can read the file.

    Raises:
        UnwritableInfo: Names every top-level key whose value no YAML file can keep.
    """
    plain = _plain_config(config)
    return SerializedConfig(_dump(plain), json_values.for_catalog(plain))


def _dump(content: Mapping[Any, Any]) -> bytes:
    from ckptdb.disk import config_yaml  # PyYAML costs 10 ms, and many runs have no configuration

    try:
        return config_yaml.dump(content)
    except (config_yaml.YAMLError, RecursionError):
        faults = [
            f"{key!r} ({type(value).__name__})"
            for key, value in content.items()
            if not config_yaml.fits(value)
        ]
        raise UnwritableInfo("run_config", faults or ["it refers to itself"]) from None


def _plain_config(config: object) -> dict[Any, Any]:
    given = _model_dump(config)
    if not isinstance(given, Mapping):
        raise UnwritableInfo("run_config", [f"a {type(config).__name__} is not a mapping"])
    content, faults = plain_config(given)
    if faults:
        raise UnwritableInfo("run_config", faults)
    return content


def has_config(folder: str) -> bool:
    """Tell whether a file of that name is there; asked of every checkpoint of a run without any.

    Raises:
        OSError: It cannot be read now.
    """
    for name in CONFIGS:
        try:
            os.lstat(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            continue
        return True
    return False


def find_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration stored beside a checkpoint, as plain JSON values.

    None when there is none, or when it cannot be read: the configuration is a convenience of the
    index, no reason to distrust a checkpoint. To compare it, see `get_config`.

    Raises:
        OSError: It cannot be read now.
    """
    try:
        return get_config(folder)
    except UnreadableInfo as error:
        json_file.raise_if_unknown(error)
        return None


def get_config(folder: Path) -> dict[str, Any] | None:
    """Return the configuration stored beside a checkpoint; None only when there is none.

    ``config.yaml``, else ``config.json``.

    Raises:
        UnreadableInfo: There is one, and what it says is not known.
    """
    for name in CONFIGS:
        path = folder / name
        try:
            raw = json_file.read_regular(path, _MAX_CONFIG_BYTES)
        except UnreadableInfo as error:
            if isinstance(error.__cause__, FileNotFoundError):
                continue
            raise
        return _parse_config(path, raw)
    return None


def config_to_compare(config: object) -> dict[str, Any]:
    """Return a configuration as `get_config` would read it, had it been saved.

    Raises:
        UnwritableInfo: It cannot be.
        UnreadableInfo: It could not be read again: it is too large.
    """
    return _parse_config(Path(names.CONFIG), _dump(_plain_config(config)))


def _parse_config(path: Path, raw: bytes) -> dict[str, Any]:
    from ckptdb.disk import config_yaml

    try:
        too_large = config_yaml.is_too_large(raw)
        # YAML reads the 1e-06 that JSON writes as a string.
        load = json.loads if path.name == names.CONFIG_JSON else config_yaml.load
        content = None if too_large else load(raw)
    except (config_yaml.YAMLError, RecursionError, *_CONSTRUCTION) as error:
        why = " ".join(str(error).split())[:_LONGEST_WHY] or type(error).__name__
        raise UnreadableInfo(path, f"cannot be loaded ({why})") from error
    if too_large:
        raise UnreadableInfo(path, _TOO_LARGE)
    if not isinstance(content, dict):
        raise UnreadableInfo(path, f"holds a {type(content).__name__}, not a mapping")
    # A few aliases can stand for billions of values, or of letters: count them while unfolding.
    try:
        budget = Budget(MAX_CONFIG_NODES, _MAX_CONFIG_BYTES)
        return cast("dict[str, Any]", json_values.as_json_values(content, budget, 0, exact=True))
    except (OverflowError, ValueError) as error:  # the latter of integers that are no text
        raise UnreadableInfo(path, _TOO_LARGE) from error
    except KeyError as error:
        raise UnreadableInfo(path, f"has two keys with the text {error.args[0]!r}") from error


def _model_dump(config: object) -> object:
    dump = getattr(config, "model_dump", None)
    if not callable(dump):
        return config
    try:
        # JSON mode turns enums, paths and dates into what plain YAML can hold.
        return dump(mode="json")
    except (TypeError, ValueError):  # an old one, or one of values that JSON does not know
        return dump()

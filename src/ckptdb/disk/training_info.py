"""training_info.json and config.yaml: what a loop passes, to bytes and back.

Everything is validated and serialised before a file is opened, and read back with limits on
size and depth, because these files are written by other people's programs.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ckptdb.disk import names, paths
from ckptdb.disk.plain_values import (
    MAX_DEPTH,
    MAX_INT_BITS,
    first_line,
    is_key,
    plain,
    plain_config,
    texts,
)
from ckptdb.errors import Obstructed, UnreadableInfo, UnwritableInfo

MAX_BYTES = 64 * 1024 * 1024
"""Larger metadata files are refused unread."""
RECORD_BYTES = 16 * 1024
"""What of ours says who does something is far smaller: whose a save or a lease is."""
MAX_VALUES = 4_000_000
"""With more values JSON is refused: each takes many times the memory that its bytes do."""
_MAX_DIGITS = 4300
_MAX_NODES = 1_000_000
_MAX_CONFIG_BYTES = 8 * 1024 * 1024
MAX_CONFIG_NODES = 100_000
_LONGEST_WHY = 300
_TOO_LARGE = (
    f"has too many values or levels to be compared (at most {MAX_CONFIG_NODES} and {MAX_DEPTH})"
)
CONFIGS = (names.CONFIG, names.CONFIG_JSON)

_PART_BYTES = 1024 * 1024

_SCALARS = frozenset({str, bool, type(None)})
# What PyYAML lets escape for a scalar that its tag does not fit, like `!!int ""`.
_CONSTRUCTION = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
# Errors that tell what stands at a path; any other one only says that it cannot be read now.
_SAYS_WHAT_IT_IS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ELOOP,
        errno.ENXIO,
        errno.EISDIR,
        errno.ENODEV,
    }
)


def dump_info(info: Mapping[str, Any]) -> bytes:
    """Serialise a training_info: exactly its content, scalars of other libraries as numbers.

    What has no value (masked, NA, NaT) is null.

    Raises:
        UnwritableInfo: Names every key whose value no JSON file can keep.
    """
    faults: list[str] = []
    content = {key: plain(value, repr(key), faults, 1) for key, value in info.items()}
    faults += [f"key {key!r} is a {type(key).__name__}" for key in info if not is_key(key)]
    if not faults:
        try:
            raw = json.dumps(content).encode()
        except (TypeError, ValueError) as error:  # what only the encoder can see, e.g. a huge int
            faults.append(str(error))
        else:
            if len(raw) <= MAX_BYTES and not has_too_many_values(raw):
                return raw
            limit = f"{MAX_BYTES} bytes or {MAX_VALUES} values"
            faults.append(f"its {len(raw)} bytes are more than {limit}")
    raise UnwritableInfo("training_info", faults)


def plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with the scalars of other libraries as numbers.

    Raises:
        UnwritableInfo: Names every key whose value no JSON file can keep.
    """
    content: dict[str, Any] = json.loads(dump_info(values))
    return content


def dump_config(config: object) -> bytes:
    """Serialise a run's configuration as YAML: a mapping or anything with ``model_dump()``.

    Tuples become lists, paths text; what is written `get_config` can read.

    Raises:
        UnwritableInfo: Names every top-level key whose value no YAML file can keep.
    """
    content = _plain_config(config)
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


def load_info(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read a checkpoint's training_info.json; return it and its bytes.

    Raises:
        UnreadableInfo: Missing, not a regular file, too large, not JSON, or not an object.
    """
    return load_json(f"{folder}/{names.INFO}")


def load_json(path: Path | str, limit: int = MAX_BYTES) -> tuple[dict[str, Any], bytes]:
    """Read a JSON object from a regular file of at most ``limit`` bytes, with its bytes.

    Raises:
        UnreadableInfo: Anything else stands at that path.
    """
    raw = read_regular(path, limit)
    return parse_object(path, raw), raw


def parse_object(path: Path | str, raw: bytes) -> dict[str, Any]:
    """Return the JSON object that the bytes of a file are.

    Raises:
        UnreadableInfo: They are something else.
    """
    if has_too_many_values(raw):
        raise UnreadableInfo(Path(path), f"has more than {MAX_VALUES} values")
    try:
        content = parse(raw)
    except (ValueError, RecursionError) as error:
        raise UnreadableInfo(Path(path), f"is not JSON ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UnreadableInfo(Path(path), f"holds a {type(content).__name__}, not an object")
    return content


def parse(raw: bytes) -> Any:
    """Return what JSON in UTF-8 says.

    Raises:
        ValueError, RecursionError: It is none.
    """
    if 0 < sys.get_int_max_str_digits() <= _MAX_DIGITS:
        return json.loads(raw.decode())
    return json.loads(raw.decode(), parse_int=_short_int)


def has_too_many_values(raw: bytes) -> bool:
    """Tell whether JSON has more than `MAX_VALUES`, each behind a mark; those in text count too."""
    if len(raw) <= MAX_VALUES:
        return False
    return sum(raw.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES


def _short_int(text: str) -> int:
    # What Python takes the square of its length for, where somebody has lifted Python's own limit.
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"an integer has more than {_MAX_DIGITS} digits")
    return int(text)


def raise_if_unknown(error: UnreadableInfo) -> None:
    """Raise the I/O error behind, when all it says is that a file cannot be read now.

    What the file holds cannot be told then, and nothing may be concluded from that.
    """
    cause = find_unknown(error)
    if cause is not None:
        raise cause


def find_unknown(error: UnreadableInfo) -> OSError | None:
    """Return the I/O error behind, when all it says is that a file cannot be read now."""
    cause = error.__cause__
    unknown = isinstance(cause, OSError) and cause.errno not in _SAYS_WHAT_IT_IS
    return cause if isinstance(cause, OSError) and unknown else None


def has_config(folder: str) -> bool:
    """Tell whether a file of that name is there; asked of every checkpoint of a run without any.

    Raises:
        OSError: It cannot be told now.
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
        OSError: It cannot be told now.
    """
    try:
        return get_config(folder)
    except UnreadableInfo as error:
        raise_if_unknown(error)
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
            raw = read_regular(path, _MAX_CONFIG_BYTES)
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
    return _parse_config(Path(names.CONFIG), dump_config(config))


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
        budget = _Budget(MAX_CONFIG_NODES, _MAX_CONFIG_BYTES)
        return cast("dict[str, Any]", _json_values(content, budget, 0, exact=True))
    except (OverflowError, ValueError) as error:  # the latter of integers that are no text
        raise UnreadableInfo(path, _TOO_LARGE) from error
    except KeyError as error:
        raise UnreadableInfo(path, f"has two keys with the text {error.args[0]!r}") from error


def config_values(config: object) -> dict[str, Any]:
    """Return a configuration that was passed, as `find_config` will read it."""
    return for_catalog(_plain_config(config))


def for_catalog(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training_info with non-finite numbers as the strings NaN, Infinity, -Infinity.

    Bare NaN is no JSON: SQLite's JSON functions raise on it.
    """
    if len(info) < _MAX_NODES and _is_plain_json(info):
        return dict(info)
    try:
        return cast("dict[str, Any]", _json_values(info, _Budget(_MAX_NODES, MAX_BYTES), 0))
    except OverflowError:
        return {}  # absurdly large; the file keeps it


def read_regular(path: Path | str, limit: int) -> bytes:
    """Return the bytes of a regular file, as `read_with_status` does."""
    return read_with_status(path, limit)[0]


def read_with_status(path: Path | str, limit: int) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a regular file and what it was before they were read.

    Never follows a symlink, never blocks on a FIFO.

    Raises:
        UnreadableInfo: Missing, something else, or larger than ``limit`` bytes.
    """
    try:
        handle, found = paths.open_to_read(path)
    except FileNotFoundError as error:
        raise UnreadableInfo(Path(path), "is missing") from error
    except Obstructed as error:
        raise UnreadableInfo(Path(path), error.why) from error
    except OSError as error:
        raise UnreadableInfo(Path(path), f"cannot be opened ({error.strerror})") from error
    try:
        if found.st_size > limit:
            raise UnreadableInfo(Path(path), f"is larger than {limit} bytes")
        # Not up to the limit at once: that much memory would be set aside for every file.
        content = os.read(handle, found.st_size + 1)
        if len(content) != found.st_size:  # it is growing, or this was only a part
            content = _read_on(handle, content, limit)
    except OSError as error:
        raise UnreadableInfo(Path(path), f"cannot be read ({error.strerror})") from error
    finally:
        os.close(handle)
    return content, found


def _read_on(handle: int, begun: bytes, limit: int) -> bytes:
    parts, left = [begun], limit + 1 - len(begun)
    while left > 0 and (part := os.read(handle, min(left, _PART_BYTES))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _model_dump(config: object) -> object:
    dump = getattr(config, "model_dump", None)
    if not callable(dump):
        return config
    try:
        # JSON mode turns enums, paths and dates into what plain YAML can hold.
        return dump(mode="json")
    except (TypeError, ValueError):  # an old one, or one of values that JSON does not know
        return dump()


class _Budget:
    """How much of a file may still be unfolded."""

    def __init__(self, values: int, letters: int) -> None:
        self._values, self._letters = values, letters

    def spend(self, *, values: int = 0, letters: int = 0) -> None:
        """Count what was unfolded.

        Raises:
            OverflowError: It is too much.
        """
        self._values -= values
        self._letters -= letters
        if self._values < 0 or self._letters < 0:
            raise OverflowError


def _json_values(value: Any, budget: _Budget, depth: int, *, exact: bool = False) -> Any:
    budget.spend(values=1)
    if depth > MAX_DEPTH + 1:  # the values of the deepest mapping count too
        raise OverflowError
    if value is None or isinstance(value, bool | float):
        if isinstance(value, float) and not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        return value
    if isinstance(value, int):
        return _as_int(value)
    if isinstance(value, Mapping):
        found = {}
        for key, inner in value.items():
            name = _as_text(key, budget)
            if exact and name in found:
                raise KeyError(name)
            found[name] = _json_values(inner, budget, depth + 1, exact=exact)
        return found
    if isinstance(value, list | tuple | set):
        ordered = texts(value) if isinstance(value, set) else value
        return [_json_values(v, budget, depth + 1, exact=exact) for v in ordered]
    return _as_text(value, budget)


def _as_text(value: Any, budget: _Budget) -> str:
    text = value if isinstance(value, str) else str(_as_int(value))
    budget.spend(letters=len(text))
    return text


def _as_int(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
        raise OverflowError
    return value


def _is_plain_json(info: Mapping[str, Any]) -> bool:
    """Whether all of it is its own JSON, with nothing nested; nearly always that is so."""
    for key, value in info.items():
        kind = type(value)
        if kind is float:
            if not math.isfinite(value):
                return False
        elif kind is int:
            if value.bit_length() > MAX_INT_BITS:
                return False
        elif kind not in _SCALARS:
            return False
        if type(key) is not str:
            return False
    return True

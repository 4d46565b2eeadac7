"""training_info.json: the mapping that a loop passes, to bytes and back.

It is validated and serialised before a file is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ckptdb.disk import json_file, names
from ckptdb.disk.plain_values import (
    is_key,
    plain,
)
from ckptdb.errors import UnwritableInfo


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
            if len(raw) <= json_file.MAX_BYTES and not json_file.has_too_many_values(raw):
                return raw
            limit = f"{json_file.MAX_BYTES} bytes or {json_file.MAX_VALUES} values"
            faults.append(f"its {len(raw)} bytes are more than {limit}")
    raise UnwritableInfo("training_info", faults)


def plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with the scalars of other libraries as numbers.

    Raises:
        UnwritableInfo: Names every key whose value no JSON file can keep.
    """
    content: dict[str, Any] = json.loads(dump_info(values))
    return content


def load_info(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Read a checkpoint's training_info.json; return it and its bytes.

    Raises:
        UnreadableInfo: Missing, not a regular file, too large, not JSON, or not an object.
    """
    return json_file.load_json(f"{folder}/{names.INFO}")

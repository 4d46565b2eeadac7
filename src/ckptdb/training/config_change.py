"""Changes of the configuration between a checkpoint and the training that resumes from it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

from ckptdb.core import warnings
from ckptdb.core.compare import ConfigChange, config_changes
from ckptdb.disk import config_file
from ckptdb.errors import ConfigChanged, ConfigNotComparable, UnreadableInfo

OnChange = Literal["warn", "refuse", "ignore"]
ON_CHANGE: tuple[OnChange, ...] = get_args(OnChange)
_LONGEST_VALUE = 60


def check(path: Path, config: object, on_change: OnChange) -> None:
    """Compare a configuration with the one that a checkpoint was saved with.

    Args:
        path: The checkpoint.
        config: Configuration of the training that resumes, None to compare none.
        on_change: Reaction to a change.

    Raises:
        ConfigChanged: It has changed, and that is refused.
    """
    if config is None or on_change == "ignore":
        return
    change = _find_change(path, config)
    if change is None:
        return
    if on_change == "refuse":
        raise change
    warnings.warn(change.what)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the differences between two configurations, one line each, by dotted path.

    Args:
        old: The stored configuration, plain JSON values.
        new: The current one, likewise.
    """
    changes = sorted(config_changes(old, new), key=attrgetter("key"))
    return tuple(f"{change.key}{_describe(change)}" for change in changes)


def cut(text: str, length: int) -> str:
    """Return a text, cut to a length."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _find_change(path: Path, config: object) -> ConfigChanged | None:
    """Return the changes since a checkpoint was saved, or why they are not known."""
    try:
        now = config_file.config_to_compare(config)
    except UnreadableInfo as error:
        return ConfigNotComparable(path, f"the one passed {error.why}")
    try:
        stored = config_file.get_config(path)
    except UnreadableInfo as error:
        return ConfigNotComparable(path, f"{error.path.name} {error.why}")
    if stored is None:
        # No contradiction: every run that never stored a configuration begins like this.
        warnings.warn(
            f"Whether the configuration has changed since {path} cannot be told: that one has none."
        )
        return None
    changes = differences(stored, now)
    return ConfigChanged(path, changes) if changes else None


def _describe(change: ConfigChange) -> str:
    match change.kind:
        case "added":
            return f" is new: {_format(change.b)}"
        case "removed":
            return f" is gone, was {_format(change.a)}"
        case "changed":
            return f": {_format(change.a)} → {_format(change.b)}"


def _format(value: object) -> str:
    return cut(json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)

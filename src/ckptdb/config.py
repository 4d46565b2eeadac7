"""The manager's configuration: NeMo-RL's keys and ours, validated once, all faults together."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ckptdb import caller
from ckptdb.errors import InvalidConfig
from ckptdb.retention import Rule, parse_all

Durability = Literal["full", "none"]


class PretrainedCheckpointConfig(TypedDict):
    """Where initial weights come from; ckptdb passes it through.

    Attributes:
        format: ``"megatron_bridge"`` or ``"megatron_lm"``.
    """

    path: str
    format: str


class CheckpointingConfig(TypedDict):
    """How a run saves and keeps its checkpoints.

    Attributes:
        checkpoint_dir: The run's directory.
        metric_name: Judges checkpoints, e.g. ``"val:loss"``; None for the newest.
        save_period: Steps between periodic checkpoints.
        keep_top_k: How many of the best periodic checkpoints stay; None for all.
        ft_keep_latest_k: How many of the newest stay, whatever their step.
        keep: Rules of what else stays, e.g. ``["best 3 by val:loss min", "every 6 hours"]``.
        catalog: Path or SQLAlchemy URL of the catalog, instead of the one that is found.
        durability: ``"full"`` flushes every step to the disk, ``"none"`` leaves that to chance.
        exclusive: Refuse to save while another process saves into this run, and be the one that
            others are refused for; False does neither.
    """

    checkpoint_dir: str | os.PathLike[str]
    enabled: NotRequired[bool]
    metric_name: NotRequired[str | None]
    higher_is_better: NotRequired[bool]
    save_period: NotRequired[int]
    keep_top_k: NotRequired[int | None]
    ft_keep_latest_k: NotRequired[int | None]
    ft_save_period: NotRequired[int | None]
    checkpoint_must_save_by: NotRequired[str | None]
    pretrained_checkpoint: NotRequired[PretrainedCheckpointConfig | None]
    save_optimizer: NotRequired[bool]
    model_save_format: NotRequired[str | None]
    save_consolidated: NotRequired[bool]
    model_cache_dir: NotRequired[str]
    model_repo_id: NotRequired[str]
    is_peft: NotRequired[bool]
    peft_config: NotRequired[Any]
    is_async: NotRequired[bool]
    catalog: NotRequired[str | os.PathLike[str] | None]
    durability: NotRequired[Durability]
    exclusive: NotRequired[bool]
    checksums: NotRequired[bool]
    keep: NotRequired[Sequence[str] | str | None]


_DEFAULTS: dict[str, Any] = {
    "metric_name": None,
    "higher_is_better": False,
    "save_period": 1,
    "keep_top_k": None,
    "ft_keep_latest_k": None,
    "save_optimizer": True,
    "model_save_format": "safetensors",
    "save_consolidated": False,
    "model_cache_dir": "",
    "model_repo_id": "",
    "is_peft": False,
}
"""What becomes an attribute of the manager, under the same name."""

_OURS: dict[str, Any] = {
    "catalog": None,
    "durability": "full",
    "exclusive": True,
    "checksums": False,
    "keep": None,
}

_PASSED_BY = frozenset(
    {
        "enabled", "ft_save_period", "checkpoint_must_save_by", "pretrained_checkpoint",
        "peft_config", "is_async", "save_data_plane", "load_replay_buffer",
        "single_rank_consolidation", "consolidation_timeout_minutes",
    }
)  # fmt: skip
"""Keys that training loops of some release keep beside ours and read themselves."""

_KNOWN = frozenset({"checkpoint_dir", *_DEFAULTS, *_OURS, *_PASSED_BY})


@dataclass(frozen=True, slots=True)
class Settings:
    """A validated configuration.

    Attributes:
        attributes: By name, what the manager shows as its own attributes.
    """

    checkpoint_dir: Path
    catalog: str | os.PathLike[str] | None
    durable: bool
    exclusive: bool
    checksums: bool = False
    keep: tuple[Rule, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)


def parse(config: object, options: Mapping[str, Any]) -> Settings:
    """Validate a mapping or pydantic model, with keywords on top.

    Raises:
        InvalidConfig: Lists everything that is wrong with it.
    """
    given = {**_as_mapping(config), **options}
    _warn_of_unknown(given)
    faults: list[str] = []
    values = {name: given.get(name, default) for name, default in {**_DEFAULTS, **_OURS}.items()}
    values["save_period"] = _whole(values, "save_period", 1, faults)
    for name in ("keep_top_k", "ft_keep_latest_k"):
        values[name] = None if values[name] is None else _whole(values, name, 0, faults)
    _check_kinds(values, faults)
    keep = _rules(values["keep"], faults)
    directory = _directory(given, faults)
    if faults:
        raise InvalidConfig(faults)
    return Settings(
        checkpoint_dir=directory,
        catalog=values["catalog"],
        durable=values["durability"] == "full",
        exclusive=values["exclusive"],
        checksums=values["checksums"],
        keep=keep,
        attributes={name: values[name] for name in _DEFAULTS},
    )


def _as_mapping(config: object) -> dict[str, Any]:
    if isinstance(config, Mapping):
        return dict(config)
    dump = getattr(config, "model_dump", None)
    content = dump() if callable(dump) else None
    if not isinstance(content, dict):
        raise InvalidConfig([f"a {type(config).__name__} is neither a mapping nor a model"])
    return content


def _warn_of_unknown(given: Mapping[str, Any]) -> None:
    unknown = sorted(set(map(str, given)) - _KNOWN)
    if unknown:
        import difflib  # a millisecond that a right configuration need not wait for
    for name in unknown:
        close = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        caller.warn(f"Unknown checkpointing key {name!r} is ignored{hint}")


def _whole(values: Mapping[str, Any], name: str, least: int, faults: list[str]) -> int:
    value = values[name]
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        faults.append(f"{name} must be a whole number of at least {least}, not {value!r}")
        return least
    return number


def _check_kinds(values: Mapping[str, Any], faults: list[str]) -> None:
    metric = values["metric_name"]
    if metric is not None and (not isinstance(metric, str) or not metric):
        faults.append(f"metric_name must be a name or None, not {metric!r}")
    faults += [
        f"{name} must be a bool, not {values[name]!r}"
        for name in ("higher_is_better", "exclusive", "checksums")
        if not isinstance(values[name], bool)
    ]
    if values["durability"] not in ("full", "none"):
        faults.append(f"durability must be 'full' or 'none', not {values['durability']!r}")
    catalog = values["catalog"]
    if catalog is not None and not isinstance(catalog, str | os.PathLike):
        faults.append(f"catalog must be a path or a database URL, not {catalog!r}")


def _rules(value: object, faults: list[str]) -> tuple[Rule, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        faults.append(f"keep must be rules such as 'latest 3', not {value!r}")
        return ()
    found, wrong = parse_all(texts)
    faults += wrong
    return found


def _directory(given: Mapping[str, Any], faults: list[str]) -> Path:
    if "checkpoint_dir" not in given:
        faults.append("checkpoint_dir is missing")
        return Path()
    value = given["checkpoint_dir"]
    if not isinstance(value, str | os.PathLike) or not str(value):
        faults.append(f"checkpoint_dir must be a path, not {value!r}")
        return Path()
    if os.path.exists(value) and not os.path.isdir(value):
        faults.append(f"checkpoint_dir must be a directory, and {os.fspath(value)!r} is none")
    return Path(value)

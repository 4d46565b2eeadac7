"""The manager's configuration: NeMo-RL's keys and ours, validated once, all faults together."""

from __future__ import annotations

import operator
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from ckptdb.core import units, warnings
from ckptdb.core.records import Checkpoint, Problem
from ckptdb.errors import InvalidConfig
from ckptdb.retention import Clause, parse_all
from ckptdb.training import schedule
from ckptdb.training.hooks import Hooks
from ckptdb.training.signals import SignalNumber, find_signal

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
        higher_is_better: Direction of that metric; when left out, as the run has recorded it.
        save_period: Steps between periodic checkpoints.
        ft_save_period: Steps between checkpoints that are there to recover from, besides those.
        checkpoint_must_save_by: ``"DD:HH:MM:SS"`` from construction on, when `should_save` has to
            have led to a last checkpoint.
        enabled: False for a loop that is to save nothing: `should_save` always says so.
        keep_top_k: How many of the best periodic checkpoints stay; None for all.
        ft_keep_latest_k: How many of the newest stay, whatever their step.
        keep: Rules of what else stays, e.g. ``["best 3 by val:loss min", "every 6 hours"]``.
        accept_metric_change: To prune at once by a metric or direction other than the recorded
            one; else the first prune keeps also what the recorded one keeps.
        trash_ttl: How long what retention deletes can be undeleted, e.g. ``"2 days"``; its bytes
            stay on the disk until then.
        catalog: Path or SQLAlchemy URL of the catalog, instead of the one that is found.
        durability: ``"full"`` flushes every step to the disk, ``"none"`` leaves that to chance.
        exclusive: Refuse to save while another process saves into this run, and be the one that
            others are refused for; False does neither.
        save_on_signals: Names of signals, e.g. ``["SIGTERM", "SIGUSR1"]``, for which
            `should_save` asks for a last checkpoint instead of letting them end the process.
        slurm_deadline: The end of the SLURM job, when in one, is a deadline, too.
        check_space: Refuse to begin a save for which the disk has no space.
        on_published: Called with each checkpoint that has been published.
        on_deleted: Called with each checkpoint that has been retired, discarded or replaced.
        on_problem: Called with what went wrong behind the loop.
    """

    checkpoint_dir: str | os.PathLike[str]
    enabled: NotRequired[bool]
    metric_name: NotRequired[str | None]
    higher_is_better: NotRequired[bool | None]
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
    accept_metric_change: NotRequired[bool]
    trash_ttl: NotRequired[str | None]
    save_on_signals: NotRequired[Sequence[str] | str | None]
    slurm_deadline: NotRequired[bool]
    check_space: NotRequired[bool]
    on_published: NotRequired[Callable[[Checkpoint], object] | None]
    on_deleted: NotRequired[Callable[[Checkpoint], object] | None]
    on_problem: NotRequired[Callable[[Problem], object] | None]


_DEFAULTS: dict[str, Any] = {
    "metric_name": None,
    "higher_is_better": None,
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
"""What becomes an attribute of the manager, under the same name."""

_OURS: dict[str, Any] = {
    "catalog": None,
    "durability": "full",
    "exclusive": True,
    "checksums": False,
    "keep": None,
    "accept_metric_change": False,
    "trash_ttl": None,
    "enabled": True,
    "save_on_signals": None,
    "slurm_deadline": True,
    "check_space": True,
    "on_published": None,
    "on_deleted": None,
    "on_problem": None,
}

_BOOLS = (
    "higher_is_better", "exclusive", "checksums", "enabled", "slurm_deadline", "check_space",
    "accept_metric_change",
)  # fmt: skip

_PASSED_BY = frozenset(
    {
        "pretrained_checkpoint", "peft_config", "is_async", "save_data_plane",
        "load_replay_buffer", "single_rank_consolidation", "consolidation_timeout_minutes",
    }
)  # fmt: skip
"""Keys that training loops of some release keep beside ours and read themselves."""

_KNOWN = frozenset({"checkpoint_dir", *_DEFAULTS, *_OURS, *_PASSED_BY})


@dataclass(frozen=True, slots=True)
class Settings:
    """A validated configuration.

    Attributes:
        attributes: Values by name that become attributes of the manager.
    """

    checkpoint_dir: Path
    catalog: str | os.PathLike[str] | None
    durable: bool
    exclusive: bool
    checksums: bool = False
    keep: tuple[Clause, ...] = ()
    accept_metric_change: bool = False
    trash_ttl_seconds: float = 0.0
    enabled: bool = True
    must_save_by_seconds: int | None = None
    signals: tuple[SignalNumber, ...] = ()
    slurm_deadline: bool = True
    check_space: bool = True
    hooks: Hooks = field(default_factory=Hooks)
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def find_limits(self) -> schedule.Limits:
        """Return the deadlines of the process, by the configuration and its SLURM job."""
        ends_at: float | None = None
        if self.slurm_deadline:
            ends_at = schedule.find_slurm_end(os.environ, now=time.time())
        return schedule.Limits(self.must_save_by_seconds, ends_at)


FindDirection = Callable[[Path, str], bool | None]
"""Returns what a run has recorded of a metric: whether higher is better."""


def parse(
    config: object,
    options: Mapping[str, Any],
    *,
    find_direction: FindDirection = lambda _directory, _metric: None,
) -> Settings:
    """Validate a mapping or pydantic model, with keywords on top.

    Args:
        config: The mapping or model.
        options: The keywords.
        find_direction: Asked when a metric comes without its direction.

    Raises:
        InvalidConfig: Lists everything that is wrong with it.
    """
    given = {**_as_mapping(config), **options}
    _warn_of_unknown(given)
    faults: list[str] = []
    values = {name: given.get(name, default) for name, default in {**_DEFAULTS, **_OURS}.items()}
    values["save_period"] = _whole(values, "save_period", 1, faults)
    for name, least in (("keep_top_k", 0), ("ft_keep_latest_k", 0), ("ft_save_period", 1)):
        values[name] = None if values[name] is None else _whole(values, name, least, faults)
    if values["enabled"] is None:
        values["enabled"] = True
    before = len(faults)
    directory = _directory(given, faults)
    if values["higher_is_better"] is None:
        where = directory if len(faults) == before else None
        values["higher_is_better"] = _direction(values, where, find_direction, faults)
    _check_kinds(values, faults)
    must_save_by = _duration(values["checkpoint_must_save_by"], faults)
    signals = _signals(values["save_on_signals"], faults)
    hooks = _hooks(values, faults)
    keep = _rules(values["keep"], faults)
    trash_ttl_hours = _time(values, "trash_ttl", faults)
    if faults:
        raise InvalidConfig(faults)
    return Settings(
        checkpoint_dir=directory,
        catalog=values["catalog"],
        durable=values["durability"] == "full",
        exclusive=values["exclusive"],
        checksums=values["checksums"],
        keep=keep,
        accept_metric_change=values["accept_metric_change"],
        trash_ttl_seconds=trash_ttl_hours * 3600,
        enabled=values["enabled"],
        must_save_by_seconds=must_save_by,
        signals=signals,
        slurm_deadline=values["slurm_deadline"],
        check_space=values["check_space"],
        hooks=hooks,
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
        warnings.warn(f"Unknown checkpointing key {name!r} is ignored{hint}")


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
        for name in _BOOLS
        if not isinstance(values[name], bool)
    ]
    if values["durability"] not in ("full", "none"):
        faults.append(f"durability must be 'full' or 'none', not {values['durability']!r}")
    catalog = values["catalog"]
    if catalog is not None and not isinstance(catalog, str | os.PathLike):
        faults.append(f"catalog must be a path or a database URL, not {catalog!r}")


def _direction(
    values: Mapping[str, Any], directory: Path | None, find: FindDirection, faults: list[str]
) -> bool:
    metric = values["metric_name"]
    if not isinstance(metric, str) or not metric:
        return False
    recorded = None if directory is None else find(directory, metric)
    if recorded is None:
        faults.append(
            f"higher_is_better is missing: say True if {metric!r} is better high, False if it is "
            "better low"
        )
    return bool(recorded)


def _rules(value: object, faults: list[str]) -> tuple[Clause, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        faults.append(f"keep must be rules such as 'latest 3', not {value!r}")
        return ()
    found, wrong = parse_all(texts)
    faults += wrong
    return found


def _time(values: Mapping[str, Any], name: str, faults: list[str]) -> float:
    """Return a time in hours, 0 for none."""
    value = values[name]
    found = 0.0 if value is None else units.find_hours(value) if isinstance(value, str) else None
    if found is None:
        faults.append(f"{name} must be a time such as '2 days', not {value!r}")
    return found or 0.0


def _duration(value: object, faults: list[str]) -> int | None:
    if value is None:
        return None
    try:
        return schedule.parse_duration(value if isinstance(value, str) else "")
    except ValueError:
        # YAML reads 1:00:00:00 as a number to the base of sixty.
        unquoted = "; put it in quotes" if isinstance(value, int) else ""
        faults.append(f"checkpoint_must_save_by must be 'DD:HH:MM:SS', not {value!r}{unquoted}")
        return None


def _signals(value: object, faults: list[str]) -> tuple[SignalNumber, ...]:
    names = [value] if isinstance(value, str) else [] if value is None else value
    found = [find_signal(name) for name in names] if isinstance(names, Sequence) else [None]
    signals = tuple(dict.fromkeys(number for number in found if number is not None))
    if None in found:
        faults.append(
            "save_on_signals must be names of signals that a process can wait for, such as "
            f"'SIGTERM' and 'SIGUSR1', not {value!r}"
        )
    return signals


def _hooks(values: Mapping[str, Any], faults: list[str]) -> Hooks:
    given = {hook.name: values[hook.name] for hook in fields(Hooks)}
    faults += [
        f"{name} must be a function, not {hook!r}"
        for name, hook in given.items()
        if hook is not None and not callable(hook)
    ]
    return Hooks(**given)


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

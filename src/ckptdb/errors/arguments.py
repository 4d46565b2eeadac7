"""Errors about arguments, options and optional libraries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ckptdb.errors.base import CkptdbError


class InvalidConfig(CkptdbError, ValueError):
    """The manager's configuration is wrong; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("The checkpointing config is not usable: " + "; ".join(faults) + ".")


class InvalidPolicy(CkptdbError, ValueError):
    """A retention policy is wrong; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(f"The retention policy is not usable: {'; '.join(faults)}.")
        self.faults = tuple(faults)


class InvalidChoice(CkptdbError, ValueError):
    """A value is not one of the allowed choices."""

    def __init__(self, what: str, value: object, choices: Sequence[str]) -> None:
        *first, last = map(repr, choices)
        super().__init__(f"{what} must be {', '.join(first)} or {last}, not {value!r}.")


class InvalidWatch(CkptdbError, ValueError):
    """The arguments of `watch` are wrong; the message lists every fault at once."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(f"Nothing is watched: {'; '.join(faults)}.")


class InvalidStep(CkptdbError, ValueError):
    """A step is not an integer from 0 to 2**63 - 1."""

    def __init__(self, step: object) -> None:
        super().__init__(
            f"{step!r} is not a step: pass a whole number from 0 to 9223372036854775807."
        )


class InvalidTime(CkptdbError, ValueError):
    """A text is not a point in time."""

    def __init__(self, text: object) -> None:
        super().__init__(
            f"{text!r} is no time: write it like 2026-11-22T16:00:00Z (in UTC when it does not "
            "say where) or '2 hours ago'."
        )


class InvalidAnnotation(CkptdbError, ValueError):
    """A tag, note, source or late metric cannot be recorded."""

    def __init__(self, why: str) -> None:
        super().__init__(f"Nothing was recorded: {why}.")


class InvalidCondition(CkptdbError, ValueError):
    """A condition is not one SQL expression over columns and metrics of a checkpoint."""

    def __init__(self, condition: str, why: str) -> None:
        super().__init__(f"The condition {condition!r} cannot be used: {why}.")


class UnknownName(InvalidCondition, LookupError):
    """A condition contains a name that is neither a column nor a metric."""

    def __init__(
        self, condition: str, name: str, columns: Iterable[str], metrics: Iterable[str]
    ) -> None:
        known = ", ".join(metrics)
        metric = f"a metric ({known})" if known else "a metric, of which there is none"
        super().__init__(
            condition, f"{name!r} is neither a column ({', '.join(columns)}) nor {metric}"
        )


class UnwritableInfo(CkptdbError, TypeError):
    """training_info or the run configuration holds values that no file can store."""

    def __init__(self, what: str, faults: Sequence[str]) -> None:
        super().__init__(
            f"{what} cannot be written: {'; '.join(faults)}. "
            "Pass numbers, strings, lists and mappings; nothing was saved."
        )


class SignalsElsewhere(CkptdbError, RuntimeError):
    """Signal handlers were requested outside the main thread, where Python has none."""

    def __init__(self, signals: Sequence[str]) -> None:
        super().__init__(
            f"save_on_signals ({', '.join(signals)}) works in the main thread only; call "
            "should_save there first, or leave save_on_signals out."
        )


class NotServable(CkptdbError):
    """The web page cannot be served with these options."""

    def __init__(self, why: str) -> None:
        super().__init__(f"The page cannot be served: {why}.")


class ChecksumsUnavailable(CkptdbError, ImportError):
    """Checksums were requested, and the library xxhash is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "Checksums need the package xxhash: pip install 'ckptdb[checksums]', or do without."
        )


class LibraryMissing(CkptdbError, ImportError):
    """An optional library is not installed."""

    def __init__(self, what: str, libraries: str, install: str) -> None:
        super().__init__(
            f"{what} needs {libraries}, not installed here: `pip install '{install}'`."
        )

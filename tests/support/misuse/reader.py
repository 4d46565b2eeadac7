"""Expectations of a reader of the documentation: which checkpoints stay.

The reader looks at files with the standard library and knows every command that was given. It
shares no code with ckptdb, so that a mistake there is not repeated here. A checkpoint is known by
its *mark*, the text of a file that its writer has put in, because its name may mean another one
tomorrow.
"""

import json
import math
import os
import re
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MARK = "mark.txt"
Judged = tuple[str | None, bool | None]
"""A metric, and whether higher is better."""

ENDS = ("deleted", "replaced", "discarded", "vanished")


# --- what lies there ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A directory with a mark, where it lies.

    Attributes:
        place: ``published``, ``linked``, ``unfinished``, ``trash`` or ``elsewhere``.
        run: The directory that it is a checkpoint of.
        is_bare: Nothing says that it is a checkpoint.
    """

    mark: str
    path: Path
    place: str
    run: Path
    step: int
    info: dict[str, Any] | None
    manifest: dict[str, Any] | None
    is_bare: bool = False

    @property
    def uuid(self) -> str | None:
        return None if self.manifest is None else self.manifest.get("uuid")

    @property
    def is_complete(self) -> bool:
        return self.manifest is not None


def look(top: Path) -> dict[str, Seen]:
    """Return everything with a mark at or below a directory, by mark; no link is followed."""
    found = {}
    for folder, _, files in os.walk(top):
        if MARK in files:
            seen = _look_at(Path(folder))
            assert seen.mark not in found, f"{seen.path} and {found[seen.mark].path}"
            found[seen.mark] = seen
    return found


def _look_at(path: Path) -> Seen:
    name, run, place = path.name, path.parent, "elsewhere"
    if published := re.fullmatch(r"step_(0|[1-9]\d*)", name, re.ASCII):
        place = "published"
    elif published := re.fullmatch(r"tmp_step_(0|[1-9]\d*)", name, re.ASCII):
        place = "unfinished"
    if run.name == "trash" and run.parent.name == ".ckptdb":
        published = re.match(r"step_(\d+)", name)
        place, run = "trash", run.parent.parent
    elif "elsewhere" in path.parts:
        place = "elsewhere"
    step = int(published[1]) if published else -1
    info, manifest = _read_object(path / "training_info.json"), _read_object(path / "manifest.json")
    is_bare = info is None and manifest is None
    if manifest is not None and manifest.get("step") != step:
        manifest = None  # copied from another step, and says nothing about this one
    return Seen(
        mark=(path / MARK).read_text(),
        path=path,
        place=place,
        run=run,
        step=step,
        info=info,
        manifest=manifest,
        is_bare=is_bare,
    )


def look_behind_links(run: Path) -> list[Seen]:
    """Return what of a run lies elsewhere, with a link in its place."""
    links = [path for path in run.glob("step_*") if path.is_symlink() and (path / MARK).exists()]
    return [replace(_look_at(path), place="linked") for path in links]


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes().decode())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def find_runs(top: Path) -> list[Path]:
    """Return the runs at or below a directory: where checkpoints of anybody's lie, or ours did."""
    found = []
    for folder, below, _ in os.walk(top):
        names = [name for name in below if name.startswith(("step_", "tmp_step_"))]
        infos = (Path(folder, name, "training_info.json") for name in names)
        if Path(folder, ".ckptdb", "run.json").exists() or any(info.exists() for info in infos):
            found.append(Path(folder))
        below[:] = [name for name in below if name != ".ckptdb" and name not in names]
    return found


def journal_lines(run: Path) -> list[bytes]:
    """Return the lines of a run's journal, whatever they are."""
    try:
        return (run / ".ckptdb" / "journal.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return []


def facts_of(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Return what lines of a journal say, as far as it can be read."""
    found = []
    for line in lines:
        try:
            content = json.loads(line)
        except ValueError:
            continue
        if isinstance(content, dict) and "fact" in content:
            found.append(content)
    return found


def recorded_metric(run: Path) -> tuple[str | None, bool | None]:
    """Return what a run is judged by: a metric, and whether higher is better."""
    said = _read_object(run / ".ckptdb" / "run.json") or {}
    if said.get("metric_name") is None:
        return None, None
    return said["metric_name"], said.get("higher_is_better")


class Catalog:
    """What a catalog's file still knows."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def knows(self, kind: str, uuid: str, name: str | None = None) -> bool:
        """Whether it knows a fact about a checkpoint."""
        by_uuid = "checkpoints WHERE uuid = ?"
        joined = "JOIN checkpoints c ON c.id = checkpoint_id WHERE c.uuid = ?"
        query = {
            "pin": f"SELECT 1 FROM {by_uuid} AND pinned = 1",
            "rejected": f"SELECT 1 FROM {by_uuid} AND rejected IS NOT NULL",
            "gone": f"SELECT 1 FROM {by_uuid} AND status = 'deleted'",
            "tag": f"SELECT 1 FROM tags t {joined} AND t.name = ?",
            "metric": f"SELECT 1 FROM metrics m {joined} AND m.name = ?",
            "resumed": f"SELECT 1 FROM resumes {joined}",
        }[kind]
        if not self._file.is_file():
            return False
        try:
            with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as connection:
                return bool(connection.execute(query, [uuid, *([name] if name else [])]).fetchone())
        except sqlite3.Error:
            return False


# --- what was said ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """Something said of a checkpoint: ``pin``, ``rejected``, ``tag``, ``metric``, ``resumed``."""

    kind: str
    mark: str
    name: str | None = None


@dataclass
class Said:
    """What has been said about the checkpoints of all runs, and not been taken back.

    Attributes:
        facts: With what comes with it: the value of a metric.
        continued: Of each run, the marks of what training was resumed from, the last one last.
        leased: What is being evaluated at this moment.
        damaged: What a look at its files has found damaged.
        promised: What was deleted and can be brought back, or waits for somebody to be done.
        doubted: Runs whose journal is damaged inside or says less than the catalog.
    """

    facts: dict[Fact, float | None] = field(default_factory=dict)
    continued: dict[Path, list[str]] = field(default_factory=dict)
    leased: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    promised: set[str] = field(default_factory=set)
    doubted: set[Path] = field(default_factory=set)

    def marks(self, kind: str, name: str | None = None) -> set[str]:
        """Return of which checkpoints something was said."""
        return {fact.mark for fact in self.facts if fact.kind == kind and name in (None, fact.name)}

    def value_of(self, seen: Seen, metric: str | None) -> float | None:
        """Return a finite number, the one reported last, or None."""
        if metric is None:
            return None
        late = Fact("metric", seen.mark, metric)
        value = self.facts[late] if late in self.facts else (seen.info or {}).get(metric)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None


# --- what stays ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rules:
    """What a config or a command says about what stays."""

    metric: str | None = None
    higher: bool | None = None
    save_period: int = 1
    keep_top_k: int | None = None
    ft_keep_latest_k: int | None = None
    keep: tuple[str, ...] = ()

    @property
    def ranks(self) -> bool:
        """Whether anything goes by the run's metric."""
        by_it = (rule for rule in self.keep if rule.startswith("best") and " by " not in rule)
        return self.keep_top_k is not None or any(by_it)

    @property
    def has_limit(self) -> bool:
        return self.keep_top_k is not None or self.ft_keep_latest_k is not None or bool(self.keep)


def counted(seen: Iterable[Seen], said: Said) -> list[Seen]:
    """Return what rules judge, the highest step first: published, trusted, not rejected."""
    aside = said.marks("rejected") | said.damaged
    places = ("published", "linked")
    live = (one for one in seen if one.place in places and one.info is not None)
    return sorted((one for one in live if one.mark not in aside), key=lambda one: -one.step)


def may_go(
    seen: Iterable[Seen],
    said: Said,
    rules: Rules,
    *,
    held: Collection[str],
    latest_stays: bool = True,
) -> set[str]:
    """Return the marks of what rules let go of one run.

    Args:
        seen: What lies in that run.
        said: What was said.
        rules: What applies.
        held: What no rule takes in any case: what was just saved, what was loaded.
        latest_stays: Whether the highest step does.
    """
    found = counted(seen, said)
    if not found or not rules.has_limit or found[0].run in said.doubted:
        return set()
    kept = kept_by(found, said, rules) | set(held) | said.marks("pin") | said.leased
    if latest_stays:
        kept.add(found[0].mark)
    here = {one.mark for one in found}
    kept |= {one.mark for one in found if one.place == "linked"}
    kept |= set([mark for mark in said.continued.get(found[0].run, []) if mark in here][-1:])
    return here - kept


def kept_by(found: list[Seen], said: Said, rules: Rules) -> set[str]:
    """Return the marks of what any rule keeps; ``found`` has the highest step first."""
    kept = {one.mark for one in found[: rules.ft_keep_latest_k or 0]}
    periodic = [one for one in found if one.step % rules.save_period == 0]
    if rules.keep_top_k is not None:
        kept |= _best(periodic, said, (rules.metric, rules.higher), rules.keep_top_k)
    elif rules.ft_keep_latest_k is not None:
        kept |= {one.mark for one in periodic}
    for rule in rules.keep:
        kept |= _kept_by_text(found, said, rules, rule)
    return kept


def _kept_by_text(found: list[Seen], said: Said, rules: Rules, rule: str) -> set[str]:
    words = rule.split()
    if " of every " in rule:
        found = [one for one in found if one.step % int(words[-2]) == 0]
    match words:
        case ["best", count, "by", metric, mode, *_]:
            return _best(found, said, (metric, mode == "max"), int(count))
        case ["best", count, *_]:
            return _best(found, said, (rules.metric, rules.higher), int(count))
        case ["latest", count, *_]:
            return {one.mark for one in found[: int(count)]}
        case ["tagged", *names]:
            return said.marks("tag", *names)
        case _:
            return {one.mark for one in found if _holds(one, said, words)}


def _holds(one: Seen, said: Said, words: list[str]) -> bool:
    match words:
        case ["every", number, "steps"]:
            return one.step % int(number) == 0
        case ["steps", numbers]:
            return str(one.step) in numbers.split(",")
        case ["newer", "than", _, "hours"]:
            return True  # all of this happens within minutes
        case ["where", name, "<", number]:
            value = said.value_of(one, name.strip('"'))
            return value is not None and value < float(number)
    raise AssertionError(words)


def _best(found: list[Seen], said: Said, by: Judged, count: int) -> set[str]:
    """The best; where fewer have the metric, the newest of the others fill the rest."""
    metric, higher = by
    values = {one.mark: said.value_of(one, metric) for one in found}
    having = [one for one in found if values[one.mark] is not None]
    # The order of equals stays: the higher step first.
    having.sort(key=lambda one: (values[one.mark] or 0.0) * (-1 if higher else 1))
    others = [one for one in found if values[one.mark] is None]
    return {one.mark for one in (*having, *others)[:count]}

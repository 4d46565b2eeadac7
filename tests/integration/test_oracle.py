"""A naive scan of the directory, a few lines long, agrees with the manager after anything.

The suite tells a part of the histories. All of them, in about two minutes on one core:

    CKPTDB_HISTORIES=2000 pytest tests/integration/test_oracle.py
"""

import json
import math
import os
import random
import re
import shutil
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from ckptdb import Registry
from ckptdb.catalog.catalog import Catalog
from ckptdb.core import stamp
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    identity,
    journal,
    manifest,
    observation,
    read_checkpoint,
    read_tmp,
    root_marker,
    run_stamp,
    tree_removal,
)
from ckptdb.errors import CkptdbError, InvalidConfig, NoCheckpointHere, SaveFailed, StepTaken
from ckptdb.manager import CheckpointManager

HISTORIES = int(os.environ.get("CKPTDB_HISTORIES", "400"))
SHARES = 4
CHAPTERS = 10
METRIC = "val:loss"
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 100)
RUNS = ("run", "run", ".run", "run.1", "..run")
VALUES = (0.0, -0.0, 0.1, 0.1, 0.5, 0.9, -3, 7, 1e308, math.nan, math.inf, -math.inf)
NO_VALUES: tuple[Any, ...] = (True, "0.1", None, [0.1], {"0.1": 0.1}, 10**400)
STRUCK = (
    "lower steps", "restarts", "direction recorded", "direction missing", "spared", "linked",
    "journal flip", "journal line", "journal emptied", "journal removed", "journal random",
)  # fmt: skip
UNREADABLE = (b"", b"\0" * 16, b'{"val:loss": 0.', b"[0.1]", b"null", b'\xff{"val:loss": 0.0}')


# --- the oracle: section 7 to the letter --------------------------------------------------------


def look(run: Path) -> dict[int, dict[str, Any]]:
    """Return training_info by step of everything that counts."""
    found = {}
    for name in os.listdir(run) if run.is_dir() else ():
        step = re.fullmatch("step_(0|[1-9][0-9]*)", name, re.ASCII)
        path = run / name
        if step is None or int(step[1]) >= 2**63 or not path.is_dir():
            continue
        try:
            info = json.loads((path / "training_info.json").read_bytes().decode())
        except (OSError, ValueError):
            continue
        if isinstance(info, dict):
            found[int(step[1])] = info
    return found


def linked(run: Path) -> set[int]:
    """Return the steps that stand behind a link: nobody deletes through one."""
    return {step for step in look(run) if (run / f"step_{step}").is_symlink()}


def value_of(info: dict[str, Any], metric: str | None) -> float | None:
    value = info.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # false for NaN too


def latest(live: dict[int, dict[str, Any]]) -> int | None:
    return max(live, default=None)


def best(live: dict[int, dict[str, Any]], metric: str | None, *, higher: bool) -> int | None:
    values = {step: value_of(info, metric) for step, info in live.items()}
    ranked = {step: value for step, value in values.items() if value is not None}
    if not ranked:
        return latest(live)
    top = max(ranked.values()) if higher else min(ranked.values())
    return max(step for step, value in ranked.items() if value == top)


def best_first(live: dict[int, dict[str, Any]], metric: str | None, *, higher: bool) -> list[int]:
    if metric is None:
        return sorted(live, reverse=True)
    values = {step: value_of(info, metric) for step, info in live.items()}
    ranked = {step: value for step, value in values.items() if value is not None}
    return sorted(ranked, key=lambda step: (-ranked[step] if higher else ranked[step], -step))


def uuid_of(path: Path) -> str | None:
    """Return the uuid that a checkpoint was saved with, as long as it is still at its step."""
    try:
        said = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return said["uuid"] if path.name == f"step_{said['step']}" else None


def recorded_in(run: Path) -> tuple[tuple[str, bool] | None, tuple[str | None, bool] | None]:
    """Return by what a run is judged, and by what it was at the last prune."""
    try:
        said = json.loads((run / ".ckptdb" / "run.json").read_bytes())
    except OSError:
        return None, None
    recorded, before = (
        None if one is None else (one["metric_name"], one["higher_is_better"])
        for one in (said, said.get("pruned_by"))
    )
    recorded = None if recorded is None or recorded[0] is None else recorded
    return recorded, before or recorded


def survivors(
    live: dict[int, dict[str, Any]],
    rules: "Rules",
    *,
    latest_too: bool,
    held: Iterable[int] = (),
) -> set[int]:
    if rules.keep_top_k is None and rules.ft_keep_latest_k is None:
        return set(live)
    newest = sorted(live, reverse=True)
    kept = set(newest[:1] if latest_too else ()) | set(newest[: rules.ft_keep_latest_k or 0])
    kept |= set(held) & set(live)
    periodic = [step for step in newest if step % rules.save_period == 0]
    if rules.keep_top_k is None:
        return kept | set(periodic)
    if rules.metric_name is not None:
        missing = math.inf

        def worth(step: int) -> float:
            value = value_of(live[step], rules.metric_name)
            if value is None:
                return missing
            return -value if rules.higher_is_better else value

        lacking = [s for s in periodic if value_of(live[s], rules.metric_name) is None]
        having = [s for s in periodic if s not in lacking]
        periodic = sorted(having, key=worth) + lacking  # stable: newest first among equals
    return kept | set(periodic[: rules.keep_top_k])


# --- a run, a manager, and somebody with a shell ------------------------------------------------


@dataclass
class Rules:
    """What a config says; the direction may be left to what the run has recorded."""

    metric_name: str | None = METRIC
    higher_is_better: bool = False
    save_period: int = 1
    keep_top_k: int | None = None
    ft_keep_latest_k: int | None = None
    says_direction: bool = True

    @classmethod
    def draw(cls, rng: random.Random) -> "Rules":
        return cls(
            rng.choice([METRIC, METRIC, METRIC, "other", None]),
            rng.random() < 0.5,
            rng.choice([1, 1, 2, 3, 5]),
            rng.choice([None, 0, 1, 1, 2, 3]),
            rng.choice([None, None, 0, 1, 2]),
            rng.random() < 0.7,
        )

    @property
    def keys(self) -> dict[str, Any]:
        """Return the keys of a config; what is as by default is left out."""
        limits = ("save_period", "keep_top_k", "ft_keep_latest_k")
        said = {name: getattr(self, name) for name in limits}
        said = {name: limit for name, limit in said.items() if limit != vars(Rules)[name]}
        if self.metric_name is not None:
            said["metric_name"] = self.metric_name
        if self.says_direction:
            said["higher_is_better"] = self.higher_is_better
        return said

    @property
    def metric(self) -> dict[str, Any]:
        names = ("metric_name", "higher_is_better", "says_direction")
        return {name: getattr(self, name) for name in names}

    @property
    def judged_by(self) -> tuple[str | None, bool]:
        return self.metric_name, self.metric_name is not None and self.higher_is_better


def draw_info(rng: random.Random) -> dict[str, Any]:
    kind = rng.random()
    if kind < 0.15:
        return {"other": rng.random()}
    if kind < 0.25:
        return {METRIC: rng.choice(NO_VALUES)}
    return {METRIC: rng.choice(VALUES), "other": rng.choice(VALUES)}


@dataclass
class World:
    """One run, its manager, and what happened; every method is one move of somebody."""

    top: Path
    rng: random.Random
    rules: Rules = field(default_factory=Rules)
    story: list[str] = field(default_factory=list)
    kept_aside: list[Path] = field(default_factory=list)
    masked: bool = False
    saved: str | None = None
    tally: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.run = self.top / self.rng.choice(RUNS)
        self.run.mkdir(parents=True)
        if self.rng.random() < 0.5:
            root_marker.mark_root(self.top, make_durable=False)
        self.start_afresh()

    def begin_history(self, *, may_restart: bool = True) -> None:
        """Start from other checkpoints, with other rules; the manager may be an old one."""
        self.story.append("---")
        if self.rng.random() < 0.3:
            shutil.rmtree(self.run, ignore_errors=True)  # the trash may be emptied meanwhile
            self.run.mkdir(exist_ok=True)
            self.lose_catalog()
            self.start_afresh()
        for path in self.run.glob("*step_*"):
            tree_removal.remove_tree(path)
        for _ in range(self.rng.randrange(6)):
            self.write_like_nemo()
        if not may_restart or self.rng.random() < 0.5:
            self.use(replace(Rules.draw(self.rng), **self.rules.metric))
        else:
            self.restart()

    def use(self, rules: Rules) -> None:
        """Let the manager have other limits, and the same metric."""
        self.rules = rules
        for name in ("save_period", "keep_top_k", "ft_keep_latest_k"):
            setattr(self.manager, name, getattr(rules, name))

    # ours

    def restart(self) -> None:
        """Train on with other keys."""
        self.manager.shutdown()
        self.rules = Rules.draw(self.rng)
        self.start_afresh()
        self.tally["restarts"] += 1

    def start_afresh(self) -> None:
        self.saved = None
        recorded, _ = recorded_in(self.run)
        knows = recorded is not None and recorded[0] == self.rules.metric_name
        if self.rules.metric_name is not None and not self.rules.says_direction:
            if knows:
                self.rules.higher_is_better = recorded[1]
                self.tally["direction recorded"] += 1
            else:
                with pytest.raises(InvalidConfig, match="higher_is_better is missing"):
                    self.make_manager()
                self.rules.says_direction = True
                self.tally["direction missing"] += 1
        self.make_manager()

    def make_manager(self) -> None:
        self.manager = CheckpointManager(
            {"checkpoint_dir": self.run, "durability": "none", **self.rules.keys}
        )

    def stage(self) -> Path | None:
        step, info = self.draw_step(), draw_info(self.rng)
        if (self.run / f"step_{step}").is_symlink():
            with pytest.raises(StepTaken, match="it is a link to"):
                self.manager.init_tmp_checkpoint(step, info)
            return None
        return self.manager.init_tmp_checkpoint(step, info)

    def save(self) -> None:
        if staged := self.stage():
            self.finalize(staged)

    def save_around_a_move(self) -> None:
        if staged := self.stage():
            self.by_hand()
            self.finalize(staged)

    def finalize(self, staged: Path) -> None:
        self.story.append(f"finalize {staged.name}")
        if staged.with_name(staged.name[4:]).is_symlink():
            with pytest.raises(StepTaken, match="it is a link to"):
                self.manager.finalize_checkpoint(staged)
            tree_removal.remove_tree(staged)
            return
        step, live = int(staged.name[9:]), look(self.run)
        self.tally["lower steps"] += step < max(live, default=0)
        live[step] = json.loads((staged / "training_info.json").read_text())
        expected = self.spare(live, held=[step])
        with quiet():
            self.manager.finalize_checkpoint(staged)
        self.saved = uuid_of(self.run / f"step_{step}")
        self.check_pruned(live, expected)

    def save_and_fail(self) -> None:
        step = self.draw_step()
        if (self.run / f"step_{step}").is_symlink():
            return
        with pytest.raises(ZeroDivisionError), self.manager.save(step, {METRIC: 0.0}):
            raise ZeroDivisionError

    def leave_unfinished(self) -> None:
        self.stage()

    def prune(self) -> None:
        latest_too = self.rng.random() < 0.7
        live = look(self.run)
        expected = self.find_expected(live, latest_too=latest_too)
        self.manager.remove_old_checkpoints(exclude_latest=latest_too)
        self.check_pruned(live, expected, latest_too=latest_too)

    def find_expected(self, live: dict[int, Any], *, latest_too: bool = True) -> set[int]:
        """Return what a prune leaves that comes by itself."""
        uuids = {step: uuid_of(self.run / f"step_{step}") for step in live}
        held = [s for s, uuid in uuids.items() if latest_too and uuid and uuid == self.saved]
        return self.spare(live, latest_too=latest_too, held=held)

    def spare(
        self, live: dict[int, Any], *, latest_too: bool = True, held: Iterable[int]
    ) -> set[int]:
        """Return what a prune leaves; the first by another metric, also what the old one keeps."""
        kept = survivors(live, self.rules, latest_too=latest_too, held=held) | linked(self.run)
        _, before = recorded_in(self.run)
        if before is None or before == self.rules.judged_by or kept == set(live):
            return kept
        self.tally["spared"] += 1
        old = replace(self.rules, metric_name=before[0], higher_is_better=before[1])
        return kept | survivors(live, old, latest_too=latest_too, held=held)

    def damage_journal(self) -> None:
        """Damage the journal; until it is reconciled nothing goes that rules do not let go."""
        file = self.run / ".ckptdb" / "journal.jsonl"
        if not file.exists() or file.stat().st_size == 0:
            self.save_and_fail()
        if not file.exists():
            return
        content = file.read_bytes()
        lines = content.splitlines(keepends=True)
        how = self.rng.choice(["flip", "line", "emptied", "removed", "random"])
        if how == "flip":
            place = self.rng.randrange(len(content))
            flipped = content[place] ^ (1 << self.rng.randrange(8))
            file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        elif how == "line":
            lines.pop(self.rng.randrange(len(lines)))
            file.write_bytes(b"".join(lines))
        elif how == "removed":
            file.unlink()
        else:
            file.write_bytes(b"" if how == "emptied" else self.rng.randbytes(300))
        self.story.append(f"journal: {how}")
        self.tally[f"journal {how}"] += 1
        self.check_questions()
        live = look(self.run)
        with suppress(CkptdbError):
            self.manager.remove_old_checkpoints()
        assert set(look(self.run)) >= self.find_expected(live), self.story
        with quiet(), Registry.open(self.run) as registry:
            registry.reconcile(self.run)
        self.check_questions()

    def lose_catalog(self) -> None:
        for folder in (self.run, self.top):
            (folder / ".ckptdb" / "catalog.db").unlink(missing_ok=True)

    def lose_all_of_ours(self) -> None:
        self.manager.shutdown()
        shutil.rmtree(self.run / ".ckptdb", ignore_errors=True)
        # Whoever still knows what no journal tells deletes nothing any more.
        self.lose_catalog()
        self.start_afresh()

    # by hand

    def draw_step(self) -> int:
        return self.rng.choice(STEPS)

    def find_one(self) -> Path | None:
        found = sorted(self.run.glob("step_*"))
        return self.rng.choice(found) if found else None

    def clear(self, step: int) -> Path:
        path = self.run / f"step_{step}"
        if os.path.lexists(path):
            tree_removal.remove_tree(path)
        return path

    def write_like_nemo(self, step: int | None = None) -> None:
        path = self.clear(self.draw_step() if step is None else step)
        path.mkdir()
        (path / "training_info.json").write_text(json.dumps(draw_info(self.rng)))
        (path / "config.yaml").write_text("lr: 0.1\n")

    def remove(self) -> None:
        if found := self.find_one():
            tree_removal.remove_tree(found)

    def recreate(self) -> None:
        if self.rng.random() < 0.9 and (live := sorted(look(self.run))):
            self.write_like_nemo(self.rng.choice(live))

    def rename(self) -> None:
        found, target = self.find_one(), self.run / f"step_{self.draw_step()}"
        if found and not os.path.lexists(target):
            found.rename(target)

    def swap(self) -> None:
        one, other = self.find_one(), self.find_one()
        if one and other and one != other:
            fsutil.exchange(one, other)

    def copy(self) -> None:
        found, step = self.find_one(), self.draw_step()
        if found and not found.is_symlink() and found.name != f"step_{step}":
            shutil.copytree(found, self.clear(step))

    def put_aside(self) -> None:
        if found := self.find_one():
            self.kept_aside.append(self.top / f"aside {len(self.story)}" / found.name)
            self.kept_aside[-1].parent.mkdir()
            found.rename(self.kept_aside[-1])

    def move_and_link(self) -> None:
        found = self.find_one()
        if found and found.is_dir() and not found.is_symlink():
            other = self.top / f"disk {len(self.story)}" / found.name
            other.parent.mkdir()
            found.rename(other)
            found.symlink_to(other)
            self.tally["linked"] += 1

    def bring_back(self) -> None:
        if self.kept_aside:
            found = self.kept_aside.pop()
            if os.path.lexists(self.run / found.name):
                tree_removal.remove_tree(self.run / found.name)
            found.rename(self.run / found.name)

    def break_one(self) -> None:
        path = self.clear(self.draw_step())
        path.mkdir()
        if self.rng.random() < 0.8:
            (path / "training_info.json").write_bytes(self.rng.choice(UNREADABLE))

    def clutter(self) -> None:
        name = self.rng.choice(["step_007", "step_1-hf", "step_١", "step_9223372036854775808"])
        if not os.path.lexists(self.run / name):
            (self.run / name).mkdir()
            (self.run / name / "training_info.json").write_text('{"val:loss": -9}')
        if not os.path.lexists(self.run / "step_77"):
            (self.run / "step_77").symlink_to(name)

    def by_hand(self, move: "Move | None" = None) -> None:
        before = self.run.stat()
        move = move or self.rng.choice(BY_HAND)
        self.story.append(f"by hand: {move.__name__}")
        move(self)
        young = before.st_mtime_ns > (time.time() - 1) * 1e9
        if young and self.rng.random() < 0.5:  # all of it within one tick of the clock
            os.utime(self.run, ns=(before.st_atime_ns, before.st_mtime_ns))
            self.masked = True

    def let_settle(self) -> None:
        """Make everything look old, each time another age."""
        age = self.rng.randrange(10**9, 10**12)
        for path in (*self.run.glob("step_*/*"), *self.run.glob("step_*"), self.run):
            found = path.lstat()
            if found.st_mtime_ns > 1.5e18 and not path.is_symlink():
                os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - age - 10**11))

    # judging

    def move(self) -> None:
        move = self.rng.choice(OURS) if self.rng.random() < 0.5 else World.by_hand
        self.story.append(move.__name__)
        move(self)
        if self.rng.random() < 0.25:
            self.story.append("settled")
            self.let_settle()

    def check_pruned(
        self, live: dict[int, Any], expected: set[int], *, latest_too: bool = True
    ) -> None:
        assert set(look(self.run)) >= expected, self.story
        if self.masked:
            # Nothing showed that more might have to go; it goes with the prune after a question.
            self.check_questions()
            expected = self.find_expected(look(self.run), latest_too=latest_too)
            self.manager.remove_old_checkpoints(exclude_latest=latest_too)
        assert set(look(self.run)) == expected, self.story
        self.tally["pruned"] += len(set(live) - expected)

    def check_questions(self) -> None:
        self.tally["questions"] += 1
        self.masked = False
        with quiet():
            answers = (
                self.manager.get_latest_checkpoint_path(),
                self.manager.get_best_checkpoint_path(),
            )
            top = self.manager.get_top_checkpoint_paths(3)
        live = look(self.run)
        expected = (
            latest(live),
            best(live, self.rules.metric_name, higher=self.rules.higher_is_better),
        )
        assert answers == tuple(
            None if step is None else str(self.run / f"step_{step}") for step in expected
        ), self.story
        ranking = best_first(live, self.rules.metric_name, higher=self.rules.higher_is_better)
        assert top == [str(self.run / f"step_{step}") for step in ranking[:3]], self.story


# What a trainer is told that ranks by what no checkpoint has, goes back, or has not looked.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:No checkpoint has ever had the metric"),
    pytest.mark.filterwarnings(r"ignore:Step \d+ is saved below"),
    pytest.mark.filterwarnings("ignore:.* of another process .*, and this one has not asked for"),
    pytest.mark.filterwarnings("ignore:Nothing is deleted in .* its journal"),
    pytest.mark.filterwarnings(r"ignore:Step \d+ is passed over .* it is a link to"),
    pytest.mark.filterwarnings("ignore:.* was judged by .* until now"),
    pytest.mark.filterwarnings("ignore:Step .* is passed over"),
]

Move = Callable[[World], None]
OURS: list[Move] = [
    World.save, World.save, World.save, World.save, World.save_around_a_move, World.save_and_fail,
    World.leave_unfinished, World.prune, World.prune, World.start_afresh, World.restart,
    World.restart, World.lose_catalog, World.lose_all_of_ours, World.damage_journal,
    World.damage_journal, World.damage_journal,
]  # fmt: skip
BY_HAND: list[Move] = [
    World.write_like_nemo, World.write_like_nemo, World.remove, World.recreate, World.recreate,
    World.rename, World.swap, World.copy, World.put_aside, World.bring_back, World.break_one,
    World.clutter, World.move_and_link,
]  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Let the sentences about missing metrics pass; any other warning is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Ignoring .* checkpoint|No checkpoints contain metric")
        yield


# --- histories ----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", range(SHARES))
def test_a_naive_scan_agrees_with_the_manager_after_any_history(tmp_path, share):
    told, tally = 0, Counter[str]()
    for book in range(math.ceil(HISTORIES / SHARES / CHAPTERS)):
        rng = random.Random(f"{share}.{book}")
        world = World(tmp_path / str(book), rng)
        for _ in range(CHAPTERS):
            world.begin_history()
            for _ in range(rng.randrange(1, 6)):
                world.move()
                if rng.random() < 0.25:
                    world.check_questions()
            world.check_questions()
            told += 1
        world.manager.shutdown()
        shutil.rmtree(world.top)
        tally += world.tally
    assert told * SHARES >= HISTORIES
    assert tally["questions"] > told
    assert [what for what in STRUCK if not tally[what]] == [], tally
    assert tally["pruned"] > told / 5, (
        "histories that never delete anything prove nothing about retention"
    )


# --- at every gap of our own operations ---------------------------------------------------------

GAPS = (
    *((fsutil, name) for name in (
        "fsync", "fsync_tree", "make_directories", "write_new", "write_json", "rename_new",
        "exchange",
    )),
    (tree_removal, "remove_tree"),
    (run_stamp, "find_stamp"),
    (checkpoint_identity, "find_uuid"),
    (read_checkpoint, "load"),
    (read_tmp, "load_tmp"),
    (observation, "observe"),
    *((journal, name) for name in ("append", "read")),
    (identity, "identify"),
    (manifest, "list_files"),
    (Catalog, "apply"),
)  # fmt: skip


@contextmanager
def struck_at(monkeypatch, world: World, gap: int, left: dict[int, Any]) -> Iterator[list[str]]:
    """Do something by hand just before the call with that number; tell where, and what was left."""
    calls = 0
    struck: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def before(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            # Whoever is in the middle of something else is not disturbed by himself.
            if threading.current_thread() is threading.main_thread() and not struck:
                calls += 1
                if calls > gap:
                    struck.append(name)
                    world.by_hand(BY_HAND[gap % len(BY_HAND)])
                    left.update(look(world.run))
            return original(*args, **kwargs)

        patch.setattr(owner, name, before)

    with monkeypatch.context() as patch:
        for owner, name in GAPS:
            wrap(owner, name)
        yield struck


def stage(world: World, _: Path) -> None:
    world.manager.init_tmp_checkpoint(50, {METRIC: 0.2})


def publish_afresh(world: World, staged: Path) -> None:
    uuid = json.loads((staged / ".writer.json").read_text())["uuid"]
    world.manager.finalize_checkpoint(staged)
    world.saved = uuid


def discard(world: World, staged: Path) -> None:
    world.manager._saver.discard(staged)


def ask(world: World, _: Path) -> None:
    world.manager.get_best_checkpoint_path()


def ask_anew(world: World, _: Path) -> None:
    world.start_afresh()
    world.manager.get_best_checkpoint_path()


def prune(world: World, _: Path) -> None:
    world.manager.remove_old_checkpoints()


OPERATIONS = {
    "stage": (stage, 60, 6),
    "publish": (publish_afresh, 60, 12),
    "replace": (publish_afresh, 3, 20),
    "discard": (discard, 60, 8),
    "ask": (ask, 60, 8),
    "ask anew": (ask_anew, 60, 8),
    "prune": (prune, 60, 20),
}


@pytest.mark.parametrize(("act", "step", "least"), OPERATIONS.values(), ids=OPERATIONS)
def test_a_change_by_hand_at_any_gap_of_ours_is_never_masked(
    tmp_path, monkeypatch, act, step, least
):
    gap = 0
    while True:
        if gap % 10 == 0:
            world = World(tmp_path / str(gap), random.Random(gap))
        world.begin_history(may_restart=False)
        world.use(Rules())
        for before in (1, 2, 5, 3):
            with world.manager.save(before, {METRIC: before / 10}):
                pass
        world.saved = uuid_of(world.run / "step_3")
        world.write_like_nemo(4)
        staged = world.manager.init_tmp_checkpoint(step, {METRIC: 0.15})
        world.check_questions()
        world.use(Rules(keep_top_k=1) if act is prune else Rules())
        kept = survivors(look(world.run), world.rules, latest_too=True)
        left: dict[int, Any] = {}

        with struck_at(monkeypatch, world, gap, left) as struck, quiet():
            try:
                act(world, staged)
            except (SaveFailed, NoCheckpointHere, StepTaken) as error:
                world.story.append(f"refused: {error}")
        world.story.append(f"{act.__name__}: gap {gap}, before {struck}")
        if not struck:
            break
        kept &= survivors(left, world.rules, latest_too=True)
        assert kept <= set(look(world.run)), world.story
        world.check_questions()
        with monkeypatch.context() as patch:
            patch.setattr(stamp, "SETTLE_SECONDS", -3600)  # as if an hour had passed
            world.check_questions()
        world.use(replace(Rules.draw(world.rng), **Rules().metric))
        world.prune()
        gap += 1
    world.manager.shutdown()
    assert gap >= least, "the sweep has to strike at every gap"

"""What people type: from anywhere, with names that mean one run, several or none."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from tests.support.misuse import reader
from tests.support.misuse.reader import MARK, Rules
from tests.support.misuse.training import draw_rules
from tests.support.misuse.world import (
    METRICS,
    Went,
    World,
    standing_in,
)

from ckptdb import Registry
from ckptdb.cli.main import cli
from ckptdb.errors import CkptdbError

ABOUT_A_RUN = {"best", "latest", "top", "show", "plot"}
QUESTIONS: tuple[tuple[str, ...], ...] = (
    ("ls",), ("ls", "--all"), ("best",), ("best", "--ever"), ("latest",), ("top", "2"),
    ("show", "5"), ("check",), ("sql", "SELECT run, step FROM leaderboard"), ("db", "path"),
    ("db", "status"), ("gc", "--dry-run"), ("gc", "--replay", "--keep", "latest 1"), ("schema",),
    ("best", "--metric", "acc", "--mode", "max"),
)  # fmt: skip


def say(world: World, *arguments: object, here: Path) -> tuple[int, str]:
    """Run a command line in this process; return its exit code and what it printed."""
    given = [str(argument) for argument in arguments]
    with standing_in(here, world.top):
        done = CliRunner().invoke(cli, given)
    error = done.exception
    assert error is None or isinstance(error, CkptdbError | SystemExit), f"{given}: {error!r}"
    code = 1 if isinstance(error, CkptdbError) else done.exit_code
    _note(world, given, here, code, str(error or done.output))
    return code, done.output


def say_in_a_process(world: World, *arguments: object, here: Path) -> tuple[int, str]:
    """Run a command line in a process of its own."""
    given = [str(argument) for argument in arguments]
    command = [sys.executable, "-m", "ckptdb", *given]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    _note(world, given, here, done.returncode, done.stderr or done.stdout)
    world.tally["real processes"] += 1
    return done.returncode, done.stdout


def _note(world: World, given: list[str], here: Path, code: int, told: str) -> None:
    told = told.strip().replace("\n", " / ")[:300]
    world.story.append(f"  {here.relative_to(world.top)}$ ckptdb {' '.join(given)}: {code}, {told}")
    if code:
        world.tally[f"refused: {given[0]}"] += 1


# --- where somebody stands, and whom he names -------------------------------------------


def where(world: World, rng: random.Random) -> Path:
    """Return where somebody stands."""
    present = world.present()
    places = [world.root.parent, world.root, world.root, *present, *(run.parent for run in present)]
    if found := world.pick(rng):
        places.append(found.path)
    return rng.choice(places)


def call(world: World, rng: random.Random) -> str:
    """Return what somebody calls a run: seldom what none is called."""
    run = rng.choice(world.runs)
    names = [run.name, str(run), str(run.relative_to(world.root)), "nobody", ""]
    return rng.choice(names if rng.random() < 0.1 else names[:3])


def find_meant(
    world: World, here: Path, named: str | None, *, all_runs: bool = False
) -> list[Path]:
    """Return the runs that a command is about; more than one only when all are to be.

    A name is that of one run or refused; of several the one below is meant. Without one it is about
    the run that one stands in, or else about those below.
    """
    known = reader.find_runs(world.root)
    if named is not None:
        at = {Path(os.path.abspath(base / named)) for base in (here, world.root)}
        found = [run for run in known if run in at] or [r for r in known if r.name == named]
        below = [run for run in found if here in (run, *run.parents)]
        return next((some for some in (found, below) if len(some) == 1), [])
    if around := [folder for folder in (here, *here.parents) if folder in known]:
        return around[:1]
    below = [run for run in known if here in run.parents]
    return below if len(below) == 1 or all_runs else []


# --- deleting ---------------------------------------------------------------------------


def gc(world: World, rng: random.Random) -> Went:
    here = where(world, rng)
    named = call(world, rng) if rng.random() < 0.6 else None
    all_runs = named is None and rng.random() < 0.4
    arguments, rules, judged_by = _draw_limits(rng)
    waits, empties, dry = (rng.random() < chance for chance in (0.2, 0.1, 0.2))
    arguments += [] if named is None else ["--run", named]
    arguments += ["--all-runs", "--yes"] if all_runs else []
    arguments += ["--empty-trash"] if empties else []
    arguments += ["--trash-ttl", "1 hours"] if waits else []
    plans: list[str] = []
    if dry:
        say(world, *arguments, "--dry-run", here=here)
        return Went(moves_nothing=True)
    if empties:
        world.said.promised &= world.said.marks("pin") | world.said.leased
    elif rng.random() < 0.3:
        code, out = say(world, *arguments, "--dry-run", "-o", "json", here=here)
        plans = [one["plan"] for one in json.loads(out)] if code == 0 else []
        arguments += [word for plan in plans for word in ("--plan", plan)]
    allowed: set[str] = set()
    for run in find_meant(world, here, named, all_runs=all_runs or len(plans) > 1):
        metric, higher = judged_by or reader.recorded_metric(run)
        allowed |= world.may_prune(run, replace(rules, metric=metric, higher=higher))
        allowed |= world.unfinished_at(run)
    run_it = say_in_a_process if rng.random() < 0.01 else say
    code, _ = run_it(world, *arguments, here=here)
    world.tally["gc that worked"] += code == 0
    return Went(allowed, waits)


def _draw_limits(rng: random.Random) -> tuple[list[str], Rules, tuple[str, bool] | None]:
    """Return the options of gc, what they say, and the metric that they name."""
    arguments, judged_by = ["gc"], None
    if rng.random() < 0.2:
        return arguments, Rules(), None
    keys, rules = draw_rules(rng)
    if rules.keep_top_k is not None:
        arguments += ["--keep-top-k", str(rules.keep_top_k)]
        if rules.metric is not None and rules.higher is not None:
            judged_by = rules.metric, rules.higher
            arguments += ["--metric", rules.metric, "--mode", "max" if rules.higher else "min"]
    if rules.ft_keep_latest_k is not None:
        arguments += ["--keep-latest", str(rules.ft_keep_latest_k)]
        if rules.keep_top_k is None and "save_period" not in keys:
            rules = replace(rules, keep_top_k=0)  # alone it keeps only these
    if "save_period" in keys and len(arguments) > 1:
        arguments += ["--save-period", str(rules.save_period)]
    for rule in rules.keep:
        arguments += ["--keep", rule]
    return arguments, rules, judged_by


def rm(world: World, rng: random.Random) -> Went:
    here, named = where(world, rng), call(world, rng) if rng.random() < 0.7 else None
    meant = find_meant(world, here, named)
    there = [one.step for run in meant for one in world.published_in(run)]
    steps = rng.sample(there, min(len(there), rng.randrange(3))) + rng.choice([[], [], [77], [5]])
    steps = list(dict.fromkeys(steps)) or [5]
    force, dry, waits = (rng.random() < chance for chance in (0.3, 0.15, 0.3))
    options = [*(["--force"] if force else []), *(["--dry-run"] if dry else [])]
    options += ["--trash-ttl", "1 hours"] if waits else []
    options += [] if named is None else ["--run", named]
    allowed: set[str] = set()
    for run in meant if not dry else ():
        allowed |= _may_remove(world, run, steps, force=force)
    code, _ = say(world, "rm", *steps, *options, here=here)
    if code != 0:
        return Went(waits=waits)  # all or none
    if allowed:
        world.tally["rm that worked"] += 1
        if force:
            world.unsay(allowed, "pin")
            world.said.leased -= allowed
    return Went(allowed, waits)


def _may_remove(world: World, run: Path, steps: list[int], *, force: bool) -> set[str]:
    if run in world.said.doubted:
        return set()
    allowed: set[str] = set()
    protected = set() if force else world.said.marks("pin") | world.said.leased
    for seen, _ in world.readings(run):
        chosen = {one.mark: one.step for one in seen if one.step in steps}
        if set(chosen.values()) == set(steps) and not protected & set(chosen):
            allowed |= set(chosen)
    return allowed


def undelete(world: World, rng: random.Random) -> Went:
    waiting = [one for one in reader.look(world.root).values() if one.place == "trash"]
    if not waiting:
        return Went()
    one = rng.choice(sorted(waiting, key=lambda one: one.path))
    code, _ = say(world, "undelete", one.step, "--run", one.run, here=world.root)
    if code == 0:
        world.tally["undeleted"] += 1
        back = {other.mark for other in world.published_in(one.run)}
        world.said.promised -= back
        world.history = {key: mark for key, mark in world.history.items() if mark not in back}
    return Went()


# --- tending ----------------------------------------------------------------------------


def reconcile(world: World, rng: random.Random) -> Went:
    present = world.present()
    place = rng.choice([world.root, world.root, *present])
    depth = ["--full"] if rng.random() < 0.3 else []
    dry = ["--dry-run"] if rng.random() < 0.2 else []
    code, _ = say(world, "reconcile", place, *depth, *dry, here=world.top)
    if not dry and code in (0, 3):
        touched = [run for run in present if place in (run, *run.parents)]
        seen = [one for run in touched for one in world.seen_in(run)]
        here = {one.mark for one in seen}
        world.said.doubted -= set(touched)
        world.unrecorded = {fact for fact in world.unrecorded if fact.mark not in here}
        if depth:
            # Without a manifest nobody can tell, as long as it can be read.
            told = {one.mark for one in seen if one.info is None or one.manifest is not None}
            world.said.damaged |= told & set(world.hurt)
    return Went(moves_nothing=bool(dry))


def verify(world: World, rng: random.Random) -> Went:
    say(world, "verify", here=rng.choice([world.root, *world.present()]))
    return Went()


def init(world: World, rng: random.Random) -> Went:
    del rng
    say(world, "init", world.root, here=world.top)
    return Went()


def ask(world: World, rng: random.Random) -> Went:
    for words in rng.sample(QUESTIONS, 4):
        about = ["--run", call(world, rng)] if words[0] in ABOUT_A_RUN else []
        say(world, *words, *about[: 2 * rng.randrange(2)], here=where(world, rng))
    return Went(moves_nothing=True)


def annotate(world: World, rng: random.Random) -> Went:
    """Pin, tag, reject, report late, and take it back."""
    here, named = where(world, rng), call(world, rng) if rng.random() < 0.8 else None
    meant = find_meant(world, here, named)
    there = [one.step for run in meant for one in world.published_in(run)]
    step, value = rng.choice([*there, *there, 77]), rng.choice([0.05, 0.5, 8.0])
    verb = rng.choice(["pin", "pin", "unpin", "tag", "untag", "reject", "unreject", "log"])
    metric = rng.choice(METRICS)
    words = {"tag": ["good"], "untag": ["good"], "reject": ["bad"], "log": [f"{metric}={value}"]}
    about = [] if named is None else ["--run", named]
    code, _ = say(world, verb, step, *words.get(verb, []), *about, here=here)
    if code:
        return Went()
    assert len(meant) == 1, f"{verb} was done, and nobody can tell which run was meant"
    world.tally["annotated"] += 1
    kind = {"reject": "rejected", "unreject": "rejected", "log": "metric"}.get(verb)
    kind = kind or verb.removeprefix("un")
    name = {"tag": "good", "metric": metric}.get(kind)
    at = [one for one in world.seen_in(meant[0]) if one.step == step]
    published = [one for one in at if one.place in ("published", "linked")]
    if verb.startswith("un"):
        world.unsay({one.mark for one in published or at}, kind, name)
    elif published:
        late = value if kind == "metric" else None
        world.say_of(published[0].mark, kind, name, late)
    return Went()


def evaluate(world: World, rng: random.Random) -> Went:
    """Begin to evaluate a checkpoint under a lease, or end it."""
    present = world.present()
    if world.leases and rng.random() < 0.5:
        registry, watching, mark = world.leases.pop(rng.randrange(len(world.leases)))
        watching.close()
        registry.close()
        world.said.leased.discard(mark)
        return Went()
    registry = Registry.open(rng.choice(present or [world.root]))
    found: Any = None
    try:
        watching = registry.watch(lease=world.new_mark(), poll_seconds=None)
        found = next(iter(watching), None)
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
    if found is None:
        registry.close()
        return Went()
    mark = _mark_of(found.path)
    world.leases.append((registry, watching, mark))
    world.said.leased.add(mark)
    world.story.append(f"  leased {found.path.relative_to(world.root)}: {mark}")
    world.tally["leased"] += 1
    return Went()


def _mark_of(path: Path) -> str:
    return (path / MARK).read_text()

"""What training loops do: save, in any order and with any keys, resume, prune, die."""

import json
import os
import random
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.misuse import reader
from tests.support.misuse.reader import (
    MARK,
    Judged,
    Rules,
    Seen,
)
from tests.support.misuse.world import (
    METRICS,
    RULES,
    STEPS,
    VALUES,
    Trainer,
    Went,
    World,
    standing_in,
)

from ckptdb.disk import fsutil
from ckptdb.errors import CkptdbError
from ckptdb.manager import CheckpointManager


def draw_info(rng: random.Random) -> dict[str, Any]:
    return {name: rng.choice(VALUES) for name in METRICS if rng.random() < 0.8}


def draw_rules(rng: random.Random) -> tuple[dict[str, Any], Rules]:
    """Return keys of a config, some of them absent, and what they say."""
    keys: dict[str, Any] = {}
    if rng.random() < 0.8:
        keys["metric_name"] = rng.choice(METRICS)
        if rng.random() < 0.8:
            keys["higher_is_better"] = rng.random() < 0.5
    limits = {
        "save_period": (1, 2, 3),
        "keep_top_k": (0, 1, 2, 3),
        "ft_keep_latest_k": (0, 1, 2),
    }
    for name, values in limits.items():
        if rng.random() < 0.5:
            keys[name] = rng.choice(values)
    if rng.random() < 0.4:
        keys["keep"] = rng.sample(RULES, rng.randrange(1, 3))
    return keys, Rules(
        keys.get("metric_name"),
        keys.get("higher_is_better"),
        keys.get("save_period", 1),
        keys.get("keep_top_k"),
        keys.get("ft_keep_latest_k"),
        tuple(keys.get("keep", ())),
    )


def find_trainer(world: World, rng: random.Random, run: Path) -> Trainer | None:
    """Return who trains a run: as before, or started again with other keys; None when refused."""
    if run in world.moved:
        return None
    if run in world.trainers and rng.random() < 0.7:
        return world.trainers[run]
    world.end_training(run)
    keys, rules = draw_rules(rng)
    has_ttl = rng.random() < 0.2
    recorded = reader.recorded_metric(run)
    if rules.metric is not None and rules.higher is None:
        rules = replace(rules, higher=recorded[1] if recorded[0] == rules.metric else None)
    config = {"checkpoint_dir": run, "durability": "none", "check_space": False, **keys}
    if has_ttl:
        config["trash_ttl"] = "1 hours"
    home = world.top
    if rng.random() < 0.3 and run.parent.is_dir():
        home, config["checkpoint_dir"] = run.parent, run.name  # which chdir must not move
    world.story.append(f"  trained with {keys}")
    try:
        with standing_in(home, world.top):
            manager = CheckpointManager(config)
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
        world.tally["refused: config"] += 1
        return None
    assert rules.metric is None or rules.higher is not None, "the direction was guessed"
    world.trainers[run] = Trainer(manager, rules, has_ttl)
    return world.trainers[run]


def find_judged_before(world: World, run: Path, rules: Rules) -> Judged | None:
    """Return by what a run was judged until now, when that is something else."""
    now = (rules.metric, rules.higher if rules.metric else None)
    recorded = reader.recorded_metric(run)
    if recorded[0] is not None:
        world.judged.setdefault(run, recorded)
    before = world.judged.get(run, now)
    return None if before == now or not rules.ranks else before


def may_prune(
    world: World, run: Path, trainer: Trainer, *, new: Seen | None = None, latest_stays: bool = True
) -> set[str]:
    """Return the marks of what a prune may take: the first by another metric spares the rest."""
    rules, old = trainer.rules, find_judged_before(world, run, trainer.rules)
    held = trainer.loaded | ({new.mark} if new else set())
    if old is None:
        return world.may_prune(run, rules, held=held, new=new, latest_stays=latest_stays)
    by_now = world.may_prune(
        run, rules, held=held, new=new, latest_stays=latest_stays, trusted=True
    )
    if by_now:
        world.judged[run] = (rules.metric, rules.higher if rules.metric else None)
        world.tally["first prunes after a change"] += 1
    return world.may_prune(run, rules, held=held, new=new, latest_stays=latest_stays, old=old)


def draw_new(world: World, rng: random.Random, run: Path, trainer: Trainer) -> Seen:
    """Return what is to be saved: on what was loaded, where that is the first or goes back."""
    step, info, mark = rng.choice(STEPS), draw_info(rng), world.new_mark()
    info = json.loads(json.dumps(info))
    world.story.append(f"  save {step} {info} in {run.relative_to(world.root)}: {mark}")
    goes_back = trainer.last_step is None or step <= trainer.last_step
    if goes_back and trainer.looked_at is not None:
        trainer.loaded = {trainer.looked_at}
    trainer.looked_at, trainer.last_step = None, step
    return Seen(mark, run / f"step_{step}", "published", run, step, info, {})


def may_go_when_saved(world: World, trainer: Trainer, new: Seen) -> set[str]:
    run = new.run
    allowed = may_prune(world, run, trainer, new=new)
    allowed |= {one.mark for one in world.published_in(run) if one.step == new.step}
    return allowed | world.unfinished_at(run, new.step)


def after_save(world: World, trainer: Trainer, new: Seen) -> None:
    world.wait()
    published = {one.mark for one in world.published_in(new.run)}
    assert new.mark in published, f"{new.path} was just saved, and is not there"
    after_prune(world, trainer)


def after_prune(world: World, trainer: Trainer) -> None:
    world.tally["prunes"] += trainer.rules.has_limit


def save(world: World, rng: random.Random, *, background: bool = False) -> Went:
    run = rng.choice(world.runs)
    trainer = find_trainer(world, rng, run)
    if trainer is None:
        return Went()
    new = draw_new(world, rng, run, trainer)
    allowed = may_go_when_saved(world, trainer, new)
    try:
        folder = trainer.manager.init_tmp_checkpoint(new.step, new.info or {})
        (folder / MARK).write_text(new.mark)
        if background:
            trainer.manager.begin_finalization(folder)
            trainer.manager.finalize_pending()
        else:
            trainer.manager.finalize_checkpoint(folder)
    except (CkptdbError, RuntimeError) as error:
        world.story.append(f"  refused: {error.__cause__ or error}")
        world.tally["refused: save"] += 1
        return Went(allowed, trainer.has_ttl)
    after_save(world, trainer, new)
    return Went(allowed, trainer.has_ttl)


def save_in_the_background(world: World, rng: random.Random) -> Went:
    return save(world, rng, background=True)


def save_and_fail(world: World, rng: random.Random) -> Went:
    run = rng.choice(world.runs)
    trainer = find_trainer(world, rng, run)
    if trainer is None:
        return Went()
    step = rng.choice(STEPS)
    allowed = world.unfinished_at(run, step)
    with suppress(ZeroDivisionError, CkptdbError), trainer.manager.save(step, {}):
        raise ZeroDivisionError
    return Went(allowed)


def begin_a_save(world: World, rng: random.Random) -> Went:
    """Begin what is finished later, whatever others do meanwhile."""
    run = rng.choice(world.runs)
    trainer = find_trainer(world, rng, run)
    if trainer is None or trainer.staged:
        return Went()
    new = draw_new(world, rng, run, trainer)
    allowed = world.unfinished_at(run, new.step)
    try:
        folder = trainer.manager.init_tmp_checkpoint(new.step, new.info or {})
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
        return Went(allowed)
    (folder / MARK).write_text(new.mark)
    trainer.staged.append((folder, new))
    return Went(allowed)


def finish_a_save(world: World, rng: random.Random) -> Went:
    trainers = [one for one in world.trainers.values() if one.staged]
    if not trainers:
        return Went()
    trainer = rng.choice(trainers)
    folder, new = trainer.staged.pop()
    allowed = may_go_when_saved(world, trainer, new)
    try:
        trainer.manager.finalize_checkpoint(folder)
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
        return Went(allowed, trainer.has_ttl)
    after_save(world, trainer, new)
    world.tally["finished later"] += 1
    return Went(allowed, trainer.has_ttl)


def prune(world: World, rng: random.Random) -> Went:
    run = rng.choice(world.runs)
    if run not in world.trainers or run in world.moved:
        return Went()
    trainer, latest_stays = world.trainers[run], rng.random() < 0.7
    allowed = may_prune(world, run, trainer, latest_stays=latest_stays)
    try:
        if rng.random() < 0.5:
            trainer.manager.remove_old_checkpoints(exclude_latest=latest_stays)
        else:
            planned = trainer.manager.plan_retention(exclude_latest=latest_stays)
            trainer.manager.apply_retention(planned)
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
        world.tally["refused: prune"] += 1
    after_prune(world, trainer)
    return Went(allowed, trainer.has_ttl)


def resume(world: World, rng: random.Random) -> Went:
    run = rng.choice(world.runs)
    trainer = find_trainer(world, rng, run)
    if trainer is None:
        return Went()
    try:
        found = trainer.manager.resume()
        if found is not None and rng.random() < 0.3:
            mark = (found.path / MARK).read_text()
            found = trainer.manager.reject(found, "a test")
            world.say_of(mark, "rejected")
            world.tally["rejected"] += 1
    except CkptdbError as error:
        world.story.append(f"  refused: {error}")
        return Went()
    trainer.loaded = set()
    if found is not None:
        mark = (found.path / MARK).read_text()
        trainer.loaded = {mark}
        world.said.continued.setdefault(run, []).append(mark)
        world.story.append(f"  resumed from {found.step}: {mark}")
        world.tally["resumed"] += 1
    return Went()


def load_by_hand(world: World, rng: random.Random) -> Went:
    """As loops written for NeMo-RL continue."""
    run = rng.choice(world.runs)
    trainer = find_trainer(world, rng, run)
    if trainer is None:
        return Went()
    found = [one for one in world.published_in(run) if one.info is not None]
    if found and rng.random() < 0.5:
        path = str(rng.choice(sorted(found, key=lambda one: one.step)).path)
    else:
        path = trainer.manager.get_latest_checkpoint_path() or ""
        path = str(run / Path(path).name) if path else ""
    if path and not os.path.islink(path):
        mark = Path(path, MARK).read_text()
        if rng.random() < 0.5:
            trainer.manager.load_training_info(path)
            trainer.looked_at = mark
        else:
            trainer.manager.get_resume_paths(path)
            trainer.loaded = {mark}
        world.story.append(f"  loaded {path}")
    return Went()


def ask_a_trainer(world: World, rng: random.Random) -> Went:
    run = rng.choice(world.runs)
    if run in world.trainers and run not in world.moved:
        manager = world.trainers[run].manager
        manager.get_best_checkpoint_path()
        manager.get_latest_checkpoint_path()
        manager.get_top_checkpoint_paths(2)
        manager.plan_retention()
    return Went(moves_nothing=True)


def another_process_saves(world: World, rng: random.Random) -> Went:
    """It is killed in the middle, or behind the manifest, or does nothing but save."""
    run = rng.choice(world.runs)
    if run in world.moved:
        return Went()
    world.end_training(run)
    how = rng.choice(["incomplete", "complete", "whole"])
    step, info, mark = rng.choice(STEPS), draw_info(rng), world.new_mark()
    allowed = world.unfinished_at(run, step)
    if how == "whole":
        allowed |= {one.mark for one in world.published_in(run) if one.step == step}
    where = run.relative_to(world.root)
    world.story.append(f"  another process: {how} save of {step} {info} in {where}: {mark}")
    child = os.fork()
    if child == 0:
        try:
            _save_and_die(run, step, info, mark, how)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    world.tally[f"another process: {how}"] += 1
    if os.WIFSIGNALED(status):
        world.dead.add(mark)
    return Went(allowed)


def _save_and_die(run: Path, step: int, info: dict[str, Any], mark: str, how: str) -> None:
    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    manager = CheckpointManager({"checkpoint_dir": run, "durability": "none"})
    folder = manager.init_tmp_checkpoint(step, info)
    (folder / MARK).write_text(mark)
    if how == "incomplete":
        die()
    if how == "complete":
        fsutil.rename_new = die
        fsutil.exchange = die
    manager.finalize_checkpoint(folder)
    manager.shutdown()

"""Stories: what people do, one after the other; the shortest one that ends as nobody meant."""

import os
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.support.misuse import (
    by_hand,
    commands,
    reader,
    training,
)
from tests.support.misuse.world import (
    Went,
    World,
    quiet,
    remove,
)

ACTS = 30
OFTEN: dict[Callable[[World, random.Random], Went | None], int] = {
    training.save: 10,
    training.save_in_the_background: 3,
    training.save_and_fail: 1,
    training.begin_a_save: 1,
    training.finish_a_save: 2,
    training.prune: 3,
    training.resume: 2,
    training.load_by_hand: 2,
    training.ask_a_trainer: 1,
    training.another_process_saves: 2,
    commands.gc: 6,
    commands.rm: 3,
    commands.undelete: 2,
    commands.reconcile: 2,
    commands.verify: 1,
    commands.ask: 2,
    commands.annotate: 4,
    commands.evaluate: 1,
    by_hand.write: 3,
    by_hand.hurt: 1,
    by_hand.bare: 1,
    by_hand.link: 1,
    by_hand.remove: 1,
    by_hand.copy: 1,
    by_hand.move_run: 1,
    by_hand.damage_journal: 1,
    by_hand.lose_catalog: 1,
}
BY_NAME = {f"{act.__module__}.{act.__name__}": act for act in (*OFTEN, commands.init)}

Script = list[tuple[str, str]]
"""Acts by name, each with a seed of its own, so that any of them can be left out."""


def write_script(seed: str) -> Script:
    rng = random.Random(seed)
    acts = [commands.init] if rng.random() < 0.7 else []
    acts += [training.save] * 4 + [by_hand.write] + rng.choices(list(OFTEN), OFTEN.values(), k=ACTS)
    return [(f"{act.__module__}.{act.__name__}", f"{seed}.{i}") for i, act in enumerate(acts)]


def tell(top: Path, seed: str, script: Script, tally: Counter[str]) -> tuple[str, list[str]] | None:
    """Let a story happen; return what nobody meant, with the story, or None."""
    remove(top)
    top.mkdir(parents=True)
    world = World(top / "world", seed, tally)
    try:
        for name, own_seed in script:
            let_happen(world, name, own_seed)
        with quiet():
            world.check_history()
    except AssertionError as error:
        return str(error).partition("\n")[0], world.story
    finally:
        with quiet():
            world.close()
        os.chdir(top.parent)
    return None


def let_happen(world: World, name: str, seed: str) -> None:
    """Let somebody do something, and judge it."""
    act, rng = BY_NAME[name], random.Random(seed)
    world.story.append(name)
    world.tally[name] += 1
    before, journals, there = reader.look(world.top), world.journals(), world.present()
    with quiet():
        went = act(world, rng)
        world.wait()
        if went is None:
            return
        world.judge(before, journals, went)
        if act.__module__ != training.__name__:
            assert world.present() == there, f"{name} has made a directory"
        if act is commands.reconcile:
            world.check_history()


def shorten(script: Script, fails: Callable[[Script], bool]) -> Script:
    """Return a story of which nothing can be left out."""
    size = len(script) // 2
    while size:
        place = 0
        while place < len(script):
            shorter = script[:place] + script[place + size :]
            if fails(shorter):
                script = shorter
            else:
                place += size
        size //= 2
    return script


def find_fault(top: Path, number: int, tally: Counter[str]) -> str | None:
    """Tell a story; when nobody meant its end, return the shortest one that ends like it."""
    seed, script = f"world {number}", write_script(f"story {number}")
    found = tell(top, seed, script, tally)
    if found is None:
        return None
    script = shorten(script, lambda shorter: tell(top, seed, shorter, Counter()) is not None)
    what, story = tell(top, seed, script, Counter()) or found
    again = f"stories.tell(Path('/tmp/again'), {seed!r}, {script!r}, Counter())"
    return "\n".join([what, *story, again])

"""What happens behind ckptdb's back: people with a shell, disks, and their damage."""

import json
import os
import random
import shutil
from pathlib import Path

from tests.support.misuse import reader
from tests.support.misuse.reader import MARK, Fact
from tests.support.misuse.training import draw_info
from tests.support.misuse.world import STEPS, World


def write(world: World, rng: random.Random) -> None:
    """As NeMo-RL does; or somebody's own folder, without training_info.json."""
    run = rng.choice(world.runs)
    path = run / f"step_{rng.choice(STEPS)}"
    if run in world.moved or os.path.lexists(path):
        return
    path.mkdir(parents=True)
    mark = world.new_mark()
    (path / MARK).write_text(mark)
    if rng.random() < 0.7:
        (path / "training_info.json").write_text(json.dumps(draw_info(rng)))
    world.story.append(f"  {path.relative_to(world.root)}: {mark}")


def hurt(world: World, rng: random.Random) -> None:
    """Damage a checkpoint in its place, which nobody notices who does not compare the files."""
    if found := world.pick(rng):
        content = rng.choice([b"", b"[1]", b"\xff{}", b"{}" + b" " * 500])
        (found.path / "training_info.json").write_bytes(content)
        world.hurt.setdefault(found.mark, found.info)
        world.story.append(f"  hurt {found.path.relative_to(world.root)}")


def bare(world: World, rng: random.Random) -> None:
    """Put another directory in the place of a checkpoint, with metadata that nobody can read."""
    if found := world.pick(rng):
        shutil.rmtree(found.path)
        found.path.mkdir()
        (found.path / MARK).write_text(world.new_mark())
        content = rng.choice([None, b"", b"[1]", b"\xff{}"])
        if content is not None:
            (found.path / "training_info.json").write_bytes(content)
        world.story.append(f"  {found.path.relative_to(world.root)} is another one, {content!r}")


def link(world: World, rng: random.Random) -> None:
    """Move a step to another disk and link it, as people do when one is full."""
    if found := world.pick(rng):
        target = world.aside / found.mark / found.path.name
        target.parent.mkdir()
        found.path.rename(target)
        found.path.symlink_to(target, target_is_directory=True)
        world.story.append(f"  linked {found.path.relative_to(world.root)}")
        world.tally["linked"] += 1


def remove(world: World, rng: random.Random) -> None:
    if found := world.pick(rng):
        shutil.rmtree(found.path)
        world.story.append(f"  removed {found.path.relative_to(world.root)}")


def copy(world: World, rng: random.Random) -> None:
    found, step = world.pick(rng), rng.choice(STEPS)
    if found and not os.path.lexists(found.run / f"step_{step}"):
        mark = world.new_mark()
        made = Path(shutil.copytree(found.path, found.run / f"step_{step}"))
        (made / MARK).write_text(mark)
        where = found.path.relative_to(world.root)
        world.story.append(f"  copied {where} to {made.name}: {mark}")


def move_run(world: World, rng: random.Random) -> None:
    """Move a run away, or back; or remove it, so that another one may begin in its place."""
    run = rng.choice(world.runs)
    where = run.relative_to(world.root)
    if run in world.moved:
        if not run.exists() and run.parent.is_dir():
            world.moved.pop(run).rename(run)
            world.story.append(f"  {where} is back")
        return
    if not run.is_dir() or any(run in other.parents for other in world.runs):
        return
    world.end_training(run)
    if rng.random() < 0.5:
        world.moved[run] = world.top / f"away {world.new_mark()}" / run.name
        world.moved[run].parent.mkdir()
        run.rename(world.moved[run])
        world.story.append(f"  {where} is moved away")
        return
    shutil.rmtree(run)
    world.said.doubted.discard(run)
    world.said.continued.pop(run, None)
    world.judged.pop(run, None)
    world.history = {key: mark for key, mark in world.history.items() if key[0] != run}
    world.story.append(f"  {where} is removed")


# --- damage -----------------------------------------------------------------------------


def damage_journal(world: World, rng: random.Random) -> None:
    """A flipped byte, a line less, nothing left, no file, or what nobody can read."""
    runs = [run for run in world.present() if any(reader.journal_lines(run))]
    # A catalog of the run's own is not asked by who stands above it.
    if not runs or not (world.root / ".ckptdb" / "root.json").exists():
        return
    run = rng.choice(runs)
    file = run / ".ckptdb" / "journal.jsonl"
    content = file.read_bytes()
    how = rng.choice(["flip", "line", "emptied", "removed", "random"])
    if how == "flip":
        place = rng.choice([place for place, byte in enumerate(content) if byte != ord("\n")])
        bits = [bit for bit in range(8) if content[place] ^ (1 << bit) != ord("\n")]
        flipped = content[place] ^ (1 << rng.choice(bits))
        file.write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
    elif how == "line":
        lines = content.splitlines(keepends=True)
        del lines[rng.randrange(len(lines))]
        file.write_bytes(b"".join(lines))
    elif how == "removed":
        file.unlink()
    else:
        file.write_bytes(b"" if how == "emptied" else rng.randbytes(rng.randrange(1, 500)))
    world.story.append(f"  journal of {run.relative_to(world.root)}: {how}")
    world.tally[f"journal: {how}"] += 1
    before, left = set(content.split(b"\n")), set(reader.journal_lines(run))
    world.garbage |= left - before
    if how in ("flip", "random"):
        world.said.doubted.add(run)
    _forget(world, run, reader.facts_of(before - left))


def _forget(world: World, run: Path, lost: list[dict]) -> None:
    """What only lost lines have said nobody can know; where the catalog knows it, they disagree."""
    catalog, left = world.catalog_of(run), world.told_in(run)
    for told in lost:
        kind, uuid, name = told["fact"], told["uuid"], told.get("name")
        if kind in reader.ENDS and (run, uuid) in world.history:
            if catalog.knows("gone", uuid):
                world.said.doubted.add(run)
            else:
                del world.history[run, uuid]
        if kind == "resumed" and run in world.said.continued:
            if catalog.knows("resumed", uuid):
                world.said.doubted.add(run)
            else:
                del world.said.continued[run]
        name = name if kind in ("tag", "metric") else None
        if any((t["fact"], t["uuid"], t.get("name")) == (kind, uuid, name) for t in left):
            continue
        for mark in [mark for mark, known in world.uuids.items() if known == uuid]:
            fact = Fact(kind, mark, name)
            if fact in world.said.facts and catalog.knows(kind, uuid, name):
                world.said.doubted.add(run)
                world.unrecorded.add(fact)
            else:
                world.said.facts.pop(fact, None)


def lose_catalog(world: World, rng: random.Random) -> None:
    """Remove it, break it, or put an old one in its place."""
    for folder in (world.root, *world.present()):
        file = folder / ".ckptdb" / "catalog.db"
        old = world.top / f"{folder.relative_to(world.top)} catalog.db".replace("/", " ")
        how = rng.choice(["removed", "broken", "kept", "old"])
        if not file.exists() or (how == "old" and not old.exists()):
            continue
        if how == "kept":
            shutil.copy(file, old)
            continue
        if how == "removed":
            file.unlink()
        elif how == "broken":
            file.write_bytes(b"garbage" * 1000)
        else:
            shutil.copy(old, file)
        world.story.append(f"  catalog of {folder.relative_to(world.top)}: {how}")
        world.tally[f"catalog: {how}"] += 1
        for run in world.present() if folder == world.root else [folder]:
            _forget_what_nobody_knows(world, run)


def _forget_what_nobody_knows(world: World, run: Path) -> None:
    catalog, here = world.catalog_of(run), {one.mark for one in world.seen_in(run)}
    for fact in [fact for fact in world.unrecorded if fact.mark in here]:
        if not catalog.knows(fact.kind, world.uuids[fact.mark], fact.name):
            world.unrecorded.discard(fact)
            world.said.facts.pop(fact, None)
    told = {fact["uuid"] for fact in world.told_in(run) if fact["fact"] in reader.ENDS}
    for where, uuid in list(world.history):
        if where == run and uuid not in told and not catalog.knows("gone", uuid):
            del world.history[where, uuid]

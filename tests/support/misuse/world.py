"""A root with some runs, what people have said of it, and the judge of what they do."""

import os
import random
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.support.misuse import reader
from tests.support.misuse.reader import (
    Fact,
    Judged,
    Rules,
    Said,
    Seen,
)

from ckptdb import Registry
from ckptdb.errors import CatalogBroken, CkptdbError
from ckptdb.manager import CheckpointManager

NAMES = ("a", "ab", "a.b", ".a", "a/b", "group/a", "x/y.z")
STEPS = (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 20, 100)
METRICS = ("val:loss", "acc")
VALUES = (0.0, 0.1, 0.1, 0.2, 0.5, 0.9, -3, 7, float("nan"), float("inf"), None, "0.1")
RULES = (
    "best 1", "best 2", "best 1 by acc max", "best 2 by val:loss min of every 2 steps", "latest 1",
    "latest 2", "latest 1 of every 3 steps", "every 3 steps", "every 5 steps", "steps 1,4,100",
    "tagged", "tagged good", "newer than 1 hours", 'where "val:loss" < 0.3',
)  # fmt: skip


@dataclass
class Trainer:
    """A manager, and what its config says as somebody reads it.

    Attributes:
        loaded: What it continues from, because it was resumed there, or loaded that by hand.
        looked_at: What it has loaded by hand and saved nothing on yet.
        last_step: What it has begun to save last.
        staged: What it is saving at this moment.
    """

    manager: CheckpointManager
    rules: Rules
    has_ttl: bool
    loaded: set[str] = field(default_factory=set)
    looked_at: str | None = None
    last_step: int | None = None
    staged: list[tuple[Path, Seen]] = field(default_factory=list)


@dataclass
class Went:
    """Checkpoints that an act may delete by the documentation.

    Attributes:
        waits: Deleted checkpoints can be undeleted.
        moves_nothing: The act is a question.
    """

    allowed: set[str] = field(default_factory=set)
    waits: bool = False
    moves_nothing: bool = False


class World:
    """People, their runs, and what they have said.

    Attributes:
        judged: Of each run, by what it is judged as far as prunes have followed.
        hurt: Checkpoints that were damaged in their place, with their training_info before.
        dead: Unfinished saves whose writer was killed.
        moved: Where the runs are that are not in their place.
        history: By run and uuid, the marks of what ckptdb has told the end of.
        unrecorded: What only the catalog knows any more.
        garbage: Lines of journals that are damaged.
        story: What has happened, for a reader.
    """

    def __init__(self, top: Path, seed: str, tally: Counter[str]) -> None:
        self.top, self.tally = top, tally
        self.root, self.aside = top / "tree" / "root", top / "elsewhere"
        self.root.mkdir(parents=True)
        self.aside.mkdir()
        self.said = Said()
        self.trainers: dict[Path, Trainer] = {}
        self.leases: list[tuple[Registry, Any, str]] = []
        self.judged: dict[Path, Judged] = {}
        self.hurt: dict[str, dict[str, Any] | None] = {}
        self.dead: set[str] = set()
        self.moved: dict[Path, Path] = {}
        self.history: dict[tuple[Path, str], str] = {}
        self.uuids: dict[str, str] = {}
        self.unrecorded: set[Fact] = set()
        self.garbage: set[bytes] = set()
        self.story: list[str] = []
        self._marks = 0
        rng = random.Random(seed)
        self.runs = [self.root / name for name in rng.sample(NAMES, rng.randrange(1, 5))]

    def close(self) -> None:
        """Let everybody go home."""
        for registry, watching, _ in self.leases:
            watching.close()
            registry.close()
        for trainer in self.trainers.values():
            with suppress(CkptdbError, RuntimeError):
                trainer.manager.shutdown()

    # --- what there is ------------------------------------------------------------------

    def new_mark(self) -> str:
        self._marks += 1
        return f"mark {self._marks}"

    def present(self) -> list[Path]:
        return [run for run in self.runs if run.is_dir()]

    def seen_in(self, run: Path) -> list[Seen]:
        here = [one for one in reader.look(run).values() if one.run == run]
        return here + reader.look_behind_links(run)

    def published_in(self, run: Path) -> list[Seen]:
        return [one for one in self.seen_in(run) if one.place in ("published", "linked")]

    def pick(self, rng: random.Random) -> Seen | None:
        """Return any published checkpoint."""
        found = [one for one in reader.look(self.root).values() if one.place == "published"]
        return rng.choice(sorted(found, key=lambda one: one.path)) if found else None

    def wait(self) -> None:
        """Wait for what trainers do behind their loops."""
        for trainer in self.trainers.values():
            trainer.manager._background.wait()

    def end_training(self, run: Path) -> None:
        """Let a trainer leave; what it has begun to save nobody goes on with."""
        if run in self.trainers:
            trainer = self.trainers.pop(run)
            trainer.manager.shutdown()
            self.dead |= {one.mark for _, one in trainer.staged}

    def journals(self) -> dict[Path, set[bytes]]:
        return {run: set(reader.journal_lines(run)) for run in self.runs}

    def told_in(self, run: Path) -> list[dict[str, Any]]:
        """Return what a run's journal says in lines that nobody has damaged."""
        lines = reader.journal_lines(run)
        return reader.facts_of(line for line in lines if line not in self.garbage)

    def catalog_of(self, run: Path) -> reader.Catalog:
        marked = (self.root / ".ckptdb" / "root.json").exists()
        return reader.Catalog((self.root if marked else run) / ".ckptdb" / "catalog.db")

    # --- what is said -------------------------------------------------------------------

    def say_of(
        self, mark: str, kind: str, name: str | None = None, value: float | None = None
    ) -> None:
        """Remember what was said of a checkpoint; it must be in the journal."""
        fact = Fact(kind, mark, name)
        self.said.facts.pop(fact, None)
        self.said.facts[fact] = value
        self.unrecorded.discard(fact)
        (run,) = (run for run in self.present() for one in self.seen_in(run) if one.mark == mark)
        told = [one for one in self.told_in(run) if one["fact"] == kind]
        assert told, f"{kind} of {mark} is not in the journal of {run}"
        self.uuids[mark] = told[-1]["uuid"]

    def unsay(self, marks: set[str], kind: str, name: str | None = None) -> None:
        for mark in marks:
            self.said.facts.pop(Fact(kind, mark, name), None)

    # --- what may go --------------------------------------------------------------------

    def readings(self, run: Path) -> Iterator[tuple[list[Seen], Said]]:
        """Yield what is published in a run, in every way that it may be taken.

        What only lacks its name may get it at any moment, and damage may be noticed or not yet.
        """
        seen = self.seen_in(run)
        complete = {one.step: one for one in seen if one.place == "unfinished" and one.is_complete}
        named = [replace(one, place="published") for one in complete.values()]
        published = [one for one in seen if one.place in ("published", "linked")]
        others = [one for one in published if one.step not in complete]
        noticed = replace(self.said, damaged=self.said.damaged | set(self.hurt))
        for found in (published, others + named):
            yield found, self.said
            yield found, noticed
            yield [replace(s, info=self.hurt.get(s.mark, s.info)) for s in found], self.said

    def may_prune(
        self,
        run: Path,
        rules: Rules,
        *,
        held: Collection[str] = (),
        new: Seen | None = None,
        latest_stays: bool = True,
        old: Judged | None = None,
        trusted: bool = False,
    ) -> set[str]:
        """Return the marks of what a prune of one run may take.

        Args:
            run: The run.
            rules: What is said about what stays.
            held: What stays in any case.
            new: What is saved before, at a step that may be taken.
            latest_stays: Whether the highest step does.
            old: By what it was judged before, when it is the first prune after a change.
            trusted: As if the journal were in no doubt.
        """
        allowed: set[str] = set()
        for seen, told in self.readings(run):
            said = replace(told, doubted=set()) if trusted else told
            found = [one for one in seen if new is None or one.step != new.step]
            found += [] if new is None else [new]
            lets_go = reader.may_go(found, said, rules, held=held, latest_stays=latest_stays)
            if old is not None:
                before = replace(rules, metric=old[0], higher=old[1])
                lets_go -= reader.kept_by(reader.counted(found, said), said, before)
            allowed |= lets_go
        return allowed

    def unfinished_at(self, run: Path, step: int | None = None) -> set[str]:
        """Return the marks of unfinished saves: those of a step, or those of the dead."""
        unfinished = [one for one in self.seen_in(run) if one.place == "unfinished"]
        return {
            one.mark
            for one in unfinished
            if (one.mark in self.dead if step is None else one.step == step)
        }

    # --- judging ------------------------------------------------------------------------

    def judge(
        self, before: dict[str, Seen], lines_before: dict[Path, set[bytes]], went: Went
    ) -> None:
        """Compare what is there with what was there."""
        after = reader.look(self.top)
        completed = self._completed(before)
        if went.moves_nothing and not completed:
            assert {m: s.path for m, s in before.items()} == {m: s.path for m, s in after.items()}
        for mark, was in before.items():
            now = after.get(mark)
            if was.place == "elsewhere":
                assert now == was, f"{was.path} is nobody's to touch"
            elif was.place == "trash":
                back = now is not None or mark not in self.said.promised
                assert back, f"{was.path} was promised to wait"
            elif now is None or now.place == "trash":
                allowed = mark in went.allowed or mark in completed
                assert allowed, f"{was.path} went, and nobody meant that"
                self._judge_end(was, now, lines_before[was.run], waits=went.waits)

    @staticmethod
    def _completed(before: dict[str, Seen]) -> set[str]:
        """Return the marks of saves that only lack a name, and of what they replace.

        Whoever comes next publishes them.
        """
        seen = [one for one in before.values() if one.place in ("unfinished", "published")]
        complete = {(s.run, s.step) for s in seen if s.place == "unfinished" and s.is_complete}
        return {one.mark for one in seen if (one.run, one.step) in complete}

    def _judge_end(self, was: Seen, now: Seen | None, lines: set[bytes], *, waits: bool) -> None:
        """Ask for the reason, and whether the bytes are still there where they have to be."""
        new = [line for line in reader.journal_lines(was.run) if line not in lines]
        ends = [
            fact for fact in reader.facts_of(new)
            if fact["fact"] in reader.ENDS and fact["record"]["step"] == was.step
            and was.uuid in (None, fact["uuid"])
        ]  # fmt: skip
        assert ends, f"{was.path} went without a line in the journal"
        kind, reason = ends[-1]["fact"], ends[-1].get("reason")
        assert isinstance(reason, str), f"{was.path} went without a reason"
        assert reason, f"{was.path} went without a reason"
        self.history[was.run, ends[-1]["uuid"]] = was.mark
        self.tally[f"gone: {kind}"] += 1
        for rule in re.findall(r"not (best|latest|every|steps|tagged|newer|where)", reason):
            self.tally[f"rule: {rule}"] += 1
        is_bare = was.place == "published" and was.is_bare
        is_retired = was.place == "published" and kind == "deleted"
        if (is_bare and kind == "replaced") or (waits and is_retired):
            assert now is not None, f"{was.path} was to wait in the trash"
            self.said.promised.add(was.mark)
        elif kind == "replaced" and was.mark in self.said.marks("pin") | self.said.leased:
            assert now is not None, f"{was.path} is pinned or leased, and its bytes are gone"

    def check_history(self) -> None:
        """See that no row of history is lost."""
        for run in self.present():
            known = {uuid for where, uuid in self.history if where == run}
            try:
                with Registry.open(run) as registry:
                    there = {one.uuid for one in registry.checkpoints()} if known else set()
            except CatalogBroken:
                continue  # which `reconcile` builds anew
            except CkptdbError as error:
                raise AssertionError(f"history cannot be asked: {error}") from error
            assert known <= there, f"history of {run} is lost: {known - there}"
            self.tally["history compared"] += len(known)


@contextmanager
def quiet() -> Iterator[None]:
    """Let every warning pass: what is told is tested elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def standing_in(directory: Path, home: Path) -> Iterator[None]:
    """Be in a directory for a while."""
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(home)


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)

"""Short stories of one run, hurt where a single missing step would show.

A story is told in peace up to some point; what follows is done by a mutated product, and hurt:
cut at every state that its trace allows, killed at every operation, or refused an operation. What
comes after the fault is the product as it is. Everything is told by the seed: work that a manager
does behind the loop is done when the loop has been told.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.ranking import RankedBy
from ckptdb.disk import (
    checksums,
    fsutil,
    identity,
    journal,
    manifest,
    names,
    root_marker,
)
from ckptdb.disk.pending_index import Notes
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import CkptdbError, SaveFailed
from ckptdb.reconcile.run import reconcile_run
from ckptdb.training.background import Background
from lab import check, loop, power, races, replay, shim
from lab.check import Verdict
from lab.ledger import METRIC, OPERATIONS, Ledger
from lab.replay import Disk, Mark, Trace
from lab.shim import Strike
from lab.world import World

Harness = Literal["power", "kills", "faults", "races"]
Patch = Callable[[], AbstractContextManager[object]]
REFUSED = "refused"
_STATES = 3
"""How many of the states are looked at in which a cut after a refusal may leave a root."""
_PATIENCE_SECONDS = 60
_USUAL = loop.RUN
_DAMAGE = b"no line of ours\n"
_NOTES = "unindexed"


@dataclass(frozen=True, slots=True)
class Story:
    """What is done, and how it is hurt.

    Attributes:
        before: Done in peace, by the product as it is.
        acts: Done by the mutant.
        kept: How many acts have to be acknowledged before the power is cut.
        empty: Checkpoints have no files but ours.
        depth: How many times as many points it takes to meet the one that matters.
        run: Where the run is below the root; elsewhere than usual it is not there yet.
    """

    name: str
    harness: Harness
    acts: tuple[str, ...]
    before: tuple[str, ...] = ()
    kept: int = 0
    native: bool = True
    many: bool = False
    empty: bool = False
    run: str = _USUAL
    depth: int = 1

    @property
    def is_new(self) -> bool:
        """The run is not there when it begins."""
        return self.run != _USUAL


class Actor(loop.Loop):
    """A training loop that knows some rarer acts, and does the rest of its work when told to."""

    def __init__(self, root: Path, ledger: Ledger, *, many: bool) -> None:
        super().__init__(root, ledger, many=many)
        self.later: list[Callable[[], None]] = []

    def act(self, name: str) -> None:
        """Do one act; it is acknowledged on return."""
        getattr(self, f"_{name}")()
        self.ledger = after(self.ledger, name)

    def finish(self) -> None:
        """Do what a manager does in the background."""
        self.close()
        while self.later:
            self.later.pop(0)()

    @property
    def _run(self) -> Path:
        return self.root / loop.RUN

    def _publisher(self, *, flushing: bool = True) -> Publisher:
        return Publisher(self._run, make_durable=flushing, metric=(METRIC, False))

    def _stage(self, publisher: Publisher, step: int) -> Path:
        content = json.dumps(self._info(step)).encode()
        folder = publisher.stage(step, content, None).checkpoint.path
        loop.write_payload(folder, self.ledger.token(step), many=self.many)
        return folder

    def _bare(self) -> None:
        publisher = self._publisher()
        publisher.publish(self._stage(publisher, self.ledger.next_step))

    def _bare_replace(self) -> None:
        publisher = self._publisher()
        publisher.publish(self._stage(publisher, self.ledger.newest))

    def _rolling(self) -> None:
        # The newest is all that is kept.
        self.manager.save_period, self.manager.ft_keep_latest_k = 2**62, 1
        self._save()
        self.manager.save_period, self.manager.ft_keep_latest_k = 1, None

    def _seal(self, *, flushing: bool = True, step: int | None = None) -> None:
        """Leave a complete checkpoint without its name, as a kill does."""

        def work() -> None:
            publisher = self._publisher(flushing=flushing)
            step_ = self.ledger.next_step if step is None else step
            folder = self._stage(publisher, step_)
            publisher._seal(publisher.establish(), folder, step_, None)

        assert loop.in_child(work) == 0

    def _leave_unflushed(self) -> None:
        self._seal(flushing=False)

    def _leave_sealed(self) -> None:
        self._seal()

    def _leave_sealed_over(self) -> None:
        self._seal(step=self.ledger.newest)

    def _leave_half(self) -> None:
        """Die before the manifest."""
        publisher = self._publisher()
        step = self.ledger.next_step

        def work() -> None:
            folder = publisher.stage(step, json.dumps(self._info(step)).encode(), None)
            files = loop.payload(self.ledger.token(step), many=True)
            name, content = next(iter(files.items()))
            file = folder.checkpoint.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)

        assert loop.in_child(work) == 0

    def _adopt(self) -> None:
        for left in self._run.glob("tmp_step_*"):
            self._publisher().adopt(left)

    _adopt_over = _adopt_over_nothing = _adopt

    def _die_replacing(self) -> None:
        """Die between giving the new one its name and putting the old one away."""
        step = self.ledger.newest

        def work() -> None:
            publisher = self._publisher()
            folder = self._stage(publisher, step)
            with patch.object(Publisher, "_set_aside", lambda *_: os._exit(0)):
                publisher.publish(folder)

        assert loop.in_child(work) == 0

    def _set_aside_by_hand(self) -> None:
        """Leave what a kill between the two renames of a replacement leaves."""
        step = self.ledger.newest
        folder = self._run / f"step_{step}"
        listed = manifest.find(folder)
        assert listed
        folder.rename(self._run / f"old_step_{step}.{listed.uuid}")

    def _foreign(self) -> None:
        """Have a checkpoint that ckptdb has never seen."""
        self._bare()
        shutil.rmtree(self._run / ".ckptdb")

    def _retire_newest(self, **options: Any) -> None:
        step = self.ledger.newest
        listed = manifest.find(self._run / names.final_name(step))
        assert listed
        publisher = Publisher(self._run, metric=(METRIC, False), **options)
        publisher.retire([Deletion(step, listed.uuid, "by hand")])

    def _retire_for_a_time(self) -> None:
        self._retire_newest(trash_ttl_seconds=1e6)

    def _undelete(self) -> None:
        token = max(self.ledger.gone, key=lambda token: int(token.rpartition("-")[2]))
        self._publisher().undelete(int(token.split("-")[1]))

    def _die_naming(self) -> None:
        """Die after making the run's own files, before their names are flushed."""
        with (
            patch.object(fsutil, "fsync", lambda _: None),
            self._publisher()._changing(first=True),
        ):
            pass

    def _die_retiring(self) -> None:
        """Die before the directory is flushed."""
        with patch.object(Publisher, "_sync_directory", lambda _: None):
            self._retire_newest()

    def _free(self) -> None:
        """Retire on a disk that has no space until something is removed."""
        real, refusals = journal.append, [errno.ENOSPC]

        def append(*arguments: Any, **options: Any) -> None:
            if refusals:
                raise OSError(refusals.pop(), os.strerror(errno.ENOSPC))
            real(*arguments, **options)

        with patch.object(journal, "append", append):
            self._retire_newest()

    def _free_in_place(self) -> None:
        """Retire on a disk that has no space for moving it either."""
        real = fsutil.rename_new

        def rename_new(source: Path, target: Path) -> None:
            if target.parent.name == names.TRASH:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(source, target)

        with patch.object(fsutil, "rename_new", rename_new):
            self._free()

    def _die_freeing(self) -> None:
        """Die before what was freed is flushed, or written down; others go on all the while."""
        self.manager._publisher.establish()

        def append(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def die(*_: object) -> None:
            raise KeyboardInterrupt

        with (
            patch.object(journal, "append", append),
            patch.object(Publisher, "_sync_trash", die),
            patch.object(Publisher, "_record_freed", die),
            suppress(KeyboardInterrupt),
        ):
            self._retire_newest()

    def _empty_trash(self) -> None:
        self.manager._publisher.empty_trash()

    def _repair(self) -> None:
        reconcile_run(Catalog(Database.in_memory()), self._run)

    def _other_metric(self) -> None:
        Publisher(self._run, metric=("accuracy", True)).establish()

    def _prune_by_it(self) -> None:
        """Let the rules by the metric of before have had their say."""
        publisher = Publisher(self._run, metric=("accuracy", True))
        publisher.record_pruned_by(RankedBy("accuracy", "max"))

    def _establish(self) -> None:
        """Have the names flushed once by the manager, which does not do it again."""
        self.manager._publisher.establish()

    def _damage_journal(self) -> None:
        file = self._run / ".ckptdb" / "journal.jsonl"
        first, *others = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(first + _DAMAGE + b"".join(others))

    def _settle(self) -> None:
        """Have a damaged journal written anew by a person."""
        reconcile_run(Catalog(Database.in_memory()), self._run, restore=True)

    def _note(self) -> None:
        """Save where the catalog cannot be written."""
        notes = Notes(self.root / ".ckptdb" / _NOTES, self.root)
        notes.add(self._run, identity.identify(self._run).run.uuid, make_durable=True)

    def _sum(self) -> None:
        """Add checksums to what is published."""
        step = self.ledger.newest
        folder = self._run / names.final_name(step)
        listed = manifest.find(folder)
        assert listed
        sums = checksums.compute(folder, listed.files)
        assert self._publisher().add_checksums(step, listed.uuid, sums)

    def _tear_journal(self) -> None:
        with (self._run / ".ckptdb" / "journal.jsonl").open("ab") as file:
            file.write(b'{"at": "20')

    def _unmark(self) -> None:
        root_marker.unmark_root(self.root)

    def _unmark_fully(self) -> None:
        shutil.rmtree(self.root / ".ckptdb")

    def _mark(self) -> None:
        root_marker.mark_root(self.root)


_SAVING = frozenset({"save", "async", "bare", "adopt", "foreign"})
_REPLACING = frozenset({"replace", "bare_replace", "adopt_over", "die_replacing"})
# Who dies retiring has acknowledged nothing; who empties the trash then makes it certain.
_RETIRING = frozenset(
    {"retire_newest", "retire_for_a_time", "free", "free_in_place", "empty_trash"}
)


def after(ledger: Ledger, act: str) -> Ledger:  # noqa: PLR0911  # one for each kind
    """Return what holds when an act has been acknowledged."""
    if act in _SAVING:
        return ledger.saved(ledger.next_step)
    if act in _REPLACING:
        return ledger.saved(ledger.newest)
    if act == "adopt_over_nothing":
        return ledger.saved(10 * ledger.begun)
    if act == "rolling":
        saved = ledger.saved(ledger.next_step)
        kept = saved.newest
        gone = {token: "deleted" for step, token in saved.live.items() if step != kept}
        return replace(saved, live={kept: saved.live[kept]}, gone={**saved.gone, **gone})
    if act in _RETIRING:
        token = ledger.live[ledger.newest]
        live = {step: other for step, other in ledger.live.items() if other != token}
        return replace(ledger, live=live, gone={**ledger.gone, token: "deleted"})
    if act == "undelete":
        token = max(ledger.gone, key=lambda token: int(token.rpartition("-")[2]))
        gone = {other: how for other, how in ledger.gone.items() if other != token}
        return replace(ledger, live={**ledger.live, int(token.split("-")[1]): token}, gone=gone)
    return ledger.after(act) if act in OPERATIONS else ledger  # type: ignore[arg-type]


class Stage:
    """Where stories are played, again and again from the same beginning."""

    def __init__(self, folder: Path) -> None:
        self._world = World(folder)
        self._folder = folder
        self._ready: dict[tuple[object, ...], Path] = {}
        self._catalog = Catalog(Database.in_memory())
        self._recovery: Patch = nullcontext
        self._known: str | None = None
        self.root = self._world.root

    def play(
        self, story: Story, mutation: Patch, seed: int, most: int, *, recovery: Patch = nullcontext
    ) -> Iterator[Verdict]:
        """Hurt a story at up to ``most`` points; yield what was found at each.

        Args:
            story: What is done.
            mutation: Changes the product that does it.
            seed: Chooses the points.
            most: How many.
            recovery: Changes the product that comes afterwards.
        """
        rng = random.Random(f"{seed} {story.name}")
        hurt = {"power": self._cut, "kills": self._kill, "faults": self._fail,
                "races": self._race}[story.harness]  # fmt: skip
        with ExitStack() as stack:
            if story.empty:
                stack.enter_context(patch.object(loop, "payload", lambda *_, **__: {}))
            if story.is_new:
                stack.enter_context(patch.object(loop, "RUN", story.run))
                stack.enter_context(patch.object(self, "root", self._folder / "new"))
            stack.enter_context(patch.object(self, "_recovery", recovery))
            yield from hurt(story, mutation, rng, most * story.depth)

    # --- the harnesses ------------------------------------------------------------------

    def _cut(
        self, story: Story, mutation: Patch, rng: random.Random, most: int
    ) -> Iterator[Verdict]:
        trace = self._record(story, mutation, Strike(no_exchange=not story.native))
        yield from self._judge_cuts(story, trace, rng, most)

    def _judge_cuts(
        self, story: Story, trace: Trace, rng: random.Random, most: int
    ) -> Iterator[Verdict]:
        ledgers = self._ledgers(story)
        marks = [n for n, event in enumerate(trace.events, 1) if isinstance(event, Mark)]
        first = marks[story.kept - 1] if story.kept and len(marks) >= story.kept else 0
        for end, model, state in replay.cuts(trace, rng, _nothing, most, first=first):
            told = [event.name for event in trace.events[:end] if isinstance(event, Mark)]
            self._put(story, state)
            verdict = Verdict()
            before = ledgers[len(told)]
            coming = ledgers[min(len(told) + 1, len(ledgers) - 1)]
            self._judge(verdict, story, (before, coming), told[-1] if told else self._known)
            verdict.found = [(k, f"cut after event {end} ({model}): {w}") for k, w in verdict.found]
            yield verdict

    def _find_known(self) -> str | None:
        """Who the run is, when that is certain before anything is hurt."""
        run = self.root / loop.RUN
        found = identity.identify(run) if run.is_dir() else None
        return f"done {found.run.uuid}" if found and found.recorded else None

    def _record(
        self, story: Story, mutation: Patch, strike: Strike, refusal: Refusal | None = None
    ) -> Trace:
        self._prepare(story)
        self._known = self._find_known()
        before, nodes = Disk.read(self.root)
        with tempfile.TemporaryFile() as file:
            traced = replace(strike, trace=file.fileno())
            self._in_child(lambda: self._act(story, mutation, traced, refusal))
            file.seek(0)
            lines = file.read().decode(errors="surrogateescape").splitlines()
        return Trace(self.root, before, nodes, lines)

    def _kill(
        self, story: Story, mutation: Patch, rng: random.Random, most: int
    ) -> Iterator[Verdict]:
        ledgers = self._ledgers(story)
        points = list(range(1, 1 + self._count(story, mutation)))
        rng.shuffle(points)
        for point in points[:most]:
            self._prepare(story)
            self._known = self._find_known()
            strike = Strike(action=shim.KILL, at=point, no_exchange=not story.native)
            self._in_child(lambda strike=strike: self._act(story, mutation, strike))
            verdict = Verdict()
            self._judge(verdict, story, (ledgers[0], ledgers[-1]), self._known)
            verdict.found = [(k, f"killed before {point}: {w}") for k, w in verdict.found]
            yield verdict

    def _fail(
        self, story: Story, mutation: Patch, rng: random.Random, most: int
    ) -> Iterator[Verdict]:
        """Refuse one flush or rename, let the loop try the same again, and cut the power."""
        ledgers = self._ledgers(story)
        for point in itertools.count(1):
            refusal = Refusal(point)
            trace = self._record(story, mutation, Strike(no_exchange=not story.native), refusal)
            told = [event.name for event in trace.events if isinstance(event, Mark)]
            if REFUSED not in told or point > most:
                break
            verdict = Verdict()
            for name in told:
                if name.startswith("wrong"):
                    verdict.say("not_recovered", name)
            acknowledged = any(name.startswith("done") for name in told)
            held = ledgers[-1] if acknowledged else ledgers[0]
            # What failed at its commit point may be there all the same.
            both = held, ledgers[-1]
            self._put(story, trace.end.state(_nothing))
            self._judge(verdict, story, both, self._known, unadopted="sealing" in told)
            for _, _, state in replay.cuts(trace, rng, _nothing, _STATES, first=len(trace.events)):
                self._put(story, state)
                self._judge(verdict, story, both, self._known)
            verdict.found = [(k, f"EIO at {point}: {what}") for k, what in verdict.found]
            yield verdict

    def _race(self, story: Story, mutation: Patch, _: random.Random, __: int) -> Iterator[Verdict]:
        """Let two processes meet where it matters most."""
        self._prepare(story)
        reading, writing = os.pipe()

        def work() -> None:
            with loop.quiet(), _in_order(), mutation():
                wrong = getattr(races, story.acts[0])(self.root / loop.RUN)
                os.write(writing, f"done{wrong or ''}".encode())

        self._in_child(work)
        os.close(writing)
        with os.fdopen(reading) as answer:
            said = answer.read()
        verdict = Verdict()
        if said != "done":
            verdict.say("lost", said.removeprefix("done") or "it came to no end")
        yield verdict

    def _put(self, story: Story, state: replay.State) -> None:
        if not story.is_new:
            power.put(self.root, state)
            return
        shutil.rmtree(self.root)
        self.root.mkdir()
        for path in sorted(state):
            content = state[path]
            if content is None:
                (self.root / path).mkdir()
            else:
                (self.root / path).write_bytes(content)

    # --- playing ------------------------------------------------------------------------

    def _act(
        self, story: Story, mutation: Patch, strike: Strike, refusal: Refusal | None = None
    ) -> None:
        with ExitStack() as stack:
            stack.enter_context(loop.quiet())
            later = stack.enter_context(_in_order())
            armed = stack.enter_context(shim.armed(self.root, strike))
            if refusal:
                stack.enter_context(refusal.over(armed))
            stack.enter_context(mutation())
            actor = Actor(self.root, self._ledgers(story)[0], many=story.many)
            actor.later = later
            for act in story.acts:
                try:
                    actor.act(act)
                except (CkptdbError, OSError) as error:
                    if refusal is None:
                        raise
                    _try_again(actor, armed, error)
                    break
                armed.mark(f"done {self._who()}")
                actor.finish()

    def _count(self, story: Story, mutation: Patch) -> int:
        self._prepare(story)
        reading, writing = os.pipe()

        def work() -> None:
            self._act(story, mutation, Strike(no_exchange=not story.native))
            os.write(writing, str(shim._library().lab_counted()).encode())

        self._in_child(work)
        os.close(writing)
        with os.fdopen(reading) as answer:
            return int(answer.read() or 0)

    def _who(self) -> str:
        run = self.root / loop.RUN
        return identity.identify(run).run.uuid if run.is_dir() else ""

    def _prepare(self, story: Story) -> None:
        if story.is_new:
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir()
            return
        key = (story.before, story.native, story.many, story.empty)
        if key not in self._ready:
            self._world.clear()
            peaceful = replace(story, acts=story.before, before=())

            def work() -> None:
                root_marker.mark_root(self.root)
                self._act(peaceful, nullcontext, Strike(no_exchange=not story.native))

            if self._in_child(work) != 0:
                raise RuntimeError(f"{story.name} cannot be prepared")
            self._ready[key] = self._world.snapshot(f"story-{len(self._ready)}")
        self._world.restore(self._ready[key])

    def _in_child(self, work: Callable[[], None]) -> int:
        # Not among what is hurt: a catalog would only make the traces long.
        catalog = self._folder / "catalog.db"

        def patient() -> None:
            signal.alarm(_PATIENCE_SECONDS)
            os.environ["CKPTDB_CATALOG"] = str(catalog)
            work()

        status = loop.in_child(patient)
        for file in self._folder.glob("catalog.db*"):
            file.unlink()
        return status

    @staticmethod
    def _ledgers(story: Story) -> list[Ledger]:
        beginning = _all(story.before)[-1]
        return _all(story.acts, beginning)

    # --- judging ------------------------------------------------------------------------

    def _judge(
        self, verdict: Verdict, story: Story, ledgers: tuple[Ledger, Ledger], told: str | None,
        *, unadopted: bool = False,
    ) -> None:  # fmt: skip
        before, coming = ledgers
        run = self.root / loop.RUN
        live = check.check_names(verdict, run, many=story.many)
        self._judge_names(verdict, live, before, coming)
        if told and not story.is_new and self._who() != told.removeprefix("done "):
            verdict.say("lost", "the run is another one")
        if not run.is_dir():
            return
        if "mark" in story.acts:
            _check_root(verdict, self.root)
        if "note" in story.acts:
            _check_note(verdict, self.root)
        if "damage_journal" in story.before:
            _check_damaged(verdict, run)
        complete = _complete(run, many=story.many)
        with verdict.doing("reconciling"), loop.quiet():
            with self._recovery():
                report = reconcile_run(self._catalog, run)
            if report.blocked:
                verdict.say("not_recovered", f"reconcile is blocked: {report.blocked}")
            rows = check.rows_of(self._catalog)
            check.check_facts(verdict, self.root, before, coming, many=story.many, rows=rows)
            self._judge_leftovers(verdict, run, complete, unadopted=unadopted, many=story.many)
            self._judge_trash(verdict, run, before, rows, many=story.many)
            self._judge_twice(verdict, run, before)
        for seen in self._catalog.runs.list_all():
            self._catalog.runs.delete(seen.id)

    @staticmethod
    def _judge_names(
        verdict: Verdict, live: dict[int, str], before: Ledger, coming: Ledger
    ) -> None:
        """What stays has its name already, before anybody recovers anything."""
        for step, token in before.live.items():
            if coming.live.get(step) == token and live.get(step) != token:
                verdict.say("lost", f"step {step} has lost its name")
        if before.live and not live and len(before.live.keys() | coming.live.keys()) > 1:
            verdict.say("lost", "nothing at all is published")

    @staticmethod
    def _judge_leftovers(
        verdict: Verdict, run: Path, complete: dict[int, str], *, unadopted: bool, many: bool
    ) -> None:
        live = check.check_names(Verdict(), run, many=many)
        for step, token in complete.items():
            if unadopted and live.get(step) == token:
                verdict.say("not_recovered", f"{token}, whose save has failed, was published")
            elif not unadopted and step not in live:
                verdict.say("lost", f"{token} was complete and is not published")
        for entry in run.iterdir():
            if entry.name.startswith("old_step_"):
                verdict.say("not_recovered", f"{entry.name} is left")
            if entry.name.startswith("tmp_step_") and (entry / "manifest.json").exists():
                verdict.say("not_recovered", f"{entry.name}, complete, is left")

    @staticmethod
    def _judge_trash(
        verdict: Verdict, run: Path, before: Ledger, rows: list[Any], *, many: bool
    ) -> None:
        live = check.check_names(Verdict(), run, many=many).values()
        ends = {row.token: row.reason or "" for row in rows if row.status == "deleted"}
        trash = run / ".ckptdb" / "trash"
        kept = [check.whole_token(p, many=many) for p in trash.iterdir()] if trash.is_dir() else []
        for token in before.pinned:
            if token not in live and token not in kept and ends.get(token, "").startswith("repl"):
                verdict.say("lost", f"the bytes of {token}, pinned and replaced")

    def _judge_twice(self, verdict: Verdict, run: Path, before: Ledger) -> None:
        """What has gone comes to no second end, not even when what is left is thrown away."""
        left = [entry for entry in run.iterdir() if entry.name.startswith("tmp_step_")]
        if left:
            publisher = Publisher(run)
            for entry in left:
                publisher.discard(entry, reason="discarded: left unfinished")
            reconcile_run(self._catalog, run)
        rows = [r for r in check.rows_of(self._catalog) if r.status == "deleted"]
        tokens = [row.token for row in rows]
        for token in (token for token in before.gone if tokens.count(token) > 1):
            verdict.say("not_recovered", f"{token} has come to two ends")


def _all(acts: tuple[str, ...], ledger: Ledger | None = None) -> list[Ledger]:
    found = [ledger or Ledger()]
    for act in acts:
        found.append(after(found[-1], act))
    return found


def _complete(run: Path, *, many: bool) -> dict[int, str]:
    """The checkpoints that only lack their name, where nobody else has it, by step."""
    found = {}
    for entry in run.iterdir():
        step = names.find_tmp_step(entry.name)
        if step is not None and (entry / names.MANIFEST).exists():
            token = check.whole_token(entry, many=many)
            if token and not (run / names.final_name(step)).exists():
                found[step] = token
    return found


def _check_root(verdict: Verdict, root: Path) -> None:
    try:
        json.loads((root / ".ckptdb" / "root.json").read_bytes())["uuid"]
    except (OSError, ValueError, KeyError) as error:
        verdict.say("lost", f"that this is a root: {error!r}")


def _check_note(verdict: Verdict, root: Path) -> None:
    found = Notes(root / ".ckptdb" / _NOTES, root).find()
    if [note.directory for note in found] != [root / loop.RUN]:
        verdict.say("lost", f"that the catalog lacks changes of the run: {found}")


def _check_damaged(verdict: Verdict, run: Path) -> None:
    """What a person may still want to read of a damaged journal stays."""
    files = (run / ".ckptdb").glob("journal.jsonl*")
    if not any(_DAMAGE in file.read_bytes() for file in files):
        verdict.say("lost", "the damaged journal")


class Refusal:
    """One flush or rename that fails with EIO, once."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._count = 0

    @contextmanager
    def over(self, armed: shim.Armed) -> Iterator[None]:
        """Let it happen in this process."""
        with (
            patch.object(os, "fsync", self._refusing(os.fsync, armed)),
            patch.object(fsutil, "_renameat2", self._refusing(fsutil._renameat2, armed)),
        ):
            yield

    def _refusing(self, real: Callable[..., None], armed: shim.Armed) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            self._count += 1
            if self._count == self._at:
                armed.mark(REFUSED)
                if any(frame.name == "_seal" for frame in traceback.extract_stack()):
                    armed.mark("sealing")
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(*arguments)

        return call


def _try_again(actor: Actor, armed: shim.Armed, error: Exception) -> None:
    """Do what a loop does that catches the error: publish once more what could not be."""
    for step in (actor.ledger.next_step, max(actor.ledger.live, default=0)):
        folder = actor.root / loop.RUN / names.tmp_name(step)
        if folder.is_dir() and isinstance(error, SaveFailed):
            with suppress(CkptdbError, OSError):
                actor.manager.finalize_checkpoint(folder)
                armed.mark("wrong: what failed was acknowledged when it was tried again")
    held = actor.ledger.live.items()
    live = check.check_names(Verdict(), actor.root / loop.RUN, many=actor.many)
    if any(step not in live for step, _ in held):
        armed.mark("wrong: after the failure an older checkpoint has no name")


@contextmanager
def _in_order() -> Iterator[list[Callable[[], None]]]:
    """Keep for later what a manager does in the background, and flush in one thread."""
    later: list[Callable[[], None]] = []
    with (
        patch.object(Background, "submit", lambda _, work: later.append(work)),
        patch.object(fsutil, "tasks_at", _here),
    ):
        yield later


@contextmanager
def _here(work: Callable[[], object], count: int, **_: object) -> Iterator[tuple[()]]:
    if count:
        work()
    yield ()


def _nothing(_: str) -> bool:
    return False


_ALL = (
    Story("first save", "power", ("save", "save")),
    Story("many files", "power", ("save",), many=True, depth=3),
    Story("no files", "power", ("bare",), empty=True),
    Story("a new run", "power", ("save",), run="team/run", kept=1),
    Story("a new run without a lease", "power", ("bare",), run="team/run", kept=1),
    Story("begun, then saved", "power", ("die_naming", "bare"), kept=2),
    Story("begun, then annotated", "power", ("die_naming", "pin"), ("foreign",), kept=2),
    Story("begun anew, then saved", "power", ("die_naming", "bare"), kept=2, run="begun"),
    Story("annotated", "power", ("pin", "late"), ("foreign",)),
    Story("replaced", "power", ("replace",), ("save", "save")),
    Story("replaced in two renames", "power", ("replace",), ("save", "save"), native=False),
    Story("replaced for certain", "power", ("bare_replace",), ("save", "save"), kept=1),
    Story("pinned and replaced", "power", ("replace", "save"), ("save", "pin"), kept=1),
    Story("discarded", "power", ("discard", "save"), ("save",)),
    # A catalog that does not know the run compares it with its directory in the prune already, and
    # that empties the trash: the cut has to come before that.
    Story("pruned", "power", ("reconcile", "prune"), ("save", "save", "save"), kept=1),
    Story("rolling", "power", ("rolling",), ("save",), depth=5),
    Story("adopted", "power", ("adopt",), ("save", "leave_sealed")),
    Story("adopted, unflushed", "power", ("leave_unflushed", "adopt"), ("save",), kept=2),
    Story("adopted over another", "power", ("adopt_over",), ("save", "leave_sealed_over")),
    Story("adopted over nothing", "power", ("adopt_over_nothing",),
          ("save", "save", "leave_sealed_over", "retire_newest")),
    Story("repaired", "power", ("die_replacing", "repair"), ("save", "pin"), kept=1),
    Story("put back", "power", ("repair",), ("save", "set_aside_by_hand"), kept=1, native=False),
    Story("retired, then emptied", "power", ("die_retiring", "empty_trash"), ("save", "save"),
          kept=1),
    Story("freed", "power", ("free",), ("save", "save")),
    Story("freed, then emptied", "power", ("die_freeing", "empty_trash"), ("save", "save"), kept=1),
    Story("undeleted", "power", ("undelete",), ("save", "save", "retire_for_a_time")),
    Story("killed, undeleting", "kills", ("undelete",), ("save", "save", "retire_for_a_time")),
    Story("summed", "power", ("sum",), ("save", "save")),
    Story("killed, summing", "kills", ("sum",), ("save", "save")),
    Story("measured otherwise", "power", ("other_metric",), ("save",)),
    Story("pruned by another metric", "power", ("prune_by_it",), ("save", "other_metric")),
    Story("settled", "power", ("settle",), ("save", "pin", "late", "damage_journal")),
    Story("settled beside a trainer", "power", ("establish", "settle", "prune"),
          ("save", "save", "save", "pin", "late", "damage_journal"), kept=2, depth=2),
    Story("killed, settling", "kills", ("settle",), ("save", "pin", "late", "damage_journal")),
    Story("noted", "power", ("note",), ("save",), kept=1),
    Story("a torn line", "power", ("pin",), ("save", "late", "tear_journal")),
    Story("a new root", "power", ("mark",), ("save", "unmark"), kept=1),
    Story("a new root without a folder", "power", ("mark",), ("save", "unmark_fully"),
          kept=1),
    Story("killed, saving", "kills", ("save",), ("save",)),
    Story("killed, saving many", "kills", ("save",), ("save",), many=True),
    Story("killed, replacing", "kills", ("replace",), ("save",)),
    Story("killed, replacing in two renames", "kills", ("replace",), ("save",), native=False),
    Story("killed, pruning", "kills", ("prune",), ("save", "save", "save")),
    Story("killed, freeing in place", "kills", ("free_in_place",), ("save", "save")),
    Story("killed, discarding", "kills", ("discard",), ("save",)),
    Story("killed, measuring otherwise", "kills", ("other_metric",), ("save",)),
    Story("refused, saving", "faults", ("save",), ("save",)),
    Story("refused, replacing in two renames", "faults", ("replace",), ("save",), native=False),
    Story("judged, then replaced", "races", ("judged_then_replaced",), ("save",)),
    Story("judged, then replaced by hand", "races", ("replaced_by_hand",), ("save",)),
    Story("published by another", "races", ("published_by_another",), ("save",)),
    Story("replaced while it is retired", "races", ("replaced_while_retired",), ("save",)),
    Story("two trainers", "races", ("two_trainers",), ("save",)),
    Story("saved by two", "races", ("saved_by_two",), ("save",)),
    Story("pinned, replaced, emptied", "races", ("pinned_replaced_emptied",), ("save",)),
    Story("judged, then leased", "races", ("judged_then_leased",), ("save",)),
    Story("leased, replaced, emptied", "races", ("leased_replaced_emptied",), ("save",)),
)  # fmt: skip
STORIES = {story.name: story for story in _ALL}

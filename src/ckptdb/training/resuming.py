"""Where training continues: the newest whole checkpoint of its line, and what was passed over."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import process, warnings
from ckptdb.core.compare import ConfigChange, config_changes
from ckptdb.core.facts import Fact
from ckptdb.core.records import Checkpoint, LineMember
from ckptdb.core.text import some_steps
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    checksums,
    config_file,
    identity,
    manifest,
    names,
    read_checkpoint,
    run_listing,
    symlinks,
)
from ckptdb.disk.manifest import Compared
from ckptdb.disk.publish import Publisher
from ckptdb.errors import (
    CkptdbError,
    ConfigChanged,
    ConfigNotComparable,
    InvalidChoice,
    NoCheckpointHere,
    UnreadableInfo,
)
from ckptdb.training import lineage
from ckptdb.training.index import RunIndex

OnChange = Literal["warn", "refuse", "ignore"]
_ON_CHANGE: tuple[OnChange, ...] = get_args(OnChange)
_LONGEST_REASON = 2000
_LONGEST_VALUE = 60
_FIRST_LOOK, _GROWTH = 8, 8


@dataclass(frozen=True, slots=True)
class Options:
    """How `Resuming.find` was asked.

    Attributes:
        config: What training will run with, None not to compare it.
        on_change: What to do when the checkpoint was saved with another configuration.
        checksums: Whether to read the files that have checksums, not only to ask for their sizes.
    """

    config: object = None
    on_change: OnChange = "warn"
    checksums: bool = False

    def __post_init__(self) -> None:
        if self.checksums:
            checksums.require()
        if self.on_change not in _ON_CHANGE:
            raise InvalidChoice("on_change", self.on_change, _ON_CHANGE)


class Resuming:
    """Finds the checkpoint that the training of one run continues from.

    Args:
        index: Of the run.
        publisher: Of the run.
    """

    def __init__(self, index: RunIndex, publisher: Publisher) -> None:
        self._index = index
        self._publisher = publisher
        self._options = Options()
        self._told: set[tuple[str, str]] = set()
        # In this process: what could not be recorded must not come back either.
        self._rejected: dict[str, str] = {}

    def find(self, options: Options) -> Checkpoint | None:
        """Return the newest whole checkpoint of the line of training that was saved last.

        When that is not known, of all. That training continues there is recorded.

        Raises:
            ConfigChanged: It was saved with another configuration, and that is refused.
        """
        self._options = options
        while True:
            found = self._find_whole()
            if found is None:
                return None
            self._compare(found, options)
            if self._record_resumption(found):
                return found
            # Somebody has deleted or replaced it in between.

    def reject(self, checkpoint: Checkpoint, reason: str) -> Checkpoint | None:
        """Put a checkpoint aside for good; return the next one, found as before.

        Raises:
            NoCheckpointHere: It is of another run.
        """
        directory = self._publisher.directory
        if checkpoint.run_uuid != identity.identify(directory).run.uuid:
            raise NoCheckpointHere(checkpoint.path, f"is not a checkpoint of {directory}")
        why = legible(str(reason))  # in an exception handler nobody wants another one
        self._rejected[checkpoint.uuid] = why
        try:
            self._append("rejected", checkpoint, {"reason": why})
        except (OSError, CkptdbError) as error:
            warnings.warn(
                f"That step {checkpoint.step} was rejected could not be recorded ({error}); "
                "only this process passes it over."
            )
        return self.find(self._options)

    # --- which one ----------------------------------------------------------------------

    def _find_whole(self) -> Checkpoint | None:
        obstructed = run_listing.find_obstructed(self._publisher.directory)
        members = self._list_members()
        line = lineage.find_line(members)
        for known in self._in_order(_line_first(members, line)):
            obstructed.pop(known.step, None)  # it is told as what it was
            self._tell_obstructed(obstructed, above=known.step)
            found, why = self._examine(known)
            if why is None:
                if any(member.uuid == found.uuid for member in line):
                    self._tell_of_higher(found, members, line)
                return found
            self._tell(found, why)
        self._tell_obstructed(obstructed, above=-1)
        return None

    def tell_obstructed(self, *, above: int) -> None:
        """Warn of what would be a newer checkpoint than a step, and cannot be read as one; once."""
        self._tell_obstructed(run_listing.find_obstructed(self._publisher.directory), above=above)

    def _tell_obstructed(self, obstructed: Mapping[int, str], *, above: int) -> None:
        for step in sorted((step for step in obstructed if step > above), reverse=True):
            path, why = self._publisher.directory / names.final_name(step), obstructed[step]
            self._tell_once(step, path, str(path), why)

    def _list_members(self) -> tuple[LineMember, ...]:
        def find(catalog: Catalog, run_id: int, _: object) -> tuple[LineMember, ...]:
            return catalog.line_members(run_id)

        nothing: tuple[LineMember, ...] = ()
        return self._index.query(find, nothing=nothing)

    def _in_order(self, first: Sequence[LineMember]) -> Iterator[Checkpoint]:
        """Yield what is published, trusted or not: first some, then the others by step."""
        yielded = set[str]()
        begin, count = 0, _FIRST_LOOK
        while begin < len(first):
            some = first[begin : begin + count]
            found = self._list_at([member.step for member in some])
            for member in some:
                checkpoint = found.get(member.uuid)
                if checkpoint is not None:  # else meanwhile replaced or gone
                    yielded.add(member.uuid)
                    yield checkpoint
            begin, count = begin + count, count * _GROWTH
        yield from self._newest_first(yielded)

    def _newest_first(self, passed: Collection[str]) -> Iterator[Checkpoint]:
        """Yield what is published and was not yet, whether it can be trusted or not."""
        count, yielded = _FIRST_LOOK, set(passed)
        while True:
            found = self._list(count)
            # By uuid: meanwhile some may have come or gone.
            for checkpoint in found:
                if checkpoint.uuid not in yielded:
                    yielded.add(checkpoint.uuid)
                    yield checkpoint
            if len(found) < count:
                return
            count *= _GROWTH

    def _list_at(self, steps: Sequence[int]) -> dict[str, Checkpoint]:
        def find(catalog: Catalog, run_id: int, _: object) -> dict[str, Checkpoint]:
            found = catalog.checkpoints(run_id=run_id, status="final", steps=sorted(steps))
            return {checkpoint.uuid: checkpoint for checkpoint in found}

        nothing: dict[str, Checkpoint] = {}
        return self._index.query(find, nothing=nothing)

    def _list(self, count: int) -> Sequence[Checkpoint]:
        def find(catalog: Catalog, run_id: int, _: object) -> tuple[Checkpoint, ...]:
            return catalog.checkpoints(run_id=run_id, status="final", limit=count)[::-1]

        nothing: tuple[Checkpoint, ...] = ()
        return self._index.query(find, nothing=nothing)

    def _examine(self, known: Checkpoint) -> tuple[Checkpoint, str | None]:
        """Return a checkpoint as it is now, and why training cannot continue from it."""
        rejected = known.rejected if known.rejected is not None else self._rejected.get(known.uuid)
        if rejected is not None:
            return known, f"it was rejected: {rejected}"
        # What a link leads to, or a file, may be back since: then it is as good as ever.
        may_be_whole = known.problem is None or (
            known.problem.startswith("damaged") and manifest.DIFFERS not in known.problem
        )
        return self._look(known) if may_be_whole else (known, known.problem)

    def _look(self, known: Checkpoint) -> tuple[Checkpoint, str | None]:
        who = identity.identify(self._publisher.directory)
        try:
            found = read_checkpoint.load(who, known.path, known.step, verify=True)
            if self._options.checksums and found.problem is None:
                compared = _compare_contents(found.path)
                if compared.doubt and not compared.damage:
                    return known, f"it cannot be compared with its checksums ({compared.doubt})"
                found = replace(found, problem=compared.damage)
        except FileNotFoundError:
            return known, symlinks.find_obstruction(known.path) or "it is not there any more"
        except (OSError, UnreadableInfo) as error:
            return known, f"it cannot be read ({getattr(error, 'strerror', None) or error})"
        if found.uuid != known.uuid:
            return found, found.problem  # replaced in between, and as good as the other
        if found.problem == known.problem:
            return known, known.problem
        learned = replace(known, problem=found.problem, fingerprint=found.fingerprint)
        self._index.record_findings([learned])
        return learned, found.problem

    def _tell(self, checkpoint: Checkpoint, why: str) -> None:
        self._tell_once(checkpoint.step, checkpoint.path, checkpoint.uuid, why)

    def _tell_once(self, step: int, path: Path, which: str, why: str) -> None:
        self._warn_once(which, f"Step {step} is passed over ({path}): {why}")

    def _tell_of_higher(
        self, found: Checkpoint, members: Sequence[LineMember], line: lineage.Line
    ) -> None:
        on_line = {member.uuid for member in line}
        higher = sorted(
            member.step
            for member in members
            if member.is_trusted and member.step > found.step and member.uuid not in on_line
        )
        if not higher:
            return
        text = (
            f"Training continues from step {found.step}, the newest of the line of training that "
            f"was saved last; {some_steps(higher)} of {found.path.parent} "
            f"{'is' if len(higher) == 1 else 'are'} higher, and not on that line. To continue from "
            f"step {higher[-1]} instead, load {found.path.with_name(names.final_name(higher[-1]))} "
            "in place of what resume() returns: load_training_info() and get_resume_paths() note "
            "what training continues from."
        )
        self._warn_once(found.uuid, text)

    def _warn_once(self, which: str, text: str) -> None:
        if (which, text) not in self._told:
            self._told.add((which, text))
            warnings.warn(text)

    def _compare(self, found: Checkpoint, options: Options) -> None:
        if options.config is None or options.on_change == "ignore":
            return
        refused = self._find_change(found.path, options.config)
        if refused is None:
            return
        if options.on_change == "refuse":
            raise refused
        warnings.warn(refused.what)

    def _find_change(self, path: Path, config: object) -> ConfigChanged | None:
        """Return what has changed since a checkpoint was saved, or why that is not known."""
        try:
            now = config_file.config_to_compare(config)
        except UnreadableInfo as error:
            return ConfigNotComparable(path, f"the one passed {error.why}")
        try:
            stored = config_file.get_config(path)
        except UnreadableInfo as error:
            return ConfigNotComparable(path, f"{error.path.name} {error.why}")
        if stored is None:
            # Nothing to contradict: as with the first resume of a run that never stored one.
            warnings.warn(
                f"Whether the configuration has changed since {path} cannot be told: "
                "that one has none."
            )
            return None
        changes = differences(stored, now)
        return ConfigChanged(path, changes) if changes else None

    # --- what is written down -----------------------------------------------------------

    def _record_resumption(self, found: Checkpoint) -> bool:
        """Record it; return whether the checkpoint is still there."""
        me = process.this_process()
        try:
            self._append("resumed", found, {"host": me["host"], "pid": me["pid"]})
        except (OSError, CkptdbError) as error:
            warnings.warn(
                f"That training resumes from step {found.step} could not be recorded: {error}"
            )
            return True
        # Looked at after the record: from then on it is known that somebody needs it.
        try:
            who = identity.identify(self._publisher.directory)
            return (
                checkpoint_identity.find_uuid(who, found.path, found.step, through_link=True)
                == found.uuid
            )
        except OSError:
            return True  # whoever loads it will see

    def _append(self, kind: str, checkpoint: Checkpoint, details: Mapping[str, Any]) -> None:
        self._publisher.record([Fact(utc(time.time()), kind, checkpoint.uuid, details)])


def _line_first(members: Sequence[LineMember], line: lineage.Line) -> list[LineMember]:
    """Return what is published of a line, the newest first, behind what is passed over for it."""
    on_line = [member for member in line if member.is_live]
    ids = {member.id for member in line}
    doubted = [
        member
        for member in members
        if member.is_live and not member.is_trusted and member.id not in ids
        and member.step > on_line[0].step
    ] if on_line else []  # fmt: skip
    return [*sorted(doubted, key=lambda member: -member.step), *on_line]


def _compare_contents(path: Path) -> Compared:
    content = manifest.find(path)
    return Compared() if content is None else checksums.verify(path, content)


def legible(reason: str) -> str:
    """Return any text as one line that every file and database takes, not too long."""
    line = " ".join(reason.encode(errors="backslashreplace").decode().replace("\0", " ").split())
    return _cut(line or "no reason was given", _LONGEST_REASON)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what differs between two configurations, one line each, by dotted path.

    Args:
        old: As it was stored, plain JSON values.
        new: Likewise.
    """
    changes = sorted(config_changes(old, new), key=attrgetter("key"))
    return tuple(f"{change.key}{_worded(change)}" for change in changes)


def _worded(change: ConfigChange) -> str:
    match change.kind:
        case "added":
            return f" is new: {_shown(change.b)}"
        case "removed":
            return f" is gone, was {_shown(change.a)}"
        case "changed":
            return f": {_shown(change.a)} → {_shown(change.b)}"


def _shown(value: object) -> str:
    return _cut(json.dumps(value, ensure_ascii=False), _LONGEST_VALUE)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"

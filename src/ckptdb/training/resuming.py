"""Resuming: find the newest whole checkpoint of the last line of training, and record it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptdb.catalog.catalog import Catalog
from ckptdb.core import process, warnings
from ckptdb.core.facts import Fact
from ckptdb.core.records import Checkpoint, LineMember
from ckptdb.core.text import some_steps
from ckptdb.core.times import utc
from ckptdb.disk import (
    checkpoint_identity,
    checksums,
    identity,
    manifest,
    names,
    read_checkpoint,
    run_listing,
    symlinks,
)
from ckptdb.disk.manifest import Compared
from ckptdb.errors import CkptdbError, InvalidChoice, NoCheckpointHere, UnreadableInfo
from ckptdb.training import config_change, lineage, load_history
from ckptdb.training.checksum_worker import ChecksumWorker
from ckptdb.training.config_change import ON_CHANGE, OnChange, cut
from ckptdb.training.run_parts import RunParts

_LONGEST_REASON = 2000
_FIRST_LOOK, _GROWTH = 8, 8


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """Options of a resume.

    Attributes:
        config: Configuration of the training that resumes, None to compare none.
        on_change: Reaction to a checkpoint that was saved with another configuration.
        checksums: Whether files that have checksums are read, not only compared by size.
    """

    config: object = None
    on_change: OnChange = "warn"
    checksums: bool = False

    def __post_init__(self) -> None:
        if self.checksums:
            checksums.require()
        if self.on_change not in ON_CHANGE:
            raise InvalidChoice("on_change", self.on_change, ON_CHANGE)


class Resuming:
    """Finds the checkpoint that the training of one run continues from.

    Args:
        parts: Parts of the manager.
        checksum_worker: Compares the next save with that checkpoint, if there is one.
    """

    def __init__(self, parts: RunParts, checksum_worker: ChecksumWorker | None) -> None:
        self._parents = parts.parents
        self._index = parts.index
        self._publisher = parts.publisher
        self._checksum_worker = checksum_worker
        self._options = ResumeOptions()
        self._warned: set[tuple[str, str]] = set()
        # Rejections of this process hold even where they could not be recorded.
        self._rejected: dict[str, str] = {}

    def find(self, options: ResumeOptions) -> Checkpoint | None:
        """Return the newest whole checkpoint of the line of training that was saved last.

        The newest of all, when the line is not known. That training continues there is recorded.

        Raises:
            ConfigChanged: The checkpoint was saved with another configuration, and that is refused.
        """
        found = self._find(options)
        self._parents.note_look()
        self._parents.resume_from(None if found is None else found.uuid)
        if found is not None:
            # The save may come from another manager of this process.
            load_history.note_load(found.path, has_weights=True)
            if self._checksum_worker:
                self._checksum_worker.begin_after(found)
        return found

    def _find(self, options: ResumeOptions) -> Checkpoint | None:
        self._options = options
        while True:
            found = self._find_whole()
            if found is None:
                return None
            config_change.check(found.path, options.config, options.on_change)
            if self._record_resumption(found):
                return found
            # Another process has deleted or replaced it in between.

    def reject(self, checkpoint: Checkpoint, reason: str) -> Checkpoint | None:
        """Reject a checkpoint; return the next one, found with the options of the last `find`.

        Raises:
            NoCheckpointHere: The checkpoint belongs to another run.
        """
        directory = self._publisher.directory
        self._parents.resume_from(None)  # in case the next one is refused
        load_history.forget(directory, checkpoint.uuid)
        if checkpoint.run_uuid != identity.identify(directory).run.uuid:
            raise NoCheckpointHere(checkpoint.path, f"is not a checkpoint of {directory}")
        why = format_reason(str(reason))  # an exception handler must not raise another error
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
            obstructed.pop(known.step, None)  # it is reported as the checkpoint that it was
            self._warn_of_obstructed(obstructed, above=known.step)
            found, why = self._examine(known)
            if why is None:
                if any(member.uuid == found.uuid for member in line):
                    self._warn_of_higher(found, members, line)
                return found
            self._warn_of_passed_over(found, why)
        self._warn_of_obstructed(obstructed, above=-1)
        return None

    def warn_of_obstructed(self, *, above: int) -> None:
        """Warn once of newer steps whose name is taken by something that is no checkpoint."""
        self._warn_of_obstructed(
            run_listing.find_obstructed(self._publisher.directory), above=above
        )

    def _warn_of_obstructed(self, obstructed: Mapping[int, str], *, above: int) -> None:
        for step in sorted((step for step in obstructed if step > above), reverse=True):
            path, why = self._publisher.directory / names.final_name(step), obstructed[step]
            self._warn_of_step(step, path, str(path), why)

    def _list_members(self) -> tuple[LineMember, ...]:
        def find(catalog: Catalog, run_id: int, _: object) -> tuple[LineMember, ...]:
            return catalog.lineage.members(run_id)

        nothing: tuple[LineMember, ...] = ()
        return self._index.query(find, nothing=nothing)

    def _in_order(self, first: Sequence[LineMember]) -> Iterator[Checkpoint]:
        """Yield published checkpoints, trusted or not: the given ones first, then by step."""
        yielded = set[str]()
        begin, count = 0, _FIRST_LOOK
        while begin < len(first):
            some = first[begin : begin + count]
            found = self._list_at([member.step for member in some])
            for member in some:
                checkpoint = found.get(member.uuid)
                if checkpoint is not None:  # else it was replaced or deleted since
                    yielded.add(member.uuid)
                    yield checkpoint
            begin, count = begin + count, count * _GROWTH
        yield from self._newest_first(yielded)

    def _newest_first(self, passed: Collection[str]) -> Iterator[Checkpoint]:
        """Yield the published checkpoints that were not yielded yet, trusted or not."""
        count, yielded = _FIRST_LOOK, set(passed)
        while True:
            found = self._list(count)
            # Compared by uuid, because checkpoints may have come or gone since.
            for checkpoint in found:
                if checkpoint.uuid not in yielded:
                    yielded.add(checkpoint.uuid)
                    yield checkpoint
            if len(found) < count:
                return
            count *= _GROWTH

    def _list_at(self, steps: Sequence[int]) -> dict[str, Checkpoint]:
        def find(catalog: Catalog, run_id: int, _: object) -> dict[str, Checkpoint]:
            found = catalog.checkpoints.list_all(run_id=run_id, status="final", steps=sorted(steps))
            return {checkpoint.uuid: checkpoint for checkpoint in found}

        nothing: dict[str, Checkpoint] = {}
        return self._index.query(find, nothing=nothing)

    def _list(self, count: int) -> Sequence[Checkpoint]:
        def find(catalog: Catalog, run_id: int, _: object) -> tuple[Checkpoint, ...]:
            return catalog.checkpoints.list_all(run_id=run_id, status="final", limit=count)[::-1]

        nothing: tuple[Checkpoint, ...] = ()
        return self._index.query(find, nothing=nothing)

    def _examine(self, known: Checkpoint) -> tuple[Checkpoint, str | None]:
        """Return a checkpoint as it is now, and the reason against continuing from it, if any."""
        rejected = known.rejected if known.rejected is not None else self._rejected.get(known.uuid)
        if rejected is not None:
            return known, f"it was rejected: {rejected}"
        # A missing file, or the target of a link, may be back: then the checkpoint is whole again.
        may_be_whole = known.problem is None or known.problem_kind == "damaged"
        return self._verify(known) if may_be_whole else (known, known.problem)

    def _verify(self, known: Checkpoint) -> tuple[Checkpoint, str | None]:
        who = identity.identify(self._publisher.directory)
        try:
            found = read_checkpoint.load(who, known.path, known.step, verify=True)
            if self._options.checksums and found.problem is None:
                compared = _compare_contents(found.path)
                if compared.doubt and not compared.damage:
                    return known, f"it cannot be compared with its checksums ({compared.doubt})"
                found = found.with_problem(compared.problem)
        except FileNotFoundError:
            return known, symlinks.find_obstruction(known.path) or "it is not there any more"
        except (OSError, UnreadableInfo) as error:
            return known, f"it cannot be read ({getattr(error, 'strerror', None) or error})"
        if found.uuid != known.uuid:
            return found, found.problem  # replaced in between, by one that will do as well
        if found.problem == known.problem:
            return known, known.problem
        learned = replace(known, fingerprint=found.fingerprint).with_problem(found.find_problem())
        self._index.record_findings([learned])
        return learned, found.problem

    def _warn_of_passed_over(self, checkpoint: Checkpoint, why: str) -> None:
        self._warn_of_step(checkpoint.step, checkpoint.path, checkpoint.uuid, why)

    def _warn_of_step(self, step: int, path: Path, which: str, why: str) -> None:
        self._warn_once(which, f"Step {step} is passed over ({path}): {why}")

    def _warn_of_higher(
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
        if (which, text) not in self._warned:
            self._warned.add((which, text))
            warnings.warn(text)

    # --- what is recorded ---------------------------------------------------------------

    def _record_resumption(self, found: Checkpoint) -> bool:
        """Record the resumption; return whether the checkpoint is still there."""
        me = process.this_process()
        try:
            self._append("resumed", found, {"host": me["host"], "pid": me["pid"]})
        except (OSError, CkptdbError) as error:
            warnings.warn(
                f"That training resumes from step {found.step} could not be recorded: {error}"
            )
            return True
        # Checked after the record: from then on no rule deletes the checkpoint.
        try:
            who = identity.identify(self._publisher.directory)
            return (
                checkpoint_identity.find_uuid(who, found.path, found.step, through_link=True)
                == found.uuid
            )
        except OSError:
            return True  # loading it will show

    def _append(self, kind: str, checkpoint: Checkpoint, details: Mapping[str, Any]) -> None:
        self._publisher.record([Fact(utc(time.time()), kind, checkpoint.uuid, details)])


def _line_first(members: Sequence[LineMember], line: lineage.Line) -> list[LineMember]:
    """Return the live members of a line, the newest first, after the untrusted ones above it."""
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


def format_reason(reason: str) -> str:
    """Return any text as one line that every file and database takes, not too long."""
    line = " ".join(reason.encode(errors="backslashreplace").decode().replace("\0", " ").split())
    return cut(line or "no reason was given", _LONGEST_REASON)

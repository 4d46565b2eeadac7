"""The protocol with one step less, or two in the wrong order, again and again.

A flush is named by where it is asked for: module, function, callee, and which of them. With
several names it is the flush below all of these calls.
"""

from __future__ import annotations

import ast
import functools
import json
import mmap
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ckptdb
from ckptdb.core.facts import JOURNAL, Fact
from ckptdb.core.observed import Manifest
from ckptdb.disk import (
    checkpoint_identity,
    fsutil,
    journal,
    journal_lines,
    journal_repair,
    leases,
    manifest,
    names,
    paths,
    read_checkpoint,
    read_tmp,
    trainer_lock,
    tree_removal,
    writer,
)
from ckptdb.disk.journal_lines import NO_LINE, LineChain
from ckptdb.disk.journal_pins import Pins
from ckptdb.disk.publish import Publisher

DISK = Path(ckptdb.__file__).parent / "disk"
_FLUSHING = frozenset({"fsync", "_fsync_all", "fsync_tree", "_sync_directory", "_sync_trash"})
_ASKING = frozenset({"durable", "make_durable"})
_executed = mmap.mmap(-1, 1)
"""Shared with the processes in which mutants live."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """The product with one thing missing.

    Attributes:
        stories: By which it is to be caught, the likeliest first; see `lab.stories`.
        without: The flushes that it leaves out, when that is what it does.
        redundant: Why nothing can be lost without it; None when something must be.
        recovers: It lives in who comes after the fault, not in who suffers it.
    """

    name: str
    stories: tuple[str, ...]
    without: tuple[str, ...] = ()
    patch: Callable[[], AbstractContextManager[object]] = nullcontext
    redundant: str | None = None
    recovers: bool = False

    def living(self) -> AbstractContextManager[object]:
        """Have it in this process."""
        return _without(self.without) if self.without else self.patch()


def begin() -> None:
    """Forget that anything was executed."""
    _executed[0] = 0


def was_executed() -> bool:
    """Whether the place that is mutated has been come to since `begin`."""
    return bool(_executed[0])


def hit() -> None:
    """Say that the mutated place has been come to."""
    _executed[0] = 1


# --- flushes by the place where they are asked for --------------------------------------


@functools.cache
def sites() -> dict[str, tuple[str, range]]:
    """Return the file and lines of every call in ``disk/`` that flushes, or asks for it."""
    found: dict[str, tuple[str, range]] = {}
    for file in sorted(DISK.glob("*.py")):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                counts: dict[str, int] = {}
                calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
                for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
                    if (name := _flushes(call)) is None:
                        continue
                    counts[name] = counts.get(name, 0) + 1
                    key = f"{file.stem}.{function.name}/{name}/{counts[name]}"
                    lines = range(call.lineno, (call.end_lineno or call.lineno) + 1)
                    found[key] = (str(file), lines)
    return found


def _flushes(call: ast.Call) -> str | None:
    callee = call.func
    name = callee.attr if isinstance(callee, ast.Attribute) else getattr(callee, "id", "")
    passed = {argument.id for argument in call.args if isinstance(argument, ast.Name)}
    asks = any(
        keyword.arg in _ASKING
        and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
        for keyword in call.keywords
    )
    return name if name in _FLUSHING or passed & _FLUSHING or asks else None


@contextmanager
def _without(keys: tuple[str, ...]) -> Iterator[None]:
    places = [sites()[key] for key in keys]
    real = os.fsync

    def fsync(handle: int) -> None:
        frames = list(_frames())
        if all(any(f == file and n in lines for f, n in frames) for file, lines in places):
            hit()
        else:
            real(handle)

    with patch.object(os, "fsync", fsync):
        yield


def _frames() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


# --- wrong orders -----------------------------------------------------------------------


@contextmanager
def _replacing(owner: object, **functions: Callable[..., Any]) -> Iterator[None]:
    """Put functions in the place of an owner's; each is given the real one first."""
    with ExitStack() as stack:
        for name, function in functions.items():
            real = getattr(owner, name)
            stack.enter_context(patch.object(owner, name, functools.partialmethod(function, real)
                if isinstance(owner, type) else functools.partial(function, real)))  # fmt: skip
        yield


def _seal_late(publisher: Publisher, real: Callable[..., Manifest], *arguments: Any) -> Manifest:
    hit()
    late: list[Path] = []
    with patch.object(fsutil, "fsync_tree", lambda folder, **_: late.append(folder)):
        sealed = real(publisher, *arguments)
    for folder in late:
        fsutil.fsync_tree(folder)
    return sealed


def _publish_first(publisher: Publisher, real: Callable[..., Any], *arguments: Any) -> Any:
    who, watch, path, sealed = arguments
    hit()
    late: list[Path] = []
    with patch.object(fsutil, "fsync_tree", lambda folder, **_: late.append(folder)):
        published = real(publisher, who, watch, path, sealed)
    fsutil.fsync_tree(published.checkpoint.path)
    return published


def _nothing_flushed(publisher: Publisher, real: Callable[..., Any], *arguments: Any) -> Any:
    with patch.object(fsutil, "fsync_tree", lambda _, **__: None):
        return real(publisher, *arguments)


def _record_afterwards(publisher: Publisher, real: Callable[..., Any], *arguments: Any) -> Any:
    late: list[Any] = []
    with patch.object(Publisher, "_append", lambda _, __, facts: late.extend(facts)):
        result = real(publisher, *arguments)
    if late:
        hit()
        publisher._append(arguments[1], late)
    return result


def _remove_at_once(
    publisher: Publisher, _: object, __: object, path: Path, *___: object, **____: object
) -> Path:
    hit()
    tree_removal.remove_tree(path)
    return publisher._trash / path.name


def _replaces_nothing(
    real: Callable[..., None], folder: Path, sealed: Manifest, **how: Any
) -> None:
    if sealed.replaces is not None:
        hit()
    real(folder, replace(sealed, replaces=None), **how)


def _whatever_is_there(real: Callable[..., Manifest | None], folder: Path) -> Manifest | None:
    found = real(folder)
    if found is not None or not folder.name.startswith(names.tmp_name(0)[:-1]):
        return found
    hit()
    by = writer.find(folder)
    if by is None:
        return None
    return Manifest(
        uuid=by.uuid, step=names.get_tmp_step(folder), created_at=by.created_at,
        finalized_at=by.created_at, parent=None, replaces=None,
        files=manifest.list_files(folder),
    )  # fmt: skip


def _never(real: Callable[..., Any], *_: Any, **__: Any) -> None:
    del real
    hit()


def _never_of_one(_: Publisher, __: object, *___: Any, **____: Any) -> None:
    hit()


def _trash_instead(real: Callable[..., str | None], *arguments: Any) -> str | None:
    fate = real(*arguments)
    if fate == "publish":
        hit()
        return "trash"
    return fate


def _all_unchanged(
    publisher: Publisher, _: object, who: Any, deletions: Any, _failed: Any
) -> Iterator[Any]:
    hit()
    for deletion in deletions:
        path = publisher._final(deletion.step)
        if path.exists():
            yield read_checkpoint.load(who, path, deletion.step), deletion


def _look_but_once(publisher: Publisher, real: Callable[..., Any], *arguments: Any) -> Any:
    leaving = arguments[2]
    hit()
    uuids = {cp.path: cp.uuid for cp in leaving}
    with patch.object(checkpoint_identity, "find_uuid", lambda _, path, __: uuids.get(path)):
        return real(publisher, *arguments)


def _in_place(_: object, path: Path, content: Any, *, durable: bool) -> None:
    hit()
    with path.open("wb") as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")
        file.flush()
        if durable:
            os.fsync(file.fileno())


def _rewrite_in_place(_: object, hidden: Path, more: Iterable[Fact]) -> Path:
    hit()
    path = hidden / JOURNAL
    facts = [*journal_lines.iter_facts(hidden, LineChain()), *more]
    aside = path.with_name(f"{path.name}.damaged-{uuid.uuid4()}")
    journal_repair._keep(path, aside)
    path.unlink()
    fsutil.write_new(path, b"".join(journal_lines.serialize(facts, NO_LINE)), durable=True)
    fsutil.fsync(hidden)
    return aside


def _only_publish(publisher: Publisher, _: object, *arguments: Any) -> Any:
    hit()
    return publisher._publish(*arguments)


def _no_second_name(
    publisher: Publisher, real: Callable[..., Any], *arguments: Any, **options: Any
) -> Any:
    """As if nothing were put back when the second of two renames fails."""
    rename, count = fsutil.rename_new, [0]

    def rename_new(source: Path, target: Path) -> None:
        count[0] += 1
        if count[0] == 3:
            hit()
        else:
            rename(source, target)

    with patch.object(fsutil, "rename_new", rename_new):
        return real(publisher, *arguments, **options)


class _Forgetful(set[Path]):
    def add(self, _: Path) -> None:
        hit()


@contextmanager
def _forgetting() -> Iterator[None]:
    real = Publisher.__init__

    def begin_anew(self: Publisher, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self._failed = _Forgetful()

    with patch.object(Publisher, "__init__", begin_anew):
        yield


@contextmanager
def _deaf() -> Iterator[None]:
    """As if a flush that fails had not."""
    real = os.fsync

    def fsync(handle: int) -> None:
        try:
            real(handle)
        except OSError:
            hit()

    with patch.object(os, "fsync", fsync):
        yield


@contextmanager
def _no_withdrawal() -> Iterator[None]:
    real = paths.unlink

    def unlink(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == names.MANIFEST:
            hit()
        else:
            real(path, missing_ok=missing_ok)

    with patch.object(paths, "unlink", unlink):
        yield


def _swallowing(real: Callable[..., tuple[str, bool]], *arguments: Any) -> tuple[str, bool]:
    after, is_torn = real(*arguments)
    if is_torn:
        hit()
    return after, False


@contextmanager
def _unlocked() -> Iterator[None]:
    @contextmanager
    def run_lock(_: Path) -> Iterator[None]:
        hit()
        yield

    with patch("ckptdb.disk.transaction.run_lock", run_lock):
        yield


def _of(owner: object, **functions: Callable[..., Any]) -> Callable[[], Any]:
    return lambda: _replacing(owner, **functions)


@contextmanager
def _both(*patches: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each())
        yield


_BYTES, _NAME = "fsutil.write_new/fsync/1", "fsutil.write_json/fsync/1"
_RUN_JSON = "identity._write/write_json/1"
_ESTABLISHING = (
    "transaction._establish_locked/establish/1", "identity.establish/_write/1", _RUN_JSON,
)  # fmt: skip
_PRUNED_BY = (
    "transaction.record_pruned_by/record_pruned_by/1", "identity.record_pruned_by/_write/1",
    _RUN_JSON,
)  # fmt: skip
_NOTE = "pending_index.add/_write/1"
_SEALING = ("publish._seal/write/1", "manifest.write/write_json/1")

_FLUSHES = (
    Mutant("no flush of anything by its path", ("first save",), ("fsutil.fsync/fsync/1",)),
    Mutant("a save: its files and folders", ("first save",), ("publish._seal/fsync_tree/1",)),
    Mutant("a save: its files", ("first save",), ("fsutil._fsync_all/fsync/1",)),
    Mutant("a save: its files, when they are many", ("first save",),
           ("fsutil.fsync_tree/partial/1",)),
    Mutant("a save: its files, when they are few", ("no files",),
           ("fsutil.fsync_tree/_fsync_all/1",)),
    Mutant("a save: its folders", ("many files",), ("fsutil.fsync_tree/fsync/1",)),
    Mutant("a save: the manifest", ("first save",), _SEALING),
    Mutant("a save: the manifest's bytes", ("first save",),
           ("publish._seal/write/1", "fsutil.write_json/write_new/1", _BYTES)),
    Mutant("a save: the manifest's name", ("first save",), (*_SEALING, _NAME)),
    Mutant("a save: the manifest's bytes, told anew", ("adopted over nothing",),
           ("publish._publish/write/1", _BYTES)),
    Mutant("a save: the manifest's name, told anew", ("adopted over nothing",),
           ("publish._publish/write/1", _NAME), redundant=(
        "What is told anew is only what is replaced. The manifest before it is durable, and says "
        "as well that all is whole. At worst, after a power cut within the exchange, what had come "
        "in between stays as a `tmp_step_N` for gc; its end is in the journal.")),
    Mutant("checksums: the manifest's bytes", ("summed",),
           ("publish.add_checksums/write/1", _BYTES)),
    Mutant("checksums: the manifest's name", ("summed",),
           ("publish.add_checksums/write/1", _NAME), redundant=(
        "The manifest before it is durable and says as well that all is whole; only the checksums "
        "are lost.")),
    Mutant("the commit point", ("first save",), ("publish._publish/_sync_directory/1",)),
    Mutant("the commit point, until older ones are gone", ("rolling",),
           ("publish._publish/_sync_directory/1",)),
    Mutant("the commit point of a replacement", ("replaced for certain",),
           ("replace._swap/_sync_directory/1",)),
    Mutant("any flush of the run's directory", ("first save",),
           ("transaction._sync_directory/fsync/1",)),
    Mutant("replaced: the trash", ("pinned and replaced", "repaired"),
           ("trash._set_aside/_sync_trash/1", "trash._sync_trash/fsync/1")),
    Mutant("undeleted: the name", ("undeleted",), ("trash.undelete/_sync_directory/1",)),
    Mutant("put back: the name", ("put back",), ("publish.give_name_back/_sync_directory/1",)),
    Mutant("retired or discarded: the old name", ("pruned", "discarded"),
           ("retire._put_away/_sync_directory/1",)),
    Mutant("retired on a full disk: the trash", ("freed",),
           ("retire._put_away/_sync_trash/1", "trash._sync_trash/fsync/1")),
    Mutant("freed in place: the mark", ("killed, freeing in place",),
           ("delete_in_place._mark/fsync/1",),
           redundant=(
        "A kill takes nothing back, and the power cuts of this laboratory know names and bytes, no "
        "modes. ext4 and xfs bring both to the disk in their order; others may not.")),
    Mutant("freed in place: that the run has changed", ("killed, freeing in place",),
           ("delete_in_place._mark/_sync_directory/1",), redundant=(
        "Likewise: without it a question after a power cut may not look, and the next one does.")),
    Mutant("retired by one who died: the old name", ("retired, then emptied",),
           ("trash._remove_retired/_sync_directory/1",)),
    Mutant("freed by one who died: the trash", ("freed, then emptied",),
           ("trash._record_late/_sync_trash/1",)),
    Mutant("freed by one who died: the old name", ("freed, then emptied",),
           ("trash._record_late/_sync_directory/1",), redundant=(
        "The trash has just been flushed, and a directory has but one name. It is there for file "
        "systems that may bring the old name back all the same, over bytes that are gone.")),
    Mutant("adopted: its files and folders", ("adopted, unflushed",),
           ("publish._adopt/fsync_tree/1",)),
    Mutant("the journal: lines", ("annotated",), ("transaction._append/append/1",)),
    Mutant("the journal: bytes", ("annotated",), ("journal.append/fsync/1",)),
    Mutant("the journal: name", ("annotated",), ("journal.append/fsync/2",)),
    Mutant("a damaged journal written anew: bytes", ("settled",),
           ("journal_repair._write_lines/fsync/1",)),
    Mutant("a damaged journal written anew: the damaged one's name", ("settled",),
           ("journal_repair.rewrite/fsync/1",)),
    Mutant("a damaged journal written anew: its name", ("settled beside a trainer",),
           ("journal_repair.rewrite/fsync/2",)),
    Mutant("a damaged journal kept: bytes", ("settled",), ("journal_repair._keep/fsync/1",)),
    Mutant("run.json", ("first save",), _ESTABLISHING),
    Mutant("run.json: bytes", ("first save",), (*_ESTABLISHING, _BYTES)),
    Mutant("run.json: name", ("first save",), (*_ESTABLISHING, _NAME)),
    Mutant("run.json, pruned by another metric: bytes", ("pruned by another metric",),
           (*_PRUNED_BY, _BYTES)),
    Mutant("run.json, pruned by another metric: name", ("pruned by another metric",),
           (*_PRUNED_BY, _NAME), redundant=(
        "The run.json before it is durable and says by what the run was pruned until then. At "
        "worst the next prune keeps once more what the old metric keeps.")),
    Mutant("a note of what a catalog lacks", ("noted",), (_NOTE,)),
    Mutant("a note of what a catalog lacks: bytes", ("noted",),
           (_NOTE, "pending_index._write/write_new/1")),
    Mutant("a note of what a catalog lacks: name", ("noted",),
           (_NOTE, "pending_index._write/fsync/1")),
    Mutant("a note of what a catalog lacks: its folder", ("noted",),
           (_NOTE, "pending_index._write/make_folder/1")),
    Mutant("root.json", ("a new root",), ("root_marker.mark_root/write_json/1",)),
    Mutant("root.json: bytes", ("a new root",), ("root_marker.mark_root/write_json/1", _BYTES)),
    Mutant("root.json: name", ("a new root",), ("root_marker.mark_root/write_json/1", _NAME)),
    Mutant("root.json: its folder", ("a new root without a folder",),
           ("root_marker.mark_root/make_directories/1", "fsutil.make_directories/fsync/1")),
    Mutant("new folders, by the lease", ("a new run",),
           ("publish.lock_trainer/make_directories/1",)),
    Mutant("new folders, without a lease", ("a new run without a lease",),
           ("transaction._changing/make_directories/1",)),
    Mutant("our folder in a run of others", ("annotated",),
           ("transaction._make_folders/make_folder/1", "fsutil.make_folder/fsync/1"),
           redundant=(
        "`_make_names_durable` flushes the folder and the run before anything is written. It is "
        "there so that no name of ours depends on who comes after it.")),
    Mutant("names that a dead process made: run.json", ("begun, then saved",),
           ("transaction._make_names_durable/fsync/1",)),
    Mutant("names that a dead process made: .ckptdb", ("begun, then annotated",),
           ("transaction._make_names_durable/fsync/2",)),
    Mutant("names that a dead process made: the run", ("begun anew, then saved",),
           ("transaction._make_names_durable/fsync/3",)),
)  # fmt: skip

_ORDERS = (
    Mutant("the manifest before the files are flushed", ("first save",),
           patch=_of(Publisher, _seal=_seal_late)),
    Mutant("the name before the files are flushed", ("first save",),
           patch=lambda: _both(_of(Publisher, _seal=_nothing_flushed),
                               _of(Publisher, _publish=_publish_first))),
    Mutant("`deleted` after the move into the trash", ("killed, pruning",),
           patch=_of(Publisher, _put_away=_record_afterwards)),
    Mutant("`discarded` after the move into the trash", ("killed, discarding", "discarded"),
           patch=_of(Publisher, _put_away=_record_afterwards), redundant=(
        "Nothing was acknowledged of that save, nor of its end before the line is written: without "
        "it nobody misses anything. The order is that of `deleted`, by the same code.")),
    Mutant("`replaced` after the exchange", ("killed, replacing",),
           patch=_of(Publisher, _publish=_record_afterwards)),
    Mutant("bytes removed under the published name", ("killed, pruning",),
           patch=_of(Publisher, _to_trash=_remove_at_once)),
    Mutant("a manifest that does not say what it replaces", ("killed, replacing",),
           patch=_of(manifest, write=_replaces_nothing)),
    Mutant("JSON files written in place",
           ("killed, summing", "killed, measuring otherwise", "measured otherwise"),
           patch=_of(fsutil, write_json=_in_place)),
    Mutant("a damaged journal written anew in place", ("killed, settling",),
           patch=_of(journal_repair, rewrite=_rewrite_in_place)),
    Mutant("a torn line not ended", ("a torn line",), patch=_of(journal, _find_end=_swallowing)),
    Mutant("nothing back when the second of two renames fails",
           ("refused, replacing in two renames",), patch=_of(Publisher, _swap=_no_second_name)),
    Mutant("a failed flush ignored", ("refused, saving",), patch=_deaf),
    Mutant("a failed save tried again", ("refused, saving",), patch=_forgetting),
    Mutant("the manifest of a failed save left", ("refused, saving",), patch=_no_withdrawal),
)  # fmt: skip

_RECOVERIES = (
    Mutant("a save without a manifest is adopted", ("killed, saving many",), recovers=True,
           patch=_of(checkpoint_identity, find_manifest=_whatever_is_there)),
    Mutant("what was set aside not put back", ("killed, replacing in two renames",), recovers=True,
           patch=_of(Publisher, put_back=_never_of_one)),
    Mutant("a complete save not adopted but trashed", ("killed, saving",), recovers=True,
           patch=_of(read_tmp, _fate=_trash_instead)),
)  # fmt: skip

_RACES = (
    Mutant("the uuid not compared before retiring", ("judged, then replaced",),
           patch=_of(Publisher, _unchanged=_all_unchanged)),
    Mutant("the uuid not compared again", ("judged, then replaced by hand",),
           patch=_of(Publisher, _put_away=_look_but_once)),
    Mutant("the name compared, not what was sealed", ("published by another",),
           patch=_of(Publisher, _publish_or_find=_only_publish)),
    Mutant("no lock of the run", ("replaced while it is retired",), patch=_unlocked),
    Mutant(
        "no lease", ("two trainers",), patch=_of(trainer_lock, _lock=lambda *_: bool(hit() or 1))
    ),
    Mutant("nobody's name on a save", ("saved by two",), patch=_of(writer, write=_never)),
    Mutant("pins not read before the trash is emptied", ("pinned, replaced, emptied",),
           patch=_of(Pins, find=lambda *_: hit() or frozenset())),
    Mutant("leases not read before retiring", ("judged, then leased",),
           patch=_of(leases, settle=lambda *_: hit() or ())),
    Mutant("leases not read before the trash is emptied", ("leased, replaced, emptied",),
           patch=_of(leases, find_leased=lambda *_, **__: hit() or {})),
)  # fmt: skip
sites()  # now: the lines of what was just imported
MUTANTS = (*_FLUSHES, *_ORDERS, *_RECOVERIES, *_RACES)

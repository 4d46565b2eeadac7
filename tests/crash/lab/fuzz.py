"""Feeding what no program of ours has written to everything that reads a run.

Every input is made from a valid file of a real run and depends on what is fuzzed, the seed, the
shard and its number alone; ``make(what, key)`` returns it again. A catalog that has done harm is
kept. Reading may raise what its docstring says and nothing else; it may not take long, need much
memory, or change a file.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random
from unittest import mock
from urllib.parse import unquote, urlsplit

from ckptdb.catalog.catalog import Catalog
from ckptdb.catalog.engine import Database
from ckptdb.core.metrics import metrics_of
from ckptdb.core.observed import Identity
from ckptdb.core.records import Run
from ckptdb.disk import (
    config_file,
    identity,
    journal,
    json_values,
    manifest,
    names,
    read_checkpoint,
    read_tmp,
    training_info,
    writer,
)
from ckptdb.errors import CkptdbError, NoCheckpointHere, UnreadableInfo, UnwritableInfo
from ckptdb.manager import CheckpointManager, _load_checkpoint_history
from ckptdb.reconcile.run import index_run
from ckptdb.registry import Registry
from lab.mutate import Mutator
from lab.report import FAILURES_SHOWN, Row, Size

NAMES, WHOLE, CATALOG = "names", "whole run", "catalog"
KINDS = {
    names.INFO: "json", names.CONFIG: "yaml", names.CONFIG_JSON: "json", "journal.jsonl": "jsonl",
    names.MANIFEST: "json", "run.json": "json", names.WRITER: "json", NAMES: "name",
}  # fmt: skip
"""What is fuzzed, and how."""
FEWER = {names.CONFIG: 4}
"""PyYAML takes its time."""
SIZES: dict[Size, tuple[int, int, int]] = {
    "smoke": (45, 96, 12), "ci": (6_900, 600, 120), "exhaustive": (276_000, 20_000, 3_000),
}  # fmt: skip
"""How many inputs of each kind go to the parsers, through a whole run, and into a catalog."""

SECONDS_EACH = 6.0
"""Of processor time; the slowest harmless input needs a thirtieth of it."""
MEMORY_BYTES = 512 * 1024 * 1024
_GOOD = {2: 0.25, 4: 0.125, 6: 0.5}
_VICTIM, _TMP = 7, 8
_UUID = "bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb"
_PLAIN_STEP = re.compile(rb"step_(0|[1-9][0-9]*)")


class Wrong(Exception):
    """An answer is not what it has to be."""


class Lost(Exception):
    """A good checkpoint is not there any more."""


def run(size: Size, seed: int, shard: int, shards: int) -> Iterable[Row]:
    """Feed a share of everything; one row for each thing that is fuzzed."""
    each, whole, catalogs = (share(count, shard, shards) for count in SIZES[size])
    with _scratch() as top, _bounded():
        for what in KINDS:
            yield fuzz_parsers(top, what, each // FEWER.get(what, 1), f"{seed}/{shard}")
        yield fuzz_runs(top, whole, f"{seed}/{shard}")
        yield fuzz_catalogs(top, catalogs, f"{seed}/{shard}")


def share(count: int, shard: int, shards: int) -> int:
    """Return how many of ``count`` fall to one of the shards."""
    return count // shards + (shard < count % shards)


def _until_enough(row: Row, count: int) -> Iterator[int]:
    """Count, until it has failed so often that more would tell nothing new."""
    for number in range(count):
        if len(row.failures) < FAILURES_SHOWN:
            yield number


_SEAL = re.compile(rb', "after": "[0-9a-f]{8}", "crc": "[0-9a-f]{8}"\}\s*$')


def make(what: str, key: str) -> bytes:
    """Return the input that a failure names."""
    content = _mutator(what).make(f"{what}:{key}")
    is_sealed = what == "journal.jsonl" and zlib.crc32(key.encode()) % 2
    return _seal(content) if is_sealed else content


def _seal(content: bytes) -> bytes:
    """Give every line of a journal the checksum that lets it be read, whatever it says."""
    lines, after = [], b"00000000"
    for line in content.splitlines():
        said = _SEAL.sub(b"", line).rstrip().removesuffix(b"}") + b', "after": "%b"' % after
        after = b"%08x" % zlib.crc32(said)
        lines.append(said + b', "crc": "%b"}\n' % after)
    return b"".join(lines)


# --- one file, its parsers --------------------------------------------------------------------


def fuzz_parsers(top: Path, what: str, count: int, key: str) -> Row:
    """Feed one kind of file to the functions that read it."""
    row = Row(f"fuzz {what}", workloads=1)
    folder = top / what
    folder.mkdir()
    feed = _PARSERS[what]
    target = folder / (".ckptdb" if what in ("journal.jsonl", "run.json") else "") / what
    target.parent.mkdir(exist_ok=True)
    with _counted_opens(target) as opened, _timed(row):
        for number in _until_enough(row, count):
            content = make(what, f"{key}/{number}")
            row.points += 1
            if what != NAMES:
                _write(target, content)
            before = opened[0]
            with _judged(row, _named(what, f"{key}/{number}", content)):
                feed(folder, content)
            row.struck += what == NAMES or opened[0] > before
    shutil.rmtree(folder)
    return row


def _feed_info(folder: Path, content: bytes) -> None:
    expected = naive_info(content)
    try:
        found, raw = training_info.load_info(folder)
    except UnreadableInfo:
        if expected is not None:
            raise Wrong("a JSON object is refused") from None
    else:
        if expected is None or raw != content:
            raise Wrong("what is no JSON object is read")
        json.dumps(json_values.for_catalog(found), allow_nan=False)
        check_metrics(found)
        with suppress(UnwritableInfo):
            again = training_info.dump_info(found)
            if json.dumps(json.loads(again)) != json.dumps(found):
                raise Wrong("written again, it reads otherwise")
    loaded = read_checkpoint.load(_who(folder), folder, 7)
    if (loaded.problem is None) != (expected is not None):
        raise Wrong(f"its problem is {loaded.problem!r}")


def naive_info(content: bytes) -> dict[str, object] | None:
    """Return what a training_info.json holds for somebody who has never heard of ckptdb."""
    try:
        found = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def check_metrics(content: dict[str, object]) -> None:
    for name, value in metrics_of(content).items():
        if value is not None and not math.isfinite(value):
            raise Wrong(f"metric {name!r} is {value}")
        if isinstance(content[name], bool) or not isinstance(content[name], int | float):
            raise Wrong(f"metric {name!r} is a {type(content[name]).__name__}")


def _feed_config(folder: Path, content: bytes) -> None:
    del content
    found = config_file.find_config(folder)
    if found is not None:
        json.dumps(found, allow_nan=False)


def _feed_journal(folder: Path, content: bytes) -> None:
    del content
    facts = journal.read(folder / ".ckptdb", Run(uuid=_UUID, name="run", directory=folder))
    for found, gone in facts.gone.items():
        if gone.uuid != found or gone.status != "deleted" or not 0 <= gone.step < 2**63:
            raise Wrong(f"a deletion of {gone.uuid} at step {gone.step}")
        json.dumps(gone.as_dict())
    for note in facts.annotations.values():
        for text in (note.rejected or "", *(one.host for one in note.resumptions)):
            text.encode()
        if any(not 0 <= one.pid < 2**63 for one in note.resumptions):
            raise Wrong("resumed by no process")
        for metric in note.late:
            if metric.value is not None and not math.isfinite(metric.value):
                raise Wrong(f"a late metric is {metric.value}")


def _feed_manifest(folder: Path, content: bytes) -> None:
    with suppress(UnreadableInfo):
        found = manifest.find(folder)
        if found is None:
            raise Wrong("it is there and not found")
        if found.size_bytes < 0 or any(map(_leads_out, found.files)):
            raise Wrong("it leads elsewhere")
        manifest.verify(folder, found)
    if read_checkpoint.load(_who(folder), folder, 7).problem is None:
        raise Wrong("a checkpoint without training_info.json is trusted")


def _leads_out(name: str) -> bool:
    return os.path.isabs(name) or ".." in Path(name).parts


def _feed_run(folder: Path, content: bytes) -> None:
    found = identity.identify(folder)
    if not found.marked:
        raise Wrong("it is there and not seen")
    uuid.UUID(found.run.uuid)
    for text in (found.run.metric_name, found.run.created_at, found.run.forked_from, found.origin):
        if text is not None:
            text.encode()


def _feed_writer(folder: Path, content: bytes) -> None:
    del content
    found = writer.find(folder)
    if found is not None and not (found.life in ("dead", "unknown") and not found.is_me):
        raise Wrong("it is this process")
    tmp = read_tmp.load_tmp(_who(folder), folder, 7)
    if tmp.fate is not None:
        raise Wrong(f"without a manifest its fate is {tmp.fate}")


def _feed_name(folder: Path, content: bytes) -> None:
    name = os.fsdecode(content)
    step = names.find_final_step(name)
    if step != naive_step(content):
        raise Wrong(f"it is step {step}")
    tmp, old, gone = names.find_tmp_step(name), names.find_old(name), names.find_trash(name)
    if tmp is not None and names.tmp_name(tmp) != name:
        raise Wrong(f"it is the unfinished step {tmp}")
    if old is not None and names.old_name(*old) != name:
        raise Wrong(f"it is the old {old}")
    if gone is not None and not name.startswith(names.trash_name(*gone)):
        raise Wrong(f"it is the retired {gone}")
    with suppress(NoCheckpointHere):
        names.get_tmp_step(folder / name)


def naive_step(name: bytes) -> int | None:
    """Return N of ``step_N``."""
    found = _PLAIN_STEP.fullmatch(name)
    step = int(found[1]) if found and len(found[1]) < 20 else None
    return step if step is not None and step < 2**63 else None


_PARSERS: dict[str, Callable[[Path, bytes], None]] = {
    names.INFO: _feed_info, names.CONFIG: _feed_config, names.CONFIG_JSON: _feed_config,
    "journal.jsonl": _feed_journal, names.MANIFEST: _feed_manifest, "run.json": _feed_run,
    names.WRITER: _feed_writer, NAMES: _feed_name,
}  # fmt: skip


# --- a whole run ------------------------------------------------------------------------------


def fuzz_runs(top: Path, count: int, key: str) -> Row:
    """Put a mutated file into a run, index it from nothing, ask, and look again."""
    row = Row(f"fuzz {WHOLE}", workloads=len(KINDS))
    world = _World(top)
    with _timed(row):
        for number in _until_enough(row, count):
            what = list(KINDS)[number % len(KINDS)]
            content = make(what, f"{key}/whole/{number}")
            if what == NAMES and not is_a_free_name(content, world.run):
                content = b"step_%d \xff" % number
            row.points += 1
            with world.holding(what, content) as target, _counted_opens(target) as opened:
                with _judged(row, _named(what, f"{key}/whole/{number}", content)):
                    world.check(what, content, managed=number // len(KINDS) % 32 == 0)
                # A directory is not opened when its name is not ours.
                row.struck += opened[0] > 0 or what == NAMES
    shutil.rmtree(world.run)
    return row


def is_a_free_name(name: bytes, folder: Path) -> bool:
    """Whether a directory of that name can be made."""
    if not name or b"/" in name or b"\0" in name or len(name) > 255:
        return False
    return not os.path.lexists(folder / os.fsdecode(name))


class _World:
    """A run with three good checkpoints, one that is mutated, and one unfinished."""

    def __init__(self, top: Path) -> None:
        self.run = build_run(top / "whole")
        for step in (_VICTIM, _VICTIM + 1):
            shutil.copytree(self.run / "step_6", self.run / f"step_{step}")
        (self.run / f"step_{_VICTIM + 1}" / names.MANIFEST).unlink()
        for path in (self.run / ".ckptdb" / "catalog.db", self.run / ".ckptdb" / "root.json"):
            path.unlink()
        aged = time.time() - 60
        for path in self.run.rglob("*"):
            os.utime(path, (aged, aged))
        self._catalog = Catalog(Database.in_memory())
        rows = self._catalog.checkpoints.list_all(run_id=self._index(), status="final")
        self._good = {cp.step: cp.uuid for cp in rows if cp.step in _GOOD}
        assert self._good.keys() == _GOOD.keys()

    def _target(self, what: str, content: bytes) -> Path:
        if what == NAMES:
            return self.run / os.fsdecode(content) / names.INFO
        if what in ("journal.jsonl", "run.json"):
            return self.run / ".ckptdb" / what
        if what == names.WRITER:
            return self.run / f"tmp_step_{_TMP}" / what
        return self.run / f"step_{self._victim(what, content)}" / what

    def _victim(self, what: str, content: bytes) -> int:
        """Return the step that holds the input: 7 has a manifest, 8 has none."""
        if what == names.INFO:
            return _VICTIM + len(content) % 2
        return _VICTIM + (what in (names.CONFIG, names.CONFIG_JSON))  # read of the newest first

    @contextmanager
    def holding(self, what: str, content: bytes) -> Iterator[Path]:
        """Let the run have the input; put back what was there."""
        target = self._target(what, content)
        had = target.read_bytes() if target.exists() else None
        config = target.with_name(names.CONFIG)
        aside = what == names.CONFIG_JSON and config.rename(target.with_name("aside"))
        target.parent.mkdir(exist_ok=True)
        _write(target, b'{"loss": 0.75}' if what == NAMES else content)
        try:
            yield target.parent if what == NAMES else target
        finally:
            target.unlink() if had is None else target.write_bytes(had)
            if what == NAMES:
                target.parent.rmdir()
            if aside:
                aside.rename(config)

    def _index(self) -> int:
        # A catalog of its own for each would spend nearly all time on compiling its statements.
        for seen in self._catalog.runs.list_all():
            self._catalog.runs.delete(seen.id)
        report = index_run(self._catalog, self.run)
        if report.blocked or report.run_id is None:
            raise Wrong(f"it is not indexed: {report.blocked}")
        return report.run_id

    def check(self, what: str, content: bytes, *, managed: bool) -> None:
        before = _snapshot(self.run)
        run_id = self._index()
        self._check_index(what, content, self._catalog, run_id)
        if managed:
            self._check_manager(self._catalog, run_id)
        if _snapshot(self.run) != before:
            raise Wrong("looking has changed a file")

    def _check_index(self, what: str, content: bytes, catalog: Catalog, run_id: int) -> None:
        again = index_run(catalog, self.run)
        if again.has_changes or again.blocked:
            raise Wrong(f"a second look differs: {again.as_dict()}")
        rows = {cp.step: cp for cp in catalog.checkpoints.list_all(run_id=run_id, status="final")}
        for step, loss in _GOOD.items():
            found = rows.get(step)
            if found is None or found.uuid != self._good[step] or found.problem:
                raise Lost(f"step {step}: {found}")
            if what != "journal.jsonl" and found.metrics.get("loss") != loss:
                raise Lost(f"step {step} has {found.metrics}")
        expected = {*_GOOD, _VICTIM, _VICTIM + 1}
        if what == NAMES:
            expected |= {naive_step(content)} - {None}
        if rows.keys() != expected:
            raise Wrong(f"the steps are {sorted(rows)}")
        victim = rows[self._victim(what, content)]
        if what == names.INFO and (victim.problem is None) != (naive_info(content) is not None):
            raise Wrong(f"the problem is {victim.problem!r}")
        self._check_ranking(catalog, run_id)

    def _check_ranking(self, catalog: Catalog, run_id: int) -> None:
        best, latest, top = naive_ranking(catalog, run_id)
        if catalog.ranking.find_best_step(run_id, "loss", "min") != best:
            raise Wrong(f"best is not {best}")
        if catalog.ranking.find_latest_step(run_id) != latest:
            raise Wrong(f"latest is not {latest}")
        if [cp.step for cp in catalog.ranking.top(99, "loss", "min", run_id=run_id)] != top:
            raise Wrong(f"top is not {top}")

    def _check_manager(self, catalog: Catalog, run_id: int) -> None:
        best, latest, _ = naive_ranking(catalog, run_id)
        with (
            _quiet(),
            CheckpointManager(
                {"checkpoint_dir": self.run, "metric_name": "loss", "higher_is_better": False}
            ) as manager,
        ):
            path = manager.get_best_checkpoint_path()
            if path != str(self.run / f"step_{best}"):
                raise Wrong(f"the manager's best is {path}, not {best}")
            manager.load_training_info(path)
            if manager.get_latest_checkpoint_path() != str(self.run / f"step_{latest}"):
                raise Wrong("the manager's latest is another one")
            if not _GOOD.keys() <= {step for step, _, _ in _load_checkpoint_history(self.run)}:
                raise Lost("the history of NeMo-RL lacks a good checkpoint")
        with _quiet(), Registry.open(self.run) as registry:
            found = registry.best("loss", mode="min")
            if found is None or found.step != best:
                raise Wrong(f"the registry's best is not {best}")
            json.dumps(registry.reconcile(dry_run=True).as_dict())


def naive_ranking(catalog: Catalog, run_id: int) -> tuple[int | None, int, list[int]]:
    """Rank what the records say, without SQL."""
    found = catalog.checkpoints.list_all(run_id=run_id, status="final")
    live = [cp for cp in found if not cp.problem and cp.rejected is None]
    ranked = []
    for checkpoint in live:
        value = checkpoint.metrics.get("loss")
        if value is not None:
            if not math.isfinite(value):
                raise Wrong(f"step {checkpoint.step} is ranked by {value}")
            ranked.append((value, -checkpoint.step))
    top = [-step for _, step in sorted(ranked)]
    return (top[0] if top else None), max(cp.step for cp in live), top


# --- the bytes of a catalog -------------------------------------------------------------------


def fuzz_catalogs(top: Path, count: int, key: str) -> Row:
    """Put a mutated database in place of a run's catalog; ask, rebuild, ask again."""
    row = Row(f"fuzz {CATALOG}", workloads=1)
    directory = build_run(top / "catalog")
    file = directory / ".ckptdb" / "catalog.db"
    whole = file.read_bytes()
    mutator = Mutator("binary", [whole])
    with _timed(row):
        for number in _until_enough(row, count):
            content = damage(mutator, whole, f"{CATALOG}:{key}/{number}")
            _write(file, content)
            row.points += 1
            # What is in a catalog depends on the clock too, so what failed is kept.
            kept = Path(tempfile.gettempdir(), f"ckptdb-fuzz-{sha256(content).hexdigest()[:16]}.db")
            failed = row.lost + row.not_recovered
            with _counted_opens(file) as opened, _judged(row, f"{kept}, {key}/{number}"):
                _check_catalog(directory)
            if row.lost + row.not_recovered > failed:
                kept.write_bytes(content)
            row.struck += opened[0] > 0
            for left in file.parent.glob("catalog.db*"):
                left.unlink()
    shutil.rmtree(directory)
    return row


def damage(mutator: Mutator, whole: bytes, key: str) -> bytes:
    """Return a database that is damaged and still as large as one has to be to be opened."""
    content = mutator.make(key)
    if len(whole) > len(content):  # the mutator cuts what is large
        content += whole[len(content) :] if mutator.rng.random() < 0.7 else b""
    return content if len(content) >= 512 else whole[:512]


def _check_catalog(directory: Path) -> None:
    with (
        _quiet(),
        CheckpointManager(
            {"checkpoint_dir": directory, "metric_name": "loss", "higher_is_better": False}
        ) as manager,
    ):
        for path in (manager.get_best_checkpoint_path(), manager.get_latest_checkpoint_path()):
            if path is None or not Path(path).is_dir():
                raise Wrong(f"the manager answers {path}")
    with _quiet(), Registry.open(directory) as registry:
        for ask in (registry.best, registry.latest, registry.checkpoints, registry.summary):
            with suppress(CkptdbError):
                ask()
        registry.status()
        registry.reconcile(full=True)
        again = registry.reconcile(full=True)
        if again.has_changes or again.blocked:
            raise Wrong(f"a second look differs: {again.as_dict()}")
        live = {cp.step: cp.metrics.get("loss") for cp in registry.checkpoints(status="final")}
        if live != _GOOD:
            raise Lost(f"after reconcile it has {live}")
        best, latest = registry.best(), registry.latest()
        if best is None or latest is None or (best.step, latest.step) != (4, 6):
            raise Wrong("best and latest are others")
    with (
        _quiet(),
        CheckpointManager(
            {"checkpoint_dir": directory, "metric_name": "loss", "higher_is_better": False}
        ) as manager,
    ):
        if manager.get_best_checkpoint_path() != str(directory / "step_4"):
            raise Wrong("after reconcile the manager's best is another one")


# --- seeds ------------------------------------------------------------------------------------

_INFO = {
    "loss": 0.25, "val:loss": 1.5, "step": 7, "acc": 3, "done": False, "note": "päd",
    "nested": {"a": [1, 2.5, None, {"b": "c"}]}, "diverged": float("nan"), "far": float("inf"),
}  # fmt: skip
_CONFIG = {
    "lr": 1e-06, "name": "grpo", "flags": [True, None, "yes"], "model": {"layers": 2, "size": "8b"},
    "when": "2026-11-22", "shared": [_INFO["nested"], _INFO["nested"]], "text": "a: b\n# c\n",
}  # fmt: skip


def build_run(directory: Path) -> Path:
    """Make a run with three checkpoints, a past, annotations, and an unfinished save."""
    random = Random("uuids")
    config = {
        "checkpoint_dir": directory,
        "metric_name": "loss",
        "higher_is_better": False,
        "durability": "none",
    }

    def next_uuid() -> uuid.UUID:
        return uuid.UUID(int=random.getrandbits(128), version=4)

    with mock.patch.object(uuid, "uuid4", next_uuid), _quiet():
        with CheckpointManager(config) as manager:
            for step in (1, 2, 2, 3, 4, 6):
                loss = {**_INFO, "loss": _GOOD.get(step, 0.75)}
                with manager.save(step, loss, config=_CONFIG) as folder:
                    (folder / "model.bin").write_bytes(b"m" * 100)
            manager.resume()
            manager.init_tmp_checkpoint(_TMP, _INFO)
        with Registry.open(directory) as registry:
            registry.pin(None, 2, note="good")
            registry.tag(None, 4, "candidate")
            registry.tag(None, 4, "wrong")
            registry.untag(None, 4, "wrong")
            registry.log_metrics(None, 6, {"mmlu": 0.5, "bad": float("nan")}, source="eval")
            registry.reject(None, 1, "diverged")
            registry.reject(None, 6, "by mistake")
            registry.unreject(None, 6)
            registry.remove([1, 3])
            registry.reconcile()
    return directory


@cache
def _mutator(what: str) -> Mutator:
    return Mutator(KINDS[what], _seeds()[what])


@cache
def _seeds() -> dict[str, list[bytes]]:
    """Return valid files of a real run, the same ones every time."""
    with _scratch() as top:
        directory = build_run(top / "run")
        step, tmp = directory / "step_4", directory / f"tmp_step_{_TMP}"
        lines = (directory / ".ckptdb" / "journal.jsonl").read_bytes()
        found = {
            names.INFO: [(step / names.INFO).read_bytes(), b'{"loss": 0.5}'],
            names.CONFIG: [(step / names.CONFIG).read_bytes(), b"a: &a {b: 1}\nc: {<<: *a}\n"],
            names.CONFIG_JSON: [json.dumps(_CONFIG).encode()],
            "journal.jsonl": [lines, *lines.splitlines(keepends=True)],
            names.MANIFEST: [whole := (step / names.MANIFEST).read_bytes(), _summed(whole)],
            "run.json": [(directory / ".ckptdb" / "run.json").read_bytes()],
            names.WRITER: [(tmp / names.WRITER).read_bytes()],
            NAMES: [b"step_7", b"tmp_step_8", f"old_step_3.{_UUID}".encode(),
                    f"step_3.{_UUID}.1".encode(), b"step_12345"],
        }  # fmt: skip
    return {what: [_steady(seed) for seed in seeds] for what, seeds in found.items()}


def _summed(content: bytes) -> bytes:
    """Return a manifest with checksums."""
    sums = {name: f"xxh3_128:{size:032x}" for name, size in json.loads(content)["files"].items()}
    return json.dumps({**json.loads(content), "checksums": sums}).encode()


def _steady(seed: bytes) -> bytes:
    """Take out what depends on when and where the run was made."""
    seed = re.sub(rb"20\d\d-\d\d-\d\dT[0-9:.]+Z", b"2026-11-22T16:01:24.123Z", seed)
    seed = re.sub(rb'"host": "[^"]*"', b'"host": "gpu-7"', seed)
    seed = re.sub(rb'"boot": "[^"]*"', b'"boot": "' + _UUID.encode() + b'"', seed)
    return re.sub(rb'"(inode|pid|started)": \d+', rb'"\1": 4242', seed)


# --- counting and bounding --------------------------------------------------------------------

_watched: dict[str, list[int]] = {}


@cache
def _watch_opens() -> None:
    """Ask the interpreter, not the code under test, which files are opened; once for ever."""

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if _watched and event in ("open", "os.scandir", "sqlite3.connect"):
            path = arguments[0]
            name = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
            name = unquote(urlsplit(name).path) if name.startswith("file:") else name
            for path, count in _watched.items():
                # One that is opened from a handle on a directory goes by the end of its path.
                is_part = name and not name.startswith("/") and path.endswith(f"/{name}")
                count[0] += name == path or bool(is_part)

    sys.addaudithook(note)


@contextmanager
def _counted_opens(path: Path) -> Iterator[list[int]]:
    _watch_opens()
    count = [0]
    _watched[str(path)] = count
    try:
        yield count
    finally:
        del _watched[str(path)]


def _named(what: str, key: str, content: bytes) -> str:
    return f"lab.fuzz.make({what!r}, {key!r}) = {content[:200]!r}"


@contextmanager
def _judged(row: Row, where: str) -> Iterator[None]:
    started = time.thread_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, 10 * SECONDS_EACH)
    try:
        yield
    except Lost as error:
        row.fail("lost", f"{error}; {where}")
    except Exception as error:  # noqa: BLE001  # every exception is a finding here
        row.fail("not_recovered", f"{type(error).__name__}: {error}; {where}")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    spent = time.thread_time() - started
    if spent > SECONDS_EACH:
        row.fail("not_recovered", f"took {spent:.1f} s; {where}")


@contextmanager
def _bounded() -> Iterator[None]:
    """Give the process so much memory beyond what it has, and let no input run for ever."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGVTALRM, signal.signal(signal.SIGVTALRM, stop))
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(
            resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard)
        )
        yield


@contextmanager
def _timed(row: Row) -> Iterator[None]:
    started = time.monotonic()
    yield
    row.seconds = time.monotonic() - started


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _scratch() -> Iterator[Path]:
    memory = Path("/dev/shm")
    place = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as top:
        yield Path(top)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content)


def _snapshot(top: Path) -> Sequence[tuple[str, int, int]]:
    found = []
    for folder, _, files in os.walk(top):
        for name in (".", *files):
            path = f"{folder}/{name}"
            stat = os.lstat(path)
            found.append((path, stat.st_mtime_ns, stat.st_size))
    return sorted(found)


@cache
def _who(folder: Path) -> Identity:
    return identity.identify(folder)

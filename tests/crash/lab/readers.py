"""Readers that hammer one step while it is replaced thousands of times.

One process replaces; the others ask for best and latest, open the fixed path, and read every
file of what they get. With names exchanged in one step none of them ever misses a file. Where that
takes two renames, opening a path by hand may miss; our own helpers wait and never do.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from ckptdb import CheckpointManager, Registry
from ckptdb.disk import fsutil, names, root_marker
from lab import control, payload
from lab.payload import METRIC
from lab.report import Row, Size
from lab.shim import scratch

REPLACEMENTS: Mapping[Size, Mapping[str, int]] = {
    "smoke": {"native": 200, "fallback": 200, "control": 400},
    "ci": {"native": 500, "fallback": 250, "control": 1_000},
    "exhaustive": {"native": 10_000, "fallback": 2_000, "control": 2_000},
}
ROUND = 250
"""So many replacements of one step, then a new root: a journal of ten thousand is another test."""
AT_ONCE = 2
MOST_MORE = 20
"""How often the control may try again to do harm."""
NAP_SECONDS = (0.001, 0.02)
"""After each read: of the first reader, whose reads are the shortest, and of the others. What they
ask makes them repair the index, for which the one who saves would have to wait all the time."""
STEP = 7
Read = Callable[[], None]


def run(size: Size, seed: int) -> Iterator[Row]:
    """Let readers loose on each way of replacing a step."""
    for way, count in REPLACEMENTS[size].items():
        rounds = [min(ROUND, count - done) for done in range(0, count, ROUND)]
        works = [partial(_hammer, way, number, seed) for number in rounds]
        yield from in_children(works) if way != "control" else _until_harm(works)


def _until_harm(works: Sequence[Callable[[], Iterable[Row]]]) -> Iterator[Row]:
    """Do all, and go on while nothing has come of it: when a reader looks is a matter of chance."""
    is_harmed = False
    for some in (works, *repeat(works[-1:] * AT_ONCE, MOST_MORE)):
        for row in in_children(some):
            is_harmed |= bool(row.lost or row.half_visible)
            yield row
        if is_harmed:
            return


def in_children(works: Sequence[Callable[[], Iterable[Row]]]) -> Iterator[Row]:
    """Do several things in forks of this process, two at a time."""
    for start in range(0, len(works), AT_ONCE):
        begun = [begin(work) for work in works[start : start + AT_ONCE]]
        for child in begun:
            yield from collect(child)


def in_child(work: Callable[[], Iterable[Row]]) -> list[Row]:
    """Do something in a fork of this process, which stays free of managers and threads."""
    return collect(begin(work))


def begin(work: Callable[[], Iterable[Row]]) -> tuple[int, int]:
    """Fork; return the child and where its rows can be read."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            with open(writing, "w") as told:
                told.writelines(f"{row.as_json()}\n" for row in work())
            code = 0
        except BaseException:  # noqa: BLE001  # shown by whoever reads our standard error
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    return child, reading


def collect(begun: tuple[int, int]) -> list[Row]:
    """Return what a fork found.

    Raises:
        RuntimeError: It broke.
    """
    child, reading = begun
    with open(reading) as told:
        rows = [Row.from_json(line) for line in told]
    if os.waitpid(child, 0)[1] or not rows:
        raise RuntimeError("a part of the crowd broke; see above")
    return rows


# --- one way ----------------------------------------------------------------------------


def _hammer(way: str, count: int, seed: int) -> Iterator[Row]:
    started = time.monotonic()
    row = Row("control: crowd" if way == "control" else f"readers {way}", workloads=1)
    with tempfile.TemporaryDirectory(dir=scratch(), prefix="ckptdb-readers-") as folder:
        root = Path(folder)
        root_marker.mark_root(root)
        directory = root / "run"
        directory.mkdir()
        save = _saver(way, directory)
        save(0)
        readers = _control_reads(directory) if way == "control" else _reads(directory, way)
        board = Board(mmap.mmap(-1, 16 * len(readers)))
        pipes = [_start(index, read, board) for index, read in enumerate(readers)]
        for number in range(1, count + 1):
            row.points += 1
            row.struck += _during(board, partial(save, number), row)
        for pid, _ in pipes:
            os.kill(pid, signal.SIGTERM)
        for pid, pipe in pipes:
            _collect(row, pipe)
            os.waitpid(pid, 0)
    row.failures = [f"{failure} (seed {seed})" for failure in row.failures]
    row.seconds = time.monotonic() - started
    yield row


class Board:
    """How many reads each reader has begun and finished, seen by all."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory
        self._count = len(memory) // 16

    def begin(self, index: int) -> None:
        """One more read was begun."""
        self._add(16 * index)

    def finish(self, index: int) -> None:
        """One more read is over."""
        self._add(16 * index + 8)

    def sums(self) -> tuple[int, int]:
        """Return how many were begun and how many finished, by all."""
        numbers = struct.unpack_from(f"{2 * self._count}q", self._memory)
        return sum(numbers[::2]), sum(numbers[1::2])

    def _add(self, at: int) -> None:
        (value,) = struct.unpack_from("q", self._memory, at)
        struct.pack_into("q", self._memory, at, value + 1)


def _during(board: Board, replacing: Callable[[], None], row: Row) -> bool:
    """Replace while somebody reads; tell whether a read was under way when it began."""
    patience = time.monotonic() + 10
    while True:
        begun, before = board.sums()
        if begun > before or time.monotonic() > patience:
            break
        time.sleep(0)
    try:
        replacing()
    except Exception:  # noqa: BLE001  # a finding
        row.fail("not_recovered", traceback.format_exc())
    return begun > before


def _saver(way: str, directory: Path) -> Callable[[int], None]:
    if way == "control":
        return partial(_control_save, directory)
    if way == "fallback":
        fsutil._renameat2 = _refuse
    manager = CheckpointManager(
        {"checkpoint_dir": directory, "metric_name": METRIC, "higher_is_better": False}
    )

    def save(number: int) -> None:
        token = f"r{number}"
        with manager.save(STEP, {METRIC: 1 / (number + 1), "token": token}) as folder:
            payload.write(folder, token)

    return save


def _refuse(*_: object) -> None:
    raise fsutil.ExchangeUnsupported


def _control_save(directory: Path, number: int) -> None:
    token = f"r{number}"
    info = json.dumps({METRIC: 1 / (number + 1), "token": token}).encode()
    files = {name: payload.content(token, name) for name in payload.FILES}
    act = control.replace if number else control.save
    act(directory, STEP, {names.INFO: info, **files})


# --- one reader -------------------------------------------------------------------------


def _start(index: int, make: Callable[[], Read], board: Board) -> tuple[int, int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(reading)
    os.nice(5)  # it is the replacements that take the time
    warnings.simplefilter("ignore", UserWarning)
    read = make()
    while True:
        board.begin(index)
        try:
            read()
        except Exception as error:  # noqa: BLE001  # every one is a finding
            told = {"kind": _kind(error), "what": traceback.format_exc()[-1500:]}
            os.write(writing, json.dumps(told).encode() + b"\n")
        board.finish(index)
        time.sleep(NAP_SECONDS[index > 0])


def _kind(error: Exception) -> str:
    if isinstance(error, payload.Half | ValueError):
        return "half_visible"
    missing = isinstance(error, FileNotFoundError | LookupError | Gone)
    return "lost" if missing else "not_recovered"


def _collect(row: Row, pipe: int) -> None:
    with open(pipe) as told:
        for line in told:
            with suppress(ValueError):  # the last one, torn by its end
                found = json.loads(line)
                row.fail(found["kind"], found["what"])


class Gone(Exception):  # what it is
    """What is published all the time was not found."""


def _reads(directory: Path, way: str) -> list[Callable[[], Read]]:
    # Where a replacement takes two renames, whoever opens a path by hand may miss it.
    first = _path_reads if way == "native" else _helper_reads
    ways = (first, _managers_read, _registrys_read, _helper_reads)
    return [partial(read, directory) for read in ways]


def _managers_read(directory: Path) -> Read:
    manager = CheckpointManager(
        {"checkpoint_dir": directory, "metric_name": METRIC, "higher_is_better": False}
    )

    def read() -> None:
        for ask in (manager.get_best_checkpoint_path, manager.get_latest_checkpoint_path):
            path = ask()
            if path != str(directory / names.final_name(STEP)):
                raise Gone(f"{ask.__name__} answered {path}")
            _check_info(manager.load_training_info(path))

    return read


def _registrys_read(directory: Path) -> Read:
    registry = Registry.open(directory.parent)

    def read() -> None:
        for found in (
            registry.get(STEP, run="run"),
            registry.best(run="run"),
            registry.latest(run="run"),
        ):
            if found is None or found.status != "final":
                raise Gone(f"a registry answered {found}")
            _check_info(found.info)

    return read


def _helper_reads(directory: Path) -> Read:
    manager = CheckpointManager(
        {"checkpoint_dir": directory, "metric_name": METRIC, "higher_is_better": False}
    )
    path = directory / names.final_name(STEP)

    def read() -> None:
        _check_info(manager.load_training_info(path))

    return read


def _path_reads(directory: Path) -> Read:
    path = directory / names.final_name(STEP)

    def read() -> None:
        # Whatever has the name is whole, if somebody holds on to it while it is replaced.
        with suppress(payload.Emptied):
            payload.read(path)
        # Each name for itself is always there; of two, the later is not from an older save.
        last = -1
        for name in (names.INFO, *payload.FILES):
            found = (path / name).read_bytes()
            token = json.loads(found)["token"] if name == names.INFO else found.split()[0].decode()
            if name != names.INFO:
                payload.check(name, found, token)
            if int(token[1:]) < last:
                raise payload.Half(f"{name} is of {token}, after one of r{last}")
            last = int(token[1:])

    return read


def _check_info(info: Mapping[str, Any] | None) -> None:
    if info is None or info[METRIC] != 1 / (int(info["token"][1:]) + 1):
        raise payload.Half(f"training_info of no save: {info}")


def _control_reads(directory: Path) -> list[Callable[[], Read]]:
    def ask(question: Callable[[Path], Path | None]) -> Read:
        def read() -> None:
            path = question(directory)
            if path is None:
                raise Gone(f"{question.__name__} answered nothing")
            payload.read(path)

        return read

    return [
        partial(ask, control.best),
        partial(ask, control.latest),
        partial(_path_reads, directory),
    ]

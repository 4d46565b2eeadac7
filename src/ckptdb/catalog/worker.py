"""Worker processes that answer queries, so that one query takes memory and time from no other.

SQLite counts memory for a whole process, and looks at the clock between its steps alone: not within
one, and not while it compiles. Here the system sets the limits, and ends what exceeds them.
"""

from __future__ import annotations

import pickle
import resource
import signal
import sqlite3
import sys
import weakref
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from ckptdb.catalog.bounded_query import (
    OUT_OF_MEMORY,
    BoundedQuery,
    Failed,
    Late,
    Outcome,
    Sink,
    TooLarge,
    answer,
)
from ckptdb.core.fork import AFTER_FORK, keep_for_ever

if TYPE_CHECKING:
    import subprocess

HEAP_BYTES: Final = 96 << 20
"""Memory of SQLite for one query; larger results are sorted and kept in temporary files."""

PROCESS_BYTES: Final = 256 << 20
"""Memory of the whole process."""

TEMPORARY_BYTES: Final = 1 << 30
"""Size of one temporary file."""

LONGEST_SQL_BYTES: Final = 1 << 20
_GRACE: Final = 1.5
"""Times the timeout of a query after which the system ends a process that has not noticed."""

_LONGEST_SECONDS: Final = 1e7


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A catalog's file, and how long to wait for it.

    Attributes:
        uri: Of the SQLite file, for reading only.
        base: What ``abspath(path)`` prepends.
        patience_seconds: How long to wait for whoever has locked it, before the query begins.
    """

    uri: str
    base: Path | None
    patience_seconds: float


class Worker:
    """Answers one query at a time, in a process that is started for the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._unclosed: weakref.finalize[..., Any] = weakref.finalize(self, int)

    def query(self, place: Place, question: BoundedQuery, sink: Sink) -> Outcome:
        """Answer a query; nothing is open in the catalog when this returns.

        Raises:
            Failed: There is no answer.
        """
        process = self._start()
        try:
            reply = _exchange(process, (place, question), sink)
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise Failed(_cause(self.close())) from error
        except BaseException:
            self.close()  # or the rest of this answer would be taken for the next one's
            raise
        if isinstance(reply, Outcome):
            return reply
        if isinstance(reply.error, TooLarge):
            self.close()  # with all that it has taken
        raise reply

    def close(self) -> int:
        """End the process, whatever it does; return its exit code."""
        process, self._process = self._process, None
        self._unclosed.detach()
        return 0 if process is None else _end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess  # the process itself does not need it

        if self._process is not None and self._process.poll() is not None:
            self.close()
        if self._process is None:
            # -P: a file in the current directory could be called like one of our modules. A session
            # of its own: Ctrl-C is for this process, which then ends that one.
            command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()"]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as error:
                why = f"no process can be started to answer it ({error.strerror or error})"
                raise Failed(TooLarge(why)) from error
            # Also where nobody closes it.
            self._unclosed = weakref.finalize(self, _end, self._process)
        return self._process


class Workers:
    """Workers that are free, for any number of threads."""

    def __init__(self) -> None:
        self._free: list[Worker] = []
        AFTER_FORK.add(self)

    def query(self, place: Place, question: BoundedQuery, sink: Sink) -> Outcome:
        """Answer a query as `Worker.query` does."""
        try:
            worker = self._free.pop()
        except IndexError:
            worker = Worker()
        try:
            return worker.query(place, question, sink)
        finally:
            self._free.append(worker)

    def close(self) -> None:
        """End those that are free; more are started when they are needed."""
        while self._free:
            self._free.pop().close()

    def after_fork(self) -> None:
        """Leave the processes to the parent; called in the child by the fork itself."""
        keep_for_ever(self._free)
        self._free = []


def _end(process: subprocess.Popen[bytes]) -> int:
    process.kill()  # which changes nothing for one that has ended
    with suppress(OSError), process:  # what it was sent and has not taken goes nowhere
        pass
    return process.wait()


def _exchange(process: subprocess.Popen[bytes], request: object, sink: Sink) -> Outcome | Failed:
    assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018  # as started
    pickle.dump(request, process.stdin)
    process.stdin.flush()
    while isinstance(reply := pickle.load(process.stdout), list):  # noqa: S301  # from our own code
        sink(reply)
    answered: Outcome | Failed = reply
    return answered


def _cause(code: int) -> Exception:
    if code == -signal.SIGALRM:
        return Late()
    ended = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    return TooLarge(f"the process that answered it was ended {ended}")


# --- the process --------------------------------------------------------------------------------


def main() -> None:
    """Answer what comes from standard input until it ends."""
    _limit_process()
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError, BrokenPipeError):
        while True:
            place, question = pickle.load(requests)  # noqa: S301  # from our own code
            _reply(place, question, replies)


def _limit_process() -> None:
    # By the system's own hand: no code of ours has to run for it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for what, most in (
        (resource.RLIMIT_AS, PROCESS_BYTES),
        (resource.RLIMIT_FSIZE, TEMPORARY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(ValueError, OSError):  # it is lower already, or nothing here
            resource.setrlimit(what, (most, most))
    with closing(sqlite3.connect(":memory:")) as any_connection:
        any_connection.execute(f"PRAGMA hard_heap_limit = {HEAP_BYTES}")


def _reply(place: Place, question: BoundedQuery, replies: IO[bytes]) -> None:
    def send(content: object) -> None:
        pickle.dump(content, replies)

    try:
        reply: object = _answer(place, question, send)
    except Failed as failed:
        reply = failed
    except MemoryError:
        reply = Failed(TooLarge(OUT_OF_MEMORY))
    send(reply)
    replies.flush()
    signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(place: Place, question: BoundedQuery, sink: Sink) -> Outcome:
    try:
        with closing(sqlite3.connect(place.uri, uri=True, timeout=place.patience_seconds)) as raw:
            raw.execute("PRAGMA temp_store = FILE")
            raw.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, LONGEST_SQL_BYTES)
            # The lock first: waiting for somebody else is no part of what the query takes.
            raw.execute("BEGIN")
            raw.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            seconds = min(max(question.timeout_seconds, 0.01), _LONGEST_SECONDS) * _GRACE
            signal.setitimer(signal.ITIMER_REAL, seconds)
            return answer(raw, place.base, question, sink)
    except sqlite3.Error as error:
        raise Failed(error) from error

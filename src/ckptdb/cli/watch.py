"""The command watch."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import click

from ckptdb.cli.formats import print_records
from ckptdb.cli.options import PARTLY_DONE, Session, output_option
from ckptdb.cli.printing import echo_paths, say
from ckptdb.core.records import Checkpoint
from ckptdb.errors import CatalogError, CatalogMissing
from ckptdb.registry import Registry
from ckptdb.registry.watch import POLL_SECONDS

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.argument("run", required=False)
@click.option(
    "--lease", metavar="NAME", help="Share the work with all processes that use the same name."
)
@click.option(
    "--exec", "command", metavar="CMD", help="Run this shell command for each checkpoint."
)
@click.option("--once", is_flag=True, help="End when no checkpoint is left.")
@click.option("--new", "only_new", is_flag=True, help="Leave out checkpoints that exist already.")
@click.option(
    "--interval",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=POLL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Seconds between two looks at the runs.",
)
@output_option("path", "json")
@click.pass_obj
def watch(  # noqa: PLR0917  # one parameter an option
    session: Session,
    run: str | None,
    lease: str | None,
    command: str | None,
    interval: float,
    form: str,
    *,
    once: bool,
    only_new: bool,
) -> int:
    """Print the path of each checkpoint as it is saved.

    Of RUN, or of the runs at or below here. One line per checkpoint, also for those that exist
    already. With -o json the line is the whole record.

    With --lease each checkpoint goes to only one of the processes that use the same name, on any
    host, and is not deleted meanwhile. It is done when its line is printed or, with --exec, when
    the command has succeeded.

    CMD gets CKPTDB_PATH, CKPTDB_STEP, CKPTDB_RUN, CKPTDB_RUN_DIR and CKPTDB_UUID in its
    environment. When it fails, another process may get the checkpoint; this one does not try it
    again, and exits 4 at the end.
    """
    failed = 0
    with session.open() as registry, _handle_signals() as job:
        if not once and run is None:
            _say_what_is_waited_for(registry)
        arrivals = registry.watch(
            run,
            lease=lease,
            poll_seconds=None if once else interval,
            existing=not only_new,
            stop=job.is_stopped,
        )
        with arrivals:
            for checkpoint in arrivals:
                _print(checkpoint, form)
                if command is not None and (why := job.run(command, checkpoint)):
                    arrivals.give_up()
                    failed += 1
                    where = f"{checkpoint.run} step {checkpoint.step}"
                    say(f"ckptdb: {where}: the command {why}.", err=True)
    return PARTLY_DONE if failed else 0


COMMANDS = (watch,)


class _Job:
    """The shell command that runs now, and the signal to stop."""

    def __init__(self) -> None:
        self._signals = itertools.count()
        self._stopped: int | None = None
        self._is_starting = False
        self._child: subprocess.Popen[bytes] | None = None

    def is_stopped(self) -> bool:
        """Tell whether a signal was received."""
        return self._stopped is not None

    def run(self, command: str, checkpoint: Checkpoint) -> str | None:
        """Run a command for a checkpoint; return why it has failed, None when it has not."""
        self._is_starting = True
        try:
            # A process group of its own: children of the shell get each signal, too, and once.
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=os.environ | _describe(checkpoint),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
            self._is_starting = False
            if self._stopped is not None:
                self._send_signal(self._stopped)
            code = self._child.wait()
        except BaseException:
            self._send_signal(signal.SIGKILL)
            raise
        finally:
            self._is_starting = False
            self._child = None
        if code < 0:
            return f"was ended by signal {-code}"
        return f"ended with exit code {code}" if code else None

    def stop(self, number: int, _: FrameType | None) -> None:
        """Record a signal and pass it on; a second one interrupts at once."""
        # Counted in one step: another signal may come in the middle of this one's handler.
        is_second = next(self._signals) > 0
        self._stopped = number
        if self._is_starting:
            return  # the child is not there yet
        if is_second:
            raise KeyboardInterrupt
        self._send_signal(number)

    def _send_signal(self, number: int) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended by now
                os.killpg(self._child.pid, number)


@contextmanager
def _handle_signals() -> Iterator[_Job]:
    """Let signals end the work in good order, but not those that we were started to ignore."""
    job = _Job()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    handled = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, job.stop)
    try:
        yield job
    finally:
        for number in handled:
            signal.signal(number, before[number])


def _describe(checkpoint: Checkpoint) -> dict[str, str]:
    return {
        "CKPTDB_PATH": str(checkpoint.path),
        "CKPTDB_STEP": str(checkpoint.step),
        "CKPTDB_RUN": checkpoint.run,
        "CKPTDB_RUN_DIR": str(checkpoint.path.parent),
        "CKPTDB_UUID": checkpoint.uuid,
    }


def _print(checkpoint: Checkpoint, form: str) -> None:
    if form == "json":
        print_records([checkpoint.as_dict()], "jsonl")
    else:
        echo_paths([checkpoint.path])


def _say_what_is_waited_for(registry: Registry) -> None:
    try:
        registry.runs()
    except CatalogMissing:
        say("There is no run here yet; waiting for the first one.", err=True)
    except CatalogError:
        return  # it is done without

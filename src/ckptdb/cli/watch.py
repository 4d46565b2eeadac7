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
@click.option("--lease", metavar="NAME", help="Share the work with all who name the same one.")
@click.option("--exec", "command", metavar="CMD", help="Run this shell command for each.")
@click.option("--once", is_flag=True, help="End when nothing is left to do.")
@click.option("--new", "only_new", is_flag=True, help="Leave out what is there already.")
@click.option(
    "--interval",
    type=click.FloatRange(0, 1e6, min_open=True),
    default=POLL_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
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
    """Print the path of each checkpoint of RUN, or of the runs at or below here, as it is saved.

    One line for each, also for those that are there already. With -o json the whole record is
    one line.

    With --lease each goes to one only of all processes that name the same one, on any host, and is
    not deleted meanwhile. It is done when its line is printed, or when its command has succeeded.

    CMD finds CKPTDB_PATH, CKPTDB_STEP, CKPTDB_RUN, CKPTDB_RUN_DIR and CKPTDB_UUID in its
    environment. When it fails, others may have the checkpoint; here it is not tried again.
    Exits 4 when one has failed.
    """
    failed = 0
    with session.open() as registry, _told_to_stop() as job:
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
    """The command that runs now, and whether somebody wants us to stop."""

    def __init__(self) -> None:
        self._signals = itertools.count()
        self._stopped: int | None = None
        self._is_starting = False
        self._child: subprocess.Popen[bytes] | None = None

    def is_stopped(self) -> bool:
        """Tell whether a signal has come."""
        return self._stopped is not None

    def run(self, command: str, checkpoint: Checkpoint) -> str | None:
        """Run a command for a checkpoint; return why it has failed, None when it has not."""
        self._is_starting = True
        try:
            # A group of its own: what the shell has started is told, too, and told once.
            self._child = subprocess.Popen(
                ["/bin/sh", "-c", command],
                env=os.environ | _describe(checkpoint),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
            self._is_starting = False
            if self._stopped is not None:
                self._tell(self._stopped)
            code = self._child.wait()
        except BaseException:
            self._tell(signal.SIGKILL)
            raise
        finally:
            self._is_starting = False
            self._child = None
        if code < 0:
            return f"was ended by signal {-code}"
        return f"ended with exit code {code}" if code else None

    def stop(self, number: int, _: FrameType | None) -> None:
        """Take note of a signal, and pass it on; the second time, wait no longer."""
        # Counted in one step: another signal may come in the middle of this one's handler.
        is_second = next(self._signals) > 0
        self._stopped = number
        if self._is_starting:
            return  # nobody is there yet who could be told, or killed
        if is_second:
            raise KeyboardInterrupt
        self._tell(number)

    def _tell(self, number: int) -> None:
        if self._child is not None:
            with suppress(ProcessLookupError, PermissionError):  # it has ended by now
                os.killpg(self._child.pid, number)


@contextmanager
def _told_to_stop() -> Iterator[_Job]:
    """Let signals end the work in good order, but not those that we were started to ignore."""
    job = _Job()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    heard = [number for number in _SIGNALS if before[number] != signal.SIG_IGN]
    for number in heard:
        signal.signal(number, job.stop)
    try:
        yield job
    finally:
        for number in heard:
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

"""Calls in a child process that may take so long and so much memory, and no more."""

import json
import os
import resource
import signal
import traceback
import warnings

SECONDS = 30
"""What a call may take on a machine that does much else; one that hangs takes longer."""
MEGABYTES = 700
_GUARD_BYTES = 4 * 1024**3


def bounded(what, *arguments, seconds=SECONDS, megabytes=MEGABYTES):
    """Return what a call returns, through JSON, and the texts of its warnings.

    An error of ours is returned as its text. The call fails when it takes longer, or more memory.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            resource.setrlimit(resource.RLIMIT_AS, (_GUARD_BYTES, _GUARD_BYTES))
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(seconds)
            before = _peak_kilobytes()  # of the process that was forked
            value = _call(what, arguments)
            answer = json.dumps([value, _peak_kilobytes() - before])
            with os.fdopen(writing, "w") as file:
                file.write(answer)
            os._exit(0)
        except BaseException:  # noqa: BLE001  # it is told by the status
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    assert not os.WIFSIGNALED(status), f"after {seconds} seconds it had not ended"
    assert os.waitstatus_to_exitcode(status) == 0
    value, grown_kilobytes = json.loads(answer)
    assert grown_kilobytes / 1024 < megabytes
    return value


def _peak_kilobytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _call(what, arguments):
    from ckptdb.errors import CkptdbError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = what(*arguments)
        except CkptdbError as error:
            value = f"{type(error).__name__}: {error}"
    return value, [str(warning.message) for warning in caught]

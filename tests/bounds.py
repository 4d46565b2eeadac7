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
            answer = json.dumps(_call(what, arguments))
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
    _, status, used = os.wait4(pid, 0)
    assert not os.WIFSIGNALED(status), f"after {seconds} seconds it had not ended"
    assert os.waitstatus_to_exitcode(status) == 0
    assert used.ru_maxrss / 1024 < megabytes
    return json.loads(answer)


def _call(what, arguments):
    from ckptdb.errors import CkptdbError

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            value = what(*arguments)
        except CkptdbError as error:
            value = f"{type(error).__name__}: {error}"
    return value, [str(warning.message) for warning in caught]

"""A program on a pseudo-terminal, driven as by somebody who types and reads."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from subprocess import Popen

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07]*\x07|[@-Z\\-_=>]|\([AB0])")


class Terminal:
    """Starts a command on a terminal of its own."""

    def __init__(self, command, *, columns=100, env=None, cwd=None):
        self._parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        settings = os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"} | (env or {})
        for name in ("COLUMNS", "LINES"):  # of whoever runs the tests
            settings.pop(name, None)
        self.process = Popen(
            command, stdin=child, stdout=child, stderr=child, cwd=cwd, env=settings,
            start_new_session=True, preexec_fn=_take_over,  # noqa: PLW1509  # no threads here
        )  # fmt: skip
        os.close(child)
        self.raw = ""
        self._seen = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._parent)

    @property
    def text(self):
        """Everything so far, without what only a terminal obeys."""
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    @property
    def lines(self):
        """What has stood on a line, also what was written over."""
        return re.split(r"[\r\n]+", _ESCAPES.sub("", self.raw))

    def type(self, text):
        """Send keys; "\\r" is Enter, "\\x03" Ctrl-C, "\\x04" Ctrl-D."""
        os.write(self._parent, os.fsencode(text))

    def interrupt_until(self, wanted, *, seconds=20):
        """Send SIGINT, as Ctrl-C does, until something shows.

        Once is not enough while a program is about to take the terminal, or to give it back.
        """
        self._until(wanted, lambda: os.killpg(self.process.pid, signal.SIGINT), seconds)

    def type_until(self, key, wanted, *, seconds=20):
        """Send a key until something shows.

        A Ctrl-C that comes when Python's readline is about to wait for keys is seen with the next.
        """
        self._until(wanted, lambda: self.type(key), seconds)

    def _until(self, wanted, act, seconds):
        for _ in range(int(seconds * 2)):
            act()
            if self._shows(wanted, seconds=0.5):
                return
        raise AssertionError(f"no {wanted!r} in {self.text!r}")

    def wait_for(self, *wanted, seconds=20):
        """Read until something shows, each thing behind the one before."""
        for text in wanted:
            if not self._shows(text, seconds=seconds):
                raise AssertionError(f"no {text!r} in {self.text[self._seen :]!r}")

    def _shows(self, wanted, *, seconds):
        deadline = time.monotonic() + seconds
        while (found := self.text.find(wanted, self._seen)) < 0:
            if not self._read(deadline):
                return False
        self._seen = found + len(wanted)
        return True

    def wait(self, *, seconds=20):
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(timeout=seconds)

    def _read(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self._parent], [], [], left)[0]:
            return False
        try:
            chunk = os.read(self._parent, 65536)
        except OSError:  # how a pseudo-terminal ends
            return False
        self.raw += chunk.decode(errors="replace")
        return bool(chunk)


def _take_over():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # Whoever runs the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

"""The log of the server stays small and harmless."""

import io
import logging

from ckptdb.web.log import LONGEST, MOST_A_MINUTE, BoundedHandler


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def logger(clock):
    stream = io.StringIO()
    handler = BoundedHandler(stream, clock=clock)
    made = logging.Logger("ours")  # noqa: LOG001  # one that no other test sees
    made.addHandler(handler)
    return made, stream


def test_only_so_many_messages_a_minute_are_written_and_the_others_counted():
    clock = Clock()
    log, stream = logger(clock)
    for number in range(1000):
        log.error("number %d", number)
    assert stream.getvalue().count("\n") == MOST_A_MINUTE

    clock.now = 60.0
    log.error("later")
    left_out = 1000 - MOST_A_MINUTE
    assert stream.getvalue().endswith(f"({left_out} messages were left out here.)\nlater\n")

    log.error("then")
    assert stream.getvalue().endswith("later\nthen\n")


def test_a_message_is_only_so_long():
    log, stream = logger(Clock())
    log.error("begins %s ends", "x" * 1_000_000)

    assert len(stream.getvalue()) < LONGEST + 100
    assert stream.getvalue().startswith("begins x")
    assert stream.getvalue().endswith("x ends\n")


def test_what_a_terminal_would_obey_is_spelled_out():
    log, stream = logger(Clock())
    log.error("of \x1b[31m", exc_info=ValueError("\x1b]0;owned\x07\r\u202e"))

    assert "\\x1b]0;owned\\x07\\r\\u202e" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().splitlines())
    assert "of \\x1b[31m\nValueError: " in stream.getvalue()

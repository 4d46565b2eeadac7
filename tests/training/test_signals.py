"""Signals that ask for a last save, with real ones in real processes."""

import signal
import subprocess
import sys

import pytest

from ckptdb.training.signals import Signals, find_signal

START = """
import gc, os, signal, sys, threading
from signal import SIGINT, SIGTERM, SIGUSR1, SIGUSR2, Signals as Number
from ckptdb.training.signals import Signals

# Whoever runs the tests in the background has it ignored.
signal.signal(SIGINT, signal.default_int_handler)
told = []

def note(name):
    return lambda number, frame: told.append(name)
"""


def run(what):
    """Run lines in a process of their own; return what they print and how it ends."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + what],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split(), done.returncode


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SIGTERM", signal.SIGTERM),
        ("term", signal.SIGTERM),
        ("sigusr1", signal.SIGUSR1),
        (signal.SIGINT, signal.SIGINT),
        ("SIGKILL", None),
        ("STOP", None),
        ("SIGSEGV", None),
        (signal.SIGKILL, None),
        ("", None),
        ("SIG", None),
        ("SIG_DFL", None),
        (15, None),
        (None, None),
    ],
)
def test_a_signal_goes_by_its_name_if_a_process_can_wait_for_it(name, found):
    assert find_signal(name) is found


def test_a_signal_is_noted_and_ends_nothing():
    assert run("""
signals = Signals([SIGTERM, SIGUSR1])
signals.start()
for number in (SIGTERM, SIGUSR1):
    signal.raise_signal(number)
    print(signals.received)
""") == (["SIGTERM", "SIGUSR1"], 0)


@pytest.mark.parametrize("before", ["SIG_DFL", "SIG_IGN", "note('before')", "default_int_handler"])
def test_what_was_there_before_is_put_back(before):
    assert run(f"""
before = {"" if before.startswith("note") else "signal."}{before}
signal.signal(SIGUSR2, before)
signals = Signals([SIGUSR2])
for _ in range(2):
    signals.start()
    signals.start()
    signal.raise_signal(SIGUSR2)
    print(signals.received)
    signals.received = None
    signals.stop()
    signals.stop()
    print(signal.getsignal(SIGUSR2) is before)
print(told.count("before"))
""") == (["SIGUSR2", "True"] * 2 + ["2" if before.startswith("note") else "0"], 0)


def test_without_signals_nothing_is_installed():
    before = signal.getsignal(signal.SIGTERM)
    Signals([]).start()
    assert signal.getsignal(signal.SIGTERM) is before


def test_when_it_is_over_a_signal_ends_the_process_again():
    assert run("""
signals = Signals([SIGTERM])
signals.start()
signals.stop()
signal.raise_signal(SIGTERM)
print("alive")
""") == ([], -signal.SIGTERM)


def test_an_interrupt_that_is_to_be_noted_interrupts_nothing():
    assert run("""
signals = Signals([SIGINT])
signals.start()
signal.raise_signal(SIGINT)
print(signals.received)
signals.stop()
try:
    signal.raise_signal(SIGINT)
except KeyboardInterrupt:
    print("interrupted")
""") == (["SIGINT", "interrupted"], 0)


def test_elsewhere_than_in_the_main_thread_it_says_so():
    assert run("""
from ckptdb.errors import SignalsElsewhere
signals = Signals([SIGTERM])
def start():
    try:
        signals.start()
    except SignalsElsewhere as error:
        print(str(error) == "save_on_signals (SIGTERM) works in the main thread only; call "
              "should_save there first, or leave save_on_signals out.")
thread = threading.Thread(target=start)
thread.start()
thread.join()
print(signal.getsignal(SIGTERM) is signal.SIG_DFL)
signals.start()
thread = threading.Thread(target=start)  # they are there already
thread.start()
thread.join()
""") == (["True", "True"], 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
)
def test_several_may_come_and_go_in_any_order(order):
    assert run(f"""
signal.signal(SIGUSR1, note("before"))
before = signal.getsignal(SIGUSR1)
all = [Signals([SIGUSR1]) for _ in range(3)]
for one in all:
    one.start()
for gone in {order}:
    signal.raise_signal(SIGUSR1)
    print("".join("-" if one.received is None else "x" for one in all))
    for one in all:
        one.received = None
    all[gone].stop()
print(signal.getsignal(SIGUSR1) is before, len(told))
signal.raise_signal(SIGUSR1)
print(*[one.received for one in all], len(told))
""") == (
        ["xxx", "".join("-" if n == order[0] else "x" for n in range(3)),
         "".join("x" if n == order[2] else "-" for n in range(3)),
         "True", "3", "None", "None", "None", "4"],
        0,
    )  # fmt: skip


def test_a_handler_on_top_that_hands_on_is_neither_taken_away_nor_called_in_circles():
    assert run("""
signal.signal(SIGUSR1, note("below"))
signals = Signals([SIGUSR1])
signals.start()
ours = signal.getsignal(SIGUSR1)
def above(number, frame):
    told.append("above")
    ours(number, frame)
signal.signal(SIGUSR1, above)
signal.raise_signal(SIGUSR1)
print(signals.received, *told)
signals.received = None
signals.stop()
print(signal.getsignal(SIGUSR1) is above)
signal.raise_signal(SIGUSR1)
print(signals.received, *told[2:])
signals.start()
signal.raise_signal(SIGUSR1)
print(signals.received, *told[4:])
signals.stop()
print(signal.getsignal(SIGUSR1) is above)
""") == (
        ["SIGUSR1", "above", "below", "True", "None", "above", "below",
         "SIGUSR1", "above", "below", "True"],
        0,
    )  # fmt: skip


def test_an_error_of_the_handler_below_is_the_loops():
    assert run("""
def leave(number, frame):
    sys.exit(7)
signal.signal(SIGTERM, leave)
signals = Signals([SIGTERM])
signals.start()
try:
    signal.raise_signal(SIGTERM)
except SystemExit as error:
    print(signals.received, error.code)
""") == (["SIGTERM", "7"], 0)


def test_a_forgotten_one_leaves_a_process_that_can_be_ended():
    assert run("""
signals = Signals([SIGTERM])
signals.start()
del signals
gc.collect()
signal.raise_signal(SIGTERM)
print("alive")
""") == ([], -signal.SIGTERM)


def test_what_another_thread_cannot_take_away_goes_with_the_next_signal():
    assert run("""
signal.signal(SIGUSR1, note("before"))
before = signal.getsignal(SIGUSR1)
signals = Signals([SIGUSR1, SIGTERM])
signals.start()
thread = threading.Thread(target=signals.stop)
thread.start()
thread.join()
signal.raise_signal(SIGUSR1)
print(signals.received, *told, signal.getsignal(SIGUSR1) is before, flush=True)
signal.raise_signal(SIGTERM)
print("alive")
""") == (["None", "before", "True"], -signal.SIGTERM)


@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_a_forked_child_dies_of_what_its_parent_waits_for(thread):
    assert run(f"""
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
signals = Signals([SIGTERM])
signals.start()
signals.received = "SIGTERM"
def fork():
    ready, child = os.pipe(), os.fork()
    if child == 0:
        os.write(ready[1], b"x" if signals.received is None else b"y")
        signal.pause()
    assert os.read(ready[0], 1) == b"x"
    os.kill(child, SIGTERM)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
if {thread}:
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
else:
    fork()
signals.received = None
signal.raise_signal(SIGTERM)
print(signals.received)
""") == (["15", "SIGTERM"], 0)


def test_a_forked_child_may_wait_for_signals_of_its_own():
    assert run("""
signals = Signals([SIGUSR1])
signals.start()
child = os.fork()
if child == 0:
    signals.start()
    signal.raise_signal(SIGUSR1)
    os._exit(0 if signals.received == "SIGUSR1" else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), signals.received)
""") == (["0", "None"], 0)

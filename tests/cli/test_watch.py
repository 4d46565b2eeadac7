import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from tests.support.saving import save

from ckptdb.disk import identity
from ckptdb.disk.journal_pins import Evaluated

SECONDS = 30
"""How long something that does not come is waited for."""
ALPHA = ["step_1", "step_2", "step_3"]


def paths(out):
    return [line.rsplit("/", 1)[1] for line in out.splitlines()]


def leases(run):
    folder = run / ".ckptdb" / "leases"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# Whoever runs the tests in the background has some of them ignored.
MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
from ckptdb.cli.main import main
main()
"""


@contextmanager
def started(*arguments, cwd):
    """Start the real thing, in the foreground of nobody."""
    command = [sys.executable, "-c", MAIN, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process):
    watchdog = threading.Timer(SECONDS, process.kill)
    watchdog.start()
    line = process.stdout.readline()
    watchdog.cancel()
    assert line, "nothing came"
    return line


def stop(process, number=signal.SIGTERM):
    process.send_signal(number)
    out, err = process.communicate(timeout=SECONDS)
    assert "Traceback" not in err
    return process.returncode, out, err


# --- printing -----------------------------------------------------------------------------------


def test_each_checkpoint_is_a_line_with_its_path(ckptdb, root):
    answer = ckptdb("watch", "--once", cwd=root)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        *(f"{root}/alpha/{name}" for name in ALPHA),
        f"{root}/beta/step_5",
        f"{root}/nemo/step_1",
        f"{root}/nemo/step_2",
    ]
    assert paths(ckptdb("watch", "alpha", "--once", cwd=root).out) == ALPHA
    assert paths(ckptdb("watch", "--once", cwd=root / "alpha").out) == ALPHA


def test_as_json_each_is_one_line(ckptdb, root):
    out = ckptdb("watch", "alpha", "--once", "-o", "json", cwd=root).out
    found = [json.loads(line) for line in out.splitlines()]
    assert found == ckptdb("ls", "alpha", "-o", "json", cwd=root).json


def test_what_is_saved_later_is_printed_at_once(root):
    with started("watch", "alpha", "--interval", "0.01", cwd=root) as process:
        assert [read_line(process) for _ in range(3)][-1] == f"{root}/alpha/step_3\n"
        save(root / "alpha", 4, {"val:loss": 0.1})
        assert read_line(process) == f"{root}/alpha/step_4\n"
        assert stop(process) == (0, "", "")


def test_nothing_new_is_nothing(ckptdb, root):
    answer = ckptdb("watch", "--once", "--new", cwd=root)
    assert (answer.code, answer.out, answer.err) == (0, "", "")


def test_where_no_run_is_yet_one_is_waited_for(tmp_path):
    with started("watch", "--interval", "0.01", cwd=tmp_path) as process:
        assert process.stderr.readline() == "There is no run here yet; waiting for the first one.\n"
        save(tmp_path / "run", 1, {"val:loss": 0.1})
        assert read_line(process) == f"{tmp_path}/run/step_1\n"
        assert stop(process)[0] == 0


def test_once_where_no_run_is_says_so(ckptdb, tmp_path):
    assert ckptdb("watch", "--once", cwd=tmp_path).code == 10


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["gamma"], 1, "No run is called 'gamma'"),
        (["--lease", ""], 1, "Nothing is watched: lease must be a short line of printable text"),
        (["--lease", "\x1b[2J"], 1, r"not '\x1b[2J'"),
        (["--interval", "0"], 2, "--interval"),
        (["-o", "table"], 2, "'path', 'json'"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_told_in_a_sentence(ckptdb, root, arguments, code, why):
    answer = ckptdb("watch", "--once", *arguments, cwd=root)
    assert (answer.code, answer.out) == (code, "")
    assert why in answer.err
    assert "\x1b" not in answer.err


def test_a_reader_that_has_seen_enough_ends_it(root):
    script = f"{sys.executable} -c 'from ckptdb.cli.main import main; main()'"
    done = subprocess.run(
        ["bash", "-c", f"{script} watch --once --lease x | head -1; echo ${{PIPESTATUS[0]}}"],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == f"{root}/alpha/step_1"
    assert done.stderr == ""
    assert leases(root / "alpha") == []


# --- running a command --------------------------------------------------------------------------

SHOW = 'echo "$CKPTDB_STEP $CKPTDB_RUN $CKPTDB_UUID $CKPTDB_PATH $CKPTDB_RUN_DIR"'


def test_a_command_is_told_which_one_it_is_about(ckptdb, root):
    out = ckptdb("watch", "alpha", "--once", "--exec", SHOW, cwd=root).out.splitlines()
    (cp, *_) = ckptdb("ls", "alpha", "-o", "json", cwd=root).json
    alpha = root / "alpha"
    assert out[:2] == [str(alpha / "step_1"), f"1 alpha {cp['uuid']} {alpha}/step_1 {alpha}"]
    assert len(out) == 6


def test_a_lease_lets_a_command_succeed_once_for_each(ckptdb, root):
    arguments = ("watch", "alpha", "--once", "--lease", "mmlu", "--exec")
    assert paths(ckptdb(*arguments, "true", cwd=root).out) == ALPHA
    assert ckptdb(*arguments, "true", cwd=root).out == ""
    save(root / "alpha", 4, {"val:loss": 0.1})
    assert paths(ckptdb(*arguments, "true", cwd=root).out) == ["step_4"]
    assert paths(ckptdb("watch", "alpha", "--once", "--lease", "gsm8k", cwd=root).out)[:1] == [
        "step_1"
    ]


def test_a_command_that_fails_is_told_and_left_to_others(ckptdb, root):
    arguments = ("watch", "alpha", "--once", "--lease", "mmlu", "--exec")
    answer = ckptdb(*arguments, 'test "$CKPTDB_STEP" != 2 || exit 7', cwd=root)
    assert answer.code == 4
    assert paths(answer.out) == ALPHA
    assert answer.err == "ckptdb: alpha step 2: the command ended with exit code 7.\n"
    assert leases(root / "alpha") == []
    killed = ckptdb(*arguments, "kill -9 $$", cwd=root)
    assert killed.err == "ckptdb: alpha step 2: the command was ended by signal 9.\n"
    assert (killed.code, paths(killed.out)) == (4, ["step_2"])
    assert (ckptdb(*arguments, "true", cwd=root).code) == 0


@pytest.mark.slow
def test_a_command_may_log_what_it_has_measured(root):
    ckptdb = f"{sys.executable} -c 'from ckptdb.cli.main import main; main()'"
    log = (
        f'{ckptdb} -C "$CKPTDB_RUN_DIR" log "$CKPTDB_STEP" mmlu=0.$CKPTDB_STEP '
        '--uuid "$CKPTDB_UUID"'
    )
    with started("watch", "alpha", "--once", "--lease", "m", "--exec", log, cwd=root) as process:
        out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[1] == "alpha step 1: has mmlu=0.1"
    hidden = identity.hidden(root / "alpha")
    assert len(Evaluated(hidden).find("m")) == 3
    done = subprocess.run(
        [sys.executable, "-c", "from ckptdb.cli.main import main; main()", "best", "--metric",
         "mmlu", "--mode", "max"], cwd=root / "alpha", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == f"{root}/alpha/step_3\n"


# --- being told to stop -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_command_too_and_gives_the_lease_up(root, number):
    command = "trap 'echo told; exit 3' INT TERM HUP; echo at it; while :; do sleep 0.01; done"
    arguments = ("watch", "alpha", "--lease", "mmlu", "--exec", command)
    with started(*arguments, cwd=root) as process:
        assert read_line(process) == f"{root}/alpha/step_1\n"
        assert read_line(process) == "at it\n"
        assert len(leases(root / "alpha")) == 1
        code, out, err = stop(process, number)
    assert (code, out) == (4, "told\n")
    # The shell may have said more, about what it was waiting for.
    assert err.endswith("ckptdb: alpha step 1: the command ended with exit code 3.\n")
    assert leases(root / "alpha") == []


@pytest.mark.slow
def test_a_command_that_ends_well_though_it_was_told_to_is_done(root):
    command = "trap 'exit 0' TERM; echo at it; while :; do sleep 0.01; done"
    arguments = ("watch", "alpha", "--lease", "mmlu", "--exec", command)
    with started(*arguments, cwd=root) as process:
        read_line(process)
        read_line(process)
        assert stop(process)[0] == 0
    assert len(Evaluated(identity.hidden(root / "alpha")).find("mmlu")) == 1


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_a_command_that_does_not_listen(root):
    command = "trap '' TERM INT; echo at it; sleep 1000 & echo $!; wait; sleep 1000"
    arguments = ("watch", "alpha", "--lease", "mmlu", "--exec", command)
    with started(*arguments, cwd=root) as process:
        read_line(process)
        read_line(process)
        below = int(read_line(process))
        process.send_signal(signal.SIGTERM)
        code, _, err = stop(process, signal.SIGINT)
    assert (code, err.strip()) == (1, "Stopped.")
    assert leases(root / "alpha") == []
    assert not os.path.exists(f"/proc/{below}/exe")


def test_what_was_started_to_ignore_a_signal_goes_on_ignoring_it(root):
    shell = "trap '' INT; exec \"$@\""
    main = "from ckptdb.cli.main import main; main()"
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", main, "watch", "--interval", "0.01"]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for _ in range(6):
            read_line(process)
        process.send_signal(signal.SIGINT)
        save(root / "beta", 6, {"val:loss": 0.1})
        assert read_line(process) == f"{root}/beta/step_6\n"
        assert stop(process) == (0, "", "")


def test_signals_are_as_they_were_afterwards(ckptdb, root):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ckptdb("watch", "--once", cwd=root)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before

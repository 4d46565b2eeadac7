"""Nothing that others have named is obeyed by a terminal: every command, on a real one."""

import fcntl
import io
import json
import logging
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import termios
import time
import traceback
import warnings
from contextlib import closing
from pathlib import Path

import click
import pytest
from tests.support.terminal import Terminal

import ckptdb
from ckptdb import CheckpointManager, Registry
from ckptdb.cli import formats
from ckptdb.cli.main import cli, main
from ckptdb.core import process
from ckptdb.errors import RunInUse

LOSS = "val:loss"
EVIL = "[link=evil]x\x1b[5;7m\x1b]0;pwned\x07\x9b5m\u202e\r\nFORGED"
"""Rich's markup, colours and a title for a terminal, the other direction, a line of its own."""
NAME = EVIL + "\udc9b"
"""As the name of a file, which need not be UTF-8."""
SAFE = {"\r\n", "\n", "\t"}
OURS = re.compile(r"\x1b\[(?:\?25[lh]|2K|1A|[0-9;]*m)|\r(?=\x1b\[2K|\x1b\[1A)|\r(?=\n)")
"""Colours, and how a line of progress is written anew; the colours of `EVIL` are none of these."""
NOT_OURS = "\x1b[5;7m"

COMMANDS = {
    "accept": [["1"], ["--all"]],
    "best": [[], ["--each"], ["--ever"], ["--metric", EVIL, "--mode", "min"], ["-o", "json"]],
    "check": [[], ["--full"], ["-o", "json"]],
    "db path": [[]],
    "db status": [[], ["-o", "json"]],
    "db upgrade": [[]],
    "demo": [["."]],
    "diff": [["1", "2"], ["1", "2", "-o", "json"]],
    "forget": [["."]],
    "gc": [["--keep-latest", "1", "--dry-run"], ["--keep-latest", "1", "--replay"],
           ["--keep", f"tagged {EVIL}"], ["--empty-trash"], ["--all-runs"]],
    "init": [[], [f"new {EVIL}"]],
    "latest": [[], ["-o", "json"]],
    "log": [["1", f"{EVIL}=1", "--source", EVIL], ["1", EVIL]],
    "ls": [[], ["--all"], *(["--all", "-o", form] for form in formats.FORMATS)],
    "pareto": [["--against", EVIL, "min"], ["--against", "acc", "max"]],
    "pin": [["1", "--note", EVIL]],
    "plot": [[], [EVIL]],
    "reconcile": [["--dry-run"], [], ["--full"]],
    "reject": [["2", EVIL]],
    "report": [["-o", "-"], ["-o", f"{EVIL}.html"], ["-o", f"no/{EVIL}"]],
    "rm": [["1", "--dry-run"], ["1", "2"], ["2"]],
    "schema": [[], [EVIL]],
    "serve": [["--host", EVIL], [f"no/{EVIL}"]],
    "show": [["1"], ["2"], ["2", "--lineage"], ["2", "-o", "json"]],
    "sql": [*(["SELECT r.name, m.name, r.config FROM runs r, metrics m", "-o", form]
              for form in formats.FORMATS),
            [f'SELECT \'{EVIL}\' AS "{EVIL}"'], [f'SELECT no."{EVIL}"\nFROM runs'],
            ["-f", EVIL], ["-p", EVIL, "SELECT 1"]],
    "tag": [["1", EVIL], ["1", EVIL + EVIL]],
    "top": [[], ["--where", f'"{EVIL}" > 0'], ["--at", EVIL]],
    "undelete": [["1"]],
    "unpin": [["1"]],
    "unreject": [["2"]],
    "untag": [["2", "no"], ["2", EVIL]],
    "verify": [[], ["--sizes-only", "-o", "json"]],
    "watch": [["--once"], ["--once", "-o", "json"], ["--once", "--exec", "exit 3"],
              ["--once", "--lease", "mmlu"], ["--once", "--lease", EVIL]],
}  # fmt: skip
"""What each command is called with in a hostile run; all of them besides as in `WRONG`."""
WRONG = (["--help"], ["--run", EVIL], [f"--{EVIL}"], [EVIL, EVIL, EVIL])
BEFORE = (["--catalog", f"no/{EVIL}"], ["--catalog", f"nosuch://{EVIL}"], ["-C", EVIL])


def find_commands(command, *path):
    """Yield every command that there is, as it is typed."""
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            yield from find_commands(sub, *path, name)
    else:
        yield " ".join(path)


def on_terminal(*arguments, cwd, env=None):
    """Run a command line in a forked process whose terminal we are; return what it was sent."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 150, 0, 0))
    pid = os.fork()
    if pid == 0:
        try:
            os.close(parent)
            _become(child, cwd, env or {})
            sys.argv = ["ckptdb", *arguments]
            main()
        except SystemExit as end:
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        except BaseException:  # noqa: BLE001  # seen by whoever reads
            os.write(2, traceback.format_exc().encode())
        os._exit(99)
    os.close(child)
    raw, deadline = b"", time.monotonic() + 20
    while select.select([parent], [], [], max(deadline - time.monotonic(), 0))[0]:
        try:
            raw += os.read(parent, 65536)
        except OSError:  # how a terminal ends
            break
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(parent)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1, 2, 3, 4, 10), (arguments, code, raw)
    return raw


def _become(terminal, cwd, env):
    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in (0, 1, 2):
        os.dup2(terminal, number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.update({"TERM": "xterm", **env})
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        os.environ.pop(name, None)
    os.chdir(cwd)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _open_line_by_line(1)
    sys.stderr = sys.__stderr__ = _open_line_by_line(2)
    warnings.resetwarnings()


def _open_line_by_line(number):
    return io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), line_buffering=True)


def find_obeyed(raw):
    """Return everything that a terminal would obey, and lines that others have made."""
    text = raw.decode()  # what is no UTF-8 is none of ours, either
    if NOT_OURS in text:
        return [NOT_OURS]
    lines = OURS.sub("", text)
    obeyed = sorted({c for c in lines if not c.isprintable() and c not in SAFE})
    return obeyed + [line for line in lines.splitlines() if line.lstrip().startswith("FORGED")]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A root with one run in which everything that can have a name has a hostile one."""
    root = tmp_path_factory.mktemp("hostile") / "root"
    root.mkdir()
    Registry.init(root)[0].close()
    run = root / NAME
    config = {"checkpoint_dir": run, "metric_name": EVIL, "higher_is_better": False}
    with CheckpointManager(config) as manager:
        for step in (1, 2, 3):
            training = {"name": EVIL, EVIL: step}
            with manager.save(step, {EVIL: step, "acc": 1 / step}, config=training) as folder:
                (folder / f"{step} {NAME}").write_bytes(b"m" * step)
    with Registry.open(root) as registry:
        registry.tag(None, 2, "rc")
        registry.pin(None, 2, note="in the paper")
        registry.reject(None, 1, "bad")
        registry.log_metrics(None, 2, {f"late {EVIL}": 0.5}, source="mmlu")
        registry.remove([3], trash_ttl_seconds=3600)
    (run / "step_1" / f"1 {NAME}").unlink()
    return root


@pytest.fixture
def root(template, tmp_path):
    """A copy of it, besides with what no writer of ours leaves: half a save, values by SQL."""
    root = tmp_path / "root"
    shutil.copytree(template, root)
    staged = root / NAME / "tmp_step_9"
    staged.mkdir()
    (staged / "training_info.json").write_text(json.dumps({EVIL: 1}))
    writer = {"uuid": "6b1c5ea6-15ce-4862-afa4-e02beec3aabc", "created_at": EVIL, "host": EVIL,
              "pid": 1, "started": EVIL, "boot_id": EVIL}  # fmt: skip
    (staged / ".writer.json").write_text(json.dumps(writer))
    (root / NAME / "step_7").write_text("a file where a checkpoint would be")
    nemo = root / f"nemo {NAME}" / "step_5"
    nemo.mkdir(parents=True)
    (nemo / "training_info.json").write_text(f'{{"{EVIL}')
    with Registry.open(root) as registry:
        registry.reconcile()
    with closing(sqlite3.connect(root / ".ckptdb" / "catalog.db")) as catalog, catalog:
        catalog.execute("UPDATE checkpoints SET notes = ?, info = json_object(?, ?)", [EVIL] * 3)
        gone = "UPDATE checkpoints SET deleted_reason = ?, problem = ? WHERE step = 3"
        catalog.execute(gone, [EVIL] * 2)
        catalog.execute("UPDATE checkpoints SET rejected = ? WHERE step = 1", [EVIL])
        catalog.execute("UPDATE tags SET name = ?", [EVIL])
        catalog.execute("UPDATE runs SET config = json_object(?, ?)", [EVIL] * 2)
    return root


def test_every_command_there_is_is_tried_here():
    assert set(find_commands(cli)) == set(COMMANDS)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sends_a_terminal_what_it_would_obey(root, command):
    for arguments in COMMANDS[command]:
        raw = on_terminal(*command.split(), *arguments, cwd=root / NAME)
        assert find_obeyed(raw) == [], (arguments, raw)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_mistake_in_a_command_is_sent_back_to_the_terminal_as_it_is(root, command):
    for arguments in WRONG:
        raw = on_terminal("--debug", *command.split(), *arguments, cwd=root)
        assert find_obeyed(raw) == [], (arguments, raw)


@pytest.mark.slow
@pytest.mark.parametrize("options", BEFORE, ids=["catalog", "url", "directory"])
def test_no_place_that_is_not_there_is_named_as_it_is(root, options):
    for command in ("ls", "best", "check", "db path"):
        raw = on_terminal("--debug", *options, *command.split(), cwd=root)
        assert find_obeyed(raw) == [], (command, raw)
    for value in (f"no/{EVIL}", f"nosuch://{EVIL}"):
        raw = on_terminal("ls", cwd=root, env={"CKPTDB_CATALOG": value})
        assert find_obeyed(raw) == [], raw


@pytest.mark.slow
@pytest.mark.parametrize("command", ["best", "latest", "watch"])
def test_a_path_is_quoted_for_a_person_and_exact_for_a_program(root, command):
    once = ["--once"] if command == "watch" else []
    arguments = [sys.executable, "-m", "ckptdb", command, *once]
    with Terminal(arguments, cwd=root / NAME) as terminal:
        assert terminal.wait() == 0
    shown = next(line for line in terminal.raw.splitlines() if line.startswith("$'/"))
    # What was copied from a terminal names the directory.
    script = f"cd / && stat -c %i -- {shown}"
    inode = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True
    ).stdout
    assert int(inode) == (root / NAME / "step_2").stat().st_ino or command == "watch"

    piped = subprocess.run(arguments, cwd=root / NAME, capture_output=True, check=True).stdout
    path = os.fsencode(root / NAME / "step_2")
    if command == "watch":
        # One line is one path, whoever has named it.
        assert all(line.startswith(b"$'/") for line in piped.splitlines())
    else:
        assert piped == path + b"\n"
    plain = root / "plain"
    (root / NAME).rename(plain)
    piped = subprocess.run(arguments, cwd=plain, capture_output=True, check=True).stdout
    assert os.fsencode(plain / "step_2") in piped.splitlines()


def test_a_path_with_spaces_is_quoted_on_a_terminal_as_ls_does(tmp_path):
    step = tmp_path / "my run" / "step_1"
    step.mkdir(parents=True)
    (step / "training_info.json").write_text("{}")
    assert on_terminal("latest", cwd=tmp_path).decode() == f"'{step}'\r\n"


def test_the_progress_bar_takes_no_markup_from_the_name_of_a_run(root):
    raw = on_terminal("check", cwd=root).decode()
    assert "[link=evil]x" in raw
    assert "\x1b]8;" not in raw


def test_a_thread_that_fails_shows_no_raw_message(root):
    script = f"""
import sys, threading
from ckptdb.cli import main
def fail():
    raise ValueError({EVIL!r})
def ls(*_, **__):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
main.cli.commands["ls"].callback = ls
sys.argv = ["ckptdb", "ls"]
main.main()
"""
    with Terminal([sys.executable, "-c", script], cwd=root) as terminal:
        assert terminal.wait() == 0
    assert "ValueError: [link=evil]x" in terminal.raw
    assert find_obeyed(terminal.raw.encode()) == []


@pytest.mark.slow
def test_the_prompt_shows_and_completes_no_raw_name(root):
    command, env = [sys.executable, "-m", "ckptdb", "sql"], {"XDG_STATE_HOME": str(root / "state")}
    with Terminal(command, cwd=root, columns=200, env=env) as terminal:
        terminal.wait_for("ckptdb>")
        begun = len(terminal.raw)
        terminal.type("SELECT name FROM runs;\r")
        terminal.wait_for("[link=evil]")
        terminal.wait_for("ckptdb>")
        terminal.type("\x04")
        terminal.wait()
    shown = terminal.raw[begun:]
    assert NOT_OURS not in shown
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)


# --- in a training loop ---------------------------------------------------------------------


def test_an_error_a_warning_and_a_log_name_nothing_raw(tmp_path, caplog):
    config = {"checkpoint_dir": tmp_path / NAME, "metric_name": EVIL, "higher_is_better": False}
    other = {"host": EVIL, "pid": 1, "since": "2026-01-01", **dict.fromkeys(("started", "boot_id"))}
    with CheckpointManager(config) as manager:
        with manager.save(1, {"acc": 1}):
            pass
        hidden = tmp_path / NAME / ".ckptdb"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            manager.get_best_checkpoint_path()
        (hidden / "trainer").write_text(json.dumps(process.this_process() | other))
        told = "import sys; from ckptdb import CheckpointManager as Manager; "
        told += f"m = Manager({ {**config, 'checkpoint_dir': str(tmp_path / NAME)}!r}); "
        told += "m.init_tmp_checkpoint(2, {})"
        second = subprocess.run([sys.executable, "-c", told], capture_output=True, check=False)
    assert second.returncode == 1
    assert RunInUse.__name__.encode() in second.stderr
    assert find_obeyed(second.stderr) == []
    assert len(caught) > 1
    for one in caught:
        assert str(one.message).isprintable()
    with caplog.at_level(logging.INFO, "ckptdb"):
        logging.getLogger("ckptdb").info("retired %s: %s, %d", tmp_path / NAME, EVIL, 3)
    assert caplog.records[-1].getMessage().isprintable()


def test_only_one_place_of_the_library_warns_and_only_one_name_logs():
    folder = Path(ckptdb.__file__).parent
    texts = {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*.py")}
    warning = {
        name
        for name, text in texts.items()
        if "\nimport warnings" in text and "warnings.warn(" in text
    }
    assert warning == {"core/warnings.py"}
    # Whoever serves the page cleans whole lines instead.
    library = [text for name, text in texts.items() if not name.startswith("web/")]
    named = {name for text in library for name in re.findall(r"getLogger\((.*?)\)", text)}
    assert named == {'"ckptdb"'}

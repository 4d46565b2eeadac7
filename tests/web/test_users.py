"""Whether other people use the machine: on a shared one a token is the default."""

import os
import pwd
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.planting import plant

from ckptdb.web import users

CKPTDB = Path(sys.executable).with_name("ckptdb")


def account(name, uid, shell="/bin/bash"):
    return pwd.struct_passwd((name, "x", uid, uid, "", f"/home/{name}", shell))


SYSTEM = [
    account("root", 0),
    account("daemon", 1, "/usr/sbin/nologin"),
    account("postgres", 101),
    account("nobody", 65534),
    account("systemd-coredump", 61184, "/usr/sbin/nologin"),
    account("sync", 1004, "/bin/sync"),
]


@pytest.mark.parametrize(
    ("others", "mine", "found"),
    [
        ([], 1000, None),
        ([account("ann", 1000)], 1000, None),
        ([account("ann", 1000)], 0, "ann"),
        ([account("ann", 1000), account("bob", 1001)], 1000, "bob"),
        ([account("ann", 1000), account("bob", 1001)], 1001, "ann"),
        ([account("ann", 1000), account("bob", 1001, "/bin/false")], 1000, None),
        ([account("ann", 1000), account("bob", 1234567, "")], 1000, "bob"),
    ],
    ids=["nobody", "me", "root helping", "bob", "ann", "no shell", "directory service"],
)
def test_an_account_of_another_person_makes_a_machine_shared(others, mine, found):
    assert users.find_account([*SYSTEM, *others], mine) == found


@pytest.mark.parametrize(
    ("uids", "found"),
    [([0, 1, 101, 1000, 65534], None), ([0, 1000, 1001], 1001), ([], None)],
)
def test_a_process_of_another_person_does(uids, found):
    assert users.find_person(uids, 1000) == found


def test_where_the_user_has_no_account_here_a_machine_counts_as_shared(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 3_999_999_999)

    assert users.why_shared() is not None


def begin(root, *options, path=None):
    """Start a server, of which another person may log in; return its address and what it said."""
    code = (
        "import sys; from ckptdb.web import users;"
        "users.why_shared = lambda: 'bob may log in to this machine';"
        "from ckptdb.cli.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "serve", root, "--port", "0", *options]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        address = process.stdout.readline().strip()
        process.terminate()
        return address, process.stderr.read()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("tree") / "results")


@pytest.mark.slow
def test_on_a_shared_machine_a_token_is_the_default_and_the_reason_is_told(root):
    address, told = begin(root)

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
    assert told == (
        "Because bob may log in to this machine, the page asks for a token, which this address "
        "has; --no-token lets in everybody.\n"
    )


@pytest.mark.slow
def test_there_no_token_is_a_choice_that_has_to_be_made(root, monkeypatch):
    monkeypatch.setenv("CKPTDB_TOKEN", "known")
    address, told = begin(root, "--no-token")

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    assert told == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--token", "x", "--no-token"], "--token and --no-token contradict each other."),
        (["--host", "0.0.0.0", "--no-token"], "0.0.0.0 can be reached from other machines, and "),
    ],
)
def test_what_contradicts_itself_is_refused(root, options, told):
    done = subprocess.run(
        [CKPTDB, "serve", root, *options],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode in (1, 2)
    assert told in done.stderr

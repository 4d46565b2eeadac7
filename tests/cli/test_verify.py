"""What verify says, and does not say, of what it has compared and of what it cannot compare."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.support.requirements import needs_root
from tests.support.saving import save

from ckptdb import CheckpointManager, Registry

NEMO = "2 not verifiable: written without a manifest"


def test_what_has_no_manifest_is_counted_apart_and_never_called_whole(ckptdb, root):
    (root / "nemo" / "step_1" / "model.safetensors").write_bytes(b"")
    answer = ckptdb("verify", cwd=root)
    assert (answer.code, answer.out) == (0, "")
    assert answer.err == f"4 checkpoint(s) verified, all whole; {NEMO}.\n"
    answer = ckptdb("verify", "--run", "nemo", cwd=root)
    assert (answer.code, answer.err) == (0, f"0 checkpoint(s) verified; {NEMO}.\n")
    found = ckptdb("verify", "-o", "json", cwd=root).json
    assert {(cp["run"], cp["not_verifiable"]) for cp in found} == {
        ("alpha", None),
        ("beta", None),
        ("nemo", "written without a manifest"),
    }
    partly = ckptdb("verify", "--max-seconds", "600", cwd=root)
    assert f"4 of 6 checkpoint(s) verified, none known to be damaged; {NEMO}; the" in partly.err


@pytest.mark.slow
@pytest.mark.parametrize("command", [("check", "--full"), ("reconcile", "--full")])
def test_a_full_comparison_says_what_it_could_not_compare(ckptdb, root, command):
    answer = ckptdb(*command, cwd=root)
    assert answer.code == 0
    assert "nemo step 1: not verifiable: written without a manifest" in answer.out
    assert answer.out.splitlines()[-1].endswith("no drift; 2 not verifiable.")
    assert ckptdb(*command, "-o", "json", cwd=root).json["not_verifiable"] == 2
    assert "not verifiable" not in ckptdb(command[0], cwd=root).out, "nobody has compared files"


@pytest.mark.parametrize("checksums", [False, True], ids=["sizes", "checksums"])
def test_a_file_larger_than_the_manifest_says_is_damage_and_nothing_resumes_from_it(
    ckptdb, tmp_path, checksums
):
    run = tmp_path / "run"
    for step in (1, 2):
        save(run, step, {"val:loss": step}, checksums=checksums)
    with (run / "step_2" / "model.bin").open("ab") as file:
        file.write(b"more")
    answer = ckptdb("verify", cwd=run)
    assert answer.code == 1
    assert "damaged: model.bin: 1004 bytes instead of 1000" in answer.out
    said = "Step 2 is passed over .* 1004 bytes instead of 1000"
    with CheckpointManager({"checkpoint_dir": run}) as manager, pytest.warns(match=said):
        assert manager.resume().step == 1


def test_a_dangling_link_is_damage_until_what_it_leads_to_is_back(ckptdb, tmp_path):
    run, shared = tmp_path / "run", tmp_path / "base.bin"
    shared.write_bytes(b"base")
    save(run, 1, {"val:loss": 1})
    options = {"checkpoint_dir": run}
    with CheckpointManager(options) as manager, manager.save(2, {"val:loss": 1}) as folder:
        (folder / "base.bin").symlink_to(shared)
    shared.rename(tmp_path / "moved.bin")
    assert f"leads to {shared}, which is not there" in ckptdb("verify", cwd=run).out
    said = r"Step 2 is passed over .* which is not there"
    with CheckpointManager(options) as manager, pytest.warns(match=said):
        assert manager.resume().step == 1
    (tmp_path / "moved.bin").rename(shared)
    with CheckpointManager({"checkpoint_dir": run}) as manager:
        assert manager.resume().step == 2
        assert manager.get_latest_checkpoint_path() == f"{run}/step_2"
    assert ckptdb("verify", cwd=run).code == 0


def test_a_link_into_the_staging_directory_is_told_while_it_can_be_mended(tmp_path):
    with CheckpointManager({"checkpoint_dir": tmp_path / "run"}) as manager:
        folder = manager.init_tmp_checkpoint(1, {})
        (folder / "model.bin").write_bytes(b"m")
        (folder / "last.bin").symlink_to(folder / "model.bin")
        with pytest.warns(UserWarning, match=r"last.bin leads to .* will count as damaged"):
            manager.finalize_checkpoint(folder)


def test_a_run_from_nemo_is_resumed_without_a_word(root, recwarn):
    with CheckpointManager({"checkpoint_dir": root / "nemo"}) as manager:
        assert manager.resume().step == 2
    assert [str(w.message) for w in recwarn] == []


def test_a_run_that_is_not_there_is_not_verified(ckptdb, root):
    (root / "alpha").rename(root.parent / "elsewhere")
    answer = ckptdb("verify", cwd=root)
    assert answer.code == 4
    assert answer.err.splitlines() == [
        f"1 checkpoint(s) verified, all whole; {NEMO}.",
        f"ckptdb: {root}/alpha was not verified: it is not there.",
    ]


# --- by somebody who may only read ----------------------------------------------------------


@pytest.fixture
def public():
    """A directory that everybody may look into."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    subprocess.run(["chmod", "-R", "u+w", str(directory)], check=True)
    shutil.rmtree(directory)


READER = """
import contextlib, difflib, io, os, sys
from ckptdb.cli.main import main

def run(arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code

# All modules are loaded before: another user may not be allowed to.
warm, *arguments = sys.argv[1:]
here = os.getcwd()
os.chdir(warm)
quiet = io.StringIO()
with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
    assert not run(["verify"])
os.chdir(here)
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(run(arguments))
"""


def as_a_reader(*arguments, cwd, warm):
    """Run the command line as somebody to whom nothing in a directory belongs."""
    before = {path: path.lstat() for path in cwd.rglob("*")}
    # Whoever measures the tests' coverage may not write down what this one has covered.
    env = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", READER, str(warm), *arguments],
        cwd=cwd, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    now = {path: path.lstat() for path in cwd.rglob("*")}
    assert {p: (s.st_mtime_ns, s.st_size) for p, s in now.items()} == {
        p: (s.st_mtime_ns, s.st_size) for p, s in before.items()
    }
    return done


def protect(directory):
    subprocess.run(["chmod", "-R", "a-w,a+rX", str(directory)], check=True)


@pytest.fixture
def warm(tmp_path):
    return save(tmp_path / "warm", 1, {"val:loss": 1}, checksums=True).parent


@pytest.fixture(params=["a root", "a run", "no catalog"])
def tree(request, public):
    if request.param == "a root":
        Registry.init(public)[0].close()
    for step in (1, 2):
        save(public / "run", step, {"val:loss": step})
    if request.param == "no catalog":
        (public / "run" / ".ckptdb" / "catalog.db").unlink()
    return public if request.param == "a root" else public / "run"


@pytest.mark.slow
def test_who_may_only_read_verifies_and_is_told_that_it_is_not_recorded(tree, warm):
    protect(tree)
    done = as_a_reader("verify", cwd=tree, warm=warm)
    said = done.stderr.splitlines()
    assert (done.returncode, said[0]) == (0, "2 checkpoint(s) verified, all whole.")
    assert re.fullmatch(r"When this was verified could not be recorded: .+\.", said[1])
    assert len(said) == 2


@pytest.mark.slow
def test_who_may_only_read_is_told_of_damage_that_the_catalog_does_not_know(tree, warm):
    run = tree if tree.name == "run" else tree / "run"
    (run / "step_2" / "model.bin").write_bytes(b"")
    protect(tree)
    done = as_a_reader("verify", "-o", "json", cwd=tree, warm=warm)
    assert done.returncode == 1
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert {cp["step"]: cp["problem"] for cp in found} == {
        1: None,
        2: "damaged: model.bin: 0 of 1000 bytes",
    }


@needs_root
def test_a_file_that_a_reader_may_not_read_is_not_damage(public, warm):
    save(public / "run", 1, {"val:loss": 1}, checksums=True)
    protect(public)
    (public / "run" / "step_1" / "model.bin").chmod(0)
    done = as_a_reader("verify", cwd=public / "run", warm=warm)
    assert done.returncode == 0
    assert "not verifiable: model.bin: Permission denied" in done.stdout
    assert done.stderr.startswith("0 checkpoint(s) verified; 1 not verifiable in every file.")


@needs_root
def test_a_run_that_a_reader_may_not_look_into_keeps_no_other_from_being_verified(public, warm):
    Registry.init(public)[0].close()
    for run in ("mine", "shared"):
        save(public / run, 1, {"val:loss": 1})
    protect(public)
    (public / "mine" / ".ckptdb").chmod(0)
    done = as_a_reader("verify", cwd=public, warm=warm)
    said = done.stderr.splitlines()
    assert (done.returncode, said[0]) == (4, "1 checkpoint(s) verified, all whole.")
    assert said[1] == (
        f"ckptdb: {public}/mine was not verified: it cannot be read (Permission denied)."
    )

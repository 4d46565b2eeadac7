"""Who may not write a catalog that is behind gets true answers all the same, and writes nothing."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import pytest
from tests.support import requirements
from tests.support.requirements import needs_root
from tests.support.trees import settle
from tests.support.users import ANN, BOB, as_user

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main

pytestmark = needs_root

LOSS = "val:loss"


def save(run, step, loss, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


@pytest.fixture(params=["another user", "read-only mount"])
def ask(request):
    """Runs a and b; b has a step 6 that the catalog does not know. Returns how a reader asks."""
    top = Path(tempfile.mkdtemp(prefix="ckptdb-readers-"))
    top.chmod(0o755)
    root = top / "results"
    root.mkdir()
    for step in (1, 2):
        save(root / "a", step, 1 / step)
    for step in (3, 4):
        save(root / "b", step, 1 / step)
    Registry.init(root)[0].close()
    os.mkdir(top / "elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(root / "b", 6, 0.01, catalog=top / "elsewhere" / "x.db")
    shutil.rmtree(top / "elsewhere")
    settle(root)
    mounted = False
    if request.param == "another user":
        for folder, _, names in os.walk(root):
            for name in (".", *names):
                os.chown(os.path.join(folder, name), ANN, ANN)
    else:
        command = ["mount", "--bind", root, root]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            shutil.rmtree(top)
            requirements.skip(requirements.MOUNTING, done.stderr)
        mounted = True
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)

    def call(*arguments, place=root):
        def run():
            out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                pytest.raises(SystemExit) as ended,
            ):
                main(["-C", str(place), *arguments])
            return ended.value.code, *(s.buffer.getvalue().decode() for s in (out, err))

        return call.run(run)

    call.run = partial(as_user, BOB) if request.param == "another user" else lambda f: f()
    call.root = root
    before = sorted(map(str, root.rglob("*")))
    catalog = (root / ".ckptdb" / "catalog.db").read_bytes()
    try:
        yield call
        assert sorted(map(str, root.rglob("*"))) == before
        assert (root / ".ckptdb" / "catalog.db").read_bytes() == catalog
    finally:
        if mounted:
            subprocess.run(["umount", root], check=True)
        shutil.rmtree(top)


@pytest.mark.slow
def test_latest_and_best_of_a_run_are_those_on_disk(ask):
    code, out, err = ask("latest", "--run", "b")
    assert (code, out, err) == (0, f"{ask.root}/b/step_6\n", "")
    code, out, err = ask("best", "--run", "b")
    assert (code, out, err) == (0, f"{ask.root}/b/step_6\n", "")
    code, out, err = ask("latest", place=ask.root / "b")
    assert (code, out, err) == (0, f"{ask.root}/b/step_6\n", "")


@pytest.mark.slow
def test_lists_and_records_show_what_is_on_disk(ask):
    code, out, err = ask("ls", "b", "-o", "json")
    assert (code, err) == (0, "")
    assert [found["step"] for found in json.loads(out)] == [3, 4, 6]
    code, out, err = ask("show", "6", "--run", "b", "-o", "json")
    assert (code, err) == (0, "")
    assert json.loads(out)["step"] == 6


def test_answers_over_all_runs_are_those_on_disk(ask):
    code, out, err = ask("ls", "-o", "json")
    assert (code, err) == (0, "")
    assert {found["run"]: found["latest_step"] for found in json.loads(out)} == {"a": 2, "b": 6}
    code, out, err = ask("best", "--metric", LOSS, "--mode", "min")
    assert (code, out, err) == (0, f"{ask.root}/b/step_6\n", "")


@pytest.mark.slow
def test_sql_over_all_runs_is_about_those_on_disk(ask):
    query = "SELECT MAX(step) FROM checkpoints"

    def ask_here():
        with Registry.open(ask.root) as registry:
            return registry.query_here(query).rows

    assert [tuple(row) for row in ask.run(ask_here)] == [(6,)]
    # Its process needs an interpreter that the other user may start, too.
    if ask.run(lambda: os.access(sys.executable, os.X_OK)):
        code, out, _ = ask("sql", query, "-o", "csv")
        assert (code, out.split()[-1]) == (0, "6")


def test_a_registry_that_stays_open_goes_on_with_the_catalog_once_that_has_changed(tmp_path):
    root = Path(tempfile.mkdtemp(prefix="ckptdb-readers-"))
    root.chmod(0o755)
    try:
        save(root / "a", 1, 0.5)
        Registry.init(root)[0].close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(root / "a", 2, 0.4, catalog=tmp_path / "x.db")
        go_on, wait = os.pipe()
        asked, tell = os.pipe()
        if os.fork() == 0:
            os.close(tell)
            os.read(asked, 1)
            save(root / "a", 3, 0.3)
            save(root / "b", 1, 0.2)
            os.write(wait, b"x")
            os._exit(0)

        def read():
            with Registry.open(root) as registry:
                found = [registry.latest(run="a").step]
                os.write(tell, b"x")
                os.read(go_on, 1)
                found.append(registry.latest(run="a").step)
                return [*found, len(registry.runs())]

        assert as_user(BOB, read) == [2, 3, 2]
    finally:
        os.wait()
        for end in (go_on, wait, asked, tell):
            os.close(end)
        shutil.rmtree(root)

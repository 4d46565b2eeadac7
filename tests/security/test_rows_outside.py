"""A row of a catalog that leads out of the root: nobody follows it, whatever the command."""

import os
import sqlite3
from contextlib import closing, suppress

import pytest

from ckptdb import CheckpointManager, Registry
from ckptdb.errors import CkptdbError, RunOutside
from ckptdb.retention import Policy

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def make_run(run, *, steps=(1, 2, 3)):
    config = {"checkpoint_dir": run, "metric_name": "acc", "higher_is_better": True,
              "durability": "none"}  # fmt: skip
    with CheckpointManager(config) as manager:
        for step in steps:
            with manager.save(step, {"acc": step / 10}) as folder:
                (folder / "weights.bin").write_bytes(b"w" * 10)


@pytest.fixture
def root(tmp_path):
    """A root with two runs, and beside it the run of somebody else."""
    top = tmp_path / "root"
    top.mkdir()
    Registry.init(top)[0].close()
    make_run(top / "a")
    make_run(top / "b")
    make_run(tmp_path / "victim")
    os.symlink(tmp_path / "victim", top / "link")
    return top


def picture(top):
    """Everything about a tree that a change would move."""
    found = {}
    for path in (top, *sorted(top.rglob("*"))):
        status = os.lstat(path)
        content = path.read_bytes() if path.is_file() else None
        found[str(path)] = (status.st_mode, status.st_mtime_ns, status.st_size, content)
    return found


def lead_out(root, directory):
    """Let the row of run ``b`` be that of the victim, wherever that is said to be."""
    victim = root.parent / "victim"
    with closing(sqlite3.connect(victim / ".ckptdb/catalog.db")) as connection:
        uuid, created_at = connection.execute("SELECT uuid, created_at FROM runs").fetchone()
        uuids = dict(connection.execute("SELECT step, uuid FROM checkpoints"))
    with closing(sqlite3.connect(root / ".ckptdb/catalog.db")) as connection:
        (number,) = connection.execute("SELECT id FROM runs WHERE name = 'b'").fetchone()
        connection.execute(
            "UPDATE runs SET directory = ?, uuid = ?, created_at = ?, name = 'victim' WHERE id = ?",
            (directory, uuid, created_at, number),
        )
        for step, known in uuids.items():
            connection.execute(
                "UPDATE checkpoints SET uuid = ?, path = ? WHERE run_id = ? AND step = ?",
                (known, f"{directory}/step_{step}", number, step),
            )
        connection.commit()


PLACES = {
    "dots": "../victim",
    "absolute": "{top}/victim",
    "dots below": "a/../../victim",
    "dots to itself": "../root/../victim",
    "absolute below": "{top}/root/../victim",
    "link": "link",
    "itself": ".",
    "empty": "",
    "the file system": "/",
    "bytes": "a\0/../../victim",
}

COMMANDS = {
    "gc": lambda r: r.gc(Policy(keep_top_k=1), all_runs=True),
    "gc leftovers": lambda r: r.gc(all_runs=True, empty_trash=True),
    "gc by name": lambda r: r.gc(Policy(keep_top_k=1), run=["victim"]),
    "rm": lambda r: r.remove([1], run="victim"),
    "undelete": lambda r: r.undelete(1, run="victim"),
    "pin": lambda r: r.pin("victim", 1),
    "tag": lambda r: r.tag("victim", 1, "mine"),
    "metric": lambda r: r.log_metrics("victim", 1, {"x": 1.0}, source="me"),
    "reject": lambda r: r.reject("victim", 1, reason="mine"),
    "accept": lambda r: r.accept_loss("victim", [1]),
    "verify": lambda r: r.verify(),
    "verify by name": lambda r: r.verify(run="victim"),
    "reconcile": lambda r: r.reconcile(),
    "check": lambda r: r.reconcile(dry_run=True, full=True),
    "best": lambda r: r.best("acc", mode="max"),
    "latest": lambda r: r.latest(),
    "top": lambda r: r.top(9, "acc", mode="max"),
    "ls": lambda r: r.checkpoints(),
    "summary": lambda r: r.summary(),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_no_command_changes_anything_where_a_row_leads_out_of_the_root(root, tmp_path, place):
    directory = PLACES[place].format(top=tmp_path)
    before = picture(tmp_path / "victim")
    with closing(sqlite3.connect(root / ".ckptdb/catalog.db")) as connection:
        true = connection.serialize()
    for name, command in COMMANDS.items():
        if place == "link" and name not in {"gc", "gc leftovers"}:
            continue  # who made the link has meant what is behind it
        (root / ".ckptdb/catalog.db").write_bytes(true)
        lead_out(root, directory)
        with Registry.open(root) as registry, suppress(CkptdbError, OSError):
            command(registry)
        assert picture(tmp_path / "victim") == before, name


@pytest.mark.parametrize("place", ["dots", "absolute", "dots below", "absolute below"])
def test_what_is_asked_by_name_is_refused_with_one_sentence(root, tmp_path, place):
    lead_out(root, PLACES[place].format(top=tmp_path))
    with Registry.open(root) as registry, pytest.raises(RunOutside) as refused:
        registry.remove([1], run="victim")
    assert len(str(refused.value).splitlines()) == 1
    assert "is not below its root" in str(refused.value)


@pytest.mark.parametrize("place", ["dots", "absolute", "dots below", "absolute below"])
def test_no_answer_names_a_checkpoint_outside_the_root(root, tmp_path, place):
    lead_out(root, PLACES[place].format(top=tmp_path))
    with Registry.open(root) as registry:
        assert {cp.path.parent.name for cp in registry.top(9, "acc", mode="max")} <= {"a", "b"}
        assert {cp.path.parent.name for cp in registry.checkpoints()} <= {"a", "b"}


def test_a_path_of_a_checkpoint_is_made_of_its_run_and_step(root, tmp_path):
    with closing(sqlite3.connect(root / ".ckptdb/catalog.db")) as connection:
        connection.execute("UPDATE checkpoints SET path = '../victim/step_3'  WHERE step = 3")
        connection.commit()
    with Registry.open(root) as registry:
        assert registry.best("acc", mode="max").path in {root / "a/step_3", root / "b/step_3"}


def test_a_run_outside_is_meant_where_the_command_is_pointed_at_it(root, tmp_path):
    run = tmp_path / "elsewhere"
    config = {"checkpoint_dir": run, "catalog": root, "durability": "none"}
    with CheckpointManager(config) as manager:
        for step in (1, 2):
            with manager.save(step, {"acc": step}):
                pass
    with Registry.open(run, catalog=root) as registry:
        registry.remove([1])
    assert [path.name for path in run.glob("step_*")] == ["step_2"]

"""No question and no dry run changes anything in a tree, whatever state that is in."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click
import pytest
from alembic import command
from alembic.config import Config
from tests.support import tracing
from tests.support.requirements import needs_strace
from tests.support.tracing import find_changes, take_picture

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog.engine import Database
from ckptdb.catalog.location import locate
from ckptdb.catalog.revisions import script_location
from ckptdb.cli.main import cli
from ckptdb.disk import (
    checkpoint_identity,
    identity,
    journal,
    journal_records,
    leases,
    names,
    read_checkpoint,
    writer,
)
from ckptdb.disk.pending_index import Notes
from ckptdb.disk.publish import Publisher
from ckptdb.disk.retire import Deletion
from ckptdb.errors import CkptdbError
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

LOSS = "val:loss"
SCRIPT = Path(tracing.__file__)

# --- what asks, and what acts ------------------------------------------------------------

READING = {
    "best": [[], ["--run", "alpha"], ["--ever"], ["--at", "1 hour ago"], ["--each"]],
    "check": [[], ["--full"], ["alpha"]],
    "diff": [["alpha:2", "alpha:3"], ["2", "3", "--run", "alpha"]],
    "latest": [[], ["--run", "alpha"], ["--run", "nemo"]],
    "ls": [[], ["alpha"], ["--all"], ["alpha", "--status", "tmp"]],
    "pareto": [["--against", "loss", "--run", "alpha"]],
    "plot": [["--run", "alpha"]],
    "schema": [[]],
    "show": [["2", "--run", "alpha"], ["2", "--run", "alpha", "--lineage"]],
    "sql": [["SELECT * FROM leaderboard"]],
    "top": [["3"], ["3", "--run", "alpha"]],
    "watch": [["alpha", "--once"], ["--once"]],
    "db path": [[]],
    "db status": [[]],
}
"""Commands that change nothing in a tree, and how they are asked."""
READING_BY_NAME = {"report", "serve", "verify"}
"""Those that have a test of their own below: they last, or write what they are told to."""
DRY_RUNS = {
    "gc": [
        ["--dry-run", "--all-runs", "--keep-latest", "1"],
        ["--dry-run", "--run", "alpha", "--keep-top-k", "1", "--empty-trash"],
        ["--replay", "--run", "alpha", "--keep-latest", "1"],
    ],
    "reconcile": [["--dry-run"], ["--dry-run", "--full"], ["alpha", "--dry-run"]],
    "rm": [["--dry-run", "2", "--run", "alpha"], ["--dry-run", "--force", "3", "--run", "alpha"]],
}
"""Commands that act, and only say what they would do when they are asked to."""
ACTING = {
    "accept", "db upgrade", "demo", "forget", "init", "log", "pin", "reject", "tag", "undelete",
    "unpin", "unreject", "untag",
}  # fmt: skip


def list_commands():
    for name, found in cli.commands.items():
        if isinstance(found, click.Group):
            yield from ((f"{name} {below}", one) for below, one in found.commands.items())
        else:
            yield name, found


def test_each_command_is_known_to_ask_or_to_act():
    known = [*READING, *READING_BY_NAME, *DRY_RUNS, *ACTING]
    assert sorted(known) == sorted(name for name, _ in list_commands())


def test_each_command_with_a_dry_run_is_traced_with_it():
    with_dry_run = {
        name for name, found in list_commands()
        if any("--dry-run" in parameter.opts for parameter in found.params)
    }  # fmt: skip
    assert with_dry_run == set(DRY_RUNS)


def _first(registry):
    return next(iter(registry.runs()))


def _watch(registry, **options):
    for _ in registry.watch(poll_seconds=None, **options):
        pass


REGISTRY_READS = {
    "best": lambda r: (r.best(), r.best(run="alpha"), r.best(LOSS, mode="max", ever=True)),
    "best_of_runs": lambda r: r.best_of_runs(),
    "checkpoints": lambda r: (
        r.checkpoints(),
        r.checkpoints(run="alpha"),
        r.checkpoints(run="nemo"),
    ),
    "curves": lambda r: r.curves(),
    "diff": lambda r: r.diff("alpha:2", "alpha:3"),
    "explain_location": lambda r: r.explain_location(),
    "explain_missing": lambda r: r.explain_missing(),
    "explain_nothing": lambda r: r.explain_nothing(LOSS),
    "gc": lambda r: (r.gc(dry_run=True), r.gc(Policy(keep_top_k=1), dry_run=True)),
    "get": lambda r: r.get(2, run="alpha"),
    "in_place_of": lambda r: [r.in_place_of(cp) for cp in r.checkpoints(status="deleted")],
    "latest": lambda r: (r.latest(), r.latest(run="alpha"), r.latest(run="nemo")),
    "lineage": lambda r: r.lineage(2, run="alpha"),
    "own_metric": lambda r: r.own_metric(r.checkpoints()),
    "pareto": lambda r: r.pareto(LOSS, mode="min", against=("loss", "min"), run="alpha"),
    "passed_over": lambda r: (r.passed_over(r.checkpoints()), r.passed_over((), run="alpha")),
    "query_here": lambda r: r.query_here("SELECT * FROM run_summary"),
    "query_apart": lambda r: r.query_apart("SELECT * FROM run_summary"),
    "query": lambda r: r.query("SELECT * FROM run_summary"),
    "reconcile": lambda r: (r.reconcile(dry_run=True), r.reconcile(dry_run=True, full=True)),
    "remove": lambda r: r.remove([2], run="alpha", dry_run=True),
    "replay": lambda r: r.replay(Policy(keep_top_k=1), run="alpha"),
    "runs": lambda r: r.runs(),
    "schema": lambda r: r.schema(),
    "status": lambda r: r.status(),
    "summary": lambda r: r.summary(),
    "top": lambda r: (r.top(3), r.top(3, run="alpha")),
    "watch": _watch,
    "whereabouts": lambda r: r.whereabouts([run.uuid for run in r.runs()]),
    "directory": lambda r: r.directory,
    "run": lambda r: r.run,
    "location": lambda r: r.location,
    "open": lambda r: r.location,
    "close": lambda r: r.close(),
}
"""What of a registry asks; of what can be told not to act, the dry run."""
REGISTRY_BY_NAME = {"verify"}
REGISTRY_ACTS = {
    "accept_loss", "forget", "init", "log_metrics", "pin", "reject", "tag", "undelete", "unpin",
    "unreject", "untag", "upgrade",
}  # fmt: skip
MANAGER_READS = {
    "get_best_checkpoint_path": lambda m: m.get_best_checkpoint_path(),
    "get_latest_checkpoint_path": lambda m: m.get_latest_checkpoint_path(),
    "get_resume_paths": lambda m: m.get_resume_paths(m.get_latest_checkpoint_path()),
    "get_top_checkpoint_paths": lambda m: m.get_top_checkpoint_paths(3),
    "has_pending_finalization": lambda m: m.has_pending_finalization,
    "finalize_pending": lambda m: m.finalize_pending(),
    "load_training_info": lambda m: m.load_training_info(m.get_latest_checkpoint_path()),
    "plan_retention": lambda m: (m.plan_retention(), m.plan_retention(exclude_latest=False)),
    "should_save": lambda m: m.should_save(9),
    "should_stop": lambda m: m.should_stop,
    "shutdown": lambda m: m.shutdown(),
}
"""What of a manager asks; `finalize_pending` and `shutdown` have nothing to wait for."""
MANAGER_ACTS = {
    "apply_retention", "begin_finalization", "finalize_checkpoint", "init_tmp_checkpoint",
    "reject", "remove_old_checkpoints", "resume", "save",
}  # fmt: skip


def test_each_method_is_known_to_ask_or_to_act():
    public = [name for name in dir(Registry) if not name.startswith("_")]
    assert sorted([*REGISTRY_READS, *REGISTRY_BY_NAME, *REGISTRY_ACTS]) == public
    public = [name for name in dir(CheckpointManager) if not name.startswith("_")]
    assert sorted([*MANAGER_READS, *MANAGER_ACTS]) == public


# --- the trees ----------------------------------------------------------------------------


def manager_of(run, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    return CheckpointManager({"exclusive": False, **config})


def save(run, step, loss):
    with manager_of(run) as manager, manager.save(step, {LOSS: loss, "loss": loss}) as folder:
        (folder / "model.bin").write_bytes(b"m" * 100)
    return run / f"step_{step}"


def uuid_of(path):
    return checkpoint_identity.find_uuid(
        identity.identify(path.parent), path, names.find_final_step(path.name)
    )


def write_nemo(run, step):
    folder = run / f"step_{step}"
    folder.mkdir(parents=True)
    (folder / "training_info.json").write_text(json.dumps({LOSS: step}))


def make_healthy(root):
    Registry.init(root)[0].close()
    for step, loss in ((1, 0.5), (2, 0.2), (3, 0.4)):
        save(root / "alpha", step, loss)
    save(root / "beta", 5, 0.1)
    write_nemo(root / "nemo", 1)
    with Registry.open(root) as registry:
        registry.reconcile()


def make_stale(root):
    """Nothing has told the catalog of what has come and gone by hand."""
    shutil.rmtree(root / "alpha" / "step_1")
    shutil.copytree(root / "beta" / "step_5", root / "beta" / "step_7")
    (root / "alpha" / "step_3" / "training_info.json").write_text('{"val:loss": 0.01}')
    write_nemo(root / "late", 4)
    shutil.rmtree(root / "nemo" / "step_1")


def make_damaged(root):
    make_stale(root)
    hidden = root / "alpha" / ".ckptdb"
    with (hidden / "journal.jsonl").open("ab") as file:
        file.write(b'{"fact": "pin"}\n{"at":\n')
    (root / "alpha" / "step_2" / "training_info.json").write_text("{")
    (root / "alpha" / "step_2" / "manifest.json").write_text("[")
    (root / "beta" / ".ckptdb" / "run.json").write_text("{")


def die(staged, **changes):
    """Let the writer of a staged checkpoint be a process of this machine that is gone."""
    by = writer.find(staged)
    writer.remove(staged)
    gone = {**asdict(by), "pid": 2**22 + 5, "lock": None, **changes}
    (staged / names.WRITER).write_text(json.dumps(gone))


def make_half_removed(root):
    """All that somebody who was killed, on either side of each step, can have left."""
    run = root / "alpha"
    for step in range(10, 20):
        save(run, step, 1.0 + step)
    uuids = {step: uuid_of(run / f"step_{step}") for step in range(10, 20)}
    publisher = Publisher(run)
    publisher.retire([Deletion(10, uuids[10], "retention: by the test")])
    Publisher(run, trash_ttl_seconds=1e-9).retire([Deletion(11, uuids[11], "by hand")])
    trash = run / ".ckptdb" / "trash"
    (run / "step_12").rename(trash / names.trash_name(12, uuids[12], recorded=False))
    left = read_checkpoint.load(identity.identify(run), run / "step_13", 13)
    publisher.record(
        [journal_records.gone(left.ended("manual", "by hand", "2026-01-02T03:04:05.678Z"))]
    )
    (run / "step_13").chmod(read_checkpoint.DELETING_MODE)
    (run / "step_14").rename(run / names.old_name(14, uuids[14]))
    shutil.copytree(run / "step_15", run / names.old_name(15, uuids[15]))
    staged = manager_of(run).init_tmp_checkpoint(16, {LOSS: 0.05})
    die(staged)
    complete = manager_of(run).init_tmp_checkpoint(20, {LOSS: 0.06})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Publisher, "_publish_or_find", _killed)
        with pytest.raises(KeyboardInterrupt):
            Publisher(run).publish(complete)
    hidden = run / ".ckptdb"
    claim = leases.write(hidden, uuids[17], "mmlu", seconds=0.001, since="2026-01-01T00:00:00.000Z")
    told = json.loads(claim.path.read_text())
    claim.path.write_text(json.dumps({**told, "pid": 2**22 + 5}))
    os.utime(claim.path, (1, 1))
    Notes(root / ".ckptdb" / "unindexed", root).add(run, identity.identify(run).run.uuid)
    make_stale(root)


def _killed(*_, **__):
    raise KeyboardInterrupt


def make_hostile(root):
    """Links of a neighbour where the directories of checkpoints that go are kept."""
    victim = root.parent / "victim"
    (victim / "thesis").mkdir(parents=True)
    (victim / "thesis" / "chapter.tex").write_text("years")
    for run in ("alpha", "beta"):
        trash = root / run / ".ckptdb" / "trash"
        for name in ("step_5.0e1b2c3d-0000-4000-8000-000000000000.unrecorded",
                     "step_6.0e1b2c3d-0000-4000-8000-000000000001"):  # fmt: skip
            (trash / name).symlink_to(victim)
    (root / "alpha" / "step_9").symlink_to(victim)
    (root / "alpha" / "tmp_step_8").symlink_to(victim)
    (root / "alpha" / "old_step_7.0e1b2c3d-0000-4000-8000-000000000002").symlink_to(victim)
    (root / "alpha" / ".ckptdb" / "leases").symlink_to(victim)
    make_stale(root)


def make_without_catalog(root):
    (root / ".ckptdb" / "catalog.db").unlink()
    make_stale(root)


def make_without_marker(root):
    (root / ".ckptdb" / "root.json").unlink()
    make_stale(root)


def make_foreign(root):
    """A tree that ckptdb has never written to."""
    shutil.rmtree(root)
    for run in ("alpha", "beta", "nemo"):
        for step in (2, 3, 5):
            write_nemo(root / run, step)


def make_outdated_catalog(root):
    file = root / ".ckptdb" / "catalog.db"
    file.unlink()
    database = Database.unchecked(locate(file), create=True)
    config = Config()
    config.set_main_option("script_location", str(script_location()))
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    database.close()
    make_stale(root)


def make_broken_catalog(root):
    (root / ".ckptdb" / "catalog.db").write_bytes(b"no database at all" * 500)
    make_stale(root)


TREES = {
    "healthy": Path.exists,
    "stale": make_stale,
    "damaged": make_damaged,
    "half removed": make_half_removed,
    "hostile": make_hostile,
    "without a catalog": make_without_catalog,
    "without its marker": make_without_marker,
    "foreign": make_foreign,
    "with an outdated catalog": make_outdated_catalog,
    "with a broken catalog": make_broken_catalog,
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees") / "healthy" / "results"
    root.mkdir(parents=True)
    make_healthy(root)
    return root


@pytest.fixture(params=TREES)
def tree(request, healthy, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(healthy, root, symlinks=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Registry.open(root) as registry:
            registry.reconcile()  # which gives a copy an identity of its own
        TREES[request.param](root)
    return root


# --- the trace ----------------------------------------------------------------------------


def lines_of(root):
    for name, each in {**READING, **DRY_RUNS}.items():
        for options in each:
            yield ["-C", str(root), *name.split(), *options]


def trace(root, lines):
    """Run command lines in a process of their own; return what each of them has changed."""
    done = subprocess.run(
        [sys.executable, SCRIPT, root.parent, json.dumps(lines)],
        capture_output=True, text=True, check=False, cwd=root.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_question_and_no_dry_run_changes_anything(tree):
    before = take_picture(tree.parent)
    found = trace(tree, list(lines_of(tree)))
    assert [(line, calls) for line, _, calls, _ in found if calls] == []
    assert find_changes(before, take_picture(tree.parent)) == []
    assert not [said for *_, said in found if "This is a bug" in said]


def test_no_reading_method_of_a_registry_changes_anything(tree):
    before = take_picture(tree.parent)
    for name, ask in REGISTRY_READS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Registry.open(tree) as registry, suppress(CkptdbError):
                ask(registry)
        assert find_changes(before, take_picture(tree.parent)) == [], name


# --- what keeps something of its own, or writes where it is told to -----------------------------


def test_verifying_keeps_when_it_has_looked_and_changes_nothing_else(tree):
    before = take_picture(tree.parent, times=False)
    lines = [["verify"], ["verify", "--sizes-only"], ["verify", "--max-seconds", "0.001"]]
    found = trace(tree, [["-C", str(tree), *line] for line in lines])
    assert [calls for _, _, calls, _ in found if any(_is_not_noted(call) for call in calls)] == []
    after = take_picture(tree.parent, times=False)
    changes = [
        line for line in find_changes(before, after) if "/.ckptdb/verified.json:" not in line
    ]
    assert changes == []


def _is_not_noted(call):
    return "verified.json" not in call


def test_a_report_is_written_where_it_is_wanted_and_nowhere_else(tree, tmp_path):
    before = take_picture(tree)
    trace(tree, [["-C", str(tree), "report", "-o", str(tmp_path / "report.html")]])
    assert find_changes(before, take_picture(tree)) == []


# --- what a training loop asks --------------------------------------------------------------------


def list_bytes(top):
    """Return the inode of each file that lies there, but for what says who writes a save."""
    return {
        os.lstat(path).st_ino: path
        for path in top.rglob("*")
        if path.is_file() and path.name not in {names.WRITER, *tracing.CATALOG}
    }


def test_a_manager_that_is_asked_removes_nothing(tree):
    before = list_bytes(tree.parent)
    hidden = tree / "alpha" / ".ckptdb"
    kept = {
        folder: sorted(os.listdir(hidden / folder))
        for folder in ("trash", "leases")
        if (hidden / folder).is_dir()
    }
    for name, ask in MANAGER_READS.items():
        for run in ("alpha", "beta", "nemo", "nowhere"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with manager_of(tree / run, keep_top_k=1) as manager, suppress(CkptdbError):
                    ask(manager)
        gone = before.keys() - list_bytes(tree.parent).keys()
        # A file of ours that is written anew is another one.
        assert [str(before[one]) for one in gone if before[one].name != "run.json"] == [], name
        for folder, entries in kept.items():
            assert set(entries) <= set(os.listdir(hidden / folder)), name


def test_a_manager_that_is_asked_changes_nothing_where_nothing_was_left_complete(healthy, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(healthy, root, symlinks=True)
    with Registry.open(root) as registry:
        registry.reconcile()
    make_stale(root)
    before = take_picture(tmp_path)
    for name, ask in MANAGER_READS.items():
        for run in ("alpha", "beta", "nemo", "nowhere"):
            with manager_of(root / run, keep_top_k=1) as manager, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if name == "load_training_info" and manager.get_latest_checkpoint_path() is None:
                    continue
                ask(manager)
        assert find_changes(before, take_picture(tmp_path)) == [], name


def test_a_manager_that_is_asked_publishes_what_is_complete_and_leaves_the_rest(healthy, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(healthy, root, symlinks=True)
    with Registry.open(root) as registry:
        registry.reconcile()
    make_half_removed(root)
    run = root / "alpha"
    trash = sorted(os.listdir(run / ".ckptdb" / "trash"))
    with manager_of(run) as manager:
        assert manager.get_latest_checkpoint_path() == str(run / "step_20")
    assert (run / "step_14").is_dir()
    assert (run / "tmp_step_16").is_dir()
    assert (run / "step_13").is_dir()
    assert any(run.glob("old_step_15.*"))
    assert sorted(os.listdir(run / ".ckptdb" / "trash")) == trash
    with Registry.open(root) as registry:
        registry.reconcile()
    assert not any(run.glob("old_step_*"))
    assert not (run / "step_13").exists()
    assert os.listdir(run / ".ckptdb" / "trash") == []


def test_the_next_save_finishes_what_a_question_has_left(healthy, tmp_path):
    root = tmp_path / "results"
    shutil.copytree(healthy, root, symlinks=True)
    with Registry.open(root) as registry:
        registry.reconcile()
    make_half_removed(root)
    run = root / "alpha"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with manager_of(run) as manager:
            manager.get_latest_checkpoint_path()
            with manager.save(21, {LOSS: 0.5}) as folder:
                (folder / "model.bin").write_bytes(b"m")
    assert not any(run.glob("old_step_*"))
    assert not (run / "step_13").exists()
    assert os.listdir(run / ".ckptdb" / "trash") == []
    facts = journal.read(run / ".ckptdb", identity.identify(run).run)
    assert {end.step for end in facts.gone.values() if "vanished" in end.deleted_reason} == {1}


# --- what the kernel sees -------------------------------------------------------------------------

_CALL = re.compile(r"(?:^|\] |\d )(\w+)\((.*)$")
_READS_ONLY = re.compile(r"O_(WRONLY|RDWR|CREAT|TRUNC|APPEND|TMPFILE)")


@needs_strace
@pytest.mark.parametrize("tree", ["half removed", "hostile", "stale"], indirect=True)
def test_the_kernel_is_asked_for_no_change_by_any_question(tree, tmp_path):
    log = tmp_path.parent / f"{tmp_path.name}.strace"
    changing = (
        "open,openat,openat2,creat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,"
        "link,linkat,symlink,symlinkat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utime,"
        "utimes,utimensat,futimesat,truncate,ftruncate,fallocate,setxattr,fsetxattr,lsetxattr,"
        "removexattr,mknod,mknodat,copy_file_range"
    )
    tracer = ["strace", "-f", "-y", "-s", "4096", "-o", log, "-e", f"trace={changing}"]
    lines = [
        ["-C", str(tree), *name.split(), *options[-1]]
        for name, options in {**READING, **DRY_RUNS}.items()
    ]
    done = subprocess.run(
        [*tracer, sys.executable, SCRIPT, tree.parent, json.dumps(lines)],
        capture_output=True, text=True, check=False, cwd=tmp_path.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert any("journal.jsonl" in call and str(tree) in call for call in calls)
    assert [change for call in calls if (change := _find_change(call, tree))] == []


def _find_change(line, tree):
    """Return a call that changes something in a tree, None for any other."""
    found = _CALL.search(line)
    if found is None or str(tree) not in line:
        return None
    name, arguments = found.groups()
    if name.startswith("open") and not _READS_ONLY.search(arguments):
        return None
    is_catalog = any(f"/{file}" in arguments for file in tracing.CATALOG)
    return None if is_catalog else line

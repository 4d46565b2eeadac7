"""A catalog that has not seen the whole tree: begun by a save, or passed over while it failed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.counting import counted
from tests.support.locked import locked
from tests.support.trees import AS_ANY_USER, settle

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk.pending_index import Notes
from ckptdb.reconcile import fallback

pytestmark = pytest.mark.slow

LOSS = "val:loss"


def save(run, step, loss, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


def notes_of(root: Path) -> Notes:
    return Notes(root / ".ckptdb" / "unindexed", root)


def catalog_of(root: Path) -> Path:
    return root / ".ckptdb" / "catalog.db"


@pytest.fixture
def root(tmp_path):
    """Three runs in a root whose catalog has seen them all; the best of all is b's step 2."""
    directory = tmp_path / "results"
    for name, loss in (("a", 0.5), ("b", 0.1), ("c", 0.3)):
        save(directory / name, 1, loss + 0.1)
        save(directory / name, 2, loss)
    Registry.init(directory)[0].close()
    return directory


def runs_in_file(root: Path) -> list[str]:
    with closing(sqlite3.connect(catalog_of(root))) as raw:
        return [name for (name,) in raw.execute("SELECT name FROM runs ORDER BY name")]


QUESTIONS = {
    "runs": lambda registry: [run.name for run in registry.runs()] == ["a", "b", "c"],
    "summary": lambda registry: len(registry.summary().rows) == 3,
    "query": lambda registry: registry.query("SELECT COUNT(*) FROM runs").rows[0][0] == 3,
    "checkpoints": lambda registry: len(registry.checkpoints(status="final")) == 7,
    "best of all": lambda registry: registry.best(LOSS, mode="min").path.parent.name == "b",
    "best by name": lambda registry: registry.best(run="b").step == 2,
    "latest by name": lambda registry: registry.latest(run="b").step == 2,
    "best of each": lambda registry: [cp.run for cp in registry.best_of_runs()] == ["a", "b", "c"],
    "curves": lambda registry: len(registry.curves(LOSS)[1]) == 3,
    "curves by name": lambda registry: len(registry.curves(LOSS, runs=["b", "c"])[1]) == 2,
    "get": lambda registry: registry.get(1, run="c").step == 1,
    "gc": lambda registry: len(registry.gc(dry_run=True)) == 3,
    "verify": lambda registry: len(registry.verify().checkpoints) == 7,
    "pin": lambda registry: registry.pin("b", 1).pinned,
}


@pytest.mark.parametrize("ask", QUESTIONS.values(), ids=QUESTIONS)
def test_one_save_after_the_catalog_was_lost_hides_no_other_run(root, ask):
    catalog_of(root).unlink()
    save(root / "a", 3, 0.45)
    assert runs_in_file(root) == ["a"]
    with Registry.open(root) as registry:
        assert ask(registry)


def test_after_one_look_the_catalog_knows_that_it_has_seen_everything(root, monkeypatch):
    catalog_of(root).unlink()
    save(root / "a", 3, 0.45)
    with Registry.open(root) as registry:
        registry.runs()
    assert runs_in_file(root) == ["a", "b", "c"]
    settle(root)
    with Registry.open(root) as registry, counted(monkeypatch) as (files, _, _):
        assert len(registry.runs()) == 3
    assert not [what for what in files if "scandir" in what], files


@pytest.mark.parametrize("runs", [3, 40])
def test_a_question_over_all_runs_looks_at_none_of_them(tmp_path, monkeypatch, runs):
    for number in range(runs):
        save(tmp_path / f"run-{number}", 1, 0.5)
    Registry.init(tmp_path)[0].close()
    with Registry.open(tmp_path) as registry:
        registry.runs()
        asked = []
        monkeypatch.setattr(os, "lstat", _counting(os.lstat, asked))
        monkeypatch.setattr(os, "stat", _counting(os.stat, asked))
        monkeypatch.setattr(os, "scandir", _counting(os.scandir, asked))
        assert len(registry.summary().rows) == runs
    # The catalog's own files are looked at before each use, whatever the number of runs.
    of_runs = [path for path in asked if not str(path).startswith(str(catalog_of(tmp_path)))]
    assert len(of_runs) <= 6, of_runs


def _counting(real, asked):
    def call(path=".", *arguments, **options):
        asked.append(path)
        return real(path, *arguments, **options)

    return call


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["best", "--run", "b"], ["sql", "SELECT name FROM runs"], ["ls", "b"], ["top"]],
    ids=" ".join,
)
def test_the_command_line_answers_for_all_runs_after_one_save(root, arguments, capfd):
    with pytest.raises(SystemExit):
        main(["-C", str(root), *arguments])
    before = capfd.readouterr().out
    catalog_of(root).unlink()
    save(root / "a", 2, 0.5)
    with pytest.raises(SystemExit) as ended:
        main(["-C", str(root), *arguments])
    assert ended.value.code == 0
    shown = capfd.readouterr().out
    assert shown.split()[:1] == before.split()[:1]
    assert len(shown.splitlines()) == len(before.splitlines())


def test_a_look_writes_to_the_catalog_alone(root):
    catalog_of(root).unlink()
    (root / "b" / "tmp_step_9").mkdir()
    save(root / "a", 3, 0.45)
    settle(root)

    def seen():
        return {
            path: (path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in root.rglob("*")
            if root / ".ckptdb" not in (path, *path.parents) and path.name != "lock"
        }

    before = seen()
    with Registry.open(root) as registry:
        assert len(registry.runs()) == 3
    assert seen() == before


def test_a_broken_catalog_that_was_set_aside_in_the_middle_of_training_is_completed(root):
    catalog_of(root).write_bytes(b"no database at all" * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(root / "a", 3, 0.45)
    catalog_of(root).rename(catalog_of(root).with_name("aside"))
    save(root / "a", 4, 0.44)
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c"]
        assert registry.latest(run="a").step == 4


def test_a_look_that_is_killed_halfway_is_begun_again(root):
    catalog_of(root).unlink()
    save(root / "a", 3, 0.45)
    script = (
        "import os, signal, sys\n"
        "from ckptdb import Registry\n"
        "from ckptdb.registry import completeness\n"
        "real = completeness.index_run\n"
        "def one_and_no_more(catalog, directory, **options):\n"
        "    if directory.name == 'c':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(catalog, directory, **options)\n"
        "completeness.index_run = one_and_no_more\n"
        "Registry.open(sys.argv[1]).runs()\n"
    )
    done = subprocess.run([sys.executable, "-c", script, root], check=False)
    assert done.returncode == -signal.SIGKILL
    assert "c" not in runs_in_file(root)
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c"]


def test_a_reconcile_that_is_killed_halfway_leaves_an_incomplete_catalog(root):
    catalog_of(root).unlink()
    script = (
        "import os, signal, sys\n"
        "from ckptdb import Registry\n"
        "def stop(run):\n"
        "    if run.name == 'b':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Registry.open(sys.argv[1]).reconcile(on_run=stop)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, root], check=False)
    assert done.returncode == -signal.SIGKILL
    assert runs_in_file(root) == ["a"]
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c"]


def test_reconciling_one_run_does_not_make_the_catalog_complete(root):
    catalog_of(root).unlink()
    with Registry.open(root) as registry:
        registry.reconcile(root / "b")
    assert runs_in_file(root) == ["b"]
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c"]


def test_several_trainers_that_begin_the_catalog_at_once_hide_nothing(root):
    catalog_of(root).unlink()
    script = (
        "import sys\n"
        "from ckptdb import CheckpointManager\n"
        "sys.stdin.read(1)\n"
        "with CheckpointManager({'checkpoint_dir': sys.argv[1]}) as manager:\n"
        "    with manager.save(7, {'val:loss': 0.05}):\n"
        "        pass\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, root / name], stdin=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    for child in children:
        child.stdin.write("x")
        child.stdin.flush()
    for child in children:
        child.communicate()
        assert child.returncode == 0
    with Registry.open(root) as registry:
        assert [(cp.run, cp.step) for cp in registry.best_of_runs()] == [
            ("a", 7), ("b", 7), ("c", 2),
        ]  # fmt: skip


def test_a_question_from_inside_a_run_does_not_look_at_the_others(root, monkeypatch):
    catalog_of(root).unlink()
    save(root / "a", 3, 0.45)
    with Registry.open(root / "a") as registry, counted(monkeypatch) as (files, _, _):
        assert registry.latest().step == 3
    assert not [what for what in files if str(root / "b") in what], files


def test_who_may_not_write_the_catalog_gets_the_whole_answer_from_memory(root):
    catalog_of(root).unlink()
    save(root / "a", 3, 0.45)
    catalog_of(root).chmod(0o444)
    (root / ".ckptdb").chmod(0o555)
    script = (
        f"{AS_ANY_USER}"
        "import sys\n"
        "from ckptdb import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    print([run.name for run in registry.runs()], registry.best(run='b').step)\n"
        "    print([run.name for run in registry.runs()])\n"
    )
    before = catalog_of(root).read_bytes()
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, root], check=False, capture_output=True, text=True
        )
    finally:
        (root / ".ckptdb").chmod(0o755)
    assert (done.stdout, done.stderr) == ("['a', 'b', 'c'] 2\n['a', 'b', 'c']\n", "")
    assert catalog_of(root).read_bytes() == before


def test_a_catalog_elsewhere_names_the_runs_that_it_has_never_seen(root, tmp_path, capfd):
    elsewhere = tmp_path / "elsewhere.db"
    save(root / "a", 3, 0.45, catalog=elsewhere)

    def ls():
        with pytest.raises(SystemExit):
            main(["--catalog", str(elsewhere), "-C", str(root), "ls", "-o", "csv"])
        return capfd.readouterr()

    said = ls().err
    assert f"{elsewhere} has not seen 2 runs below {root} (b, c)" in said
    assert "reconcile" in said
    with Registry.open(root, catalog=elsewhere) as registry:
        registry.reconcile()
    after = ls()
    assert after.err == ""
    assert len(after.out.splitlines()) == 4


def test_a_registry_that_is_open_goes_on_with_the_catalog_that_took_the_place_of_its_own(root):
    with Registry.open(root) as registry:
        assert len(registry.runs()) == 3
        catalog_of(root).unlink()
        save(root / "a", 9, 0.01)
        assert registry.latest().step == 9
        assert len(registry.runs()) == 3
    assert runs_in_file(root) == ["a", "b", "c"]


# --- passed over while it failed ----------------------------------------------------------------


def save_while_locked(root, name, step, loss):
    with locked(catalog_of(root)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(root / name, step, loss)


def test_what_was_saved_while_the_catalog_was_locked_is_in_answers_over_all_runs(root):
    save_while_locked(root, "a", 3, 0.01)
    with Registry.open(root) as registry:
        assert registry.best(LOSS, mode="min").path == root / "a" / "step_3"
        assert {row["run"]: row["latest_step"] for row in registry.summary().as_dicts()} == {
            "a": 3, "b": 2, "c": 2,
        }  # fmt: skip
        # A question leaves the note; whoever acts on the run next takes it away.
        assert len(notes_of(root).find()) == 1
        registry.tag("b", 2, "another run")
        assert len(notes_of(root).find()) == 1
        registry.tag("a", 3, "best")
    assert notes_of(root).find() == ()


def test_the_next_save_takes_away_the_note_that_a_run_was_passed_over(root):
    save_while_locked(root, "a", 3, 0.01)
    assert len(notes_of(root).find()) == 1
    save(root / "a", 4, 0.02)
    assert notes_of(root).find() == ()


def test_a_run_that_began_while_the_catalog_was_locked_is_listed(root):
    save_while_locked(root, "new", 1, 0.9)
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c", "new"]


def test_only_the_runs_that_were_passed_over_are_looked_at(root, monkeypatch):
    save_while_locked(root, "a", 3, 0.01)
    settle(root)
    with Registry.open(root) as registry, counted(monkeypatch) as (files, _, _):
        assert len(registry.runs()) == 3
    assert [what for what in files if str(root / "a") in what]
    assert not [what for what in files if str(root / "b") in what], files


def test_a_trainer_that_goes_on_brings_the_catalog_up_to_date_itself(root, monkeypatch):
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 0.0)
    config = {"checkpoint_dir": root / "a", "metric_name": LOSS, "higher_is_better": False}
    with CheckpointManager(config) as manager:
        with locked(catalog_of(root)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with manager.save(3, {LOSS: 0.01}):
                pass
            assert len(notes_of(root).find()) == 1
        with manager.save(4, {LOSS: 0.02}):
            pass
        assert notes_of(root).find() == ()
    with closing(sqlite3.connect(catalog_of(root))) as raw:
        query = "SELECT step FROM checkpoints JOIN runs r ON r.id = run_id WHERE r.name = 'a'"
        assert sorted(raw.execute(query).fetchall()) == [(1,), (2,), (3,), (4,)]


def test_what_somebody_pinned_while_the_catalog_was_locked_is_in_answers_over_all_runs(root):
    script = (
        "import sys, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "from ckptdb import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    registry.runs()\n"
        "    real = registry._healing.index_changes\n"
        "    import sqlite3\n"
        "    holder = sqlite3.connect(sys.argv[1] + '/.ckptdb/catalog.db', isolation_level=None)\n"
        "    def follow(changed):\n"
        "        holder.execute('BEGIN IMMEDIATE')\n"
        "        return real(changed)\n"
        "    registry._healing.index_changes = follow\n"
        "    registry.pin('b', 1)\n"
    )
    subprocess.run([sys.executable, "-c", script, root], check=True)
    with Registry.open(root) as registry:
        rows = registry.query("SELECT step FROM checkpoints WHERE pinned = 1").rows
    assert [tuple(row) for row in rows] == [(1,)]


def test_a_note_that_is_gone_or_nonsense_stops_no_answer(root):
    folder = root / ".ckptdb" / "unindexed"
    folder.mkdir()
    (folder / "0e1b2c3d-0000-4000-8000-000000000000").write_text("gone-run")
    (folder / "nonsense").write_bytes(b"\xff\x00")
    (folder / "0e1b2c3d-0000-4000-8000-000000000001").symlink_to("/etc/passwd")
    os.mkfifo(folder / "0e1b2c3d-0000-4000-8000-000000000002")
    with Registry.open(root) as registry:
        assert len(registry.runs()) == 3
        registry.reconcile()
        assert len(registry.runs()) == 3


def test_a_note_that_cannot_be_written_fails_no_save(root):
    (root / ".ckptdb" / "unindexed").write_text("a file in its place")
    save_while_locked(root, "a", 3, 0.01)
    assert (root / "a" / "step_3").is_dir()
    with Registry.open(root) as registry:
        assert registry.latest(run="a").step == 3


def test_reconciling_the_root_removes_the_notes(root):
    save_while_locked(root, "a", 3, 0.01)
    shutil.rmtree(root / "c")
    notes_of(root).add(root / "c", "0e1b2c3d-0000-4000-8000-000000000000")
    assert len(notes_of(root).find()) == 2
    with Registry.open(root) as registry:
        registry.reconcile()
    assert notes_of(root).find() == ()


def test_who_may_not_write_sees_what_was_saved_while_the_catalog_was_locked(root):
    save_while_locked(root, "a", 3, 0.01)
    catalog_of(root).chmod(0o444)
    (root / ".ckptdb").chmod(0o555)
    script = (
        f"{AS_ANY_USER}"
        "import sys\n"
        "from ckptdb import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    print(registry.best('val:loss', mode='min').step, len(registry.runs()))\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, root], check=False, capture_output=True, text=True
        )
    finally:
        (root / ".ckptdb").chmod(0o755)
    assert (done.stdout, done.stderr) == ("3 3\n", "")
    assert len(notes_of(root).find()) == 1


def test_a_catalog_elsewhere_is_behind_on_no_run_that_was_saved_while_it_was_locked(root, tmp_path):
    elsewhere = tmp_path / "elsewhere.db"
    for name in ("a", "b"):
        save(root / name, 3, 0.4, catalog=elsewhere)
    with locked(elsewhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(root / "a", 4, 0.01, catalog=elsewhere)
    assert (tmp_path / "elsewhere.db.unindexed").is_dir()
    with Registry.open(elsewhere) as registry:
        assert registry.best(LOSS, mode="min").path == root / "a" / "step_4"
        registry.reconcile(root / "a")
    assert not (tmp_path / "elsewhere.db.unindexed").exists()


def test_a_note_leads_to_no_run_outside_the_root(root, tmp_path):
    save(tmp_path / "foreign", 1, 0.001)
    folder = root / ".ckptdb" / "unindexed"
    folder.mkdir()
    for number, where in enumerate(["../foreign", str(tmp_path / "foreign"), "a/../../foreign"]):
        (folder / f"0e1b2c3d-0000-4000-8000-00000000000{number}").write_text(where)
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["a", "b", "c"]


# --- a run that the catalog does not know yet ---------------------------------------------------


@pytest.mark.parametrize("how", ["moved here", "forgotten", "trained with another catalog"])
def test_the_first_save_of_a_run_that_the_catalog_does_not_know_hides_none_of_its_others(
    root, tmp_path, how
):
    if how == "moved here":
        for step in (1, 2, 3):
            save(tmp_path / "lone" / "d", step, 1 / step)
        shutil.move(tmp_path / "lone" / "d", root / "d")
        (root / "d" / ".ckptdb" / "root.json").unlink()
        (root / "d" / ".ckptdb" / "catalog.db").unlink()
    else:
        options = {} if how == "forgotten" else {"catalog": tmp_path / "x.db"}
        for step in (1, 2, 3):
            save(root / "d", step, 1 / step, **options)
    if how == "forgotten":
        with Registry.open(root) as registry:
            registry.forget("d")
    save(root / "d", 4, 0.01)
    with Registry.open(root) as registry:
        rows = registry.query("SELECT final FROM run_summary WHERE run = 'd'").rows
    assert [tuple(row) for row in rows] == [(4,)]


def test_a_manager_whose_catalog_is_lost_tells_the_new_one_all_of_its_run(root):
    config = {"checkpoint_dir": root / "a", "metric_name": LOSS, "higher_is_better": False}
    with CheckpointManager(config) as manager:
        with manager.save(3, {LOSS: 0.4}):
            pass
        catalog_of(root).unlink()
        with manager.save(4, {LOSS: 0.3}):
            pass
    with closing(sqlite3.connect(catalog_of(root))) as raw:
        assert raw.execute("SELECT final FROM run_summary WHERE run = 'a'").fetchall() == [(4,)]


@pytest.mark.parametrize("name", ["a", "new"])
def test_what_a_trainer_saved_that_was_killed_before_it_could_record_it_is_in_all_answers(
    root, name
):
    script = (
        "import os, signal, sys\n"
        "from ckptdb import CheckpointManager; from ckptdb.training import index\n"
        "real = index.RunIndex.record\n"
        "def record(self, checkpoints, *arguments, **options):\n"
        "    if checkpoints[-1].status == 'final':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, checkpoints, *arguments, **options)\n"
        "index.RunIndex.record = record\n"
        "with CheckpointManager({'checkpoint_dir': sys.argv[1]}) as manager:\n"
        "    with manager.save(9, {'val:loss': 0.01}):\n"
        "        pass\n"
    )
    done = subprocess.run([sys.executable, "-c", script, root / name], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (root / name / "step_9").is_dir()
    with Registry.open(root) as registry:
        assert registry.best(LOSS, mode="min").path == root / name / "step_9"
        assert registry.query("SELECT COUNT(*) FROM checkpoints WHERE step = 9").rows[0][0] == 1

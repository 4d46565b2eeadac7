"""Whatever befalls the catalog, saves go on, answers are right, and one sentence says so."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from tests.support import mounts
from tests.support.locked import locked
from tests.support.trees import AS_ANY_USER
from tests.support.warned import warned

from ckptdb.catalog.schema import APPLICATION_ID
from ckptdb.core.fork import FileConnection
from ckptdb.disk import root_marker
from ckptdb.errors import CatalogBroken
from ckptdb.manager import CheckpointManager, _load_checkpoint_history
from ckptdb.reconcile import fallback
from ckptdb.registry import Registry
from ckptdb.training import index

PAGE = 4096


@pytest.fixture(params=["its own root", "below a root"])
def root(request, tmp_path):
    """Return the root of a run with three checkpoints and a catalog of some size."""
    root = tmp_path / "results"
    run = root / "run"
    if request.param == "its own root":
        root = run
    else:
        root.mkdir()
        root_marker.mark_root(root)
    with make_manager(run) as manager:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
            save(manager, step, loss)
    return root


@pytest.fixture(autouse=True)
def _little_patience(monkeypatch):
    """Wait for a locked catalog as little as one can, and try a failed one again at once."""
    monkeypatch.setattr(index, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 0.0)


def find_run(root: Path) -> Path:
    return root / "run" if (root / "run").is_dir() else root


def make_manager(run: Path, **options) -> CheckpointManager:
    rules = {
        "metric_name": "loss",
        "higher_is_better": False,
        "keep_top_k": 2,
        "durability": "none",
    }
    return CheckpointManager({"checkpoint_dir": run, **rules, **options})


def save(manager: CheckpointManager, step: int, loss: float) -> None:
    manager.finalize_checkpoint(manager.init_tmp_checkpoint(step, {"loss": loss, "pad": "x" * 999}))


def catalog_of(root: Path) -> Path:
    return root / ".ckptdb" / "catalog.db"


def check_answers(manager: CheckpointManager, *, best: int, latest: int, live: list[int]) -> None:
    run = manager.checkpoint_dir
    assert manager.get_best_checkpoint_path() == str(run / f"step_{best}")
    assert manager.get_latest_checkpoint_path() == str(run / f"step_{latest}")
    assert [step for step, _, _ in _load_checkpoint_history(run)] == live


def train_on(manager: CheckpointManager) -> None:
    """Save three times, with a question after each."""
    check_answers(manager, best=2, latest=3, live=[1, 2, 3])
    save(manager, 4, 0.05)
    check_answers(manager, best=4, latest=4, live=[2, 4])
    save(manager, 5, 0.7)
    check_answers(manager, best=4, latest=5, live=[2, 4, 5])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Step 4 is saved below step 5")
        save(manager, 4, 0.3)
    check_answers(manager, best=2, latest=5, live=[2, 4, 5])


def check_recovery(root: Path, *, aside: bool) -> None:
    """Reconcile twice; the index is then whole, without losing anything of the broken one."""
    run = find_run(root)
    with Registry.open(root) as registry:
        first = registry.reconcile()
        assert first.blocked == ()
        assert (first.set_aside is not None) == aside
        second = registry.reconcile()
        assert not second.has_drift, second.as_dict()
        assert second.set_aside is None
        assert [cp.step for cp in registry.checkpoints(run=run, status="final")] == [2, 4, 5]
        gone = {(cp.step, cp.deleted_reason.partition(":")[0]) for cp in deleted(registry, run)}
        assert gone == {
            (1, "retention"), (3, "retention"), (4, "replaced by a new save of step 4")
        }  # fmt: skip
        assert registry.status().integrity == "ok"
    manager = make_manager(run)
    check_answers(manager, best=2, latest=5, live=[2, 4, 5])
    assert manager._index._stored is not None
    manager.shutdown()


def deleted(registry: Registry, run: Path):
    return registry.checkpoints(run=run, status="deleted")


# --- files that are no catalog any more ---------------------------------------------------------


def zero(file: Path) -> None:
    file.write_bytes(b"\0" * file.stat().st_size)


def turn_to_text(file: Path) -> None:
    file.write_text("this was a catalog once\n" * 400)


def keep_a_part(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2 // PAGE * PAGE + 100)


def zero_the_header(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"\0" * 100)


def flip_the_schema(file: Path) -> None:
    flip(file, range(1))


def flip_every_page_but_the_schema(file: Path) -> None:
    flip(file, range(1, file.stat().st_size // PAGE))


def flip(file: Path, pages: range) -> None:
    rng = random.Random(file.name)
    with file.open("r+b") as opened:
        for page in pages:
            opened.seek(page * PAGE)
            content = bytearray(opened.read(PAGE))
            for _ in range(200):
                # Not the header of the file, so that it still looks like a database.
                where = rng.randrange(0 if page else 100, PAGE)
                content[where] ^= 1 << rng.randrange(8)
            opened.seek(page * PAGE)
            opened.write(content)


BROKEN: dict[str, Callable[[Path], None]] = {
    "zeroed": zero,
    "turned to text": turn_to_text,
    "cut in half": keep_a_part,
    "without a header": zero_the_header,
    "schema flipped": flip_the_schema,
    "pages flipped": flip_every_page_but_the_schema,
}


def broken_and_when():
    for name, damage in BROKEN.items():
        yield pytest.param(damage, "before", id=f"{name}, before")
        # SQLite looks at a page once, and has no checksums: what flips then may never be met.
        if not name.endswith("flipped"):
            yield pytest.param(damage, "while open", id=f"{name}, while open")


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "when"), list(broken_and_when()))
def test_a_broken_catalog_costs_one_warning_and_is_set_aside(root, damage, when):
    manager = make_manager(find_run(root))
    if when == "while open":
        manager.get_latest_checkpoint_path()
        assert manager._index._stored is not None
    file = catalog_of(root)
    damage(file)
    broken = file.read_bytes()
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) == 1, texts
    assert str(file) in texts[0]
    assert "`ckptdb reconcile` sets it aside" in texts[0]
    assert file.read_bytes() == broken, "nobody writes into a broken catalog"
    check_recovery(root, aside=True)
    [aside] = (f for f in file.parent.glob("catalog.db.broken-*") if "-journal" not in f.name)
    assert aside.read_bytes() == broken, "set aside, never overwritten"


@pytest.mark.slow
def test_flipped_bits_never_raise_and_never_change_an_answer(root):
    run, file = find_run(root), catalog_of(root)
    settle(run)
    with make_manager(run) as manager:
        check_answers(manager, best=2, latest=3, live=[1, 2, 3])
    whole = file.read_bytes()
    noticed = 0
    for number in range(60):
        rng = random.Random(number)
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 10, 100])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        with warned() as texts, make_manager(run) as manager:
            check_answers(manager, best=2, latest=3, live=[1, 2, 3])
        assert len(texts) <= 1, texts
        noticed += len(texts)
    assert noticed > 10, "damage that nobody meets proves nothing"


def settle(run: Path) -> None:
    for path in (*run.glob("step_*/*"), *run.glob("step_*"), run):
        found = path.stat()
        os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - 60 * 10**9))


NONSENSE = {
    "text that is not UTF-8": "UPDATE runs SET stamp = CAST(x'ff31' AS TEXT)",
    "a stamp that is none": "UPDATE runs SET stamp = 'abc'",
    "JSON that is none": "UPDATE checkpoints SET info = '{'",
    "JSON of another kind": "UPDATE checkpoints SET info = '[]'",
    "a config that is none": "UPDATE runs SET config = '{'",
    "a step that is text": "UPDATE checkpoints SET step = 'three' WHERE step = 3",
    "a value that is text": "UPDATE metrics SET value = 'low' WHERE step = 3",
    "a path that is none": "UPDATE checkpoints SET path = x'00ff'",
    "a path with a null": "UPDATE checkpoints SET path = char(0) || path WHERE step = 3",
    "a directory with a null": "UPDATE runs SET directory = char(0) || directory",
    "a directory that is none": "UPDATE runs SET directory = x'ff'",
    "a status that is none": "UPDATE checkpoints SET status = 'f' WHERE step = 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("statement", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_in_the_catalog_stops_nothing(root, statement):
    with closing(sqlite3.connect(catalog_of(root))) as connection:
        connection.executescript(f"PRAGMA ignore_check_constraints = ON; {statement}")
    manager = make_manager(find_run(root))
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) <= 1, texts


@pytest.mark.slow
@pytest.mark.parametrize("statement", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_one_error_for_whoever_asks_and_reconcile_ends_it(root, statement):
    file, run = catalog_of(root), find_run(root)
    settle(run)
    with Registry.open(root) as registry:
        registry.reconcile()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(f"PRAGMA ignore_check_constraints = ON; {statement}")
    with Registry.open(root) as registry:
        for ask in (registry.runs, registry.checkpoints, registry.latest, registry.best):
            with suppress(CatalogBroken):
                ask()
        registry.reconcile(full=True)
        assert not registry.reconcile(full=True).has_drift
        assert [cp.step for cp in registry.checkpoints(run=run, status="final")] == [1, 2, 3]
        assert registry.best("loss", mode="min").step == 2


LYING_INDEX = """
    DROP INDEX {name}; CREATE INDEX {name} ON checkpoints {columns};
    PRAGMA writable_schema = ON;
    UPDATE sqlite_master SET sql = '{sql}' WHERE name = '{name}'
"""


def test_an_index_that_lists_the_dead_among_the_living_stops_nothing(root):
    manager = make_manager(find_run(root))
    save(manager, 4, 0.05)
    manager.shutdown()
    with closing(sqlite3.connect(catalog_of(root))) as connection:
        partial = "SELECT name, sql FROM sqlite_master WHERE tbl_name = 'checkpoints' AND "
        partial += "type = 'index' AND sql LIKE '%WHERE%'"
        for name, sql in connection.execute(partial).fetchall():
            if "UNIQUE" not in sql:
                columns = sql[sql.index("(") : sql.index(" WHERE")]
                quoted = sql.replace("'", "''")
                connection.executescript(LYING_INDEX.format(name=name, columns=columns, sql=quoted))
        assert connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0] > 2
    with Registry.open(root) as registry:
        for seen in registry._catalog().runs.list_all():
            registry._catalog().recorded.run(seen, history=False)
    with warned() as texts, make_manager(find_run(root)) as again:
        check_answers(again, best=4, latest=4, live=[2, 4])
    assert len(texts) <= 1, texts


# --- files that are gone ------------------------------------------------------------------------


def truncate(file: Path) -> None:
    os.truncate(file, 0)


def remove_the_folder_of_a_root(file: Path) -> None:
    if (file.parent / "run.json").exists():
        file.unlink()  # the run's own memory is in that folder
    else:
        root_json = (file.parent / "root.json").read_bytes()
        shutil.rmtree(file.parent)
        file.parent.mkdir()
        (file.parent / "root.json").write_bytes(root_json)


GONE: dict[str, Callable[[Path], None]] = {
    "deleted": Path.unlink,
    "0 bytes": truncate,
    "folder deleted": remove_the_folder_of_a_root,
}


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while open"])
@pytest.mark.parametrize("lose", GONE.values(), ids=GONE)
def test_a_catalog_that_is_gone_is_made_anew(root, lose, when):
    manager = make_manager(find_run(root))
    if when == "while open":
        manager.get_latest_checkpoint_path()
    lose(catalog_of(root))
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) <= 1, texts
    check_recovery(root, aside=False)


@pytest.mark.slow
def test_a_catalog_deleted_between_any_two_moves_is_never_missed(root):
    manager = make_manager(find_run(root))
    with warned() as texts:
        for step in range(4, 10):
            catalog_of(root).unlink()
            save(manager, step, 0.1 * step)
            catalog_of(root).unlink()
            check_answers(manager, best=2, latest=step, live=sorted({2, 4, step}))
            save(manager, step, 0.1 * step)
        manager.shutdown()
    assert len(texts) <= 1, texts


# --- a directory in its place -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while open"])
def test_a_directory_in_its_place_costs_one_warning(root, when):
    manager = make_manager(find_run(root))
    if when == "while open":
        manager.get_latest_checkpoint_path()
    file = catalog_of(root)
    file.unlink()
    file.mkdir()
    (file / "mine.txt").write_text("keep")
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) == 1, texts
    assert (file / "mine.txt").read_text() == "keep"
    file.rename(file.with_name("moved"))
    check_recovery(root, aside=False)


# --- somebody else's ----------------------------------------------------------------------------


def make_foreign(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(f"PRAGMA application_id = {APPLICATION_ID ^ 1}; CREATE TABLE t(x)")


def make_foreign_without_an_id(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript("CREATE TABLE checkpoints(mine); CREATE TABLE runs(mine)")


def make_newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        [table] = connection.execute(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) p"
            " WHERE m.type = 'table' AND p.name = 'version_num'"
        ).fetchone()
        connection.execute(f"UPDATE {table} SET version_num = '9999'")
        connection.commit()


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another application": (make_foreign, "another application"),
    "another application without an id": (make_foreign_without_an_id, "another application"),
    "newer": (make_newer, "upgrade ckptdb"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("make", "sentence"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_ours_to_write_costs_one_warning_and_is_left_alone(root, make, sentence):
    file = catalog_of(root)
    make(file)
    before = file.read_bytes()
    manager = make_manager(find_run(root))
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) == 1, texts
    assert sentence in texts[0]
    assert file.read_bytes() == before
    file.rename(file.with_name("theirs"))
    check_recovery(root, aside=False)


# --- locked -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while open"])
def test_a_catalog_locked_through_several_saves_costs_one_warning(root, when):
    manager = make_manager(find_run(root))
    if when == "while open":
        manager.get_latest_checkpoint_path()
    with locked(catalog_of(root)), warned() as texts:
        train_on(manager)
    assert len(texts) == 1, texts
    assert "is locked by another process" in texts[0]
    with warned() as texts:
        check_answers(manager, best=2, latest=5, live=[2, 4, 5])
        save(manager, 4, 0.3)
        manager.shutdown()
    assert texts == []
    with sqlite3.connect(catalog_of(root)) as connection:
        query = "SELECT step FROM checkpoints WHERE status = 'final' ORDER BY step"
        assert connection.execute(query).fetchall() == [(2,), (4,), (5,)]
    check_recovery_after_one_more_replacement(root)


def check_recovery_after_one_more_replacement(root: Path) -> None:
    with Registry.open(root) as registry:
        registry.reconcile()
        second = registry.reconcile()
    assert not second.has_drift
    assert second.set_aside is None


def test_a_failed_catalog_is_left_alone_for_a_while(root, monkeypatch):
    monkeypatch.setattr(fallback, "RETRY_SECONDS", 3600.0)
    manager = make_manager(find_run(root))
    with locked(catalog_of(root)), warned() as texts:
        save(manager, 4, 0.05)
    assert len(texts) == 1
    opened = []
    monkeypatch.setattr(index.Database, "open", lambda *_, **__: opened.append(1))
    check_answers(manager, best=4, latest=4, live=[2, 4])
    save(manager, 5, 0.7)
    check_answers(manager, best=4, latest=5, live=[2, 4, 5])
    assert opened == []


# --- read-only and full -------------------------------------------------------------------------


# A run's own folder holds its lock and journal too: read-only, it would stop the run itself.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("root", "what"),
    [
        ("its own root", "the file"),
        ("below a root", "the file"),
        ("below a root", "the file and its folder"),
    ],
    indirect=["root"],
)
def test_a_read_only_catalog_stops_nothing(root, what):
    run, file = find_run(root), catalog_of(root)
    file.chmod(0o444)
    if what != "the file":
        file.parent.chmod(0o555)
    before = file.read_bytes()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        f"{AS_ANY_USER}"
        "from tests.integration import test_catalog_faults as tests\n"
        "with tests.warned() as texts:\n"
        "    manager = tests.make_manager(Path(sys.argv[1]))\n"
        "    tests.train_on(manager)\n"
        "    manager.shutdown()\n"
        "assert len(texts) <= 1, texts\n"
    )
    try:
        command = [sys.executable, "-c", script, run]
        top = Path(__file__).parents[2]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=top)
        assert (done.returncode, done.stderr) == (0, "")
        assert file.read_bytes() == before
    finally:
        file.parent.chmod(0o755)
        file.chmod(0o644)
    check_recovery(root, aside=False)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 512 KiB."""
    with mounts.small_disk(tmp_path / "small", "512k") as mount:
        yield mount


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while open", "before there is one"])
def test_a_catalog_on_a_full_disk_costs_one_warning(small_disk, tmp_path, when):
    file, run = small_disk / "catalog.db", tmp_path / "run"
    with make_manager(run, catalog=file) as manager:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
            save(manager, step, loss)
    if when == "before there is one":
        file.unlink()
    manager = make_manager(run, catalog=file)
    if when == "while open":
        manager.get_latest_checkpoint_path()
    fill(small_disk / "ballast")
    with warned() as texts:
        train_on(manager)
        manager.shutdown()
    assert len(texts) == 1, texts
    (small_disk / "ballast").unlink()
    with Registry.open(run, catalog=file) as registry:
        registry.reconcile(run)
    with Registry.open(run, catalog=file) as registry:
        second = registry.reconcile(run)
        assert not second.has_drift
        assert [cp.step for cp in registry.checkpoints(status="final")] == [2, 4, 5]


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(b"\0" * PAGE):
            pass
    assert os.statvfs(file).f_bavail == 0


@pytest.mark.parametrize("statement", ["INSERT", "UPDATE"])
def test_a_write_that_fails_for_want_of_space_costs_one_warning(root, statement, monkeypatch):
    manager = make_manager(find_run(root))
    manager.get_latest_checkpoint_path()
    struck = []

    def strike(sent):
        if sent.lstrip().startswith(statement):
            struck.append(sent)
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    def fail(_, cursor, sent, *__):
        if isinstance(cursor.connection, FileConnection):
            strike(sent)

    def failing(method):
        def send(connection, sent, *values):
            strike(sent)
            return method(connection, sent, *values)

        return send

    event.listen(Engine, "before_cursor_execute", fail)
    for name in ("execute", "executemany"):
        monkeypatch.setattr(FileConnection, name, failing(getattr(FileConnection, name)))
    try:
        with warned() as texts:
            save(manager, 4, 0.05)
            assert manager.get_best_checkpoint_path() is not None
            save(manager, 5, 0.7)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
        monkeypatch.undo()
    assert struck
    assert len(texts) == 1, texts
    check_answers(manager, best=4, latest=5, live=[2, 4, 5])
    manager.shutdown()


@pytest.mark.parametrize("lie", ["the worst is called the best", "the best is called the worst"])
def test_a_catalog_that_lies_decides_no_deletion(root, lie):
    run, file = find_run(root), catalog_of(root)
    step, value = (3, 0.0) if lie == "the worst is called the best" else (2, 99.0)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE metrics SET value = ? WHERE step = ?", (value, step))
    with make_manager(run) as manager:
        manager.keep_top_k = 2
        save(manager, 4, 0.3)
    assert sorted(path.name for path in run.glob("step_*")) == ["step_2", "step_4"]
    with Registry.open(root) as registry:
        assert [cp.step for cp in registry.top(9, run=run)] == [2, 4], "mended, too"

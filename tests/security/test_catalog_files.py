"""A catalog, and what lies beside it, may be anybody's: looked at, then opened or refused."""

import os
import shutil
import signal
import sqlite3
import stat
import tempfile
import warnings
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command as alembic
from alembic.config import Config
from tests.support import requirements
from tests.support.requirements import needs_root
from tests.support.users import as_user

from ckptdb import CheckpointManager, Registry
from ckptdb.catalog import files
from ckptdb.catalog.engine import Database, upgrade
from ckptdb.catalog.location import locate
from ckptdb.catalog.memory_copy import find_memory_copy
from ckptdb.catalog.revisions import script_location
from ckptdb.cli.main import main
from ckptdb.errors import CatalogError, CatalogReadOnly, CatalogTampered, CatalogUnusable

LOSS = "val:loss"
EVE = 20666
SUPER_MAGIC = bytes.fromhex("d9d505f920a163d7")


def save(run, step=1, loss=0.5, **options):
    config = {"checkpoint_dir": run, "metric_name": LOSS, "higher_is_better": False, **options}
    with CheckpointManager(config) as manager, manager.save(step, {LOSS: loss}) as folder:
        (folder / "model.bin").write_bytes(b"m")


@pytest.fixture(autouse=True)
def _in_time():
    """Let nothing here take longer than a person would wait; a hang is a failure."""

    def fail(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def root(tmp_path):
    """A root with a run of two checkpoints, beside something that is none of our business."""
    root = tmp_path / "results"
    root.mkdir()
    Registry.init(root)[0].close()
    save(root / "run", 1, 0.5)
    save(root / "run", 2, 0.4)
    (tmp_path / "victim").mkdir()
    shutil.copy(catalog_of(root), tmp_path / "victim" / "theirs.db")
    (tmp_path / "victim" / "letter.txt").write_text("dear\n" * 100)
    return root


def catalog_of(root):
    return root / ".ckptdb" / "catalog.db"


def canary(folder):
    """Return everything that can be seen of what nothing may touch."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        found[path.name] = (seen.st_mode, seen.st_uid, seen.st_size, seen.st_mtime_ns, content)
    return found


@contextmanager
def told():
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    texts += [str(one.message) for one in caught]


def command(root, *arguments):
    """Give a command; return what it exits with."""
    with pytest.raises(SystemExit) as ended:
        main(["-C", str(root), *arguments])
    return ended.value.code


# --- what stands in the place of a file ---------------------------------------------------------


def link(path, victim):
    path.symlink_to(victim / "theirs.db")


def dangling_link(path, victim):
    path.symlink_to(victim / "not-there.db")


def hard_link(path, victim):
    os.link(victim / "theirs.db", path)


def named_pipe(path, _):
    os.mkfifo(path)


def device(path, _):
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: endless


def directory(path, _):
    path.mkdir()


def foreign(path, victim):
    shutil.copy(victim / "theirs.db", path)
    os.chown(path, EVE, EVE)


OBSTACLES = {
    "a symlink": (link, "is a symbolic link"),
    "a symlink to nothing": (dangling_link, "is a symbolic link"),
    "a hard link": (hard_link, "has more names than this one"),
    "a named pipe": (named_pipe, "is a named pipe"),
    "a device": (device, "is a device"),
    "a directory": (directory, "is a directory"),
    "a stranger's file": (foreign, "belongs to user 20666"),
}
OF_ROOT = {"a device", "a stranger's file"}
ENDINGS = ("", *files.BESIDE)


def put(kind, path, victim):
    if kind in OF_ROOT:
        requirements.skip_without_root()
    path.unlink(missing_ok=True)
    OBSTACLES[kind][0](path, victim)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS, ids=["the catalog", "journal", "wal", "shm"])
@pytest.mark.parametrize("kind", OBSTACLES)
def test_what_is_no_file_of_ours_is_refused_at_once_and_nothing_else_is_touched(
    root, tmp_path, kind, ending
):
    victim = tmp_path / "victim"
    path = Path(f"{catalog_of(root)}{ending}")
    put(kind, path, victim)
    if ending == "-shm":
        Path(f"{catalog_of(root)}-wal").touch()  # or nobody would look for it
    before = canary(victim)
    sentence = OBSTACLES[kind][1]
    with Registry.open(root) as registry:
        for ask in (registry.runs, registry.best, registry.reconcile):
            with pytest.raises(CatalogUnusable, match=sentence) as caught:
                ask()
            assert "\n" not in str(caught.value)
        assert sentence in registry.status().integrity
        with suppress_catalog():
            registry.query("SELECT 1")
    with told() as texts:
        save(root / "run", 3, 0.3, keep_top_k=2)
    assert len([text for text in texts if sentence in text]) == 1, texts
    assert (root / "run" / "step_3").is_dir()
    assert canary(victim) == before
    assert os.path.lexists(path), "left for whoever put it there"


@contextmanager
def suppress_catalog():
    with pytest.raises(CatalogError):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a symlink", "a named pipe", "a hard link"])
@pytest.mark.parametrize("name", ["ls", "best", "check", "report", "verify", "serve"])
def test_a_command_says_so_in_one_sentence(root, tmp_path, kind, name, capsys):
    put(kind, catalog_of(root), tmp_path / "victim")
    before = canary(tmp_path / "victim")
    options = ["-o", "-"] if name == "report" else []
    assert command(root, name, *options) == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line]
    assert len([line for line in lines if OBSTACLES[kind][1] in line]) == 1, said
    assert "Traceback" not in said.err
    assert canary(tmp_path / "victim") == before


@needs_root
def test_a_link_in_the_place_of_the_folder_leads_nowhere(root, tmp_path):
    folder = root / ".ckptdb"
    folder.rename(tmp_path / "victim" / "folder")
    folder.symlink_to(tmp_path / "victim" / "folder")
    before = canary(tmp_path / "victim")
    with pytest.raises(CatalogUnusable, match="is a symbolic link"):
        Database.open(locate(folder / "catalog.db"), create=True)
    assert canary(tmp_path / "victim") == before


def test_a_catalog_that_is_put_in_place_while_another_is_open_is_looked_at_too(root, tmp_path):
    victim, journal = tmp_path / "victim", Path(f"{catalog_of(root)}-journal")
    with closing(Database.open(locate(root))) as database:
        database.is_complete()
        journal.unlink(missing_ok=True)
        os.mkfifo(journal)
        with pytest.raises(CatalogUnusable, match="named pipe"), database.read():
            pass
        with pytest.raises(CatalogUnusable, match="named pipe"), database.write():
            pass
        journal.unlink()
        os.link(victim / "letter.txt", journal)
        before = canary(victim)
        with pytest.raises(CatalogUnusable, match="more names"), database.write():
            pass
        journal.unlink()
        with database.write():
            pass
    assert canary(victim) == before


def test_a_run_that_is_gathered_leads_nowhere_through_its_own_catalog(tmp_path):
    root, victim = tmp_path / "results", tmp_path / "victim"
    save(root / "run")
    victim.mkdir()
    catalog_of(root / "run").rename(victim / "theirs.db")
    catalog_of(root / "run").symlink_to(victim / "theirs.db")
    before = canary(victim)
    with told() as texts:
        Registry.init(root)[0].close()
    assert any("keeps a catalog of its own" in text for text in texts), texts
    assert canary(victim) == before
    assert catalog_of(root / "run").is_symlink()


def test_a_run_whose_own_catalog_was_tampered_with_keeps_it(tmp_path):
    root, victim = tmp_path / "results", tmp_path / "letter.txt"
    save(root / "run")
    victim.write_text("dear")
    name_super_journal(kill_a_writer(catalog_of(root / "run")), victim)
    with told() as texts:
        begin(root)
    assert any("keeps a catalog of its own" in text for text in texts), texts
    assert victim.exists()
    with Registry.open(root / "run") as registry:
        assert registry.reconcile().set_aside is not None
    begin(root)
    with Registry.open(root) as registry:
        assert registry.best().step == 1


@needs_root
def test_in_a_directory_of_a_group_a_colleagues_catalog_counts(root):
    os.chown(catalog_of(root), EVE, 20900)
    os.chown(root / ".ckptdb", 0, 20900)
    (root / ".ckptdb").chmod(0o2775)
    with Registry.open(root) as registry:
        assert registry.best().step == 2
    (root / ".ckptdb").chmod(0o1777)
    with Registry.open(root) as registry, pytest.raises(CatalogUnusable, match="belongs to"):
        registry.best()


# --- a journal that is played back --------------------------------------------------------------


def kill_a_writer(file):
    """Leave half a transaction in a catalog, and the journal that undoes it."""
    pid = os.fork()
    if pid == 0:
        raw = sqlite3.connect(file, isolation_level=None)
        raw.execute("PRAGMA cache_size = 1")
        raw.execute("BEGIN IMMEDIATE")
        half = "INSERT INTO runs (uuid, name, directory) VALUES (?, 'half', 'd')"
        raw.executemany(half, [(str(number),) for number in range(500)])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    journal = Path(f"{file}-journal")
    assert journal.stat().st_size > 0
    return journal


def name_super_journal(journal, victim):
    name = os.fsencode(victim)
    checksum = sum(byte - 256 if byte > 127 else byte for byte in name) & 0xFFFFFFFF
    page = (0x40000000 // 4096 + 1).to_bytes(4, "big")
    end = len(name).to_bytes(4, "big") + checksum.to_bytes(4, "big") + SUPER_MAGIC
    with journal.open("ab") as file:
        file.write(page + name + end)


@pytest.fixture
def hostile(root, tmp_path):
    """A catalog whose journal makes SQLite remove a letter."""
    victim = tmp_path / "victim" / "letter.txt"
    name_super_journal(kill_a_writer(catalog_of(root)), victim)
    return victim


def test_it_is_true_that_sqlite_removes_what_a_journal_names(root, hostile, tmp_path):
    for name in ("catalog.db", "catalog.db-journal"):
        shutil.copy(root / ".ckptdb" / name, tmp_path / name)
    with closing(sqlite3.connect(tmp_path / "catalog.db")) as raw:
        raw.execute("SELECT COUNT(*) FROM runs").fetchone()
    assert not hostile.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["ls"], ["best"], ["latest"], ["show", "1", "--run", "run"], ["top"], ["sql", "SELECT 1"],
        ["report", "-o", "-"], ["verify"], ["pin", "1", "--run", "run"], ["db", "status"],
        ["db", "upgrade"], ["rm", "1", "--run", "run", "--dry-run"],
        ["gc", "--run", "run", "--dry-run"], ["check"], ["serve"],
        ["log", "1", "x=1", "--run", "run"],
    ],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_a_journal_that_names_a_super_journal_is_never_played_back(
    root, hostile, arguments, capsys
):
    journal = Path(f"{catalog_of(root)}-journal").read_bytes()
    assert command(root, *arguments) in {0, 1, 3, 4}
    said = capsys.readouterr()
    assert "a journal that makes SQLite remove another file" in said.out + said.err
    assert "ckptdb reconcile" in said.out + said.err
    assert hostile.read_text().startswith("dear")
    assert Path(f"{catalog_of(root)}-journal").read_bytes() == journal


def test_training_goes_on_beside_it_and_reconcile_sets_it_aside(root, hostile):
    with told() as texts:
        save(root / "run", 3, 0.3)
    assert len([text for text in texts if "makes SQLite remove" in text]) == 1, texts
    with Registry.open(root) as registry:
        aside = registry.reconcile().set_aside
        assert aside is not None
        assert not registry.reconcile().has_drift
        assert registry.best().step == 3
    assert hostile.exists()
    # Whoever looks at what was set aside is safe, too.
    with closing(sqlite3.connect(aside)) as raw:
        raw.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    assert hostile.exists()
    assert Path(f"{aside}.refused").stat().st_size > 0


def test_it_is_found_by_the_next_question_of_who_has_the_catalog_open(root, tmp_path):
    victim = tmp_path / "victim" / "letter.txt"
    with closing(Database.open(locate(root))) as database:
        database.is_complete()
        with database.write():
            pass
        name_super_journal(kill_a_writer(catalog_of(root)), victim)
        for enter in (database.read, database.write):
            with pytest.raises(CatalogTampered, match="remove another file"), enter():
                pass
        with pytest.raises(CatalogTampered, match="remove another file"):
            find_memory_copy(database)
    assert victim.exists()


def test_what_a_writer_of_ours_was_killed_over_is_still_undone(root):
    kill_a_writer(catalog_of(root))
    with Registry.open(root) as registry:
        assert [run.name for run in registry.runs()] == ["run"]
    journal = Path(f"{catalog_of(root)}-journal")
    assert not journal.exists() or journal.stat().st_size == 0


def begin(root):
    registry, _ = Registry.init(root)
    registry.close()


@pytest.fixture
def eves():
    """A root of another user, with half a transaction in its catalog."""
    top = Path(tempfile.mkdtemp(prefix="ckptdb-eves-"))
    top.chmod(0o755)
    os.chown(top, EVE, EVE)
    as_user(EVE, begin, top)
    as_user(EVE, save, top / "run", 1, 0.5)
    as_user(EVE, lambda: str(kill_a_writer(catalog_of(top))))
    yield top
    shutil.rmtree(top)


@needs_root
def test_a_question_undoes_nothing_in_a_strangers_catalog_and_is_answered_from_the_files(eves):
    journal = Path(f"{catalog_of(eves)}-journal")
    before = canary(eves)
    with told() as texts, Registry.open(eves) as registry:
        assert registry.best().step == 1
        assert [run.name for run in registry.runs()] == ["run"]
    assert len([text for text in texts if "killed while it wrote" in text]) == 1, texts
    with pytest.raises(CatalogReadOnly, match="killed while it wrote"):
        Database.open(locate(eves))
    assert canary(eves) == before

    def ask():
        with Registry.open(eves) as registry:
            return registry.best().step

    assert as_user(EVE, ask) == 1
    assert not journal.exists() or journal.stat().st_size == 0


# --- new files, and copies ----------------------------------------------------------------------


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_a_new_catalog_and_its_journal_follow_the_umask_and_the_group(tmp_path, mask, expected):
    root = tmp_path / "results"
    root.mkdir()
    group = 20900 if os.geteuid() == 0 else os.getegid()
    os.chown(root, -1, group)
    root.chmod(0o2775)
    with umask(mask):
        Registry.init(root)[0].close()
        save(root / "run")
        save(root / "alone", catalog=tmp_path / "results" / "named.db")
    for file in (catalog_of(root), root / "named.db"):
        for path in (file, Path(f"{file}-journal")):
            assert mode(path) == expected, path
            assert path.stat().st_gid == group, path


def test_a_new_catalog_follows_the_umask_where_no_file_can_be_made_unopened(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(os, "mknod", refuse)
    with umask(0o002), closing(Database.open(locate(tmp_path), create=True)):
        assert mode(catalog_of(tmp_path)) == 0o664


@pytest.mark.parametrize("mask", [0o002, 0o022])
def test_a_private_catalog_stays_private_when_it_is_set_aside_and_rebuilt(root, mask):
    file = catalog_of(root)
    if os.geteuid() == 0:
        os.chown(file, 0, 20900)
    file.chmod(0o600)
    file.write_bytes(b"no database\n" * 1000)
    with umask(mask), Registry.open(root) as registry:
        aside = registry.reconcile().set_aside
        assert registry.best().step == 2
    for path in (file, aside, Path(f"{file}-journal")):
        assert mode(path) == 0o600, path
        assert path.stat().st_gid == aside.stat().st_gid


def make_older(file):
    with closing(Database.unchecked(locate(file))) as database, database.write() as connection:
        config = Config()
        config.set_main_option("script_location", str(script_location()))
        config.attributes["connection"] = connection
        alembic.downgrade(config, "0001")


@pytest.mark.parametrize("mask", [0o002, 0o022])
def test_a_private_catalog_stays_private_through_an_upgrade_and_its_copy(root, mask):
    file = catalog_of(root)
    file.chmod(0o600)
    make_older(file)
    if os.geteuid() == 0:
        os.chown(file, 0, 20900)
    with umask(mask):
        _, _, copy = upgrade(locate(root))
    assert (mode(copy), mode(file)) == (0o600, 0o600)
    assert copy.stat().st_gid == file.stat().st_gid
    assert sorted(path.name for path in file.parent.glob("*.bak*")) == [copy.name]


def test_the_copy_of_an_upgrade_is_written_through_no_link(root, tmp_path):
    file, victim = catalog_of(root), tmp_path / "victim"
    make_older(file)
    before = canary(victim)
    for name in (f"{file.name}.0001.bak", f"{file.name}.0001.bak.{os.getpid()}"):
        (file.parent / name).symlink_to(victim / "letter.txt")
    _, _, copy = upgrade(locate(root))
    assert not copy.is_symlink()
    assert canary(victim) == before


@needs_root
def test_what_root_makes_in_a_users_tree_belongs_to_that_user(tmp_path):
    tmp_path.chmod(0o755)
    folder = tmp_path / "results" / ".ckptdb"
    folder.mkdir(parents=True)
    for path in (folder.parent, folder):
        os.chown(path, EVE, 20900)
        path.chmod(0o2775)
    with umask(0o077), closing(Database.open(locate(folder.parent), create=True)) as database:
        database.set_complete()
    for path in (folder / "catalog.db", folder / "catalog.db-journal"):
        assert (path.stat().st_uid, path.stat().st_gid) == (EVE, 20900), path
        assert mode(path) == 0o664, path

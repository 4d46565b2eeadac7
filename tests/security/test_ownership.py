"""Whatever makes a file or directory of ours as root in the tree of a user makes it the user's."""

import errno
import os
import stat
import threading
import uuid

import pytest
from tests.support.requirements import needs_root
from tests.support.users import (
    ANN,
    BOB,
    EVE,
    GROUP,
    as_user,
    make,
    shared_place,
)

from ckptdb.core.facts import Fact
from ckptdb.disk import (
    fsutil,
    journal,
    leases,
    lock,
    root_marker,
    trainer_lock,
    tree_removal,
    verified,
)
from ckptdb.disk.fsutil import ExchangeUnsupported
from ckptdb.disk.pending_index import Notes
from ckptdb.errors import LockForbidden

AT = "2026-11-22T16:01:24.123Z"
UUID = str(uuid.uuid4())
FACT = Fact(AT, "pin", UUID)


@pytest.fixture
def shared():
    with shared_place() as top:
        yield top


@pytest.fixture
def hidden(shared):
    make(shared / "run", ANN, mode=0o2775, group=GROUP)
    return make(shared / "run" / ".ckptdb", ANN, mode=0o2770, group=GROUP)


def take_run_lock(hidden):
    with lock.run_lock(hidden):
        pass


MAKERS = {
    "a folder": lambda hidden: fsutil.make_folder(hidden / "trash", durable=True),
    "folders": lambda hidden: fsutil.make_directories(hidden / "a" / "b", durable=True),
    "a file": lambda hidden: fsutil.write_new(hidden / "file", b"x", durable=True),
    "JSON": lambda hidden: fsutil.write_json(hidden / "run.json", {}, durable=True),
    "the mark of a root": lambda hidden: root_marker.mark_root(hidden.parent),
    "the journal": lambda hidden: journal.append(
        hidden, [Fact(AT, "pin", UUID)], make_durable=True
    ),
    "the lock": take_run_lock,
    "the trainer": lambda hidden: trainer_lock.take(hidden, since=AT),
    "a lease": lambda hidden: leases.write(hidden, UUID, "mmlu", seconds=9, since=AT),
    "verified": lambda hidden: verified.store(hidden, "sizes", verified.Verified(), of=()),
    "a note": lambda hidden: Notes(hidden / "behind", None).add(hidden.parent, UUID),
}


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("what", MAKERS)
def test_what_root_makes_in_the_tree_of_a_user_is_the_users(hidden, what):
    as_user(0, lambda: MAKERS[what](hidden) and None, umask=0o077)
    made = list(hidden.rglob("*"))
    assert made
    for path in made:
        found = path.lstat()
        assert (path, found.st_uid, found.st_gid) == (path, ANN, GROUP)
        wanted = 0o2770 if path.is_dir() else 0o660
        assert (path, oct(stat.S_IMODE(found.st_mode))) == (path, oct(wanted))
        assert not path.name.startswith(".")


@needs_root
def test_a_folder_that_root_makes_is_never_seen_as_roots(shared, monkeypatch):
    top = make(shared / "results", ANN)
    real, seen = fsutil.rename_new, []

    def rename_new(source, target):
        seen.append((source.stat().st_uid, stat.S_IMODE(source.stat().st_mode)))
        real(source, target)

    monkeypatch.setattr(fsutil, "rename_new", rename_new)
    fsutil.make_new_folder(top / "run")
    assert seen == [(ANN, 0o755)]
    assert os.listdir(top) == ["run"]
    with pytest.raises(FileExistsError):
        fsutil.make_new_folder(top / "run")
    assert os.listdir(top) == ["run"]


@pytest.mark.parametrize("error", [ExchangeUnsupported(), OSError(errno.ENOSPC, "full")], ids=repr)
@pytest.mark.parametrize("for_writers", [True, False])
def test_a_file_that_cannot_be_made_aside_is_made_in_its_place(
    tmp_path, monkeypatch, error, for_writers
):
    def refuse(*_):
        raise error

    monkeypatch.setattr(fsutil, "_renameat2", refuse)
    tmp_path.chmod(0o2775)
    (tmp_path / "other").touch()
    usual = stat.S_IMODE((tmp_path / "other").stat().st_mode)
    handle = fsutil.open_kept(tmp_path / "file", os.O_RDWR, for_writers=for_writers)
    mode = stat.S_IMODE(os.fstat(handle).st_mode)
    os.close(handle)
    assert mode == (0o660 if for_writers else usual)
    assert sorted(os.listdir(tmp_path)) == ["file", "other"]


def test_all_who_make_a_lock_at_once_get_the_same_file(tmp_path):
    start, inodes = threading.Barrier(8), []

    def open_it(name):
        start.wait()
        handle = lock.open_lock(tmp_path / name)
        inodes.append(os.fstat(handle).st_ino)
        os.close(handle)

    for number in range(20):
        threads = [threading.Thread(target=open_it, args=(str(number),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(inodes)) == 1
        inodes.clear()
    assert len(os.listdir(tmp_path)) == 20


@needs_root
def test_a_lock_that_is_not_open_to_a_new_colleague_says_what_opens_it(hidden):
    as_user(ANN, take_run_lock, hidden, groups=[GROUP])
    (hidden / "lock").chmod(0o600)

    def take():
        with pytest.raises(LockForbidden) as caught:
            take_run_lock(hidden)
        return str(caught.value)

    assert as_user(BOB, take, groups=[GROUP]) == (
        f"{hidden}/lock cannot be opened by this user, who may write its directory. The next save "
        f"of user {ANN}, whose it is, gives it the permissions of the directory, and so does "
        "`chmod`."
    )
    as_user(ANN, take_run_lock, hidden, groups=[GROUP])
    as_user(BOB, take_run_lock, hidden, groups=[GROUP])


@needs_root
@pytest.mark.parametrize("name", ["journal.jsonl", "lock", "trainer"])
def test_a_secret_of_roots_that_a_user_calls_one_of_our_files_stays_roots(hidden, name):
    secret = hidden.parent / "secret"
    secret.write_bytes(b"s")
    secret.chmod(0o600)
    as_user(ANN, os.rename, secret, hidden / name)
    os.close(fsutil.open_kept(hidden / name, os.O_RDWR, for_writers=name != "journal.jsonl"))
    found = (hidden / name).stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)


@needs_root
def test_a_folder_that_only_root_may_read_stays_roots(hidden):
    (hidden / "secrets").mkdir(mode=0o700)
    as_user(ANN, os.rename, hidden / "secrets", hidden / "trash")
    fsutil.make_folder(hidden / "trash", durable=False)
    assert (hidden / "trash").stat().st_uid == 0


# --- removing what is another user's --------------------------------------------------------------


@pytest.fixture
def theirs(shared):
    """A directory of Ann's that her group may remove, with one below it."""
    top = make(shared / "team", ANN, mode=0o2775, group=GROUP)
    folder = make(top / "theirs", ANN, mode=0o2775, group=GROUP)
    for name in ("inner", "empty", "other"):
        make(folder / name, ANN, mode=0o2775, group=GROUP)
    for file in ("inner/file", "other/file"):
        (folder / file).write_bytes(b"x")
        os.chown(folder / file, ANN, ANN)
        (folder / file).chmod(0o400)
    return folder


def remove(path):
    try:
        tree_removal.remove_tree(path)
    except OSError as error:
        return [error.errno, error.filename]
    return None


@needs_root
def test_what_a_group_may_remove_is_removed_whoever_it_is_of(theirs):
    (theirs / "empty").chmod(0o2755)  # an empty directory asks for nothing of its own
    assert as_user(BOB, remove, theirs, groups=[GROUP]) is None
    assert not theirs.exists()


@needs_root
@pytest.mark.parametrize("mode", [0o2755, 0o2771, 0o3775], ids=oct)
def test_what_may_not_be_removed_is_named_by_its_path(theirs, mode):
    (theirs / "inner").chmod(mode)
    named = theirs / "inner" if mode == 0o2771 else theirs / "inner" / "file"
    uid = EVE if mode == 0o2771 else BOB
    if uid == EVE:
        for folder in (theirs, theirs / "other"):
            folder.chmod(0o2777)
    code = errno.EPERM if mode == 0o3775 else errno.EACCES
    assert as_user(uid, remove, theirs, groups=[GROUP] if uid == BOB else []) == [code, str(named)]
    assert (theirs / "inner" / "file").exists()
    assert stat.S_IMODE((theirs / "inner").stat().st_mode) == mode


@needs_root
def test_a_directory_of_ones_own_is_made_writable_to_be_removed(theirs):
    (theirs / "inner").chmod(0o500)
    (theirs / "empty").chmod(0)
    assert as_user(ANN, remove, theirs) is None
    assert not theirs.exists()

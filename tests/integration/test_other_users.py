"""Whose mark of a root counts: tried with real users."""

import os
import sqlite3
import stat
import warnings
from contextlib import closing

import pytest
from tests.support.requirements import needs_root
from tests.support.users import (
    ANN,
    BOB,
    EVE,
    GROUP,
    LOSS,
    as_user,
    make,
    save,
    shared_place,
)

from ckptdb import CheckpointManager, Registry
from ckptdb.cli.main import main
from ckptdb.disk import root_marker
from ckptdb.errors import RootRefused
from ckptdb.reconcile.location import find_location

pytestmark = needs_root


@pytest.fixture
def shared():
    with shared_place() as top:
        yield top


def go_on(run, step):
    with CheckpointManager({"checkpoint_dir": run}) as manager:
        manager.resume()
        with manager.save(step, {LOSS: 0.5}):
            pass


def told(what, *arguments):
    """Call something and return the texts of its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        what(*arguments)
    return [str(one.message) for one in caught]


def catalog_used(run):
    """What the trainer and the command line each take for the catalog of a run."""
    with Registry.open(run) as registry:
        assert registry.location == find_location(run)
        return str(registry.location)


def runs_in(root):
    with closing(sqlite3.connect(root / ".ckptdb" / "catalog.db")) as raw:
        return [name for (name,) in raw.execute("SELECT name FROM runs ORDER BY name")]


def init(root):
    Registry.init(root)[0].close()


def test_the_superuser_in_a_container_trains_into_the_root_of_the_user(shared):
    root = make(shared / "results", ANN)
    as_user(ANN, init, root)
    assert told(save, root / "run") == []
    assert catalog_used(root / "run") == str(root / ".ckptdb" / "catalog.db")
    assert runs_in(root) == ["run"]
    assert not (root / "run" / ".ckptdb" / "root.json").exists()
    assert as_user(ANN, catalog_used, root / "run") == str(root / ".ckptdb" / "catalog.db")


def test_what_the_superuser_marks_for_a_user_the_user_trains_into(shared):
    root = make(shared / "results", ANN)
    init(root)
    assert as_user(ANN, told, save, root / "run") == []
    assert as_user(ANN, catalog_used, root / "run") == str(root / ".ckptdb" / "catalog.db")
    assert runs_in(root) == ["run"]


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o002, 0o022])
def test_two_users_of_a_group_share_a_root_where_both_may_write(shared, umask):
    root = make(shared / "team", 0, mode=0o2775, group=GROUP)
    as_user(ANN, init, root, umask=umask, groups=[GROUP])
    as_user(ANN, save, root / "a", umask=umask, groups=[GROUP])
    texts = as_user(BOB, told, save, root / "b", umask=umask, groups=[GROUP])
    used = as_user(BOB, catalog_used, root / "b", groups=[GROUP])
    if umask == 0o002:
        assert texts == []
        assert used == str(root / ".ckptdb" / "catalog.db")
        assert runs_in(root) == ["a", "b"]
        assert (root / ".ckptdb" / "catalog.db").stat().st_mode & stat.S_IWGRP
    else:
        assert len(texts) == 1
        assert f"{root} is marked as a root by user {ANN}, and this user may not write" in texts[0]
        assert "its catalog is not used" in texts[0]
        assert "common group" in texts[0]
        assert "catalog=" in texts[0]
        assert used == str(root / "b" / ".ckptdb" / "catalog.db")


def test_pods_with_changing_users_share_a_root_by_their_group(shared):
    volume = make(shared / "volume", 0, mode=0o2775, group=GROUP)
    as_user(ANN, init, volume, umask=0o002, groups=[GROUP])
    for number, uid in enumerate((ANN, BOB, EVE), start=1):
        texts = as_user(uid, told, go_on, volume / "run", number, umask=0o002, groups=[GROUP])
        assert texts == []
    with Registry.open(volume) as registry:
        assert registry.latest(run="run").step == 3


def test_the_owner_of_a_tree_decides_for_those_who_train_in_it(shared):
    root = make(shared / "results", ANN)
    as_user(ANN, init, root)
    run = make(root / "of-bob", BOB)
    assert as_user(BOB, catalog_used, run) == str(root / ".ckptdb" / "catalog.db")
    texts = as_user(BOB, told, save, run)
    assert len(texts) == 1
    assert "read-only here" in texts[0]


def test_a_reader_who_may_not_write_uses_the_catalog_of_the_owner(shared):
    root = make(shared / "results", ANN)
    as_user(ANN, init, root)
    as_user(ANN, save, root / "a")

    def look():
        with Registry.open(root / "a") as registry:
            return [str(registry.location), registry.latest().step, len(registry.runs())]

    assert as_user(BOB, look) == [str(root / ".ckptdb" / "catalog.db"), 1, 1]
    assert as_user(BOB, told, look) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o1777, 0o777])
@pytest.mark.parametrize("folder", [0o755, 0o777, 0o2775])
def test_the_mark_of_a_stranger_in_a_place_open_to_all_does_not_count(shared, mode, folder):
    place = make(shared / "scratch", 0, mode=mode)
    as_user(EVE, root_marker.mark_root, place)
    os.chown(place / ".ckptdb", EVE, GROUP)
    (place / ".ckptdb").chmod(folder)
    for uid in (ANN, 0):
        run = place / f"run-{uid}"
        texts = as_user(uid, told, save, run, groups=[GROUP])
        assert len(texts) == 1
        assert (
            f"{place} is marked as a root by user {EVE}, and {place} is open to users" in texts[0]
        )
        assert as_user(uid, catalog_used, run, groups=[GROUP]) == f"{run}/.ckptdb/catalog.db"
    assert not (place / ".ckptdb" / "catalog.db").exists()


@pytest.mark.slow
def test_a_link_to_a_folder_of_mine_makes_no_root_of_a_place_open_to_all(shared):
    place = make(shared / "scratch", 0, mode=0o1777)
    mine = make(shared / "mine", ANN)
    as_user(ANN, init, mine)
    as_user(EVE, os.symlink, mine / ".ckptdb", place / ".ckptdb")
    assert len(as_user(ANN, told, save, place / "run")) == 1
    assert as_user(ANN, catalog_used, place / "run") == f"{place}/run/.ckptdb/catalog.db"
    assert runs_in(mine) == []


def test_a_folder_open_to_everybody_in_a_directory_of_a_group_does_not_count(shared):
    root = make(shared / "team", 0, mode=0o2775, group=GROUP)
    as_user(EVE, root_marker.mark_root, root, groups=[GROUP], umask=0)
    assert (root / ".ckptdb").stat().st_mode & stat.S_IWOTH
    texts = as_user(ANN, told, save, root / "run", groups=[GROUP])
    assert len(texts) == 1
    assert f"{root}/.ckptdb is open to everybody" in texts[0]


def test_where_a_stranger_has_marked_the_very_directory_the_files_answer(shared, capfd):
    place = make(shared / "scratch", 0, mode=0o1777)
    as_user(ANN, save, place / "run")
    as_user(EVE, root_marker.mark_root, place)

    def ask():
        with Registry.open(place) as registry:
            assert registry.latest(run="run").step == 1
            with pytest.raises(RootRefused):
                registry.reconcile()
        with pytest.raises(RootRefused):
            Registry.init(place)

    texts = as_user(ANN, told, ask)
    assert len(texts) == 1
    assert f"{place} is marked as a root by user {EVE}" in texts[0]
    assert "answers come from the files" in texts[0]


def test_a_run_whose_folder_a_stranger_has_made_a_root_is_saved_all_the_same(shared):
    run = make(shared / "run", ANN, mode=0o777)
    as_user(EVE, root_marker.mark_root, run, umask=0)
    texts = as_user(ANN, told, save, run)
    assert (run / "step_1").is_dir()
    assert len(texts) == 1
    assert f"{run} is marked as a root by user {EVE}" in texts[0]
    assert not (run / ".ckptdb" / "catalog.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("uid", "said", "used"),
    [
        (ANN, "which is this user or the superuser: used.", "team"),
        (0, "this user may write there, too: used.", "team"),
        (BOB, "this user may not write into", "team/run"),
    ],
)
def test_db_path_explains_which_mark_is_used(shared, capfd, uid, said, used):
    root = make(shared / "team", 0, mode=0o2775, group=GROUP)
    as_user(ANN, init, root, groups=[GROUP])
    make(root / "run", BOB)
    as_user(BOB, told, save, root / "run", groups=[GROUP])

    def db_path():
        with pytest.raises(SystemExit) as ended:
            main(["-C", str(root / "run"), "db", "path"])
        return ended.value.code

    if uid != BOB:
        (root / "run" / ".ckptdb" / "root.json").unlink()
    capfd.readouterr()
    assert as_user(uid, db_path, groups=[GROUP]) == 0
    found = capfd.readouterr()
    assert found.out == f"{shared / used}/.ckptdb/catalog.db\n"
    if uid == BOB:
        assert f"{root}/run is marked as a root by user {BOB}" in found.err
    else:
        assert f"{root} is marked as a root by user {ANN}" in found.err
        assert said in found.err

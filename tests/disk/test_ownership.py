from __future__ import annotations

import os
import stat

import pytest
from tests.support.requirements import needs_root
from tests.support.users import (
    ANN,
    BOB,
    EVE,
    GROUP,
    acl,
    as_user,
    make,
    set_acl,
    shared_place,
)

from ckptdb.disk import ownership
from ckptdb.disk.ownership import Access, Grant, Ownership, decide

OTHERS = 20901
ROOTS = Ownership(0, 0, 0o755)
ANNS = Ownership(ANN, ANN, 0o755)
TEAMS = Ownership(ANN, GROUP, 0o2775)


@pytest.mark.parametrize(
    ("me", "made", "folder", "before", "wanted"),
    [
        (ANN, (ANN, ANN, 0o644), ANNS, None, (ANN, ANN, 0o644)),
        (BOB, (BOB, GROUP, 0o664), TEAMS, None, (BOB, GROUP, 0o664)),
        (0, (0, 0, 0o600), ROOTS, None, (0, 0, 0o600)),
        (0, (0, 0, 0o600), ANNS, None, (ANN, ANN, 0o644)),
        (0, (0, GROUP, 0o644), TEAMS, None, (ANN, GROUP, 0o664)),
        (0, (0, 0, 0o644), Ownership(ownership.NOBODY, 0, 0o755), None, (0, 0, 0o644)),
        (0, (0, 0, 0o644), Ownership(ANN, ANN, 0o555), None, (ANN, ANN, 0o644)),
        (0, (0, 0, 0o644), ANNS, (BOB, GROUP, 0o660), (BOB, GROUP, 0o660)),
        (0, (0, 0, 0o644), ANNS, (0, 0, 0o640), (ANN, ANN, 0o640)),
        (0, (0, 0, 0o644), ROOTS, (0, GROUP, 0o664), (0, GROUP, 0o664)),
        (BOB, (BOB, BOB, 0o644), TEAMS, (ANN, GROUP, 0o4664), (BOB, GROUP, 0o664)),
    ],
    ids=[
        "own",
        "of a colleague",
        "root's own",
        "root helping",
        "root helping a group",
        "of an owner unknown in a container",
        "in a directory that is protected",
        "replaced by root",
        "what root had left",
        "replaced in root's own",
        "replaced by a colleague",
    ],
)
def test_whom_a_new_file_belongs_to(me, made, folder, before, wanted):
    found = decide(me, Ownership(*made), folder, before and Ownership(*before))
    assert found == Ownership(*wanted)


def test_a_directory_that_root_makes_keeps_the_bit_that_hands_the_group_on():
    made = Ownership(0, GROUP, 0o2700)
    assert decide(0, made, TEAMS, most=0o777) == Ownership(ANN, GROUP, 0o2775)


def status(mode, uid, gid):
    return os.stat_result((mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


def granted(folder, found, acl=None, *, with_readers=False):
    return Access.to(folder, acl).grant(found, with_readers=with_readers)


@pytest.mark.parametrize(
    ("folder", "for_writers", "for_readers"),
    [
        (0o755, 0o600, 0o644),
        (0o700, 0o600, 0o600),
        (0o2775, 0o660, 0o664),
        (0o2770, 0o660, 0o660),
        (0o1777, 0o666, 0o666),
        (0o757, 0o606, 0o646),
        (0o555, 0o600, 0o644),
    ],
    ids=oct,
)
def test_who_may_write_a_directory_may_open_what_is_in_it(folder, for_writers, for_readers):
    around, file = status(stat.S_IFDIR | folder, ANN, GROUP), status(stat.S_IFREG, ANN, GROUP)
    assert granted(around, file) == Grant(for_writers, None)
    assert granted(around, file, with_readers=True) == Grant(for_readers, None)
    below = status(stat.S_IFDIR, ANN, GROUP)
    mode = (folder | 0o700) & 0o777
    assert granted(around, below, with_readers=True) == Grant(mode, None)


def test_the_owner_of_a_directory_may_open_what_a_colleague_has_made():
    around = status(stat.S_IFDIR | 0o2775, ANN, GROUP)
    found = granted(around, status(stat.S_IFREG, BOB, GROUP))
    wanted = [("owner", 6), ("user", 6, ANN), ("group", 6), ("mask", 6), ("others", 0)]
    assert found == Grant(0o660, acl(*wanted))


def test_what_could_not_be_given_to_the_group_of_the_directory_is_not_for_another():
    around = status(stat.S_IFDIR | 0o775, ANN, GROUP)
    found = granted(around, status(stat.S_IFREG, ANN, OTHERS))
    wanted = [("owner", 6), ("group", 0), ("a group", 6, GROUP), ("mask", 6), ("others", 0)]
    assert found == Grant(0o600, acl(*wanted))


def test_with_an_acl_it_is_for_those_whom_that_lets_write():
    around, file = status(stat.S_IFDIR | 0o775, ANN, GROUP), status(stat.S_IFREG, ANN, GROUP)
    folder = acl(
        ("owner", 7), ("user", 7, BOB), ("user", 5, EVE), ("group", 5), ("mask", 7), ("others", 5)
    )
    assert granted(around, file, folder).acl == acl(
        ("owner", 6), ("user", 6, BOB), ("user", 0, EVE), ("group", 0), ("mask", 6), ("others", 0)
    )
    assert granted(around, file, folder, with_readers=True).acl == acl(
        ("owner", 6), ("user", 6, BOB), ("user", 4, EVE), ("group", 4), ("mask", 6), ("others", 4)
    )
    masked = acl(("owner", 7), ("user", 7, BOB), ("group", 7), ("mask", 5), ("others", 0))
    assert granted(around, file, masked).acl == acl(
        ("owner", 6), ("user", 0, BOB), ("group", 0), ("mask", 6), ("others", 0)
    )


@needs_root
@pytest.mark.parametrize("inherited", [False, True])
def test_the_acl_of_a_directory_decides_who_may_open_its_lock(inherited):
    with shared_place() as top:
        folder = make(top / "run", ANN, mode=0o755, group=GROUP)
        entries = [("owner", 7), ("user", 7, BOB), ("group", 5), ("mask", 7), ("others", 5)]
        set_acl(folder, *entries)
        if inherited:
            set_acl(folder, *entries, kind="default")

        def write():
            handle = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT)
            place = os.open(folder, os.O_PATH)
            for _ in range(2):
                ownership.share(handle, place, with_readers=False)

        def may_open():
            try:
                os.close(os.open(folder / "lock", os.O_RDONLY))
            except PermissionError:
                return False
            return True

        as_user(ANN, write)
        assert as_user(BOB, may_open)
        assert not as_user(EVE, may_open)
        assert not as_user(EVE, may_open, groups=[GROUP])
        os.removexattr(folder, "system.posix_acl_access")
        folder.chmod(0o755)
        as_user(ANN, write)
        assert not as_user(BOB, may_open)
        assert as_user(ANN, may_open)


@needs_root
def test_what_a_group_was_to_see_is_not_for_another():
    with shared_place() as top:
        folder = make(top / "run", ANN, mode=0o777, group=GROUP)
        (folder / "old").write_bytes(b"")
        os.chown(folder / "old", ANN, GROUP)
        (folder / "old").chmod(0o664)

        def replace_it():
            handle = os.open(folder / "new", os.O_WRONLY | os.O_CREAT)
            ownership.settle(handle, folder.stat(), (folder / "old").stat())
            found = os.fstat(handle)
            os.unlink(folder / "new")
            return [found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)]

        assert as_user(BOB, replace_it, groups=[OTHERS, GROUP]) == [BOB, GROUP, 0o664]
        assert as_user(BOB, replace_it, groups=[OTHERS]) == [BOB, OTHERS, 0o644]

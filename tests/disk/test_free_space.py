import os

import pytest

from ckptdb.disk import free_space
from ckptdb.errors import NotEnoughSpace


class Disk:
    """Answers as a file system would, with what is free in blocks of 10 bytes."""

    def __init__(self, monkeypatch, free):
        self.free = free
        self.asked = 0
        monkeypatch.setattr(os, "statvfs", lambda _: self.ask())

    def ask(self):
        self.asked += 1
        # f_bsize, f_frsize, f_blocks, f_bfree, f_bavail, f_files, f_ffree, f_favail, f_flag, max
        return os.statvfs_result((4096, 10, 1000, 900, self.free, 0, 0, 0, 0, 255))

    def free_more(self, blocks):
        def free():
            self.free += blocks

        return free


def test_what_is_free_is_what_anybody_may_write(tmp_path, monkeypatch):
    assert free_space.find_free_bytes(tmp_path) > 0
    Disk(monkeypatch, 7)
    assert free_space.find_free_bytes(tmp_path) == 70


@pytest.mark.parametrize("nonsense", [(4096, 4096, 0, 0, 0), (0, 0, 100, 100, 100)])
def test_a_file_system_that_knows_nothing_says_nothing(tmp_path, monkeypatch, nonsense):
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((*nonsense, 0, 0, 0, 0, 255)))
    assert free_space.find_free_bytes(tmp_path) is None
    free_space.make_sure(tmp_path, 1, needed_bytes=10, remedies=())


def test_a_directory_that_cannot_be_asked_says_nothing(tmp_path):
    assert free_space.find_free_bytes(tmp_path / "gone") is None
    free_space.make_sure(tmp_path / "gone", 1, needed_bytes=10, remedies=())


def test_with_enough_one_question_is_all_there_is(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 10)
    tried = []
    free_space.make_sure(tmp_path, 1, needed_bytes=100, remedies=[lambda: tried.append(1)])
    assert (disk.asked, tried) == (1, [])


def test_remedies_are_tried_as_long_as_there_is_too_little(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 5)
    remedies = [disk.free_more(2), disk.free_more(3), disk.free_more(100)]
    free_space.make_sure(tmp_path, 1, needed_bytes=100, remedies=remedies)
    assert (disk.free, disk.asked) == (10, 3)


def test_too_little_after_all_is_an_error_with_the_figures(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 5)
    with pytest.raises(NotEnoughSpace, match=r"take up to 100 B, and 90 B are free") as caught:
        free_space.make_sure(tmp_path, 1, needed_bytes=100, remedies=[disk.free_more(4)])
    assert (caught.value.needed_bytes, caught.value.free_bytes) == (100, 90)

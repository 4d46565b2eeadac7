"""The note of what was verified when: replaced as a whole, and worth nothing when it is odd."""

import json
import os

import pytest

from ckptdb.disk import verified
from ckptdb.disk.verified import Verified

NOW = "2026-11-22T16:00:00.000Z"
EARLIER = "2026-11-21T16:00:00.000Z"


def test_what_was_noted_is_read_for_each_depth_of_what_is_still_there(tmp_path):
    verified.store(tmp_path, "sizes", Verified({"a": NOW}), of={"a"})
    noted = Verified({"a": EARLIER, "gone": NOW}, {"b": ["x"], "gone": ["y"]})
    verified.store(tmp_path, "contents", noted, of={"a", "b"})

    assert verified.load(tmp_path, "sizes", now=NOW) == Verified({"a": NOW})
    found = verified.load(tmp_path, "contents", now=NOW)
    assert found == Verified({"a": EARLIER}, {"b": ["x"]})
    assert os.listdir(tmp_path) == ["verified.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"\xff", b"{}", b'{"sizes": 5}', b'{"sizes": {"at": []}}',
        b'{"sizes": {"at": {"a": 5}, "unfinished": {"b": "x"}}}',
        b'{"sizes": {"at": {"a": "yesterday"}}}', b'{"sizes": {"at": {"a": "Z"}}}',
        b'{"sizes": {"at": {"a": "2026-11-21"}}}', b'{"sizes": {"at": {"a": "\\ud800Z"}}}',
        b'{"sizes": {"at": {"a": "9999-01-01T00:00:00.000Z"}}}', b"[" * 100_000,
    ],
    ids=lambda content: repr(content[:50]),
)  # fmt: skip
def test_what_is_odd_counts_for_nothing_and_is_replaced(tmp_path, content):
    (tmp_path / "verified.json").write_bytes(content)
    assert verified.load(tmp_path, "sizes", now=NOW) == Verified()
    verified.store(tmp_path, "sizes", Verified({"a": NOW}), of={"a"})
    assert json.loads((tmp_path / "verified.json").read_text())["sizes"]["at"] == {"a": NOW}


def test_where_it_cannot_be_written_somebody_has_to_say_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        verified.store(tmp_path / "nowhere", "sizes", Verified({"a": NOW}), of={"a"})
    assert list(tmp_path.iterdir()) == []

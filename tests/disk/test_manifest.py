from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from ckptdb.core.observed import Manifest
from ckptdb.disk import manifest
from ckptdb.disk.manifest import Compared
from ckptdb.errors import UnreadableInfo

SOUND = Manifest(
    uuid="0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b",
    step=5,
    created_at="2026-11-22T16:01:24.123Z",
    finalized_at="2026-11-22T16:01:25.123Z",
    parent=None,
    replaces=None,
    files={"model.pt": 4, "sub/part.bin": 2},
)


def fill(folder: Path):
    (folder / "sub" / "empty").mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"1234")
    (folder / "sub" / "part.bin").write_bytes(b"12")
    (folder / "sub" / "manifest.json").write_bytes(b"{}")
    (folder / "link").symlink_to("model.pt")
    (folder / ".writer.json").write_bytes(b"{}")
    (folder / os.fsdecode(b"caf\xe9")).write_bytes(b"123")


def test_every_file_is_listed_except_our_own(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"{}")

    listed = manifest.list_files(tmp_path)

    assert listed == {
        os.fsdecode(b"caf\xe9"): 3,
        "link": len("model.pt"),
        "model.pt": 4,
        "sub/manifest.json": 2,
        "sub/part.bin": 2,
    }
    assert list(listed) == sorted(listed)


def test_what_was_written_is_found(tmp_path: Path):
    fill(tmp_path)
    whole = Manifest(**{**asdict(SOUND), "files": manifest.list_files(tmp_path)})

    manifest.write(tmp_path, whole, make_durable=True)

    found = manifest.find(tmp_path)
    assert found == whole
    assert found.size_bytes == 19
    assert manifest.verify(tmp_path, found) == Compared()


def test_a_directory_without_a_manifest_has_none(tmp_path: Path):
    assert manifest.find(tmp_path) is None
    assert manifest.find(tmp_path / "nowhere") is None


def test_what_a_newer_version_adds_is_passed_over(tmp_path: Path):
    said = {**asdict(SOUND), "signature": [1], "checksums": {"model.pt": "sha9:00"}}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    assert manifest.find(tmp_path) == Manifest(
        **{**asdict(SOUND), "checksums": {"model.pt": "sha9:00"}}
    )


def test_what_nobody_asked_for_is_not_written(tmp_path: Path):
    manifest.write(tmp_path, SOUND, make_durable=False)
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written == {k: v for k, v in asdict(SOUND).items() if k not in ("checksums", "targets")}
    assert manifest.find(tmp_path) == SOUND


def test_a_later_manifest_takes_the_place_of_an_earlier_one(tmp_path: Path):
    manifest.write(tmp_path, SOUND, make_durable=False)
    later = Manifest(**{**asdict(SOUND), "replaces": "a"})
    manifest.write(tmp_path, later, make_durable=False)

    assert manifest.find(tmp_path) == later
    assert os.listdir(tmp_path) == ["manifest.json"]


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "not a uuid"},
        {"uuid": "{0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b}"},
        {"uuid": 5},
        {"uuid": None},
        {"step": "5"},
        {"step": True},
        {"step": -1},
        {"step": 2**63},
        {"created_at": 5},
        {"created_at": "\ud800"},
        {"finalized_at": None},
        {"parent": 5},
        {"parent": "\ud800"},
        {"replaces": ["a"]},
        {"files": []},
        {"files": {"a": -1}},
        {"files": {"a": True}},
        {"files": {"a": 1.5}},
        {"files": {"a": 2**63}},
        {"files": {"a": 2**62, "b": 2**62}},
        {"files": {"": 1}},
        {"files": {"/etc/passwd": 1}},
        {"files": {"../other": 1}},
        {"files": {"a/../../b": 1}},
        {"files": {"a\0b": 1}},
        {"files": {"\ud800": 1}},
        {"checksums": []},
        {"checksums": None},
        {"checksums": {"model.pt": 5}},
        {"checksums": {"model.pt": "\ud800"}},
        {"targets": []},
        {"targets": {"model.pt": -1}},
    ],
    ids=repr,
)
def test_a_manifest_with_a_wrong_field_cannot_be_trusted(tmp_path: Path, change):
    (tmp_path / "manifest.json").write_text(json.dumps({**asdict(SOUND), **change}))
    with pytest.raises(UnreadableInfo, match="wrong type"):
        manifest.find(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{}", "does not have the fields"),
        (b'{"uuid": "x", "more": 1}', "does not have the fields"),
        (b"[]", "holds a list"),
        (b"", "is not JSON"),
    ],
    ids=["no fields", "other fields", "list", "empty"],
)
def test_a_file_that_is_no_manifest_cannot_be_trusted(tmp_path: Path, content, why):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UnreadableInfo, match=why):
        manifest.find(tmp_path)


def test_a_manifest_that_is_a_symlink_cannot_be_trusted(tmp_path: Path):
    (tmp_path / "manifest.json").symlink_to("elsewhere")
    with pytest.raises(UnreadableInfo, match="is a symlink"):
        manifest.find(tmp_path)


def shrink(folder: Path):
    (folder / "model.pt").write_bytes(b"1")


def drop(folder: Path):
    (folder / "sub" / "part.bin").unlink()


def replace_by_directory(folder: Path):
    (folder / "model.pt").unlink()
    (folder / "model.pt").mkdir()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (Path.absolute, None),
        (lambda folder: (folder / "more").write_bytes(b"x"), None),
        (
            lambda folder: (folder / "model.pt").write_bytes(b"12345"),
            "damaged: model.pt: 5 bytes instead of 4",
        ),
        (shrink, "damaged: model.pt: 1 of 4 bytes"),
        (drop, "damaged: sub/part.bin: No such file or directory"),
        (replace_by_directory, "damaged: model.pt: Is a directory"),
    ],
    ids=["whole", "an extra file", "grown", "shrunk", "missing", "a directory instead"],
)
def test_missing_files_and_those_of_another_size_are_damage(tmp_path: Path, harm, problem):
    fill(tmp_path)
    harm(tmp_path)
    assert manifest.verify(tmp_path, SOUND) == Compared(problem)


def test_much_damage_is_told_briefly(tmp_path: Path):
    many = Manifest(**{**asdict(SOUND), "files": {f"f{i}": 1 for i in range(5)}})
    problem = manifest.verify(tmp_path, many).damage
    assert problem is not None
    assert problem.startswith("damaged: f0: ")
    assert problem.endswith("f2: No such file or directory and 2 more")


def relink(path: Path, target: str | Path):
    path.unlink()
    path.symlink_to(target)


@pytest.fixture
def linked(tmp_path: Path):
    """A staged checkpoint with a file and links out of it, and the manifest of that."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "base.pt").write_bytes(b"123456")
    (shared / "copy.pt").write_bytes(b"654321")
    folder = tmp_path / "step_5"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"1234")
    (folder / "base.pt").symlink_to("../shared/base.pt")
    (folder / "inside").symlink_to("model.pt")
    files, targets, dangling = manifest.list_files_and_targets(folder)
    assert (targets, dangling) == ({"base.pt": 6, "inside": 4}, [])
    return folder, Manifest(**{**asdict(SOUND), "files": files, "targets": targets})


def move_and_link(folder: Path, name: str = "model.pt", content: bytes | None = None):
    elsewhere = folder.parent / "another disk.pt"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)
    if content is not None:
        elsewhere.write_bytes(content)


def make_pipe(path: Path):
    path.unlink()
    os.mkfifo(path)


LINKS = {
    "as saved": (lambda _: None, None),
    "the target is gone": (
        lambda folder: (folder.parent / "shared" / "base.pt").unlink(),
        "damaged: base.pt: leads to ../shared/base.pt, which is not there",
    ),
    "the target has shrunk": (
        lambda folder: (folder.parent / "shared" / "base.pt").write_bytes(b""),
        "damaged: base.pt (a link): 0 of 6 bytes",
    ),
    "the target has grown": (
        lambda folder: (folder.parent / "shared" / "base.pt").write_bytes(b"1234567"),
        "damaged: base.pt (a link): 7 bytes instead of 6",
    ),
    "another target of that size": (
        lambda folder: relink(folder / "base.pt", "../shared/copy.pt"),
        None,
    ),
    "the target itself, as cp -L leaves it": (
        lambda folder: (
            (folder / "base.pt").unlink(),
            (folder / "base.pt").write_bytes(b"123456"),
        ),
        None,
    ),
    "a link to itself": (
        lambda folder: relink(folder / "base.pt", "base.pt"),
        "damaged: base.pt: leads to base.pt, which is not there",
    ),
    "a link to a directory": (
        lambda folder: relink(folder / "base.pt", "../shared"),
        "damaged: base.pt (a link): Is a directory",
    ),
    "a file moved and linked": (move_and_link, None),
    "a file moved, linked and truncated": (
        lambda folder: move_and_link(folder, content=b"1"),
        "damaged: model.pt (a link): 1 of 4 bytes; inside (a link): 1 of 4 bytes",
    ),
    "a pipe instead of a file": (
        lambda folder: make_pipe(folder / "model.pt"),
        "damaged: model.pt: is no regular file any more; "  # noqa: ISC004  # one text
        "inside (a link): is no regular file any more",
    ),
}


@pytest.mark.parametrize(("change", "problem"), LINKS.values(), ids=LINKS)
def test_a_link_in_a_checkpoint_has_to_lead_to_what_it_led_to(linked, change, problem):
    folder, whole = linked
    change(folder)
    found = manifest.verify(folder, whole)
    assert found.doubt is None
    order = (found.damage or "").removeprefix("damaged: ").split("; ")
    assert sorted(order) == sorted((problem or "").removeprefix("damaged: ").split("; "))


def test_of_links_that_an_older_manifest_lists_only_their_end_is_known(linked):
    folder, whole = linked
    older = Manifest(**{**asdict(whole), "targets": {}})
    doubt = "base.pt leads out of it, to what the manifest does not list"
    assert manifest.verify(folder, older) == Compared(doubt=doubt)
    (folder.parent / "shared" / "base.pt").unlink()
    found = manifest.verify(folder, older)
    assert found.damage == "damaged: base.pt: leads to ../shared/base.pt, which is not there"


def test_links_that_will_lead_nowhere_are_found_while_staging(tmp_path: Path):
    folder = tmp_path / "tmp_step_5"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"1234")
    (folder / "absolute").symlink_to(folder / "model.pt")
    (folder / "nowhere").symlink_to("gone")
    os.mkfifo(folder / "pipe")
    files, targets, dangling = manifest.list_files_and_targets(folder)
    assert sorted(files) == ["absolute", "model.pt", "nowhere"]
    assert (targets, dangling) == ({}, ["absolute", "nowhere"])


def test_damage_of_a_file_whose_name_is_bytes_of_any_kind_is_text(tmp_path: Path):
    strange = os.fsdecode(b"caf\xe9")
    manifest.verify(tmp_path, Manifest(**{**asdict(SOUND), "files": {strange: 1}})).damage.encode()


@pytest.mark.slow
def test_a_manifest_of_a_million_files_is_read_again(tmp_path):
    files = {f"shard-{number:06}/{'x' * 70}.distcp": 1 for number in range(10**6)}
    manifest.write(tmp_path, replace(SOUND, files=files), make_durable=False)
    assert (tmp_path / "manifest.json").stat().st_size > 64 * 1024**2
    assert manifest.find(tmp_path).files == files

"""What a file contains, told by a checksum."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import xxhash

from ckptdb.core.observed import Manifest
from ckptdb.disk import checksums, manifest
from ckptdb.disk.manifest import Compared
from ckptdb.errors import ChecksumsUnavailable

LARGE = os.urandom(3 * 1024 * 1024 + 17)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint's directory and its manifest with checksums."""
    folder = tmp_path / "step_5"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.bin").write_bytes(LARGE)
    (folder / "sub" / "part.bin").write_bytes(b"part")
    (folder / "empty").write_bytes(b"")
    (folder / "link").symlink_to("model.bin")
    files = manifest.list_files(folder)
    content = Manifest(
        uuid="0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b", step=5, created_at="t", finalized_at="t",
        parent=None, replaces=None, files=files, checksums=checksums.compute(folder, files),
    )  # fmt: skip
    return folder, content


def test_regular_files_have_one_each_and_it_is_that_of_the_library(saved):
    _, content = saved
    assert content.checksums == {
        "empty": f"xxh3_128:{xxhash.xxh3_128(b'').hexdigest()}",
        "model.bin": f"xxh3_128:{xxhash.xxh3_128(LARGE).hexdigest()}",
        "sub/part.bin": f"xxh3_128:{xxhash.xxh3_128(b'part').hexdigest()}",
    }


def test_a_file_that_is_not_any_more_what_was_listed_has_none(tmp_path):
    (tmp_path / "a").write_bytes(b"longer")
    (tmp_path / "b").write_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    assert checksums.compute(tmp_path, {"a": 1, "b": 1, "fifo": 0}) == {}
    with pytest.raises(FileNotFoundError):
        checksums.compute(tmp_path, {"gone": 1})


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def move_and_link(path):
    elsewhere = path.parent.with_name("elsewhere.bin")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return elsewhere


def link_to_a_pipe(path):
    os.mkfifo(move_and_link(path).with_name("pipe"))
    path.unlink()
    path.symlink_to(path.parent.with_name("pipe"))


DIFFERS = "damaged: model.bin differs from its checksum"
HARM = {
    "nothing": (lambda _: None, None),
    "a flipped bit": (lambda folder: flip(folder / "model.bin"), DIFFERS),
    "truncated": (lambda folder: os.truncate(folder / "model.bin", 5), DIFFERS),
    "appended": (lambda folder: append(folder / "model.bin"), DIFFERS),
    "a link that leads to itself": (
        lambda folder: ((folder / "model.bin").unlink(), (folder / "model.bin").symlink_to("link")),
        "damaged: model.bin: Too many levels of symbolic links",
    ),
    "moved and linked": (lambda folder: move_and_link(folder / "model.bin"), None),
    "moved, linked and flipped": (
        lambda folder: flip(move_and_link(folder / "model.bin")),
        DIFFERS,
    ),
    "a link to a pipe": (lambda folder: link_to_a_pipe(folder / "model.bin"), DIFFERS),
    "gone": (
        lambda folder: (folder / "sub" / "part.bin").unlink(),
        "damaged: sub/part.bin: No such file or directory",
    ),
}


@pytest.mark.parametrize(("harm", "problem"), HARM.values(), ids=HARM)
def test_a_content_that_is_another_is_damage(saved, harm, problem):
    folder, content = saved
    harm(folder)
    assert checksums.verify(folder, content) == Compared(
        problem, kind="corrupt" if problem == DIFFERS else "damaged"
    )


@pytest.mark.parametrize("said", ["", "sha512:00", "xxh3_128", "nonsense"])
def test_what_another_version_says_is_not_compared(saved, said):
    folder, content = saved
    other = replace(content, checksums={"model.bin": said, "elsewhere": "xxh3_128:00"})
    flip(folder / "model.bin")
    assert checksums.verify(folder, other) == Compared()


def test_without_the_library_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    assert not checksums.is_available()
    with pytest.raises(ChecksumsUnavailable, match=r"pip install 'ckptdb\[checksums\]'"):
        checksums.require()


def test_nobody_imports_the_library_who_wants_no_checksums(tmp_path):
    code = (
        "import sys; from ckptdb import CheckpointManager, Registry;"
        "manager = CheckpointManager({'checkpoint_dir': sys.argv[1]});"
        "manager.finalize_checkpoint(manager.init_tmp_checkpoint(1, {}));"
        "assert manager.resume().step == 1; manager.shutdown();"
        "assert len(Registry.open(sys.argv[1]).verify()) == 1;"
        "assert 'xxhash' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=True)

"""Files that no loop should have written: what everybody says who is asked about the run.

How each parser takes them is in tests/disk; here a run has three good checkpoints and a bad one
that would be best and latest, and is asked, reconciled, listed, pruned and trained on.
"""

import errno
import json
import math
import os
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path

import pytest
from lab import scene
from lab.scene import BAD, BEST, GOOD, LATEST, LOSS, ckptdb
from tests.support.requirements import needs_root

from ckptdb import Registry
from ckptdb.core.facts import Fact
from ckptdb.disk import paths
from ckptdb.disk.journal import append
from ckptdb.disk.json_file import MAX_BYTES
from ckptdb.errors import InvalidStep, UnreadableInfo

HUGE_BYTES = 200 * 1024 * 1024


@pytest.fixture
def run(tmp_path):
    return scene.build(tmp_path / "results")


@pytest.fixture(params=["with a manifest", "NeMo-RL's"])
def ours(request):
    return request.param == "with a manifest"


def put(name: str, content: bytes):
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


def instead(name: str, make):
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return spoil


def make_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE_BYTES)  # sparse


def link_to_a_good_one(path: Path) -> None:
    path.symlink_to(path.parent.parent / f"step_{LATEST}" / path.name)


def make_device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends


# --- training_info.json -------------------------------------------------------------------------

INFO = "training_info.json"
NOT_JSON = f"{INFO} is not JSON"
UNTRUSTED = {
    "empty": (put(INFO, b""), NOT_JSON),
    "NULs": (put(INFO, b"\0" * 4096), NOT_JSON),
    "truncated": (put(INFO, b'{"loss": 0.00'), NOT_JSON),
    "200,000 levels deep": (put(INFO, b'{"a":' * 200_000 + b"1" + b"}" * 200_000), NOT_JSON),
    "4,301-digit integer": (put(INFO, b'{"loss": ' + b"9" * 4301 + b"}"), NOT_JSON),
    "200 MB": (instead(INFO, make_huge), f"{INFO} is larger than {MAX_BYTES} bytes"),
    "invalid UTF-8": (put(INFO, b'{"loss": 0.001, "a": "\xff"}'), NOT_JSON),
    "BOM": (put(INFO, b'\xef\xbb\xbf{"loss": 0.001}'), NOT_JSON),
    "UTF-16": (put(INFO, '{"loss": 0.001}'.encode("utf-16")), NOT_JSON),
    "list on top": (put(INFO, b'[{"loss": 0.001}]'), f"{INFO} holds a list, not an object"),
    "null on top": (put(INFO, b"null"), f"{INFO} holds a NoneType, not an object"),
    "missing": (lambda folder: (folder / INFO).unlink(), f"{INFO} is missing"),
    "symlink": (instead(INFO, link_to_a_good_one), f"{INFO} is a symlink, not a regular file"),
    "FIFO": (instead(INFO, os.mkfifo), f"{INFO} is a pipe, not a regular file"),
    "device": (instead(INFO, make_device), f"{INFO} is a device, not a regular file"),
    "directory": (instead(INFO, Path.mkdir), f"{INFO} is a directory, not a regular file"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        pytest.param(*case, id=name, marks=needs_root if name == "device" else ())
        for name, case in UNTRUSTED.items()
    ],
)
def test_metadata_that_cannot_be_trusted_is_told_kept_and_not_counted(run, ours, spoil, problem):
    scene.add(run, spoil, ours=ours)
    scene.check_untrusted(run, problem)


@pytest.mark.parametrize("spoil", [c[0] for c in UNTRUSTED.values()][:3], ids=list(UNTRUSTED)[:3])
def test_whoever_loads_bad_metadata_itself_gets_one_sentence(run, spoil):
    folder = scene.add(run, spoil, ours=True)
    with scene.make_manager(run) as manager, pytest.raises(UnreadableInfo, match=INFO):
        manager.load_training_info(folder)


UNRANKED = {
    "NaN": (b'{"loss": NaN}', {LOSS: None}),
    "Infinity": (b'{"loss": -Infinity}', {LOSS: None}),
    "1e999": (b'{"loss": -1e999}', {LOSS: None}),
    "integer beyond any float": (b'{"loss": -' + b"9" * 4000 + b"}", {LOSS: None}),
    "bool metric": (b'{"loss": false}', {}),
    "string metric": (b'{"loss": "0.001"}', {}),
    "null metric": (b'{"loss": null}', {}),
    "metric in a list": (b'{"loss": [0.001]}', {}),
    "metric misspelt": (b'{"losss": 0.001}', {"losss": 0.001}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "metrics"), UNRANKED.values(), ids=UNRANKED)
def test_a_metric_that_is_none_is_whole_and_never_the_best(run, ours, content, metrics):
    scene.add(run, put(INFO, content), ours=ours)
    scene.check_answers(run, best=BEST, latest=BAD)
    assert ckptdb("-C", run, "reconcile").code == 0
    assert ckptdb("-C", run, "check").code == 0
    found = json.loads(ckptdb("-C", run, "show", BAD, "-o", "json").out)
    assert (found["problem"], found["metrics"]) == (None, metrics)
    scene.save(run, 20, 0.75, keep_top_k=2)
    assert {p.name for p in run.glob("step_*")} == {"step_2", "step_4", "step_20"}


ODD = {
    "duplicate keys": (b'{"loss": 9, "loss": 0.001}', {LOSS: 0.001}),
    "lone surrogate": (b'{"loss": 0.001, "a": "\\ud800", "\\udfff": 1}', {LOSS: 0.001}),
    "other step inside": (b'{"loss": 0.001, "step": 4}', {LOSS: 0.001, "step": 4}),
    "NUL in a name": (b'{"loss": 0.001, "a\\u0000b": 1}', {LOSS: 0.001}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("content", "metrics"), ODD.values(), ids=ODD)
def test_odd_metadata_is_metadata(run, ours, content, metrics):
    scene.add(run, put(INFO, content), ours=ours)
    scene.check_answers(run, best=BAD, latest=BAD)
    assert ckptdb("-C", run, "reconcile").code == 0
    assert ckptdb("-C", run, "check").code == 0
    found = json.loads(ckptdb("-C", run, "show", BAD, "-o", "json").out)
    assert (found["problem"], found["metrics"]) == (None, metrics)
    scene.save(run, 20, 0.75, keep_top_k=2)
    assert {p.name for p in run.glob("step_*")} == {"step_4", f"step_{BAD}", "step_20"}


def test_when_all_metrics_are_nan_the_latest_is_best_and_the_newest_stay(tmp_path):
    run = tmp_path / "run"
    for step in (1, 2):
        scene.save(run, step, math.nan, keep_top_k=2)
    with pytest.warns(UserWarning, match="with a finite value, only NaN or infinite ones"):
        scene.save(run, 3, math.nan, keep_top_k=2)
    with pytest.warns(UserWarning, match="with a finite value, only NaN or infinite ones"):
        scene.save(run, 4, math.nan, keep_top_k=2)
    assert {p.name for p in run.glob("step_*")} == {"step_3", "step_4"}
    expected = pytest.warns(UserWarning, match="is not finite|No checkpoints contain")
    with scene.make_manager(run) as manager, expected:
        assert manager.get_best_checkpoint_path() == str(run / "step_4")
    said = ckptdb("-C", run, "best")
    assert said.code == 1
    assert "(NaN or infinite at step(s) 3, 4) has a finite value of the metric 'loss'" in said.err


# --- manifest.json ------------------------------------------------------------------------------


def change_manifest(**fields):
    def spoil(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**content, **fields}))

    return spoil


WRONG_TYPE = "manifest.json has fields of the wrong type"
MANIFESTS = {
    "empty": (put("manifest.json", b""), "manifest.json is not JSON"),
    "200 MB": (instead("manifest.json", make_huge), "manifest.json is larger than"),
    "FIFO": (instead("manifest.json", os.mkfifo), "manifest.json is a pipe, not a regular file"),
    "a list": (put("manifest.json", b"[]"), "manifest.json holds a list"),
    "of another program": (put("manifest.json", b'{"layers": []}'), "does not have the fields"),
    "files that lead out": (change_manifest(files={"../step_4/model.bin": 1}), WRONG_TYPE),
    "an absolute file": (change_manifest(files={"/etc/passwd": 1}), WRONG_TYPE),
    "a uuid that leads out": (change_manifest(uuid="../../elsewhere"), WRONG_TYPE),
    "a step beyond 2**63": (change_manifest(step=2**63), WRONG_TYPE),
    "a bool for a size": (change_manifest(files={"model.bin": True}), WRONG_TYPE),
    "a list of checksums": (change_manifest(checksums=["a"]), WRONG_TYPE),
    "a number for a checksum": (change_manifest(checksums={"model.bin": 1}), WRONG_TYPE),
}


@pytest.mark.slow
@pytest.mark.parametrize(("spoil", "problem"), MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_cannot_be_trusted_is_told_kept_and_not_counted(run, spoil, problem):
    scene.add(run, spoil, ours=True)
    scene.check_untrusted(run, problem)


# --- config.yaml --------------------------------------------------------------------------------

LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
MERGES = "b0: &b0 {x: 1, y: 2}\n" + "".join(
    f"b{i}: &b{i} {{<<: [{', '.join([f'*b{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CONFIGS = {
    "python tag": put("config.yaml", b"a: !!python/object/apply:os.mkdir ['owned']"),
    "billion laughs": put("config.yaml", LAUGHS.encode()),
    "billion merges": put("config.yaml", MERGES.encode()),
    "self alias": put("config.yaml", b"a: &a [*a]\nb: &b {<<: *b}"),
    "deep": put("config.yaml", b"[" * 100_000),
    "NULs": put("config.yaml", b"\0" * 4096),
    "UTF-16": put("config.yaml", "lr: 0.1\n".encode("utf-16")),
    "not UTF-8": put("config.yaml", b"lr: \xff"),
    "200 MB": instead("config.yaml", make_huge),
    "FIFO": instead("config.yaml", os.mkfifo),
    "symlink": instead("config.yaml", lambda path: path.symlink_to("/dev/zero")),
    "directory": instead("config.yaml", Path.mkdir),
    "NaN, odd keys": put("config.yaml", b"a: .nan\nb: 2026-11-22\n1.5: {true: !!binary YQ==}"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("spoil", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_cannot_be_read_costs_the_checkpoint_nothing(run, ours, spoil, monkeypatch):
    monkeypatch.chdir(run.parent)
    scene.add(run, spoil, ours=ours)
    scene.check_answers(run, best=BAD, latest=BAD)
    assert ckptdb("-C", run, "reconcile").code == 0
    said = ckptdb("-C", run, "check")
    assert (said.code, said.err) == (0, "")
    assert "no drift" in said.out
    assert not (run.parent / "owned").exists()
    with Registry.open(run) as registry:
        json.dumps([dict(found.config or {}) for found in registry.runs()], allow_nan=False)


# --- the run's own files ------------------------------------------------------------------------


def with_the_catalog_gone(run: Path) -> None:
    (run.parent / ".ckptdb" / "catalog.db").unlink()


JOURNALS = {
    "NULs": b"\0" * 4096,
    "text": b"this is no journal\n" * 10,
    "torn": b'{"at": "2026-11-22T00:00:00.000Z", "fact": "del',
    "deep": b"[" * 200_000 + b"\n",
    "not UTF-8": b'{"at": "\xff"}\n',
    "empty": b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("content", JOURNALS.values(), ids=JOURNALS)
def test_lines_that_are_none_hide_nothing(run, content):
    with Registry.open(run) as registry:
        registry.pin(None, 6)
    journal = run / ".ckptdb" / "journal.jsonl"
    journal.write_bytes(content + b"\n" + journal.read_bytes())
    with_the_catalog_gone(run)
    assert ckptdb("-C", run, "reconcile").code == 0
    assert "no drift" in ckptdb("-C", run, "check").out
    scene.check_answers(run, best=BEST, latest=LATEST)
    assert json.loads(ckptdb("-C", run, "show", 6, "-o", "json").out)["pinned"]


ODD_LINES = {
    "a rejection without a reason": {"fact": "rejected"},
    "a number for a reason": {"fact": "rejected", "reason": 5},
    "a list for a reason": {"fact": "rejected", "reason": ["bad"]},
    "a lone surrogate for a reason": {"fact": "rejected", "reason": "\ud800"},
    "a NUL in a reason": {"fact": "rejected", "reason": "a\0b"},
    "a resumption by nobody": {"fact": "resumed"},
    "a resumption by a number": {"fact": "resumed", "host": 5, "pid": 1},
    "a resumption by a lone surrogate": {"fact": "resumed", "host": "\udfff", "pid": 1},
    "a resumption by a text": {"fact": "resumed", "host": "h", "pid": "1"},
    "a resumption by a bool": {"fact": "resumed", "host": "h", "pid": True},
    "a resumption beyond 2**63": {"fact": "resumed", "host": "h", "pid": 2**64},
}


@pytest.mark.slow
@pytest.mark.parametrize("odd", ODD_LINES.values(), ids=ODD_LINES)
@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_rejection_or_resumption_of_the_wrong_kind_counts_for_nothing(run, odd, rebuilt):
    with Registry.open(run) as registry:
        uuid = registry.get(BEST).uuid
    more = {name: value for name, value in odd.items() if name != "fact"}
    line = Fact("2026-11-22T00:00:00.000Z", odd["fact"], uuid, more)
    append(run / ".ckptdb", [line], make_durable=False)
    if rebuilt:
        with_the_catalog_gone(run)
    assert ckptdb("-C", run, "reconcile").code == 0
    assert "no drift" in ckptdb("-C", run, "check").out
    scene.check_answers(run, best=BEST, latest=LATEST)
    first, *_ = json.loads(ckptdb("-C", run, "show", BEST, "--lineage", "-o", "json").out)
    assert (first["step"], first["resumed_at"]) == (BEST, None)


def test_the_wildest_reason_is_a_rejection_like_any_other(run):
    reason = "\x1b[31m" + "x" * 100_000 + "\n\u202e"
    with Registry.open(run) as registry:
        uuid = registry.get(LATEST).uuid
    line = Fact("then", "rejected", uuid, {"reason": reason})
    append(run / ".ckptdb", [line], make_durable=False)
    assert ckptdb("-C", run, "reconcile").code == 0
    scene.check_answers(run, best=BEST, latest=BEST)
    for command in (("show", LATEST), ("ls",), ("ls", "-o", "csv"), ("check",)):
        said = ckptdb("-C", run, *command)
        assert said.code == 0
        assert "\x1b" not in said.out or "csv" in command
    assert ckptdb("-C", run, "unreject", LATEST).code == 0
    scene.check_answers(run, best=BEST, latest=LATEST)


def test_a_line_of_a_gigabyte_hides_nothing(run):
    with Registry.open(run) as registry:
        registry.pin(None, 2)
        with (run / ".ckptdb" / "journal.jsonl").open("ab") as file:
            file.truncate(1024**3)  # sparse
        registry.pin(None, 6)
    with_the_catalog_gone(run)
    assert ckptdb("-C", run, "reconcile").code == 0
    listed = json.loads(ckptdb("-C", run, "ls", "-o", "json").out)
    assert [row["step"] for row in listed if row["pinned"]] == [2, 6]


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["directory", "FIFO"])
def test_a_journal_that_is_no_file_stops_deleting_and_nothing_else(run, make):
    scene.save(run, BAD, 0.75)
    journal = run / ".ckptdb" / "journal.jsonl"
    assert not journal.exists()
    make(journal)
    scene.check_answers(run, best=BEST, latest=BAD)
    said = ckptdb("-C", run, "reconcile")
    assert said.code == 4
    assert f"{journal}: " in said.err
    assert "nothing missing is recorded as deleted until it can be read" in said.err
    with pytest.warns(UserWarning, match="Failed to prune old checkpoints"):
        scene.save(run, 20, 0.75, keep_top_k=1)
    assert {p.name for p in run.glob("step_*")} == {f"step_{s}" for s in (*GOOD, BAD, 20)}
    journal.rmdir() if journal.is_dir() else journal.unlink()
    assert ckptdb("-C", run, "reconcile").code == 0
    scene.save(run, 21, 0.75, keep_top_k=1)
    assert {p.name for p in run.glob("step_*")} == {"step_4", "step_21"}


RUN_FILES = {
    "empty": put(".ckptdb/run.json", b""),
    "truncated": put(".ckptdb/run.json", b'{"uuid": "'),
    "a list": put(".ckptdb/run.json", b"[]"),
    "a uuid that is none": put(".ckptdb/run.json", b'{"uuid": "../.."}'),
    "200 MB": instead(".ckptdb/run.json", make_huge),
    "FIFO": instead(".ckptdb/run.json", os.mkfifo),
    "directory": instead(".ckptdb/run.json", Path.mkdir),
}


@pytest.mark.slow
@pytest.mark.parametrize("spoil", RUN_FILES.values(), ids=RUN_FILES)
def test_a_run_json_that_cannot_be_trusted_is_told_and_nothing_is_forgotten(run, spoil):
    spoil(run)
    scene.check_answers(run, best=BEST, latest=LATEST)
    before = scene.snapshot(run)
    said = ckptdb("-C", run, "reconcile")
    assert said.code == 4
    assert "run.json" in said.err
    assert "Nothing of this run was changed; restore the file" in said.err
    assert scene.snapshot(run) == before
    with Registry.open(run.parent) as registry:
        assert registry.checkpoints(status="deleted") == ()
        assert {cp.step for cp in registry.checkpoints(status="final")} == set(GOOD)
    scene.save(run, 20, 0.01)
    scene.check_answers(run, best=20, latest=20)


# --- what cannot be read ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE], ids=errno.errorcode.get)
def test_an_error_of_one_file_costs_one_checkpoint(run, monkeypatch, code):
    scene.save(run, BAD, 0.001)
    real, victim = paths.open_to_read, run / f"step_{BAD}"

    def fail(path):
        if Path(path).parent == victim:
            raise OSError(code, os.strerror(code), str(path))
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "open_to_read", fail)
        scene.check_untrusted(run, f"step_{BAD} cannot be read ({os.strerror(code)})")
    assert ckptdb("-C", run, "reconcile").code == 0
    scene.check_answers(run, best=BAD, latest=20)


# --- steps that are none ------------------------------------------------------------------------

NO_STEPS = [-1, 2**63, 10**30, True, 1.0, 1e3, "1", None, math.nan, [1], b"1"]


@pytest.mark.slow
@pytest.mark.parametrize("step", NO_STEPS, ids=repr)
def test_a_step_that_is_none_is_refused_before_anything_is_written(run, step):
    before = scene.snapshot(run)
    with scene.make_manager(run) as manager, pytest.raises(InvalidStep, match="is not a step"):
        manager.init_tmp_checkpoint(step, {LOSS: 1})
    assert scene.snapshot(run) == before


def test_a_step_of_numpy_is_a_step(run):
    import numpy as np

    scene.save(run, np.int64(12), 0.01)
    scene.check_answers(run, best=12, latest=12)
    scene.save(run, np.uint64(2**63 - 1), 0.02)
    scene.check_answers(run, best=12, latest=2**63 - 1)


# --- the catalog --------------------------------------------------------------------------------


def execute(*statements: str):
    def change(file: Path) -> None:
        with closing(sqlite3.connect(file)) as database:
            database.executescript(";".join(statements))

    return change


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    for place in range(120, len(content), 97):
        content[place] ^= 0x10
    file.write_bytes(content)


def leave_a_stale_journal(file: Path) -> None:
    # As of another database: SQLite takes no page from it.
    file.with_name("catalog.db-journal").write_bytes(
        b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + b"\1" * 4096
    )


def put_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN = "`ckptdb reconcile` sets it aside"
CATALOGS = {
    "missing": (Path.unlink, 0, "", 0),
    "0 bytes": (lambda file: os.truncate(file, 0), 0, "", 0),
    "text": (lambda file: file.write_text("no catalog\n" * 900), 1, BROKEN, 0),
    "truncated": (cut, 1, BROKEN, 0),
    "bit-flipped": (flip, 1, BROKEN, 0),
    "stale journal": (leave_a_stale_journal, 0, "", 0),
    "a directory in its place": (put_a_directory, 1, "it is a directory", 1),
    "newer revision": (
        execute("UPDATE ckptdb_version SET version_num = '9999'"), 12, "upgrade ckptdb", 12,
    ),
    "foreign application": (
        execute("PRAGMA application_id = 1", "CREATE TABLE theirs (a)"), 12,
        "database of another application", 12,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "code", "sentence", "reconciled"), CATALOGS.values(), ids=CATALOGS
)
def test_a_bad_catalog_is_one_sentence_and_costs_no_checkpoint(
    run, spoil, code, sentence, reconciled
):
    file, before = run.parent / ".ckptdb" / "catalog.db", scene.snapshot(run)
    spoil(file)
    for question in (("best",), ("latest",), ("ls",), ("top",)):
        said = ckptdb("-C", run, *question)
        assert (said.code, sentence in said.err) == (code, True), said
        assert said.err.count("\n") == (1 if sentence else 0), said
    assert scene.snapshot(run) == before
    with scene.make_manager(run) as manager, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert manager.get_best_checkpoint_path() == str(run / f"step_{BEST}")
        assert manager.get_latest_checkpoint_path() == str(run / f"step_{LATEST}")
    assert len(caught) == (1 if sentence else 0)
    assert ckptdb("-C", run, "reconcile").code == reconciled
    if reconciled == 0:
        assert "no drift" in ckptdb("-C", run, "check").out
        scene.check_answers(run, best=BEST, latest=LATEST)


# --- what the catalog says of a path ------------------------------------------------------------


@pytest.mark.parametrize("path", ["../..", "/etc", "run/step_4/../../..", "", "run\n"])
def test_a_stored_path_leads_no_deletion_astray(run, path):
    treasure = run.parent.parent / "treasure"
    treasure.mkdir()
    with closing(sqlite3.connect(run.parent / ".ckptdb" / "catalog.db")) as catalog, catalog:
        catalog.execute("UPDATE checkpoints SET path = ? WHERE step = 2", (path,))
    with Registry.open(run.parent) as registry:
        registry.remove([2], run="run")
        assert {p.name for p in run.glob("step_*")} == {"step_4", "step_6"}
        registry.reconcile()
        assert not registry.reconcile().has_drift
        assert {cp.path for cp in registry.checkpoints(status="final")} == set(run.glob("step_*"))
    assert treasure.is_dir()
    assert ckptdb("-C", run, "check").code == 0

from __future__ import annotations

import errno
import os
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from ckptdb.core.facts import Fact, Facts
from ckptdb.core.metrics import Metric
from ckptdb.core.records import Annotations, Checkpoint, CheckpointProblem, Resumption, Run
from ckptdb.disk import fsutil, journal, journal_lines, journal_records
from ckptdb.disk.journal_lines import PART_BYTES
from ckptdb.disk.journal_pins import Evaluated, Pins

UUID = "0b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"
OTHER = "1b1e0e60-9d3c-4f5e-8a7b-3f0c2d1e4a5b"


def time(number: int) -> str:
    return f"2026-11-22T16:01:{number:02}.000Z"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / ".ckptdb").mkdir()
    return Run(uuid="the run", name="grpo", directory=tmp_path)


@pytest.fixture
def hidden(run: Run) -> Path:
    return run.directory / ".ckptdb"


@pytest.fixture
def checkpoint(run: Run) -> Checkpoint:
    return Checkpoint(
        run_uuid=run.uuid,
        run=run.name,
        uuid=UUID,
        step=5,
        path=run.directory / "step_5",
        status="final",
        created_at=time(0),
        finalized_at=time(1),
        size_bytes=10,
        file_count=2,
        parent=OTHER,
        info={"loss": 0.5, "grad": "NaN"},
        metrics={"loss": 0.5, "grad": None},
    )


def note(*facts: Fact, hidden: Path):
    journal.append(hidden, facts, make_durable=False)


# --- what is gone -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", ["retention", "manual", "replaced", "discarded", "vanished", "unknown"]
)
def test_a_checkpoint_that_is_gone_is_rebuilt_from_its_line(run, hidden, checkpoint, kind):
    end = checkpoint.ended(kind, "because", time(9))
    note(journal_records.gone(end), hidden=hidden)
    assert journal.read(hidden, run).gone == {UUID: end}


@pytest.mark.parametrize("kind", ["damaged", "corrupt", "unreadable"])
def test_the_problem_of_what_is_gone_keeps_its_kind(run, hidden, checkpoint, kind):
    end = checkpoint.with_problem(CheckpointProblem(kind, "why")).ended("manual", "why", time(9))
    note(journal_records.gone(end), hidden=hidden)
    assert journal.read(hidden, run).gone == {UUID: end}


@pytest.mark.parametrize(
    ("fact", "reason", "kind"),
    [
        ("deleted", "retention: not best 2 by val:loss min (0.5)", "retention"),
        ("deleted", "by hand", "manual"),
        ("deleted", "deleted on a full disk, which had no space for the reason", "unknown"),
        ("deleted", "replaced by hand", "unknown"),
        ("replaced", "by hand", "replaced"),
        ("discarded", "retention: not", "discarded"),
        ("vanished", "vanished: not on disk any more", "vanished"),
    ],
)  # fmt: skip
def test_an_older_line_gives_the_kind_as_well(run, hidden, checkpoint, fact, reason, kind):
    line = journal_records.gone(checkpoint.ended("manual", reason, time(9)))
    details = {name: line.details[name] for name in ("reason", "record")}
    note(Fact(line.at, fact, UUID, details), hidden=hidden)
    assert journal.read(hidden, run).gone[UUID].deleted_kind == kind


@pytest.mark.parametrize("kind", ["vanished", "nonsense", None, 5, ["manual"]])
def test_a_kind_that_a_line_cannot_have_counts_for_nothing(run, hidden, checkpoint, kind):
    line = journal_records.gone(checkpoint.ended("retention", "by hand", time(9)))
    note(replace(line, details={**line.details, "kind": kind}), hidden=hidden)
    assert journal.read(hidden, run).gone[UUID].deleted_kind == "manual"


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (None, None),
        ("damaged: model.bin: 3 of 10 bytes", "damaged"),
        ("damaged: model.bin: 3 of 10 bytes; a.bin differs from its checksum", "corrupt"),
        ("training_info.json is not JSON", "unreadable"),
    ],
)
def test_an_older_record_gives_the_kind_of_a_problem_as_well(
    run, hidden, checkpoint, problem, kind
):
    line = journal_records.gone(
        replace(checkpoint, problem=problem).ended("manual", "why", time(9))
    )
    record = {name: said for name, said in line.details["record"].items() if name != "problem_kind"}
    note(replace(line, details={**line.details, "record": record}), hidden=hidden)
    assert journal.read(hidden, run).gone[UUID].problem_kind == kind


def test_late_metrics_are_not_part_of_the_line(run, hidden, checkpoint):
    late = Metric("mmlu", 0.6, "lm-eval", time(3))
    with_late = replace(
        checkpoint, metrics={**checkpoint.metrics, "mmlu": 0.6}, late={"mmlu": late}
    )
    note(journal_records.gone(with_late.ended("retention", "because", time(9))), hidden=hidden)

    assert journal.read(hidden, run).gone[UUID].metrics == checkpoint.metrics


def test_the_last_line_wins(run, hidden, checkpoint):
    note(
        journal_records.gone(checkpoint.ended("retention", "first", time(1))),
        journal_records.gone(checkpoint.ended("vanished", "second", time(2))),
        hidden=hidden,
    )
    assert journal.read(hidden, run).gone[UUID].deleted_reason == "second"


def test_what_reappeared_is_not_gone(run, hidden, checkpoint):
    note(journal_records.gone(checkpoint.ended("vanished", "first", time(1))), hidden=hidden)
    note(Fact(time(2), "reappeared", UUID), hidden=hidden)
    assert journal.read(hidden, run).gone == {}

    note(journal_records.gone(checkpoint.ended("retention", "again", time(3))), hidden=hidden)
    assert journal.read(hidden, run).gone[UUID].deleted_reason == "again"


# --- annotations ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([("pin", {})], Annotations(pinned=True)),
        ([("pin", {}), ("unpin", {})], None),
        ([("note", {"text": "good"})], Annotations(notes="good")),
        ([("note", {"text": "good"}), ("note", {"text": None})], None),
        ([("note", {"text": 5})], None),
        ([("note", {"text": "\ud800"})], None),
        (
            [("tag", {"name": "b"}), ("tag", {"name": "a"})],
            Annotations(tags=(("a", time(2)), ("b", time(1)))),
        ),
        ([("tag", {"name": "a"}), ("untag", {"name": "a"})], None),
        ([("untag", {"name": "a"})], None),
        ([("tag", {"name": 5}), ("tag", {}), ("tag", {"name": "\ud800"})], None),
        (
            [("metric", {"name": "mmlu", "value": 1, "source": "eval"})],
            Annotations(late=(Metric("mmlu", 1.0, "eval", time(1)),)),
        ),
        (
            [
                ("metric", {"name": "b", "value": 0.1, "source": "s"}),
                ("metric", {"name": "a", "value": float("nan"), "source": "s"}),
                ("metric", {"name": "b", "value": 0.2, "source": "t"}),
            ],
            Annotations(late=(Metric("a", None, "s", time(2)), Metric("b", 0.2, "t", time(3)))),
        ),
        (
            [("metric", {"name": "m", "value": 10**400, "source": "s"})],
            Annotations(late=(Metric("m", None, "s", time(1)),)),
        ),
        (
            [("metric", {"name": "m", "value": True, "source": "s"})],
            Annotations(late=(Metric("m", None, "s", time(1)),)),
        ),
        ([("metric", {"name": "m", "value": 1.0})], None),
        ([("a kind of tomorrow", {"name": "m"})], None),
        ([("rejected", {"reason": "diverged"})], Annotations(rejected="diverged")),
        (
            [("rejected", {"reason": "first"}), ("rejected", {"reason": ""})],
            Annotations(rejected=""),
        ),
        ([("rejected", {"reason": "diverged"}), ("unrejected", {})], None),
        (
            [
                ("rejected", {"reason": "diverged"}),
                *(("rejected", more) for more in ({}, {"reason": None}, {"reason": 5},
                  {"reason": ["a"]}, {"reason": "\ud800"}, {"reason": "a\0"})),
            ],
            Annotations(rejected="diverged"),
        ),
        (
            [("resumed", {"host": "b", "pid": 2}), ("resumed", {"host": "a", "pid": 2**62})],
            Annotations(
                resumptions=(Resumption(time(1), "b", 2), Resumption(time(2), "a", 2**62))
            ),
        ),
        (
            [
                ("resumed", more)
                for more in ({}, {"host": "a"}, {"pid": 1}, {"host": 1, "pid": 1},
                             {"host": "\ud800", "pid": 1}, {"host": "a", "pid": "1"},
                             {"host": "a", "pid": True}, {"host": "a", "pid": 1.0},
                             {"host": "a", "pid": -1}, {"host": "a", "pid": 2**63})
            ],
            None,
        ),
    ],
    ids=[
        "pin", "unpin", "note", "no note", "odd note", "foreign note", "tags", "untag",
        "untag nothing", "odd tags", "metric", "metrics", "huge metric", "bool metric",
        "metric without source", "unknown kind", "rejected", "rejected again", "unrejected",
        "odd rejections", "resumed", "odd resumptions",
    ],
)  # fmt: skip
def test_annotations_are_what_the_last_lines_say(run, hidden, facts, expected):
    lines = [Fact(time(i), kind, UUID, more) for i, (kind, more) in enumerate(facts, 1)]
    note(*lines, hidden=hidden)

    annotations = journal.read(hidden, run).annotations
    assert annotations == ({} if expected is None else {UUID: expected})


def test_one_line_told_twice_is_one_resumption(run, hidden):
    line = Fact(time(1), "resumed", UUID, {"host": "a", "pid": 1})
    note(line, line, hidden=hidden)
    assert journal.read(hidden, run).annotations[UUID].resumptions == (Resumption(time(1), "a", 1),)


# --- lines that count for nothing -------------------------------------------------------


def soiled(checkpoint: Checkpoint, **change: object) -> Fact:
    fact = journal_records.gone(checkpoint.ended("retention", "because", time(1)))
    record = {**fact.details["record"], **change}
    return replace(fact, details={"reason": "because", "record": record})


FOREIGN = [
    b"",
    b"{",
    b"null",
    b"[1, 2]",
    b"5",
    b'"text"',
    b"\0\0\0",
    b"\xff\xfe",
    b"{}",
    b'{"at": "t", "fact": "pin"}',
    b'{"at": 5, "fact": "pin", "uuid": "u"}',
    b'{"at": "t", "fact": ["pin"], "uuid": "u"}',
    b'{"at": "t", "fact": "pin", "uuid": "\\ud800"}',
    b'{"at": "t", "fact": "deleted", "uuid": "u"}',
    b'{"at": "t", "fact": "deleted", "uuid": "u", "reason": "r", "record": 5}',
    b'{"at": "t", "fact": "deleted", "uuid": "u", "reason": "r", "record": {}}',
    b"[" * 200_000,
    b'{"at": ' + b"9" * 5_000 + b"}",
]


@pytest.mark.parametrize("line", FOREIGN, ids=lambda line: repr(line[:60]))
def test_a_foreign_line_counts_for_nothing(run, hidden, line):
    (hidden / "journal.jsonl").write_bytes(line + b"\n")
    note(Fact(time(1), "pin", OTHER), hidden=hidden)

    facts = journal.read(hidden, run)

    assert facts.gone == {}
    assert set(facts.annotations) == {OTHER}


@pytest.mark.parametrize(
    "change",
    [
        {"step": "5"},
        {"step": True},
        {"step": -1},
        {"step": 2**63},
        {"created_at": None},
        {"finalized_at": 5},
        {"size_bytes": "10"},
        {"file_count": 2**70},
        {"parent": 5},
        {"info": []},
        {"metrics": [1]},
        {"metrics": {"loss": "0.5"}},
        {"metrics": {"\ud800": 0.5}},
    ],
    ids=repr,
)
def test_a_record_with_a_wrong_field_counts_for_nothing(run, hidden, checkpoint, change):
    note(soiled(checkpoint, **change), hidden=hidden)
    assert journal.read(hidden, run).gone == {}


def test_a_record_without_a_reason_counts_for_nothing(run, hidden, checkpoint):
    fact = journal_records.gone(checkpoint.ended("retention", "because", time(1)))
    note(replace(fact, details={**fact.details, "reason": None}), hidden=hidden)
    assert journal.read(hidden, run).gone == {}


def test_a_torn_line_does_not_swallow_the_next_one(run, hidden):
    note(Fact(time(1), "pin", UUID), hidden=hidden)
    with (hidden / "journal.jsonl").open("ab") as file:
        file.write(b'{"at": "2026", "fact": "unp')
    note(Fact(time(2), "pin", OTHER), hidden=hidden)

    assert set(journal.read(hidden, run).annotations) == {UUID, OTHER}


@pytest.mark.parametrize("cut", range(2, 60, 7))
def test_a_journal_may_end_anywhere(run, hidden, cut):
    note(Fact(time(1), "pin", UUID), Fact(time(2), "pin", OTHER), hidden=hidden)
    path = hidden / "journal.jsonl"
    os.truncate(path, path.stat().st_size - cut)

    assert set(journal.read(hidden, run).annotations) == {UUID}


# --- appending --------------------------------------------------------------------------


def test_a_missing_journal_says_nothing(run, hidden):
    assert journal.size(hidden.parent) == 0
    facts = journal.read(hidden, run)
    assert (facts.gone, facts.annotations) == ({}, {})


def test_nothing_to_append_creates_nothing(hidden):
    journal.append(hidden, [], make_durable=True)
    assert os.listdir(hidden) == []


def test_the_first_line_makes_the_name_durable_too(hidden, monkeypatch):
    flushed = []
    monkeypatch.setattr(fsutil, "fsync", flushed.append)

    journal.append(hidden, [Fact(time(1), "pin", UUID)], make_durable=True)
    assert flushed == [hidden]
    journal.append(hidden, [Fact(time(2), "unpin", UUID)], make_durable=True)
    assert flushed == [hidden]
    assert journal.size(hidden.parent) == (hidden / "journal.jsonl").stat().st_size


def test_a_name_that_is_not_durable_never_has_a_byte_behind_it(hidden, monkeypatch):
    # Who comes after somebody that was killed in between flushes only the line.
    def refuse(_):
        raise OSError(errno.EIO, "not durable")

    monkeypatch.setattr(fsutil, "fsync", refuse)
    with pytest.raises(OSError, match="not durable"):
        journal.append(hidden, [Fact(time(1), "pin", UUID)], make_durable=True)
    assert journal.size(hidden.parent) == 0

    flushed = []
    monkeypatch.setattr(fsutil, "fsync", flushed.append)
    journal.append(hidden, [Fact(time(1), "pin", UUID)], make_durable=True)
    assert flushed == [hidden]


def test_short_writes_are_continued(run, hidden, monkeypatch):
    real = os.write
    monkeypatch.setattr(journal.os, "write", lambda handle, data: real(handle, data[:5]))

    note(Fact(time(1), "pin", UUID), hidden=hidden)

    assert set(journal.read(hidden, run).annotations) == {UUID}


def test_a_full_disk_tears_one_line_at_most(run, hidden, monkeypatch):
    note(Fact(time(1), "pin", UUID), hidden=hidden)
    real, room = os.write, [30]

    def write(handle, data):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(handle, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr(journal.os, "write", write)
        with pytest.raises(OSError, match="No space left"):
            note(Fact(time(2), "pin", OTHER), hidden=hidden)

    assert set(journal.read(hidden, run).annotations) == {UUID}
    note(Fact(time(3), "pin", OTHER), hidden=hidden)
    assert set(journal.read(hidden, run).annotations) == {UUID, OTHER}


def test_a_symlink_is_not_followed(hidden, tmp_path):
    (hidden / "journal.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="is a symlink"):
        note(Fact(time(1), "pin", UUID), hidden=hidden)
    assert not (tmp_path / "elsewhere").exists()


def test_what_is_no_file_is_told_at_once(run, hidden):
    os.mkfifo(hidden / "journal.jsonl")
    with pytest.raises(OSError, match="is a pipe"):
        journal.read(hidden, run)
    with pytest.raises(OSError, match="is a pipe"):
        journal.append(hidden, [Fact(time(1), "pin", "u")], make_durable=True)
    (hidden / "journal.jsonl").unlink()
    (hidden / "journal.jsonl").mkdir()
    with pytest.raises(OSError, match="is a directory"):
        journal.read(hidden, run)


def test_a_size_that_cannot_be_told_is_nobody_s(hidden, monkeypatch):
    def fail(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(journal.os, "lstat", fail)
    assert journal.size(hidden.parent) == -1


@pytest.mark.parametrize("start", [b"", b"{", b'{"at": "'], ids=["NULs", "object", "fact"])
def test_a_line_without_end_is_passed_over_in_little_memory(run, hidden, monkeypatch, start):
    monkeypatch.setattr(journal_lines, "_LONGEST_BYTES", 8 * 1024 * 1024)
    before, after = Fact(time(1), "pin", "a"), Fact(time(1), "pin", "b")
    journal.append(hidden, [before], make_durable=False)
    with (hidden / "journal.jsonl").open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(start)
        file.truncate(256 * 1024 * 1024)  # sparse
    journal.append(hidden, [after], make_durable=False)
    tracemalloc.start()
    try:
        assert set(journal.read(hidden, run).annotations) == {"a", "b"}
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_long_line_of_ours_is_read(run, hidden, checkpoint):
    large = replace(checkpoint, info={"text": "x" * (3 * PART_BYTES)})
    note(journal_records.gone(large.ended("retention", "why", time(1))), hidden=hidden)
    assert journal.read(hidden, run).gone[large.uuid].info == large.info


@pytest.mark.parametrize("seed", range(20))
def test_pins_are_found_without_understanding_the_rest(run, hidden, seed):
    chance = random.Random(seed)
    for number in range(12):
        kinds = ["pin", "unpin", "tag", "note", "metric", "rejected", "unrejected"]
        kind = chance.choice(kinds)
        word = chance.choice(["pin", "unpin", "rejected", "x"])
        details = {"name": word, "text": word, "value": 1, "source": word}
        details["reason"] = chance.choice([word, None])
        note(Fact(time(number), kind, chance.choice([UUID, OTHER]), details), hidden=hidden)

    told = journal.read(hidden, run).annotations
    pins = Pins(hidden)
    assert pins.find() == {uuid for uuid, found in told.items() if found.pinned}
    rejected = {uuid for uuid, found in told.items() if found.rejected is not None}
    assert pins.find_rejected() == rejected


@pytest.mark.parametrize("seed", range(5))
def test_what_was_evaluated_is_found_by_name_as_the_journal_grows(run, hidden, seed):
    chance = random.Random(seed)
    evaluated, done = Evaluated(hidden), {"mmlu": set(), "gsm8k": set()}
    assert evaluated.find("mmlu") == frozenset()
    for number in range(12):
        kind = chance.choice(["evaluated", "evaluated", "tag", "pin"])
        uuid, name = chance.choice([UUID, OTHER]), chance.choice(["mmlu", "gsm8k"])
        note(Fact(time(number), kind, uuid, {"name": name}), hidden=hidden)
        if kind == "evaluated":
            done[name].add(uuid)
        if chance.random() < 0.5:  # else several lines at once
            assert evaluated.find(name) == done[name]
    assert {name: evaluated.find(name) for name in done} == done
    assert {name: Evaluated(hidden).find(name) for name in done} == done


@pytest.mark.parametrize("name", [None, 1, ["mmlu"], {"a": 1}], ids=repr)
def test_an_evaluation_without_a_name_counts_for_nothing(hidden, name):
    note(Fact(time(0), "evaluated", UUID, {"name": name}), hidden=hidden)
    note(Fact(time(0), "evaluated", OTHER, {"name": "mmlu"}), hidden=hidden)
    assert Evaluated(hidden).find("mmlu") == {OTHER}


def test_of_a_journal_that_was_restored_everything_is_read_again(hidden):
    evaluated = Evaluated(hidden)
    for uuid in (UUID, OTHER):
        note(Fact(time(0), "evaluated", uuid, {"name": "mmlu"}), hidden=hidden)
    assert evaluated.find("mmlu") == {UUID, OTHER}
    path = hidden / "journal.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    assert evaluated.find("mmlu") == {UUID}


def test_of_a_journal_that_was_emptied_and_is_longer_by_now_everything_is_read_again(hidden):
    pins = Pins(hidden)
    note(Fact(time(0), "pin", "a"), Fact(time(0), "pin", "b"), hidden=hidden)
    assert pins.find() == {"a", "b"}
    os.truncate(hidden / "journal.jsonl", 0)
    settled = Fact(time(1), "settled", "", {"bytes": 10_000})
    note(Fact(time(1), "pin", "first"), Fact(time(1), "pin", "second"), settled, hidden=hidden)
    assert pins.find() == {"first", "second"}
    assert pins.find_doubt() is None


def test_that_something_was_evaluated_is_no_annotation(run, hidden):
    note(Fact(time(0), "evaluated", UUID, {"name": "mmlu"}), hidden=hidden)
    assert journal.read(hidden, run) == Facts({}, {})

"""Files of ours that are far larger than they should be, or say far more: read within bounds.

Whoever may write into a run can put anything there. None of it takes long, or much memory; a
sentence says what is not read, and the rest of the run goes on.
"""

import os
import re
import shutil
import subprocess
import sys
import zlib

import pytest
from tests.support.bounds import bounded

from ckptdb import CheckpointManager, Registry
from ckptdb.core.facts import MOST_BYTES
from ckptdb.disk import config_file, journal_lines, json_file, training_info
from ckptdb.disk.journal_pins import Pins
from ckptdb.errors import UnwritableInfo
from ckptdb.retention import Policy

pytestmark = pytest.mark.slow

HUGE_BYTES = 200 * 1024**3
METRIC = {"metric_name": "loss", "higher_is_better": False}


def save(run, *steps, **options):
    with CheckpointManager({"checkpoint_dir": str(run), **METRIC, **options}) as manager:
        for step in steps:
            with manager.save(step, {"loss": step / 100}) as folder:
                (folder / "model.bin").write_bytes(b"m" * step)


def published(run):
    return sorted(int(path.name[5:]) for path in run.glob("step_*"))


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "grpo"
    save(run, 100, 200, 300)
    with Registry.open(run) as registry:
        registry.pin("grpo", 200)
        registry.tag("grpo", 300, "release")
        registry.reconcile()
    return run


def asked(run):
    with Registry.open(run) as registry:
        return [[cp.step, cp.pinned, list(cp.tags)] for cp in registry.checkpoints()]


def collected(run):
    with Registry.open(run) as registry:
        registry.gc(Policy(keep_top_k=1))


def reconciled(run, *, dry_run=False):
    with Registry.open(run) as registry:
        return registry.reconcile(dry_run=dry_run, full=True).as_dict()


def checked(run):
    return reconciled(run, dry_run=True)


# --- the journal ------------------------------------------------------------------------------

KNOWN = [[100, False, []], [200, True, []], [300, False, ["release"]]]


def test_a_sparse_journal_of_200_gb_stops_deletions_and_nothing_else(run):
    path = run / ".ckptdb" / "journal.jsonl"
    os.truncate(path, HUGE_BYTES)

    _, texts = bounded(save, run, 400, 500)
    assert texts == []
    _, texts = bounded(lambda: save(run, 600, keep_top_k=1))

    [text] = [text for text in texts if "Nothing is deleted" in text]
    assert text.startswith(
        f"Nothing is deleted in {run}: its journal.jsonl is larger than {MOST_BYTES} bytes;"
        f" `ckptdb reconcile {run}` says what can be restored, and does it."
    )
    assert published(run) == [100, 200, 300, 400, 500, 600]
    found, _ = bounded(asked, run)
    assert found[:3] == KNOWN
    found, _ = bounded(collected, run)
    assert found.startswith(f"JournalInDoubt: Nothing is deleted in {run}: ")
    found, _ = bounded(checked, run)
    assert "is larger than" in found["runs"][0]["doubt"]


def test_what_is_told_behind_a_hole_is_read_and_kept_when_the_journal_is_put_right(run):
    path = run / ".ckptdb" / "journal.jsonl"
    os.truncate(path, HUGE_BYTES)

    def pin():
        with Registry.open(run) as registry:
            registry.pin("grpo", 100)

    bounded(pin)
    assert bounded(asked, run)[0][0] == [100, True, []]
    found, _ = bounded(reconciled, run)

    aside = found["runs"][0]["journal_aside"]
    assert os.stat(aside).st_size > HUGE_BYTES
    assert path.stat().st_size < 10_000
    assert bounded(asked, run)[0] == [[100, True, []], *KNOWN[1:]]
    assert bounded(checked, run)[0]["drift"] is False
    bounded(lambda: save(run, 400, keep_top_k=1))
    assert published(run) == [100, 200, 400]


def test_a_sparse_journal_is_kept_aside_also_where_no_file_can_have_two_names(run, monkeypatch):
    path = run / ".ckptdb" / "journal.jsonl"
    os.truncate(path, HUGE_BYTES)

    def refuse(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found, _ = bounded(reconciled, run)
    aside = found["runs"][0]["journal_aside"]
    assert (os.stat(aside).st_size, os.stat(aside).st_blocks < 10_000) == (HUGE_BYTES, True)
    assert bounded(asked, run)[0] == KNOWN


def seal(line, path):
    after = path.read_bytes()[-len('01234567"}\n') :][:8]
    said = line[:-1] + b', "after": "' + after + b'"'
    return said + b', "crc": "%08x"}\n' % zlib.crc32(said)


GIGANTIC = {
    "text": lambda _: b"x" * (64 << 20),
    "an object": lambda _: b'{"at": "' + b"x" * (64 << 20) + b"\n",
    "an object that is just not too long": lambda _: b'{"at": "' + b"x" * (30 << 20) + b"\n",
    "millions of values, sealed": lambda path: seal(
        b'{"at": "2026", "fact": "pin", "uuid": "u", "more": [' + b"[]," * (10 << 20) + b"1]}", path
    ),
    "lines of nothing": lambda _: b"\n" * (16 << 20),
    "lines of a letter": lambda _: b"x\n" * (8 << 20),
}


@pytest.mark.parametrize("content", GIGANTIC.values(), ids=GIGANTIC)
def test_a_journal_with_what_is_far_too_much_is_read_in_bounds(run, content, monkeypatch):
    monkeypatch.setattr(journal_lines, "_LONGEST_BYTES", 32 << 20)
    path = run / ".ckptdb" / "journal.jsonl"

    def spoil():
        with path.open("ab") as file:
            file.write(content(path))

    bounded(spoil)
    assert bounded(asked, run, megabytes=400)[0] == KNOWN
    bounded(save, run, 400)
    bounded(reconciled, run, megabytes=400)
    assert bounded(asked, run)[0] == [*KNOWN, [400, False, []]]


def test_facts_between_lines_that_are_too_short_are_found(run):
    path = run / ".ckptdb" / "journal.jsonl"
    before, junk = path.read_bytes(), b"\n" * 5000 + b"x\n" * 5000
    path.write_bytes(junk + before + junk)
    with Registry.open(run) as registry:
        registry.pin("grpo", 100)
    assert asked(run) == [[100, True, []], *KNOWN[1:]]
    pins = Pins(run / ".ckptdb")
    assert len(pins.find()) == 2
    assert "cannot be read" in pins.find_doubt()


# --- JSON -------------------------------------------------------------------------------------


def sparse(path):
    path.unlink()
    path.touch()
    os.truncate(path, HUGE_BYTES)


def of_many_values(path):
    path.write_bytes(b'{"loss": 1, "more": [' + b"[]," * (10 << 20) + b"[]]}")


def deep(path):
    path.write_bytes(b'{"loss": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}")


def of_a_long_number(path):
    path.write_bytes(b'{"loss": ' + b"9" * 20_000_000 + b"}")


OVERLARGE = [sparse, of_many_values, deep, of_a_long_number]
overlarge = pytest.mark.parametrize("spoil", OVERLARGE, ids=lambda s: s.__name__)
OURS = [
    "run.json", "lock", "trainer", "verified.json", "step_200/training_info.json",
    "step_200/manifest.json", "step_200/config.yaml", "step_200/config.json", "root.json",
]  # fmt: skip


@overlarge
@pytest.mark.parametrize("name", OURS)
def test_whatever_is_far_too_large_the_rest_of_the_run_goes_on(run, name, spoil):
    path = run / name if name.startswith("step") else run / ".ckptdb" / name
    spoil(path) if path.exists() else (path.touch(), spoil(path))
    (run / ".ckptdb" / "catalog.db").unlink()

    saved, _ = bounded(save, run, 400)
    assert saved is None or name == "run.json"
    found, _ = bounded(asked, run)
    assert {step for step, _, _ in found} >= {100, 300, 400}
    report, _ = bounded(checked, run)
    if name in ("step_200/training_info.json", "step_200/manifest.json"):
        [said] = [a["what"] for a in report["runs"][0]["actions"] if a["step"] == 200]
        assert os.path.basename(name) in said
    bounded(lambda: save(run, 500, keep_top_k=1))
    assert 500 in published(run)


@pytest.mark.parametrize(
    ("value", "metric"),
    [("1e400", None), ("-1e400", None), ("9" * 400, None), ("1", 1.0), ("NaN", None)],
    ids=["infinity", "minus infinity", "no float", "number", "NaN"],
)
def test_a_number_of_any_size_is_a_metric_or_none(run, value, metric):
    path = run / "step_300" / "training_info.json"
    path.write_text(f'{{"loss": 7, "loss": {value}}}')  # the last of two keys counts
    (run / ".ckptdb" / "catalog.db").unlink()
    with Registry.open(run) as registry:
        registry.reconcile()
        assert registry.get(300, run="grpo").metrics == {"loss": metric}
        assert registry.best("loss", mode="min").step == (300 if metric else 100)


def test_a_long_number_is_refused_also_where_python_has_no_limit(tmp_path):
    (tmp_path / "training_info.json").write_text('{"loss": ' + "9" * 5000 + "}")
    code = (
        "import sys, pathlib; sys.set_int_max_str_digits(0); from ckptdb.disk import training_info;"
        "training_info.load_info(pathlib.Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False
    )
    assert "is not JSON (an integer has more than 4300 digits)" in done.stderr


def test_what_has_too_many_values_to_be_read_back_is_not_saved(monkeypatch):
    monkeypatch.setattr(json_file, "MAX_VALUES", 100)
    with pytest.raises(UnwritableInfo, match="100 values"):
        training_info.dump_info({"values": list(range(101))})


# --- config.yaml ------------------------------------------------------------------------------

SIXTY = ":".join(["1"] * 150_000)
CONFIGS = {
    "base 60": f"a: {SIXTY}\n",
    "base 60 as a key": f"? {SIXTY}\n: 1\n",
    "base 60, many of them": "a:\n" + f"- {SIXTY[:3000]}\n" * 2500,
    "billion laughs": "a0: &a0 [x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "a long text a thousand times": f"a: &a {'x' * 1_000_000}\nb: [{','.join(['*a'] * 80_000)}]\n",
    "a long key a thousand times": "a: &a {? " + "x" * 1_000_000 + " : 1}\n"
    f"b: [{','.join(['*a'] * 40_000)}]\n",
    "merged into many": "a: &a {" + ",".join(f"k{i}: 1" for i in range(40_000)) + "}\nb:\n"
    + "- <<: *a\n" * 5000,
    "many merges in one": "a: {" + ", ".join(["<<: {}"] * 49_000) + "}\n",
    "directives": "".join(f"%TAG !a{i}! x\n" for i in range(100_000)) + "---\na: 1\n",
    "keys of one hash": "".join(f"{i * (2**61 - 1)}: 1\n" for i in range(1, 49_000)),
    "a hexadecimal key": f"? 0x{'f' * 4200}\n: 1\n",
    "a set of hexadecimal numbers": "a: !!set {? 0x" + "f" * 4000 + ", ? 0x" + "e" * 4000 + "}\n",
    "a long number": f"a: {'9' * 4_000_000}\n",
    "deep": "a: " + "[" * 4_000_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(3000)),
    "too much": "a: x\n" + " y\n" * 4_000_000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        *((text, "utf-8") for text in CONFIGS.values()),
        (CONFIGS["base 60"], "utf-16"),
        (CONFIGS["directives"], "utf-16"),
        (CONFIGS["directives"].replace("\n", "\u2028"), "utf-16"),
    ],
    ids=[*CONFIGS, "UTF-16, base 60", "UTF-16, directives", "UTF-16, directives, other lines"],
)
def test_a_configuration_that_would_take_for_ever_is_not_read(tmp_path, text, encoding):
    (tmp_path / "config.yaml").write_bytes(text.encode(encoding))

    found, _ = bounded(config_file.get_config, tmp_path)
    assert re.fullmatch(
        r"UnreadableInfo: /.*/config\.yaml "
        r"((cannot be loaded \(.*\)|has too many values or levels to be compared \(.*\))\.( .*)?"
        r"|is larger than \d+ bytes.*)",
        found,
        re.DOTALL,
    )


def test_a_time_to_the_base_of_60_and_a_merged_mapping_are_read_as_ever(tmp_path):
    (tmp_path / "config.yaml").write_text(
        "limit: 1:30:00\nbase: &base {lr: 0.1, 2305843009213693951: x}\nrun: {<<: *base, lr: 0.2}\n"
    )
    assert config_file.get_config(tmp_path) == {
        "limit": 5400,
        "base": {"lr": 0.1, "2305843009213693951": "x"},
        "run": {"lr": 0.2, "2305843009213693951": "x"},
    }


def test_a_question_is_answered_beside_a_configuration_that_would_take_for_ever(run):
    (run / "step_300" / "config.yaml").write_text(CONFIGS["base 60"])
    shutil.rmtree(run / ".ckptdb")
    found, _ = bounded(asked, run)
    assert [step for step, _, _ in found] == [100, 200, 300]

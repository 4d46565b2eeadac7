"""The fuzzer reaches what it is aimed at, finds nothing, and finds what is planted."""

import pytest
from lab import fuzz

from ckptdb.catalog.ranking import RankingQueries
from ckptdb.disk import (
    journal_records,
    json_file,
    manifest,
    read_checkpoint,
    run_listing,
)
from ckptdb.errors import UnreadableInfo


@pytest.mark.slow
def test_a_short_round_strikes_everywhere_and_finds_nothing():
    rows = list(fuzz.run("smoke", seed=1, shard=0, shards=1))
    assert {row.harness for row in rows} == {
        *(f"fuzz {what}" for what in fuzz.KINDS), f"fuzz {fuzz.WHOLE}", f"fuzz {fuzz.CATALOG}"
    }  # fmt: skip
    assert [row.failures for row in rows if row.failures] == []
    assert [row.harness for row in rows if not row.holds] == []


def test_the_shards_share_the_work():
    assert sum(fuzz.share(100, shard, 7) for shard in range(7)) == 100


@pytest.mark.parametrize("what", fuzz.KINDS)
def test_an_input_depends_on_its_key_alone(what):
    inputs = [fuzz.make(what, f"1/0/{number}") for number in range(50)]
    assert len(set(inputs)) > 25
    assert [fuzz.make(what, f"1/0/{number}") for number in range(50)] == inputs


# --- a check that cannot fail proves nothing ------------------------------------------------------


def let_a_deep_file_escape(monkeypatch):
    real = json_file.load_json

    def load(path):
        try:
            return real(path)
        except UnreadableInfo as error:
            if isinstance(error.__cause__, RecursionError):
                raise RecursionError from None
            raise

    monkeypatch.setattr(json_file, "load_json", load)


def take_true_for_a_number(monkeypatch):
    monkeypatch.setattr(fuzz, "metrics_of", lambda content: dict.fromkeys(content, 1.0))


def forget_the_type_of_a_reason(monkeypatch):
    monkeypatch.setattr(journal_records, "is_text", lambda _: True)


def follow_any_name(monkeypatch):
    monkeypatch.setattr(manifest, "_safe", lambda _: True)


PLANTED = {
    "RecursionError": ("training_info.json", let_a_deep_file_escape),
    "a bool": ("training_info.json", take_true_for_a_number),
    "a uuid that is no text": ("journal.jsonl", forget_the_type_of_a_reason),
    "a path that leads elsewhere": ("manifest.json", follow_any_name),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "plant"), PLANTED.values(), ids=PLANTED)
def test_a_planted_bug_in_a_parser_is_found_and_made_again(tmp_path, monkeypatch, what, plant):
    plant(monkeypatch)
    with fuzz._bounded():
        row = fuzz.fuzz_parsers(tmp_path, what, 1000, "planted")
    assert row.not_recovered
    assert not row.holds
    key = row.failures[0].rpartition("lab.fuzz.make(")[2].partition(") = ")
    name, number = key[0].split(", ")
    assert repr(fuzz.make(name.strip("'"), number.strip("'"))[:200]) in row.failures[0]


def write_while_looking(monkeypatch):
    real = read_checkpoint.read

    def load(who, path, step, **options):
        (path / "seen").touch()
        return real(who, path, step, **options)

    monkeypatch.setattr(read_checkpoint, "read", load)


def overlook_a_good_one(monkeypatch):
    real = run_listing.list_folder

    def listed(directory):
        found = real(directory)
        found.finals = [step for step in found.finals if step != 4]
        return found

    monkeypatch.setattr(run_listing, "list_folder", listed)


def rank_backwards(monkeypatch):
    real = RankingQueries.find_best_step
    monkeypatch.setattr(
        RankingQueries, "find_best_step", lambda self, run, name, _: real(self, run, name, "max")
    )


@pytest.mark.slow
@pytest.mark.parametrize("plant", [write_while_looking, overlook_a_good_one, rank_backwards])
def test_a_planted_bug_in_the_whole_way_is_found(tmp_path, monkeypatch, plant):
    real = fuzz._World.__init__

    def plant_when_it_stands(self, top):
        real(self, top)
        plant(monkeypatch)

    monkeypatch.setattr(fuzz._World, "__init__", plant_when_it_stands)
    row = fuzz.fuzz_runs(tmp_path, 16, "planted")
    assert row.lost + row.not_recovered == 16
    assert (row.lost > 0) == (plant is overlook_a_good_one)


@pytest.mark.slow
def test_a_catalog_that_is_believed_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "_GOOD", {**fuzz._GOOD, 2: 0.3})
    real = fuzz.build_run

    def build_with_another_truth(directory):
        run = real(directory)
        monkeypatch.setattr(fuzz, "_GOOD", {2: 0.25, 4: 0.125, 6: 0.5})
        return run

    monkeypatch.setattr(fuzz, "build_run", build_with_another_truth)
    monkeypatch.setattr(fuzz.tempfile, "gettempdir", lambda: str(tmp_path))
    row = fuzz.fuzz_catalogs(tmp_path, 3, "planted")
    assert row.lost == 3
    kept = {str(path) for path in tmp_path.glob("ckptdb-fuzz-*.db")}
    assert kept == {line.rpartition("; ")[2].partition(", ")[0] for line in row.failures}


def test_what_is_never_read_does_not_count_as_struck(tmp_path, monkeypatch):
    monkeypatch.setitem(fuzz._PARSERS, "run.json", lambda *_: None)
    row = fuzz.fuzz_parsers(tmp_path, "run.json", 10, "idle")
    assert (row.points, row.struck) == (10, 0)
    assert not row.holds


def test_the_memory_of_an_input_is_bounded(tmp_path):
    with fuzz._bounded(), pytest.raises(MemoryError):
        bytearray(fuzz.MEMORY_BYTES * 2)

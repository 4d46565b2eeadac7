import csv
import io
import json
import subprocess
import sys

import pytest
from tests.support.terminal import Terminal

from ckptdb import CheckpointManager


def test_ls_at_a_root_lists_its_runs(ckptdb, root):
    answer = ckptdb("ls", cwd=root)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines] == ["run", "alpha", "beta", "nemo"]
    assert ckptdb("ls", "-o", "json", cwd=root).json[0]["best_step"] == 2


def test_ls_in_a_run_or_of_a_named_run_lists_its_checkpoints(ckptdb, root):
    inside = ckptdb("ls", "-o", "jsonl", cwd=root / "alpha")
    named = ckptdb("ls", "alpha", "-o", "jsonl", cwd=root)
    assert inside.out == named.out
    assert [json.loads(line)["step"] for line in inside.out.splitlines()] == [1, 2, 3]


def test_ls_works_from_inside_a_checkpoint(ckptdb, root):
    assert ckptdb("ls", "-o", "json", cwd=root / "alpha" / "step_2").json[0]["run"] == "alpha"


def test_ls_of_deleted_ones_shows_why_they_went(ckptdb, root):
    assert ckptdb("rm", "1", cwd=root / "alpha").code == 0
    answer = ckptdb("ls", "--status", "deleted", cwd=root)
    assert "by hand" in answer.out
    assert len(ckptdb("ls", "--all", "-o", "json", cwd=root / "alpha").json) == 3
    assert len(ckptdb("ls", "-o", "json", "--limit", "1", cwd=root / "alpha").json) == 1


def test_lists_come_in_every_format(ckptdb, root):
    table = ckptdb("top", "2", cwd=root).out
    assert table.splitlines()[0].split() == [
        "run", "step", "status", "val:loss", "size", "finalized", "marks", "path",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(ckptdb("top", "2", "-o", "csv", cwd=root).out)))
    assert [(row["run"], row["step"], row["val:loss"]) for row in rows] == [
        ("beta", "5", "0.1"),
        ("alpha", "2", "0.2"),
    ]
    tsv = ckptdb("top", "1", "-o", "tsv", cwd=root).out
    assert tsv.splitlines()[1].split("\t")[:3] == ["beta", "5", "final"]
    md = ckptdb("top", "1", "-o", "md", cwd=root).out
    assert md.splitlines()[1].startswith("| --- |")
    assert ckptdb("top", "1", "-o", "json", cwd=root).json[0]["metrics"] == {"val:loss": 0.1}


def test_best_and_latest_print_one_path_alone(ckptdb, root):
    assert ckptdb("best", cwd=root / "alpha").out == f"{root}/alpha/step_2\n"
    assert ckptdb("latest", cwd=root / "alpha").out == f"{root}/alpha/step_3\n"
    assert ckptdb("best", cwd=root).out == f"{root}/beta/step_5\n"
    assert ckptdb("-C", root / "nemo", "best", "--metric", "acc", "--mode", "max").out == (
        f"{root}/nemo/step_2\n"
    )


def test_best_of_each_run_prints_one_path_a_line(ckptdb, root):
    paths = ckptdb("best", "--each", cwd=root).out.splitlines()
    # NeMo-RL's run has no metric of its own: its best is its latest.
    steps = {"alpha": 2, "beta": 5, "nemo": ckptdb("latest", "--run", "nemo", cwd=root).out[-2]}
    assert paths == [f"{root}/{run}/step_{step}" for run, step in steps.items()]
    records = ckptdb("best", "--each", "-o", "json", cwd=root).json
    assert [record["path"] for record in records] == paths
    assert ckptdb("best", "--each", cwd=root / "alpha").out == f"{root}/alpha/step_2\n"
    assert ckptdb("best", "--each", "--run", "alpha", cwd=root).code == 2


def test_best_as_json_is_the_whole_record(ckptdb, root):
    record = ckptdb("best", "-o", "json", cwd=root / "alpha").json
    assert record["step"] == 2
    assert record["path"] == f"{root}/alpha/step_2"
    assert record["info"] == {"val:loss": 0.2, "note": "x"}


@pytest.mark.slow
def test_best_in_a_subshell_is_a_directory(root):
    command = f'ls "$({sys.executable} -m ckptdb best)"'
    done = subprocess.run(
        ["bash", "-c", command], cwd=root / "alpha", capture_output=True, text=True, check=True
    )
    assert "model.bin" in done.stdout


def test_show_tells_everything_about_one_checkpoint(ckptdb, root):
    ckptdb("tag", "2", "release", "--run", "alpha", cwd=root)
    ckptdb("pin", "2", "--note", "for the paper", "--run", "alpha", cwd=root)
    ckptdb("log", "2", "mmlu=0.61", "--source", "lm-eval", "--run", "alpha", cwd=root)
    shown = ckptdb("show", "2", "--run", "alpha", cwd=root).out
    for text in ("release", "for the paper", "0.61", "lm-eval", "step_2"):
        assert text in shown
    record = ckptdb("show", "2", "--run", "alpha", "-o", "json", cwd=root).json
    assert record["pinned"] is True
    assert record["late"]["mmlu"]["source"] == "lm-eval"


def test_show_lineage_goes_back_to_the_first(ckptdb, root):
    run = root / "alpha"
    with CheckpointManager({"checkpoint_dir": run}) as manager:
        assert manager.resume().step == 3
        with manager.save(4, {"val:loss": 0.1}):
            pass
    ckptdb("rm", "3", cwd=run)
    line = ckptdb("show", "4", "--lineage", "-o", "json", cwd=run).json
    assert [(one["step"], one["status"]) for one in line] == [(4, "final"), (3, "deleted")]
    assert line[0]["resumed_at"] is None
    assert line[1]["resumed_at"] > line[1]["finalized_at"]
    shown = ckptdb("show", "4", "--lineage", cwd=run).out.splitlines()
    assert shown[0].split() == [
        "step",
        "status",
        "saved",
        "resumed",
        "from",
        "why",
        "it",
        "is",
        "gone",
    ]
    assert "by hand" in shown[2]
    assert ckptdb("show", "77", "--lineage", cwd=run).code == 1


def test_show_of_an_unknown_step_is_one_sentence(ckptdb, root):
    answer = ckptdb("show", "77", "--run", "alpha", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: Run 'alpha' has no checkpoint at step 77; `ckptdb ls alpha` lists them.\n"
    )


def test_questions_about_a_tree_without_catalog_are_answered_from_disk(ckptdb, tmp_path):
    from_nemo = tmp_path / "run"
    for step, loss in ((1, 0.3), (2, 0.1)):
        folder = from_nemo / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "training_info.json").write_text(json.dumps({"loss": loss}))
    before = sorted(from_nemo.rglob("*"))
    assert ckptdb("best", "--metric", "loss", "--mode", "min", cwd=from_nemo).out == (
        f"{from_nemo}/step_2\n"
    )
    assert ckptdb("sql", "SELECT COUNT(*) AS n FROM checkpoints", "-o", "csv",
                  cwd=from_nemo).out == "n\n2\n"  # fmt: skip
    assert ckptdb("ls", cwd=from_nemo).code == 0
    assert sorted(from_nemo.rglob("*")) == before


def test_a_metric_called_like_a_column_has_a_column_of_its_own(ckptdb, tmp_path, write_nemo):
    write_nemo(tmp_path / "run", 7, {"step": 7, "loss": 0.5})
    header, row = csv.reader(io.StringIO(ckptdb("ls", "run", "-o", "csv").out))

    assert len(set(header)) == len(header)
    assert (row[header.index("step")], row[header.index("metric step")]) == ("7", "7.0")


def test_names_from_the_disk_cannot_drive_the_terminal(ckptdb, tmp_path):
    evil = tmp_path / "root" / "run\x1b[31m\n\u202e"
    folder = evil / "step_1"
    folder.mkdir(parents=True)
    (folder / "training_info.json").write_text(json.dumps({"loss\x1b]0;x\x07": 1}))
    for command in (["ls"], ["ls", "--all"], ["check"], ["schema"]):
        printed = ckptdb(*command, cwd=tmp_path / "root")
        assert "\x1b" not in printed.out + printed.err
        assert "\u202e" not in printed.out + printed.err


def test_a_table_breaks_nothing_where_nobody_looks(ckptdb, root):
    for line in ckptdb("ls", "--all", cwd=root).out.splitlines():
        assert line == line.rstrip()
        assert "\x1b" not in line


def test_there_is_nothing_to_choose_from(ckptdb, root):
    ckptdb("rm", "5", "--run", "beta", cwd=root)
    answer = ckptdb("latest", "--run", "beta", cwd=root)
    assert answer.code == 1
    assert answer.err == ("ckptdb: There is no checkpoint to choose from; see `ckptdb ls --all`.\n")


def test_best_of_a_run_without_a_metric_says_that_it_is_the_latest(ckptdb, root):
    answer = ckptdb("best", "--run", "nemo", cwd=root)
    assert answer.out == f"{root}/nemo/step_2\n"
    assert answer.err == "nemo has no metric; this is its latest.\n"
    assert ckptdb("best", "--run", "alpha", cwd=root).err == ""
    assert ckptdb("best", "--metric", "acc", "--mode", "max", "--run", "nemo", cwd=root).err == ""


def test_help_shows_no_escapes_and_names_the_exit_codes(ckptdb):
    shown = ckptdb("--help").out
    assert "\\b" not in shown
    assert "10 no catalog here" in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize(
    "command", [["ls"], ["ls", "--all"], ["ls", "alpha"], ["show", "2", "--run", "alpha"], ["top"],
                ["check"]], ids=" ".join,
)  # fmt: skip
def test_what_people_look_at_fits_their_terminal(root, command, columns):
    program = [sys.executable, "-m", "ckptdb", *command]
    # From elsewhere: here paths are at their longest.
    with Terminal([*program[:3], "-C", root, *command], columns=columns) as terminal:
        assert terminal.wait() == 0
    lines = terminal.lines
    paths = [line for line in lines if "step_" in line]
    # A path that is longer than the terminal stays whole, on a line of its own.
    alone = [line for line in paths if len(line) > columns]
    assert all(line.split() == [line.strip()] for line in alone)
    assert all(len(line) <= columns for line in lines if line not in alone)
    assert len(paths) == terminal.text.count(f"{root}/")


@pytest.mark.slow
def test_a_narrow_terminal_gets_paths_that_can_be_copied_from_here(root):
    program = [sys.executable, "-m", "ckptdb", "ls", "alpha"]
    with Terminal(program, columns=80, cwd=root) as terminal:
        assert terminal.wait() == 0
    assert [line.split()[-1] for line in terminal.text.splitlines()[1:]] == [
        "alpha/step_1", "alpha/step_2", "alpha/step_3",
    ]  # fmt: skip
    with Terminal(program, columns=200, cwd=root) as terminal:
        assert terminal.wait() == 0
    assert f"{root}/alpha/step_2\n" in terminal.text


def test_without_colours_nothing_is_for_the_terminal_to_obey(root):
    with Terminal(
        [sys.executable, "-m", "ckptdb", "ls"], cwd=root, env={"NO_COLOR": "1"}
    ) as terminal:
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw


@pytest.mark.parametrize("form", ["csv", "tsv"])
def test_no_cell_is_a_formula_and_ordinary_ones_come_back_as_they_are(ckptdb, root, form):
    given = {
        "=1+1": "'=1+1", "+1+1": "'+1+1", "-a": "'-a", "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1",
        "\r=1": "\\r=1", "\n=1": "'\n=1", "'=1": "''=1", "\uff1d1": "'\uff1d1",
        "-0.5": "-0.5", "+3e-7": "+3e-7", "grpo-8b": "grpo-8b", "a=b": "a=b", "'tis": "'tis",
        "/data/step_1": "/data/step_1", 'say "x", then\ny': 'say "x", then\ny',
        "\x1b[31m\x07": "\\x1b[31m\\x07", "\u202etxt": "\\u202etxt", "日本\u200d": "日本\u200d",
    }  # fmt: skip
    columns = ", ".join(f":v{number} AS c{number}" for number in range(len(given)))
    parameters = [p for number, text in enumerate(given) for p in ("-p", f"v{number}={text}")]
    answer = ckptdb(
        "sql", f'SELECT -1 AS n, {columns}, 2 AS "=cmd"', *parameters, "-o", form, cwd=root
    )
    delimiter = "," if form == "csv" else "\t"
    header, row = csv.reader(io.StringIO(answer.out, newline=""), delimiter=delimiter)
    assert row[0] == "-1"
    assert dict(zip(given, row[1:-1], strict=True)) == {
        text: str(float(text)) if text == "-0.5" else cell for text, cell in given.items()
    }
    assert header[-1] == "'=cmd"


def test_a_hostile_run_is_inert_in_every_form(ckptdb, tmp_path, write_nemo):
    name = '=HYPERLINK("javascript:x")\x1b]0;x\x07\u202e'
    write_nemo(tmp_path / "root" / name, 1, {"@loss\x1b[31m": 1.5})
    for form in ("table", "md", "json", "jsonl"):
        printed = ckptdb("ls", "--all", "-o", form, cwd=tmp_path / "root").out
        assert not {"\x1b", "\x07", "\u202e"} & set(printed)
    header, row = csv.reader(
        io.StringIO(ckptdb("ls", "--all", "-o", "csv", cwd=tmp_path / "root").out)
    )
    assert row[0] == """'=HYPERLINK("javascript:x")\\x1b]0;x\\x07\\u202e"""
    assert header[-1] == "'@loss\\x1b[31m"


def test_a_problem_is_short_in_a_table_and_whole_in_show(ckptdb, root):
    (root / "alpha" / "step_3" / "training_info.json").write_text('{"val:loss": 0.')
    table = ckptdb("ls", "alpha", cwd=root).out
    assert "PROBLEM training_info.json is not JSON " in table
    assert "(" not in table
    assert "is not JSON (" in ckptdb("show", "3", "--run", "alpha", cwd=root).out

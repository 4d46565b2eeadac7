import json
import subprocess
import sys

import pytest

from ckptdb import Registry
from ckptdb.catalog.views import EXAMPLES, VIEWS


def test_sql_answers_select_and_with(ckptdb, root):
    answer = ckptdb("sql", "SELECT run, step FROM leaderboard WHERE rank = 1 ORDER BY run", "-o",
                    "json", cwd=root)  # fmt: skip
    assert answer.json == [{"run": "alpha", "step": 2}, {"run": "beta", "step": 5}]
    with_query = "WITH x AS (SELECT 1 AS one) SELECT one FROM x"
    assert ckptdb("sql", with_query, "-o", "csv", cwd=root).out == "one\n1\n"


def test_sql_takes_parameters_and_a_limit(ckptdb, root):
    query = "SELECT step FROM checkpoints c JOIN runs r ON r.id = run_id WHERE r.name = :run"
    answer = ckptdb("sql", query, "-p", "run=alpha", "--limit", "2", "-o", "json", cwd=root)
    assert len(answer.json) == 2
    assert answer.err == "Only the first 2 rows; --limit shows more.\n"
    assert ckptdb("sql", "SELECT :x + 1 AS y", "-p", "x=1.5", "-o", "csv", cwd=root).out == (
        "y\n2.5\n"
    )


@pytest.mark.slow
def test_sql_reads_standard_input(root):
    done = subprocess.run(
        [sys.executable, "-m", "ckptdb", "sql", "-o", "csv"],
        input="SELECT COUNT(*) AS n FROM checkpoints",
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "n\n6\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO tags VALUES (1, 'x', 'y')",
        "UPDATE runs SET name = 'x'",
        "DELETE FROM checkpoints",
        "ATTACH 'other.db' AS other",
        "PRAGMA journal_mode = WAL",
        "PRAGMA user_version = 7",
        "CREATE TEMP TABLE t (x)",
        "CREATE TABLE t (x)",
        "DROP TABLE runs",
        "BEGIN IMMEDIATE",
        "VACUUM",
        "SELECT 1; DELETE FROM runs",
    ],
)
def test_sql_refuses_whatever_would_write_with_one_sentence(ckptdb, root, query):
    before = (root / ".ckptdb" / "catalog.db").read_bytes()
    answer = ckptdb("sql", query, cwd=root)
    assert answer.code == 1
    assert answer.out == ""
    assert answer.err.startswith("ckptdb: ")
    assert answer.err.count("\n") == 1
    assert (root / ".ckptdb" / "catalog.db").read_bytes() == before


def test_sql_without_end_is_stopped(ckptdb, root):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    answer = ckptdb("sql", endless, "--timeout", "0.2", cwd=root)
    assert answer.code == 1
    assert answer.err == (
        "ckptdb: The query was stopped after 0.2 s; narrow it, or raise --timeout.\n"
    )


def test_sql_that_is_wrong_gets_one_sentence(ckptdb, root):
    answer = ckptdb("sql", "SELECT nonesuch FROM runs", cwd=root)
    assert answer.code == 1
    assert "no such column: nonesuch" in answer.err


def test_schema_names_tables_and_views(ckptdb, root):
    out = ckptdb("schema", cwd=root).out
    for name in ("runs", "checkpoints", "metrics", "tags", "leaderboard", "run_summary"):
        assert f"{name} (" in out
    names = {relation["name"] for relation in ckptdb("schema", "-o", "json", cwd=root).json}
    assert {"checkpoints", "deletions"} <= names


def test_sql_reads_a_file_as_if_started_in_the_chosen_directory(ckptdb, root, tmp_path):
    (root / "count.sql").write_text("SELECT COUNT(*) AS n\nFROM checkpoints\n")
    assert ckptdb("-C", root, "sql", "-f", "count.sql", "-o", "csv").out == "n\n6\n"
    assert ckptdb("sql", "-f", root / "count.sql", "SELECT 1", cwd=root).code == 2
    missing = ckptdb("sql", "-f", "nix.sql", cwd=root)
    assert missing.code == 1
    assert missing.err == "ckptdb: nix.sql cannot be read: No such file or directory.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "integer"), ("-7", "integer"), ("0", "integer"), ("9223372036854775807", "integer"),
        ("0.5", "real"), ("-3.25", "real"), ("1.0", "real"),
        ("007", "text"), ("1e-4", "text"), ("1e-05", "text"), (".5", "text"), ("+7", "text"),
        ("-0", "text"), ("0.10", "text"), ("7.", "text"), ("1" * 5000 + ".5", "text"),
        ("nan", "text"), ("inf", "text"), ("1_000", "text"), ("", "text"), ("a=b", "text"),
        ("\u0667", "text"),
    ],
)  # fmt: skip
def test_a_parameter_is_a_number_only_where_it_would_be_written_so(ckptdb, root, text, kind):
    answer = ckptdb("sql", "SELECT typeof(:x) AS kind", "-p", f"x={text}", "-o", "csv", cwd=root)
    assert answer.out == f"kind\n{kind}\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["007", "1e-4", "7", "0.5"])
def test_a_run_is_found_whatever_number_its_name_looks_like(ckptdb, root, write_nemo, name):
    write_nemo(root / name, 1, {"val:loss": 1})
    ckptdb("reconcile", cwd=root)
    query = "SELECT name FROM runs WHERE name = :run"
    answer = ckptdb("sql", query, "-p", f"run={name}", "-o", "tsv", cwd=root)
    assert answer.out == f"name\n{name}\n"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["1e-1", "0.50", ".5"])
def test_a_parameter_that_stays_text_is_still_compared_with_values(ckptdb, root, text):
    query = "SELECT step FROM leaderboard WHERE run = 'alpha' AND value < :most ORDER BY step"
    found = ckptdb("sql", query, "-p", f"most={text}", "-o", "json", cwd=root).json
    assert [row["step"] for row in found] == ([] if text == "1e-1" else [2, 3])


@pytest.mark.parametrize("number", ["99999999999999999999", "-9223372036854775809", "1" * 5000])
def test_a_parameter_that_no_database_holds_is_named(ckptdb, root, number):
    answer = ckptdb("sql", "SELECT :a", "-p", f"a={number}", cwd=root)
    assert answer.code == 2
    assert answer.err.endswith(
        "Invalid value for -p: 'a' does not fit into the whole numbers of SQL, which have 64 bits\n"
    )


def test_a_parameter_without_a_value_is_named(ckptdb, root):
    answer = ckptdb("sql", "SELECT name FROM runs WHERE name = :run", cwd=root)
    assert (answer.code, answer.err) == (
        1, "ckptdb: The query asks for :run; pass -p run=...\n"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("comment", ["-- x\n", "--x\n", "--\tx\n"])
def test_a_query_may_begin_with_a_comment(ckptdb, root, comment):
    answer = ckptdb("sql", f"{comment}SELECT 1 AS x", "-o", "csv", cwd=root)
    assert (answer.code, answer.out) == (0, "x\n1\n")


def test_what_is_no_text_is_one_sentence(ckptdb, root):
    answer = ckptdb("sql", "SELECT '\udcff'", cwd=root)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("ckptdb: The query failed: it holds bytes that are no UTF-8.")


def test_a_fault_is_marked_below_the_query(ckptdb, root):
    answer = ckptdb("sql", "SELECT name\nFROM runz", cwd=root)
    assert answer.err == (
        "ckptdb: The query failed at line 2, column 6: no such table: runz. "
        "`ckptdb schema` lists tables and columns.\n"
        "FROM runz\n"
        "     ^^^^\n"
    )


def test_a_query_that_is_cut_short_is_marked_at_its_end(ckptdb, root):
    assert ckptdb("sql", "SELECT (1", cwd=root).err.endswith("SELECT (1\n         ^\n")


def test_each_table_and_view_has_an_example_that_answers(root):
    with Registry.open(root) as registry:
        relations = registry.schema()
        assert {relation.name for relation in relations} == set(EXAMPLES)
        assert set(VIEWS) < set(EXAMPLES)
        for relation in relations:
            assert f" {relation.name}" in relation.example
            named = {"run": "alpha"} if ":run" in relation.example else {}
            registry.query(relation.example, named)


def test_schema_tells_types_purposes_and_examples_also_of_one_alone(ckptdb, root):
    told = ckptdb("schema", "disk_usage", cwd=root).out
    assert told.startswith("disk_usage (view): ")
    assert "bytes_on_disk" in told
    assert "    e.g. SELECT run, bytes_on_disk" in told
    assert "runs (table)" not in told
    columns = ckptdb("schema", "runs", "-o", "json", cwd=root).json[0]["columns"]
    assert columns["name"] == "TEXT"
    assert (
        max(len(line) for line in ckptdb("schema", "checkpoints", cwd=root).out.splitlines()) < 110
    )
    unknown = ckptdb("schema", "nix", cwd=root)
    assert unknown.code == 1
    assert "No table or view is called 'nix'; there are checkpoints," in unknown.err


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_no_column_of_a_json_answer_hides_another_of_its_name(ckptdb, root, form):
    out = ckptdb("sql", "SELECT 1 AS x, 2 AS x", "-o", form, cwd=root).out
    found = json.loads(out)
    assert (found[0] if form == "json" else found) == {"x": 1, "x_2": 2}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_json_answer_is_json_whatever_is_in_it(ckptdb, root, form):
    answer = ckptdb("sql", "SELECT 9e999 AS inf, x'00ff' AS b, 0.5 AS n", "-o", form, cwd=root)
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out, parse_constant=pytest.fail)
    assert (found[0] if form == "json" else found) == {"inf": None, "b": "00ff", "n": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("table", "b\nff\n"),
        ("csv", "b\nff\n"),
        ("tsv", "b\nff\n"),
        ("md", "| b |\n| --- |\n| ff |\n"),
    ],
)
def test_bytes_are_shown_as_hexadecimal_digits(ckptdb, root, form, shown):
    assert ckptdb("sql", "SELECT x'ff' AS b", "-o", form, cwd=root).out == shown


def test_an_answer_without_rows_is_its_header_alone(ckptdb, root):
    assert ckptdb("sql", "SELECT 1 AS x WHERE 0", cwd=root).out == "x\n"


def test_nothing_in_a_markdown_answer_is_live_html_or_ends_its_cell(ckptdb, root):
    query = r"SELECT '<b onclick=x>&amp;' AS html, 'a\|b' AS bars"
    answer = ckptdb("sql", query, "-o", "md", cwd=root)
    assert answer.out.splitlines()[2] == r"| &lt;b onclick=x>&amp;amp; | a\\\|b |"

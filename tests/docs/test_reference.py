"""The reference is complete and true: commands, exit codes, JSON, config keys, tables, Python."""

import ast
import importlib
import json
import re
import warnings
from typing import get_args

import click
import pytest
from tests.support.documents import ROOT, names_in, read_table

from ckptdb import Registry
from ckptdb.cli.main import EXIT_CODES, cli, main
from ckptdb.core.records import DeletedKind, ProblemKind
from ckptdb.training import config as configuration


def commands(group, prefix="ckptdb"):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = sorted(commands(cli), key=lambda pair: pair[0])
DOCUMENTED = [
    re.match(r"ckptdb(?: [a-z]+)+", names_in(row[0])[0])[0]
    for row in read_table("reference/commands.md", "command")
]
JSON = {
    row[0] if row[0].startswith("one ") else names_in(row[0])[0]: names_in(row[1])
    for row in read_table("reference/commands.md", "answer of")
}


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_every_command_is_documented_and_has_help(name, command):
    assert name in DOCUMENTED
    assert command.get_short_help_str()
    assert all(p.help for p in command.params if isinstance(p, click.Option) and p.name != "run")


def test_only_existing_commands_are_documented():
    assert sorted(DOCUMENTED) == [name for name, _ in COMMANDS]


@pytest.mark.parametrize("row", read_table("reference/commands.md", "command"), ids=lambda r: r[0])
def test_documented_options_exist(row):
    by_name = dict(COMMANDS)
    command = by_name[re.match(r"ckptdb(?: [a-z]+)+", names_in(row[0])[0])[0]]
    options = {name for option in command.params for name in option.opts}

    assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row[1])) <= options


def test_exit_codes_are_documented():
    expected = {0, 1, 2, 3, 4} | set(EXIT_CODES.values())
    in_help = cli.epilog.partition("Exit codes:")[2].partition(".")[0]

    assert {int(row[0]) for row in read_table("reference/commands.md", "code")} == expected
    assert {int(code) for code in re.findall(r"\b\d+\b", in_help)} == expected


@pytest.fixture
def ask(read_only_tree, capsys, monkeypatch):
    """Run a command in this process; return the first record of its answer in JSON."""
    monkeypatch.chdir(read_only_tree / "results")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(arguments):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([*arguments, "-o", "json"])
        printed = capsys.readouterr().out
        if arguments[0] == "watch":
            printed = printed.partition("\n")[0]  # a record a line
        answer = json.loads(printed)
        return answer[0] if isinstance(answer, list) else answer

    return run


@pytest.mark.parametrize(("first", "arguments", "inner"), [
    ("ckptdb show", ["show", "200", "--run", "grpo-8b"], None),
    ("ckptdb show --lineage", ["show", "200", "--run", "grpo-8b", "--lineage"], None),
    ("ckptdb ls", ["ls"], None),
    ("ckptdb diff", ["diff", "200", "300", "--run", "grpo-8b"], None),
    ("ckptdb check", ["check"], None),
    ("one of their `runs`", ["check"], "runs"),
    ("ckptdb gc", ["gc", "--dry-run", "--run", "grpo-8b", "--keep", "best 1"], None),
    ("one of their `checkpoints`", ["gc", "--dry-run", "--run", "grpo-8b", "--keep", "best 1"],
     "checkpoints"),
    ("ckptdb gc --replay", ["gc", "--replay", "--run", "grpo-8b", "--keep", "best 1"], None),
    ("ckptdb schema", ["schema", "tags"], None),
    ("ckptdb db status", ["db", "status"], None),
])  # fmt: skip
def test_keys_of_json_answers_are_documented(first, arguments, inner, ask):
    answer = ask(arguments)

    assert list(answer[inner][0] if inner else answer) == JSON[first]


@pytest.mark.parametrize("arguments", [
    ["best"], ["latest"], ["top"], ["pareto", "--against", "kl", "min"], ["ls", "grpo-8b"],
    ["watch", "grpo-8b", "--once"],
], ids=" ".join)  # fmt: skip
def test_a_checkpoint_has_the_same_keys_everywhere(arguments, ask):
    assert list(ask(arguments)) == JSON["ckptdb show"]


def test_what_verify_and_ever_add_is_documented(ask):
    ever = ask(["best", "--ever"])

    assert list(ask(["verify"])) == JSON["ckptdb show"] + JSON["ckptdb verify"]
    assert list(ever) == JSON["ckptdb best --ever"]
    assert list(ever["best"]) == JSON["ckptdb show"]


def test_every_config_key_is_documented_with_its_default():
    rows = read_table("reference/config.md", "key")
    documented = {name: row[1] for row in rows for name in names_in(row[0])}
    defaults = {**configuration._DEFAULTS, **configuration._OURS}

    assert set(documented) == configuration._KNOWN
    assert {name: ast.literal_eval(names_in(documented[name])[0]) for name in defaults} == defaults
    ignored = {name for name, default in documented.items() if default == "ignored"}
    assert ignored == configuration._PASSED_BY


def test_every_table_view_and_column_is_documented(read_only_tree):
    with Registry.open(read_only_tree / "results") as registry:
        relations = {
            relation.name: (relation.kind, [column.name for column in relation.columns])
            for relation in registry.schema()
            if relation.name != "ckptdb_version"
        }
    documented = {
        names_in(row[0])[0]: (kind, names_in(row[2]))
        for kind in ("table", "view")
        for row in read_table("reference/sql.md", kind)
    }

    assert documented == relations


@pytest.mark.parametrize(("column", "kinds"), [
    ("`deleted_kind`", DeletedKind), ("`problem_kind`", ProblemKind),
])  # fmt: skip
def test_every_kind_is_documented(column, kinds):
    rows = read_table("reference/sql.md", column)

    assert [names_in(row[0])[0] for row in rows] == list(get_args(kinds))


MODULES = ["ckptdb.manager", "ckptdb.registry", "ckptdb.retention", "ckptdb.errors"]


@pytest.mark.parametrize("module", ["ckptdb", *MODULES])
def test_every_public_name_of_python_is_in_the_reference(module):
    pages = "".join(page.read_text() for page in (ROOT / "docs/reference/api").glob("*.md"))
    public = importlib.import_module(module).__all__
    elsewhere = {name for other in MODULES for name in importlib.import_module(other).__all__}

    assert f"\n::: {module}\n" in pages
    assert all(getattr(importlib.import_module(module), name).__doc__ for name in public)
    if module == "ckptdb":
        [members] = re.findall(r"members: \[(.*)\]", pages)
        assert set(public) - elsewhere <= set(members.split(", ")) <= set(public)

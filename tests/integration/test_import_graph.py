"""The import graph stays within its limits, and its measurement finds what it is for."""

import re
from pathlib import Path

import pytest
from tests.support import import_graph

HERE = Path(__file__).parents[2]


@pytest.mark.parametrize("figure", import_graph.LIMITS)
def test_the_package_stays_within_each_limit(figure):
    figures = import_graph.measure()
    assert figures.counts[figure] <= import_graph.LIMITS[figure], figures


def package(top, **files):
    for name, text in files.items():
        path = top / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return top


def test_rooms_floors_and_arrows_are_counted(tmp_path):
    source = package(
        tmp_path / "pkg",
        low__values="",
        middle__work="from pkg.low.values import x\n",
        high="def f():\n    from pkg.middle import work\n    from pkg.low import values\n",
    )
    counts = import_graph.measure(source).counts
    assert (counts["rooms"], counts["floors"], counts["arrows"]) == (3, 3, 3)
    assert counts["circles"] == 0


@pytest.mark.parametrize(
    "second",
    [
        "from pkg.one import a\n",
        "def f():\n    import pkg.one.a\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.one.a import x\n",
    ],
    ids=["at the top", "in a function", "for type checkers"],
)
@pytest.mark.parametrize("room", ["one", "two"])
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, second, room):
    source = package(
        tmp_path / "pkg", one__a=f"from pkg.{room} import b\n", **{f"{room}__b": second}
    )
    # Within a room it is a circle of files; between rooms it is one of rooms, too.
    assert import_graph.measure(source).counts["circles"] == (1 if room == "one" else 2)


def test_long_files_and_wide_classes_are_named(tmp_path):
    methods = [f"    def m{n}(self): ...\n" for n in range(16)]
    properties = "    @property\n    def p(self): ...\n    def _own(self): ...\n"
    source = package(
        tmp_path / "pkg",
        long="x = 1\n" * 401,
        wide="".join(("class Wide:\n", *methods, "class Fine:\n", *methods[1:], properties)),
    )
    figures = import_graph.measure(source)
    assert figures.long_files == {"pkg.long": 401}
    assert figures.wide_classes == {"Wide": 16}


def test_every_module_that_contributing_names_exists():
    text = (HERE / "CONTRIBUTING.md").read_text()
    named = set(
        re.findall(
            r"`((?:cli|web|training|registry|reconcile|retention|disk|catalog|core)/\w+\.py)`", text
        )
    )
    assert len(named) >= 5
    assert [name for name in named if not (HERE / "src" / "ckptdb" / name).is_file()] == []

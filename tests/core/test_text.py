import csv
import io
import os
import subprocess
from pathlib import Path

import pytest

from ckptdb.core.text import clean, copyable, inert
from ckptdb.core.units import human_bytes


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("loss", "loss"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\u202etxt", "\\u202etxt"),
        ("two\nlines", "two\\nlines"),
        (os.fsdecode(b"\xff"), "\\udcff"),
        (None, ""),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(value, shown):
    assert clean(value) == shown


@pytest.mark.parametrize(
    ("size", "shown"), [(None, ""), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB")]
)
def test_sizes_have_a_unit(size, shown):
    assert human_bytes(size) == shown


def test_an_ordinary_path_is_copied_as_it_is():
    assert copyable(Path("/runs/grpo-8b_v1.2/step_1")) == "/runs/grpo-8b_v1.2/step_1"


@pytest.mark.parametrize(
    "name",
    [
        b"two\nlines; rm -rf x",
        b"it's <b> $HOME \xc3\xa9",
        b"$(touch pwned)",
        b"a b",
        b"~`x`!;&*",
        b"\x1b[2J",
        "\u202egpj".encode(),
        b"\xff",
        b"\t'quoted' \\x41\n",
    ],
)
def test_any_other_is_copied_so_that_a_shell_makes_the_same_of_it(name):
    path = Path(os.fsdecode(b"/runs/" + name))
    copied = copyable(path)

    assert copied.isprintable()
    command = f"printf %s {copied}"
    assert subprocess.check_output(["bash", "-c", command]) == os.fsencode(path)


@pytest.mark.parametrize("text", ["=1+1", "+a", "-1+1", "@SUM(A1)", "\t=1", "'=1"])
def test_no_text_is_a_formula(text):
    assert inert(text) == f"'{text}"


def test_in_a_cell_a_terminal_obeys_nothing():
    assert inert("\r=1") == "\\r=1"


@pytest.mark.parametrize("value", ["loss", "a=b", "", None, -1, -0.5, b"=1", "-1", "+1.5e3"])
def test_everything_else_is_left_as_it_is(value):
    assert inert(value) == value


def test_what_is_inert_stays_in_its_cell():
    file = io.StringIO()
    csv.writer(file).writerow([inert('=HYPERLINK("http://x","y")')])

    assert next(csv.reader([file.getvalue()])) == ['\'=HYPERLINK("http://x","y")']

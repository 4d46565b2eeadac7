"""The gate between what is printed and a terminal."""

import io
import os
import pty
import sys

import click
import pytest

from ckptdb.cli import terminal

HOSTILE = "\x1b]0;title\x07 \x9b31m \u202etxt\r\udc9b\x7f"


@pytest.fixture
def seen(monkeypatch):
    """Put standard output on a terminal behind the gate; return what reads the other end."""

    def begin(encoding="utf-8"):
        parent, child = pty.openpty()
        stream = io.TextIOWrapper(
            os.fdopen(child, "wb"),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        terminal.guard()

        def read(*, lines=1):
            shown = b""
            while shown.count(b"\n") < lines:
                shown += os.read(parent, 65536)
            return shown.replace(b"\r\n", b"\n")

        opened.append((parent, stream))
        return read

    opened = []
    yield begin
    for parent, stream in opened:
        stream.close()
        os.close(parent)


@pytest.mark.parametrize(
    "way", [print, click.echo, sys.displayhook], ids=["print", "click", "repr"]
)
def test_whatever_writes_only_letters_and_ends_of_lines_get_through(seen, way):
    read = seen()
    way(f"naïve {HOSTILE}\tend")
    shown = read().decode()
    assert "naïve" in shown
    assert "\\x1b]0;title\\x07 \\x9b31m \\u202etxt\\r" in shown
    assert shown.count("\n") == 1
    assert shown.replace("\n", "").replace("\t", "").isprintable()


def test_bytes_are_no_way_around_it(seen):
    read = seen()
    sys.stdout.buffer.write("é".encode()[:1])
    sys.stdout.buffer.write("é".encode()[1:] + b"\x1b[2J\xff\n")
    assert read().decode() == "é\\x1b[2J\\xff\n"


def test_a_drawing_may_have_colours_and_nothing_else(seen):
    read = seen()
    with terminal.in_colour():
        click.echo("\x1b[1;32mgreen\x1b[0m \x1b[2J\x1b]0;x\x07")
    click.echo("\x1b[31m")
    assert read(lines=2) == b"\x1b[1;32mgreen\x1b[0m \\x1b[2J\\x1b]0;x\\x07\n\\x1b[31m\n"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("latin-1", b"\xe9 \\x9b \\u20ac\n"), ("ascii", "é \\x9b €\n".encode())],
)
def test_letters_come_in_the_encoding_of_the_terminal(seen, encoding, shown):
    read = seen(encoding)
    click.echo("é \x9b €")
    assert read() == shown


def test_what_is_no_terminal_stays_as_it_is(monkeypatch, tmp_path):
    with (tmp_path / "file").open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        terminal.guard()
        assert sys.stdout is sys.stderr is stream
        assert terminal.behind(stream) is stream

"""Hooks of MkDocs: README.md is the front page; a link that leaves docs/ becomes plain text."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.structure.files import File, Files

from ckptdb.cli.main import cli

DOCS = Path(__file__).parent.resolve()
README = DOCS.parent / "README.md"
_OPTIONS = "reference/options.md"
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_PICTURE = re.compile(r'(src|srcset)="docs/')


def on_files(files: Files, *, config: Any) -> Files:
    """Add README.md to the pages, as the front page."""
    files.append(File.generated(config, "index.md", content=README.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page with its links as they are in the site."""
    is_front = page.file.src_uri == "index.md"
    folder = README.parent if is_front else (DOCS / page.file.src_uri).parent
    target = DOCS if is_front else folder

    def rewrite(link: re.Match[str]) -> str:
        text, path, anchor = link.groups(default="")
        file = (folder / path).resolve()
        if file == README:
            file = DOCS / "index.md"
        if not file.is_relative_to(DOCS):
            return text
        return f"[{text}]({os.path.relpath(file, target)}{anchor})"

    texts = [_PICTURE.sub(r'\1="', _LINK.sub(rewrite, markdown))]
    if page.file.src_uri == _OPTIONS:
        texts += help_texts(cli, "ckptdb")
    return "\n".join(texts)


def help_texts(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[str]:
    """Yield the help of a command and of those below it, each under a heading."""
    settings = {"terminal_width": 78, **command.context_settings}
    context = click.Context(command, parent, name.rsplit(maxsplit=1)[-1], **settings)
    yield f"## {name}\n\n```text\n{command.get_help(context)}\n```\n"
    for below, subcommand in sorted(getattr(command, "commands", {}).items()):
        yield from help_texts(subcommand, f"{name} {below}", context)

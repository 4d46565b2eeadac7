"""README.md and the pages of docs/: their code blocks, tables, headings and links."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced code block of a page."""

    page: str
    language: str
    code: str

    def __str__(self) -> str:
        """Return the page and the first line of code, as the id of a test."""
        return f"{self.page}: {self.code.strip().splitlines()[0][:40]}"

    def execute(self) -> dict[str, Any]:
        """Run Python code, and return its variables."""
        variables: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(self.code, self.page, "exec"), variables)
        return variables


def _read_blocks() -> tuple[Block, ...]:
    return tuple(
        Block(name_of(page), language, code)
        for page in PAGES
        for language, code in _FENCE.findall(page.read_text("utf-8"))
    )


def name_of(page: Path) -> str:
    """Return the path of a page as seen from the repository."""
    return page.relative_to(ROOT).as_posix()


BLOCKS = _read_blocks()


def blocks(language: str) -> list[Block]:
    """Return all code blocks of a language."""
    return [block for block in BLOCKS if block.language == language]


def find_block(language: str, part: str) -> Block:
    """Return the one block that contains a text."""
    [found] = [block for block in blocks(language) if part in block.code]
    return found


def read_prose(page: Path) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", page.read_text("utf-8"))


def read_table(page: str, header: str) -> list[list[str]]:
    """Return the cells of the table whose first header cell is this, row by row."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    rows: list[list[str]] = []
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line.strip("|\n")) for line in table.splitlines()]
        if lines[0][0].strip() == header:
            rows += [[cell.strip() for cell in line] for line in lines[2:]]
    return rows


def names_in(cell: str) -> list[str]:
    """Return what stands in backticks in a cell, outside of parentheses."""
    return re.findall(r"`([^`]+)`", re.sub(r"\(.*?\)", "", cell))

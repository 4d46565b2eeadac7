"""Paths and names as the catalog stores them.

Paths are POSIX style, relative to the root when below it, so that a tree can be moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ckptdb.core.filenames import as_name, as_text

# Names on disk may hold bytes that are no UTF-8 (Python shows them as lone surrogates), which
# no database stores. A range of the private use area stands for them.
_TO_PRIVATE = {0xDC80 + i: 0xF780 + i for i in range(128)}
_FROM_PRIVATE = {private: surrogate for surrogate, private in _TO_PRIVATE.items()}


def storable(name: str) -> str:
    """Return a name that every database takes."""
    if name.isascii():  # nearly always, and there are many
        return name
    return name.translate(_TO_PRIVATE)


def readable(name: str) -> str:
    """Return what `storable` was given."""
    return name.translate(_FROM_PRIVATE)


@dataclass(frozen=True, slots=True)
class Paths:
    """Paths of one catalog.

    Attributes:
        base: The root; None when every path is stored absolute.
    """

    base: Path | None

    def stored(self, path: Path) -> str:
        """Return an absolute path as it is stored."""
        # As text, because there may be many: a Path takes itself apart for such questions.
        text, base = as_text(str(path)), "" if self.base is None else as_text(str(self.base))
        if text == base:
            return "."
        return storable(text.removeprefix(base if base in ("", "/") else f"{base}/"))

    def absolute(self, stored: str) -> Path:
        """Return the absolute path of a stored one."""
        path = as_name(readable(stored))
        return Path(path) if self.base is None else self.base / path

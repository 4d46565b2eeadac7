"""File names as text that is the same in every locale.

A name on disk is bytes, nearly always UTF-8. Python decodes them by the locale, so that the same
name is another text in a locale without UTF-8. Stored texts are decoded as UTF-8, with lone
surrogates for other bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

_IS_UTF8: Final = sys.getfilesystemencoding() == "utf-8"


def as_text(name: str) -> str:
    """Return the text to store for a file name of Python."""
    if _IS_UTF8 or name.isascii():
        return name
    return os.fsencode(name).decode(errors="surrogateescape")


def as_name(text: str) -> str:
    """Return the file name of a stored text, the reverse of `as_text`."""
    if _IS_UTF8 or text.isascii():
        return text
    return os.fsdecode(text.encode(errors="surrogateescape"))


def as_texts(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping with its file names turned into texts."""
    return named if _IS_UTF8 else {as_text(name): value for name, value in named.items()}


def as_names(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping with its texts turned into file names.

    Raises:
        ValueError: A text cannot be a file name.
    """
    return named if _IS_UTF8 else {as_name(text): value for text, value in named.items()}

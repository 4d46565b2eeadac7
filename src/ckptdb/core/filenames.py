"""Names of files as text that means the same in every locale.

A name on disk is bytes, and nearly always UTF-8. Python makes text of it by the locale; in one
that is not UTF-8 that is another text. What is stored is what UTF-8 says; bytes that are no UTF-8
stand there as lone surrogates.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, Final

_IS_UTF8: Final = sys.getfilesystemencoding() == "utf-8"


def as_text(name: str) -> str:
    """Return the text to store for a name as Python has it."""
    if _IS_UTF8 or name.isascii():
        return name
    return os.fsencode(name).decode(errors="surrogateescape")


def as_name(text: str) -> str:
    """Return what `as_text` was given, in whatever locale that was."""
    if _IS_UTF8 or text.isascii():
        return text
    return os.fsdecode(text.encode(errors="surrogateescape"))


def as_texts(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what stands by names by their texts."""
    return named if _IS_UTF8 else {as_text(name): value for name, value in named.items()}


def as_names(named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `as_texts` was given.

    Raises:
        ValueError: A text is none of a name.
    """
    return named if _IS_UTF8 else {as_name(text): value for text, value in named.items()}

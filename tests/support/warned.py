"""Warnings that a piece of code gives."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warned(file: str | None = None) -> Iterator[list[str]]:
    """Collect the text of every warning; each is a UserWarning.

    Args:
        file: The file whose lines the warnings must point at.
    """
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    assert {w.category for w in caught} <= {UserWarning}
    assert file is None or {w.filename for w in caught} <= {file}
    texts += [str(w.message) for w in caught]

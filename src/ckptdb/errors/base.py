"""The base of all errors of ckptdb."""

from __future__ import annotations

from ckptdb.errors.text import clean


class CkptdbError(Exception):
    """Base of every error of this package; only its descendants are raised.

    Its sentence names what others have named, and is printed by whoever catches it, or by Python:
    nothing in it is for a terminal to obey.
    """

    def __str__(self) -> str:
        return clean(super().__str__())

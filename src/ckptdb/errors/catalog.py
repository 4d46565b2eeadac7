"""Errors about the catalog."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptdb.errors.base import CkptdbError


class CatalogError(CkptdbError):
    """The catalog cannot be used; raised only through its descendants."""


class CatalogMissing(CatalogError, FileNotFoundError):
    """No catalog was found, and no run to make one of."""

    sentence = (
        "No catalog and no checkpoints at {where}; change into a run or a root, "
        "name one with -C, or mark one with `ckptdb init`."
    )

    def __init__(self, where: Path | str, **facts: str) -> None:
        super().__init__(self.sentence.format(where=where, **facts))


class DirectoryMissing(CatalogMissing):
    """The directory does not exist."""

    sentence = "There is no directory {where}; name a run or a root."


class CatalogNotBegun(CatalogMissing):
    """Runs exist, but no catalog of them yet."""

    sentence = "There is no catalog at {where} yet; the first save or `ckptdb reconcile` makes it."


class RootsBelow(CatalogMissing):
    """All runs below a directory belong to roots that are also below it."""

    sentence = (
        "The runs below {where} have catalogs of their own at {roots}; "
        "change into one of these, or name it with -C."
    )

    def __init__(self, where: Path, roots: Iterable[Path]) -> None:
        super().__init__(where, roots=", ".join(map(str, roots)))


class RootRefused(CatalogError):
    """A directory is marked as a root by a user whose mark is not trusted."""

    def __init__(self, root: Path, owner: str, why: str) -> None:
        super().__init__(
            f"{root} is marked as a root by {owner}, {why}: its catalog is not used. Name another "
            "one with --catalog, catalog= or CKPTDB_CATALOG, or let a common group write to "
            f"{root}/.ckptdb and nobody else."
        )


class CatalogLocked(CatalogError, TimeoutError):
    """Another process keeps the catalog locked."""

    def __init__(self, where: str) -> None:
        super().__init__(f"The catalog {where} is locked by another process; try again shortly.")


class CatalogBroken(CatalogError):
    """The catalog file is damaged or is no database."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(
            f"The catalog {where} is not readable ({why}); "
            "`ckptdb reconcile` sets it aside and rebuilds it from the checkpoints."
        )


class CatalogTampered(CatalogBroken):
    """The catalog holds objects that ckptdb never creates and that could run by themselves."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, f"it holds {what}, which ckptdb never puts there")


class CatalogUnusable(CatalogError):
    """The catalog cannot be opened or written (permissions, space, address)."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"The catalog {where} cannot be used: {why}.")


class CatalogReadOnly(CatalogUnusable):
    """The catalog may be read but not written."""

    def __init__(self, where: str, why: str = "") -> None:
        """Write the sentence; ``why`` says what is wrong, when it is more than permissions."""
        read_only = "it is read-only here; make it writable or choose another one"
        super().__init__(where, why or read_only)


class CatalogOutdated(CatalogError):
    """The catalog was made by an older version of ckptdb."""

    def __init__(self, where: str, revision: str) -> None:
        super().__init__(
            f"The catalog {where} is at the older revision {revision}; run `ckptdb db upgrade`."
        )


class CatalogTooNew(CatalogError):
    """The catalog was made by a newer version of ckptdb."""

    def __init__(self, where: str, revision: str) -> None:
        super().__init__(
            f"The catalog {where} is at revision {revision}, which this version of ckptdb "
            "does not know; upgrade ckptdb, nothing was changed."
        )


class CatalogForeign(CatalogError):
    """The database belongs to another application."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where} is a database of another application; choose another file "
            "with --catalog, nothing was changed."
        )


class IndexStale(CatalogError):
    """The catalog holds another checkpoint at a step that is to be recorded."""

    def __init__(self, steps: Sequence[int]) -> None:
        low, high = min(steps), max(steps)
        where = f"step {low}" if low == high else f"one of the steps {low} to {high}"
        super().__init__(
            f"The catalog holds another checkpoint at {where}; "
            "`ckptdb reconcile` compares it with the disk."
        )

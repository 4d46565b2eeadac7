"""Making the laboratory fast without changing what it tests."""

from __future__ import annotations

import gc
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.util import LRUCache

from ckptdb.catalog import dialects


def compile_statements_once() -> None:
    """Let all engines of this process share one cache of compiled statements.

    A laboratory opens thousands of catalogs in a process, and compiling the same statements for
    each would be most of its time. A compiled statement belongs to its dialect, so that is
    shared too.
    """
    shared: dict[str, Any] = {}
    cache: LRUCache[Any, Any] = LRUCache(500)

    def create(url: str, **options: Any) -> Any:
        engine = create_engine(url, **options)
        if engine.name == "sqlite":
            engine.dialect = shared.setdefault("dialect", engine.dialect)
            engine._compiled_cache = cache
        return engine

    dialects.create_engine = create


def settle() -> None:
    """Leave what is loaded so far out of garbage collection: forks then share its memory."""
    gc.collect()
    gc.freeze()

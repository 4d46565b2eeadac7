"""How many questions of visitors are answered at once, so that the page itself is always answered.

What an address asks beside naming a page (SQL, filters, facets, sorting) may be slow. Such
questions wait for each other, and run in threads of their own; everything else passes them by.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Final

from ckptdb.web.gate import ASSETS, App, Receive, Scope, Send, say

AT_ONCE: Final = 4
MOST_WAITING: Final = 64
PATIENCE_SECONDS: Final = 30.0
"""How long a question waits for its turn."""

_asked: ContextVar[bool] = ContextVar("ckptdb_asked_by_a_visitor", default=False)


def is_question() -> bool:
    """Tell whether the request that is being answered is one that had to wait for its turn."""
    return _asked.get()


class Admission:
    """An ASGI application of which only so many questions are asked at once."""

    def __init__(self, app: App, base: str) -> None:
        """Admit questions to ``app``, which browsers have at ``base``."""
        self._app = app
        self._assets = tuple(base.rstrip("/") + path for path in ASSETS)
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once, after those before it, or that there are too many of them."""
        if not self._asks(scope):
            await self._app(scope, receive, send)
        elif self._waiting >= MOST_WAITING or not await self._turn():
            wait = (b"retry-after", b"5")
            await say(send, 503, "Too many queries are running here; try again shortly.", wait)
        else:
            _asked.set(True)  # in the context of this request, which has its own
            try:
                await self._app(scope, receive, send)
            finally:
                self._turns.release()

    def _asks(self, scope: Scope) -> bool:
        if scope["type"] != "http" or not scope.get("query_string"):
            return False
        return not str(scope["path"]).startswith((*ASSETS, *self._assets))

    async def _turn(self) -> bool:
        self._waiting += 1
        try:
            await asyncio.wait_for(self._turns.acquire(), PATIENCE_SECONDS)
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

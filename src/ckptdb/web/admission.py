"""How many requests are answered at a time, so that the page itself is always answered.

What an address asks beside naming a page (SQL, filters, facets, sorting) may be slow. Such
questions run in threads of their own; and of each kind of request only so many may wait for their
answer to begin, so that together they leave connections to others.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from typing import Final, Literal

from ckptdb.web.gate import ASSETS, App, Message, Receive, Scope, Send, say

AT_ONCE: Final = 4
"""How many questions run at a time."""

Kind = Literal["page", "table", "question"]

_asked: ContextVar[bool] = ContextVar("ckptdb_is_question", default=False)


def is_question() -> bool:
    """Tell whether the request that is being answered asks more than for a page."""
    return _asked.get()


class Admission:
    """An ASGI application of which only so much is asked at a time."""

    def __init__(self, app: App, *, base: str, room: int) -> None:
        """Admit requests to ``app``.

        Args:
            app: What answers them.
            base: Where browsers have the pages.
            room: How many connections one address may have.
        """
        self._app = app
        self._base = base
        self._most: dict[Kind, int] = {
            "page": room // 5, "table": room // 5, "question": room // 2
        }  # fmt: skip
        self._waiting = Counter[Kind]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or say that there are too many of that kind."""
        kind = self._kind(scope)
        if kind is None:
            await self._app(scope, receive, send)
        elif self._waiting[kind] >= self._most[kind]:
            later = (b"retry-after", b"5")
            await say(send, 503, "Too many queries are running here; try again shortly.", later)
        else:
            await self._answer(kind, scope, receive, send)

    async def _answer(self, kind: Kind, scope: Scope, receive: Receive, send: Send) -> None:
        waits = True
        self._waiting[kind] += 1

        def begin() -> None:
            nonlocal waits
            self._waiting[kind] -= waits
            waits = False

        async def send_on(message: Message) -> None:
            begin()  # Whoever reads slowly from here on keeps nobody waiting.
            await send(message)

        _asked.set(kind == "question")  # In the context of this request, which has its own.
        try:
            await self._app(scope, receive, send_on)
        finally:
            begin()

    def _kind(self, scope: Scope) -> Kind | None:
        path = f"/{str(scope.get('path', '/')).removeprefix(self._base)}".replace("//", "/", 1)
        if scope["type"] != "http" or path.startswith(ASSETS):
            return None
        if scope.get("query_string"):
            return "question"
        return "page" if path == "/" else "table"

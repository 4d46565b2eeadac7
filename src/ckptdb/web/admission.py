"""Admission of requests: a limit for each kind, so that the page itself is always answered.

A query in an address (SQL, filters, facets, sorting) may be slow. Queries run in threads of their
own; and of each kind of request only some may wait for their answer to begin, so that together
they leave connections to others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final, Literal

from ckptdb.web.gate import ASSETS, App, Message, Receive, RequestScope, Send, say

AT_ONCE: Final = 4
"""Queries that run at a time."""

MOST_HELD_BYTES: Final = 32 << 20
"""Bytes of all answers together that are in memory while clients read them."""

RequestKind = Literal["page", "table", "question", "download"]
"""Kind of a request; a download is sent in parts, one of them in memory at a time."""

_asked: ContextVar[bool] = ContextVar("ckptdb_is_question", default=False)


def is_question() -> bool:
    """Tell whether the request that is being answered holds a query."""
    return _asked.get()


class Admission:
    """An ASGI application with a limit on the requests of each kind."""

    def __init__(self, app: App, *, base: str, room: int) -> None:
        """Admit requests to ``app``.

        Args:
            app: Answers the admitted requests.
            base: Directory of the pages in browsers.
            room: Connections that one address may have.
        """
        self._app = app
        self._base = base
        self._most: dict[RequestKind, int] = {
            "page": room // 5, "table": room // 5, "question": room // 2, "download": room // 12
        }  # fmt: skip
        self._waiting = Counter[RequestKind]()
        self._held_bytes = 0

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Answer, or refuse when there are too many of that kind."""
        kind = self._kind(scope)
        if kind is None:
            await self._app(scope, receive, send)
        elif self._waiting[kind] >= self._most[kind]:
            await _refuse(send, "Too many queries are running here")
        else:
            self._waiting[kind] += 1
            answer = _Answer(self, kind, send)
            _asked.set(kind in ("question", "download"))  # In the context of this request.
            try:
                await self._app(scope, receive, answer.send)
            finally:
                answer.begin()

    def end_waiting(self, kind: RequestKind) -> None:
        """Make room for another request of this kind."""
        self._waiting[kind] -= 1

    def has_room_for(self, kind: RequestKind, size_bytes: int) -> bool:
        """Tell whether an answer may lie in memory until it has been read."""
        fits = self._held_bytes + size_bytes <= MOST_HELD_BYTES
        return fits or self._held_bytes == 0 or kind == "page"

    @contextmanager
    def holding(self, size_bytes: int) -> Iterator[None]:
        """Count a part of an answer as in memory for as long as this is entered."""
        self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes

    def _kind(self, scope: RequestScope) -> RequestKind | None:
        path = f"/{str(scope.get('path', '/')).removeprefix(self._base)}".replace("//", "/", 1)
        if scope["type"] != "http" or path.startswith(ASSETS):
            return None
        if scope.get("query_string"):
            is_download = path.endswith(".csv") or b"_stream" in scope["query_string"]
            return "download" if is_download else "question"
        return "page" if path == "/" else "table"


class _Answer:
    """An answer on its way: counted until it begins, a download until it ends."""

    def __init__(self, admission: Admission, kind: RequestKind, send: Send) -> None:
        self._admission = admission
        self._kind: RequestKind = kind
        self._send = send
        self._waits = True
        self._start: Message | None = None
        self._is_refused = False

    async def send(self, message: Message) -> None:
        """Pass on a part, unless too much is waiting to be read."""
        if self._kind != "download":
            self.begin()
        if message["type"] == "http.response.start":
            self._start = message  # until it is known how large the answer is
            return
        size_bytes = len(message.get("body", b""))
        if self._start is not None:
            if not self._admission.has_room_for(self._kind, size_bytes):
                self._is_refused = True
                await _refuse(self._send, "Too many answers here are waiting to be read")
            else:
                await self._send(self._start)
            self._start = None
        if not self._is_refused:
            with self._admission.holding(size_bytes):
                await self._send(message)

    def begin(self) -> None:
        """Make room for another request of this kind."""
        if self._waits:
            self._waits = False
            self._admission.end_waiting(self._kind)


async def _refuse(send: Send, why: str) -> None:
    await say(send, 503, f"{why}; try again shortly.", (b"retry-after", b"5"))

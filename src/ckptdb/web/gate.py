"""Who gets in: the checks that stand before everything that is served, and the headers after it.

Plain ASGI, so that nothing behind it, whichever library it belongs to, is reached without them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names that lead to the machine that they are said on, whatever the port: a tunnel has another."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_PRIVATE = re.compile(r"/-/(?!ckptdb/|static/|(plugins|versions|settings|databases|metadata)\b)")
"""What a Datasette has for those who run it: debugging, logging in and out."""

_ASSETS = ("/-/ckptdb/", "/-/static/")
"""Scripts and styles, which are the same for everybody and may be kept."""

_ALWAYS: Final = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is let through.

    Attributes:
        hosts: What it may be called beside `LOOPBACK`, with its port, as `standard` writes it.
        token: What a visitor must know, None when whoever reaches the port may come in.
        port: Tells the cookies of two servers on one machine apart.
        page_policy: The content security policy of ``/``.
        table_policy: That of everything else.
    """

    hosts: Collection[str]
    token: str | None
    port: int
    page_policy: str
    table_policy: str


class Gate:
    """An ASGI application behind its rules."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._cookie = f"ckptdb-{rules.port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, self._with_headers(scope, send))
        else:  # A websocket: nothing here speaks it.
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _say(send, 405, "Only GET and HEAD are answered.", (b"allow", b"GET, HEAD"))
        elif not self._knows_host(_values(scope, b"host")):
            await _say(send, 403, "This server does not go by that name; see --host.")
        elif (given := self._token_in_address(scope)) is not None and self._is_token(given):
            await _say(send, 303, "", *self._let_in(scope))
        elif not self._may_enter(scope):
            told = "Open the address that `ckptdb serve` printed: it carries the token."
            await _say(send, 403, told)
        elif _PRIVATE.match(scope["path"]):
            await _say(send, 404, "There is no such page.")
        else:
            await self._app({**scope, "method": "GET"}, receive, send)

    # --- which name ----------------------------------------------------------------------

    def _knows_host(self, given: list[str]) -> bool:
        # A foreign page can make its own name mean this machine, and would then read everything.
        match = _HOST.fullmatch(standard(given[0])) if len(given) == 1 else None
        if match is None:
            return False
        return match["name"] in LOOPBACK or match[0] in self._rules.hosts

    # --- which token ---------------------------------------------------------------------

    def _token_in_address(self, scope: Scope) -> str | None:
        if self._rules.token is None:
            return None
        return next((value for name, value in _query(scope) if name == "token"), None)

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), str(self._rules.token).encode())

    def _ticket(self) -> str:
        # Not the token itself: a cookie is sent again and again, and stays in files.
        return hmac.new(str(self._rules.token).encode(), b"ticket", hashlib.sha256).hexdigest()

    def _let_in(self, scope: Scope) -> Iterable[tuple[bytes, bytes]]:
        rest = urlencode([pair for pair in _query(scope) if pair[0] != "token"])
        # One slash, or the browser would take what follows for another machine.
        path = "/" + scope.get("raw_path", b"/").decode("ascii", "replace").lstrip("/\\")
        location = path.partition("?")[0] + (f"?{rest}" if rest else "")
        cookie = f"{self._cookie}={self._ticket()}; Path=/; HttpOnly; SameSite=Strict"
        return ((b"location", location.encode()), (b"set-cookie", cookie.encode()))

    def _may_enter(self, scope: Scope) -> bool:
        if self._rules.token is None:
            return True
        shown = [value for header in _values(scope, b"cookie") for value in self._tickets(header)]
        if any(hmac.compare_digest(value.encode(), self._ticket().encode()) for value in shown):
            return True
        bearers = [value.partition(" ") for value in _values(scope, b"authorization")]
        return any(kind.lower() == "bearer" and self._is_token(t) for kind, _, t in bearers)

    def _tickets(self, header: str) -> Iterable[str]:
        # Not by a parser, which stops at what it cannot read: other servers on this machine send
        # their cookies along.
        pairs = (part.strip().partition("=") for part in header.split(";"))
        return (value for name, _, value in pairs if name == self._cookie)

    # --- what is sent along --------------------------------------------------------------

    def _with_headers(self, scope: Scope, send: Send) -> Send:
        rules, head = self._rules, scope["method"] == "HEAD"
        policy = rules.page_policy if scope["path"] == "/" else rules.table_policy
        ours = [(b"content-security-policy", policy.encode()), *_ALWAYS]
        if not scope["path"].startswith(_ASSETS):
            ours.append((b"cache-control", b"no-store"))
        names = {name for name, _ in ours}

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [
                    (name, value)
                    for name, value in message.get("headers", ())
                    if name.lower() not in names
                ]
                message = {**message, "headers": [*own, *ours]}
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        return with_headers


def standard(host: str) -> str:
    """Return a host as a browser would say it."""
    return host.lower().removesuffix(":80")


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == header]


def _query(scope: Scope) -> list[tuple[str, str]]:
    text = scope.get("query_string", b"").decode("latin-1")
    return parse_qsl(text, keep_blank_values=True)


async def _say(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    body = f"{text}\n".encode()
    told = [(b"content-type", b"text/plain; charset=utf-8"), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})

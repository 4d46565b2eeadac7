"""The gate of the server: checks before every request, and security headers on every answer.

It is plain ASGI, so that no library behind it is reached without the checks.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass
from html import escape
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from ckptdb.web import origin

RequestScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[RequestScope, Receive, Send], Awaitable[None]]

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of the machine itself, on any port: a tunnel has another one."""

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_PRIVATE = re.compile(r"/-/(?!ckptdb/|static/|(plugins|versions|settings|databases|metadata)\b)")
"""Pages of Datasette for its administrator: debugging, logging in and out."""

_LEAVING = re.compile(r"/[/\\]|[^/]")
"""Paths that a browser would take for another machine in a redirection."""

ASSETS: Final = ("/-/ckptdb/", "/-/static/")
"""Scripts and styles: the same for every visitor, so browsers may cache them."""

LONGEST_ADDRESS: Final = 65_536
"""Most bytes of a path and its query together."""

_PART_BYTES: Final = 65_536

_FOREIGN: Final = "A page of another site has asked for this. Open the address yourself."
_MUTE: Final = (
    "This browser does not say which page a request comes from, so that any page could ask here. "
    "Use a newer one, or start `ckptdb serve --token auto`."
)

_ALWAYS: Final = (
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of the gate.

    Attributes:
        hosts: Names of the server beside `LOOPBACK`, with its port, as `standard` writes it.
        token: Token that a visitor must know; None when everybody may enter.
        base: Directory of the pages in browsers: ``/``, or a secret one from `secret_base`.
        page_policy: The content security policy of ``/``.
        table_policy: That of everything else.
    """

    hosts: Collection[str]
    token: str | None
    base: str
    page_policy: str
    table_policy: str


def secret_base(token: str | None, port: int) -> str:
    """Return the directory in which browsers get the pages.

    Browsers send a cookie to every port of a machine, and so to other people's servers: unless it
    is for a directory whose name these do not know.
    """
    if token is None:
        return "/"
    name = hmac.new(token.encode(), f"base:{port}".encode(), hashlib.sha256).hexdigest()
    return f"/{name[:32]}/"


class Gate:
    """An ASGI application behind its rules."""

    def __init__(self, app: App, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        # Of this process alone: no other server, and not the next one, takes it.
        self._cookie = f"ckptdb-{secrets.token_hex(4)}"
        self._ticket = secrets.token_urlsafe(32)

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, self._with_headers(scope, send))
        else:  # A websocket: nothing here speaks it.
            await send({"type": "websocket.close", "code": 1008})

    async def _serve(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        given_headers = _read_headers(scope)
        if scope["method"] not in ("GET", "HEAD"):
            await say(send, 405, "Only GET and HEAD are answered.", (b"allow", b"GET, HEAD"))
        elif len(scope.get("raw_path", b"")) + len(_query_string(scope)) > LONGEST_ADDRESS:
            await say(send, 414, f"An address may have {LONGEST_ADDRESS} bytes.")
        elif not self._knows_host(given_headers.get("host", ())):
            await say(send, 403, "This server does not go by that name; see --host.")
        elif why := self._refusal(scope, given_headers):
            await say(send, 403, why)
        elif (given := self._token_in_address(scope)) is not None and self._is_token(given):
            await self._let_in(scope, given_headers, send)
        elif not self._may_enter(scope, given_headers):
            if scope["path"] == "/favicon.ico":
                await say(send, 204, "")  # which browsers look for there, whoever they are
                return
            sentence = "Open the address that `ckptdb serve` printed: it carries the token."
            await say(send, 403, sentence)
        elif _PRIVATE.match(path := self._path(scope)) or _LEAVING.match(path):
            await say(send, 404, "There is no such page.")
        else:
            # Cookies of other servers on this machine are not passed on.
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"cookie"]
            await self._app({**scope, "method": "GET", "headers": headers}, receive, send)

    def _path(self, scope: RequestScope) -> str:
        """Return the path of a page, without the directory of the pages."""
        path, base = str(scope["path"]), self._rules.base
        return f"/{path[len(base) :]}" if _same(path[: len(base)], base) else path

    # --- from which page -----------------------------------------------------------------

    def _refusal(self, scope: RequestScope, given_headers: origin.Headers) -> str | None:
        if self._rules.token is None and origin.is_mute_browser(given_headers):
            return _MUTE
        if not origin.is_foreign(given_headers, given_headers["host"][0].lower()):
            return None
        # A visit of the start page from a link elsewhere gives that page nothing.
        asks = any(name != "token" for name, _ in _query(scope))
        first = scope["method"] == "GET" and self._path(scope) == "/" and not asks
        return None if first and origin.is_visit(given_headers) else _FOREIGN

    # --- which name ----------------------------------------------------------------------

    def _knows_host(self, given: Sequence[str]) -> bool:
        # A foreign page can make its own name mean this machine, and would then read everything.
        match = _HOST.fullmatch(standard(given[0])) if len(given) == 1 else None
        if match is None:
            return False
        return match["name"] in LOOPBACK or match[0] in self._rules.hosts

    # --- which token ---------------------------------------------------------------------

    def _token_in_address(self, scope: RequestScope) -> str | None:
        if self._rules.token is None:
            return None
        return next((value for name, value in _query(scope) if name == "token"), None)

    def _is_token(self, given: str) -> bool:
        return _same(given, str(self._rules.token))

    async def _let_in(self, scope: RequestScope, given_headers: origin.Headers, send: Send) -> None:
        rest = urlencode([pair for pair in _query(scope) if pair[0] != "token"])
        path = scope.get("raw_path", b"/").decode("ascii", "replace").partition("?")[0]
        # One slash, or the browser would take what follows for another machine.
        location = self._rules.base + path.removeprefix(self._rules.base).lstrip("/\\")
        location += f"?{rest}" if rest else ""
        cookie = f"{self._cookie}={self._ticket}; Path={self._rules.base}"
        given = (b"set-cookie", f"{cookie}; HttpOnly; SameSite=Strict".encode())
        if origin.is_typed(given_headers):
            await say(send, 303, "", given, (b"location", location.encode()))
            return
        # Where a link led here the cookie is not sent along a redirection, but from a page of ours.
        onward = (b"refresh", f"0; url={location}".encode())
        html = (b"content-type", b"text/html; charset=utf-8")
        await say(send, 200, f'<a href="{escape(location)}">Checkpoints</a>', given, onward, html)

    def _may_enter(self, scope: RequestScope, given_headers: origin.Headers) -> bool:
        if self._rules.token is None:
            return True
        tickets = [
            value for header in given_headers.get("cookie", ()) for value in self._tickets(header)
        ]
        # Elsewhere a browser would send it only because somebody has planted it there.
        at_home = _same(str(scope["path"])[: len(self._rules.base)], self._rules.base)
        if at_home and any(_same(value, self._ticket) for value in tickets):
            return True
        bearers = [value.partition(" ") for value in given_headers.get("authorization", ())]
        return any(kind.lower() == "bearer" and self._is_token(t) for kind, _, t in bearers)

    def _tickets(self, header: str) -> Iterable[str]:
        # Not by a parser, which stops at what it cannot read: other servers on this machine send
        # their cookies along.
        pairs = (part.strip().partition("=") for part in header.split(";"))
        return (value for name, _, value in pairs if name == self._cookie)

    # --- what is sent along --------------------------------------------------------------

    def _with_headers(self, scope: RequestScope, send: Send) -> Send:
        rules, head = self._rules, scope["method"] == "HEAD"
        path = self._path(scope)
        policy = rules.page_policy if path == "/" else rules.table_policy
        ours = [(b"content-security-policy", policy.encode()), *_ALWAYS]
        if not path.startswith(ASSETS):
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
            elif head:
                message = {**message, "body": b""}
            for part in _parts(message):
                await send(part)

        return with_headers


def _parts(message: Message) -> Iterator[Message]:
    """Split a body, so that a slow reader keeps only a part of it in memory."""
    body = memoryview(message.get("body", b""))
    while len(body) > _PART_BYTES:
        yield {"type": message["type"], "body": bytes(body[:_PART_BYTES]), "more_body": True}
        body = body[_PART_BYTES:]
    yield {**message, "body": bytes(body)} if "body" in message else message


def standard(host: str) -> str:
    """Return a host as a browser writes it."""
    return host.lower().removesuffix(":80")


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _read_headers(scope: RequestScope) -> origin.Headers:
    given_headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        given_headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return given_headers


def _query_string(scope: RequestScope) -> bytes:
    return bytes(scope.get("query_string", b""))


def _query(scope: RequestScope) -> list[tuple[str, str]]:
    return parse_qsl(_query_string(scope).decode("latin-1"), keep_blank_values=True)


async def say(send: Send, status: int, text: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with a sentence.

    Args:
        send: Sends the answer.
        status: Status of HTTP.
        text: Plain text, unless the headers set another type.
        headers: Further headers.
    """
    plain = (b"content-type", b"text/plain; charset=utf-8")
    given = [*headers] if any(name == b"content-type" for name, _ in headers) else [plain, *headers]
    body = f"{text}\n".encode() if text else b""
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})

"""Limits on connections: an idle one never keeps others out.

uvicorn bounds how long a connection may be idle after an answer, and nothing else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol, TypeVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\n\r\n"
    b"The request is too large.\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """Limits on connections and requests.

    Attributes:
        most: Connections in all.
        most_of_one: Connections of one address; all connections through a tunnel have the same.
        patience_seconds: Time to complete a request, from the connection or the answer before
            it, and to read the next part of an answer.
        request_bytes: Bytes of a request. A browser sends the cookies of all servers of a machine:
            180 of 4 KiB.
        request_lines: Lines of a request.
        backlog: Connections that are accepted at once, before any is checked.
    """

    most: int
    most_of_one: int
    patience_seconds: float = 15.0
    request_bytes: int = 1024 * 1024
    request_lines: int = 200
    backlog: int = 64

    @classmethod
    def of(cls, open_files: int) -> ConnectionLimits:
        """Return limits that leave most of the files that a process may open to other uses."""
        quarter = max(open_files // 4, 8)
        most = min(quarter, 128)
        return cls(most=most, most_of_one=most * 3 // 4, backlog=min(quarter, 1024))


class OpenConnection(Protocol):
    """A connection, as far as it matters for the choice of one to close."""

    peer: str
    since: float

    @property
    def is_busy(self) -> bool:
        """A request is being answered, and its answer is being read."""


_Connection = TypeVar("_Connection", bound=OpenConnection)


def find_superfluous(
    connections: Collection[_Connection], newest: _Connection, limits: ConnectionLimits
) -> _Connection | None:
    """Return the connection that has to be closed because of the newest one, if any.

    An idle one is preferred: the longest idle one of the address with the most connections.
    """
    of_one = [one for one in connections if one.peer == newest.peer]
    crowd = of_one if len(of_one) > limits.most_of_one else connections
    if crowd is connections and len(connections) <= limits.most:
        return None
    number = Counter(one.peer for one in crowd)
    return min(crowd, key=lambda one: (one.is_busy, -number[one.peer], one.since))


class Connection(H11Protocol):
    """A connection within its limits."""

    limits: ClassVar[ConnectionLimits]

    def __init__(self, *args: Any, **options: Any) -> None:
        """Make a connection as uvicorn does."""
        super().__init__(*args, **options)
        self.peer = ""
        self._timer: asyncio.TimerHandle | None = None
        self._unread = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as it is there
        """Accept a connection, and close an idle one when there are too many."""
        super().connection_made(transport)
        self.peer = network(self.client[0] if self.client else "")
        self._await_request()
        connections = [one for one in self.connections if isinstance(one, Connection)]
        if (superfluous := find_superfluous(connections, self, self.limits)) is not None:
            self.connections.discard(superfluous)
            superfluous.transport.abort()

    @property
    def is_busy(self) -> bool:
        """A request is being answered, and its answer is being read."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        return is_answering and not self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        """Take a part of a request, unless the whole is too large by now."""
        self._bytes += len(data)
        self._lines += data.count(b"\n")
        limits = self.limits
        if self._bytes <= limits.request_bytes and self._lines <= limits.request_lines:
            super().data_received(data)
        elif self.conn.our_state is h11.IDLE:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
        else:  # Half an answer has been sent.
            self.transport.abort()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._await_request()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for the other side to read."""
        super().pause_writing()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop_waiting()

    def _await_request(self) -> None:
        self._bytes = self._lines = 0
        self._wait()

    def _wait(self) -> None:
        self.since = self.loop.time()
        self._unread = math.inf
        self._look_later()

    def _look_later(self) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(self.limits.patience_seconds, self._end_if_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _end_if_late(self) -> None:
        if self.is_busy:
            return  # The next wait begins when that has ended.
        before, self._unread = self._unread, self.transport.get_write_buffer_size()
        if 0 < self._unread < before:  # An answer is being read, however slowly.
            self._look_later()
        else:
            self.transport.abort()


def bounded(limits: ConnectionLimits) -> type[Connection]:
    """Return the class of connections within these limits, as uvicorn takes it."""
    return type("BoundedConnection", (Connection,), {"limits": limits})


def network(address: str) -> str:
    """Return the network of an address: a host has many of IPv6, alike in their first half."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return address if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))  # noqa: PLR2004

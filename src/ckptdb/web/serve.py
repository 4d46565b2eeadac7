"""The server of the page: a Datasette behind the gate, in the process of the command."""

from __future__ import annotations

import asyncio
import errno
import gc
import importlib
import ipaddress
import logging
import resource
import secrets
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

from ckptdb.catalog import engine
from ckptdb.catalog.schema import VERSION_TABLE
from ckptdb.catalog.views import PURPOSES
from ckptdb.errors import NotServable
from ckptdb.registry import Registry
from ckptdb.web.admission import Admission
from ckptdb.web.data import catch_up
from ckptdb.web.gate import LOOPBACK, App, Gate, Rules, secret_base, standard
from ckptdb.web.log import BoundedHandler
from ckptdb.web.report import script_hash

AUTO: Final = "auto"
"""Value for a token that is generated."""

NO_TOKEN: Final = ""
"""Value for no token, also where others use the machine."""

SETTINGS: Final = {
    "allow_download": False,
    "default_cache_ttl": 0,
    "max_csv_mb": 100,
    "max_returned_rows": 1_000,
    "num_sql_threads": 4,  # for pages; queries of visitors have their own
    "sql_time_limit_ms": 2_000,
}

_FAREWELL_SECONDS: Final = 1.0
"""Time that running answers may take when the server has to end."""

# Plotly styles what it draws by `style=` and a `<style>` of its own.
_PAGE_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# Datasette colours its headings by `style=` and names columns on telephones by `<style>`.
_TABLE_POLICY: Final = (
    "default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The address of the page, and its token.

    Attributes:
        why_token: Reason for a token that the user did not request; else None.
    """

    listener: socket.socket
    host: str
    token: str | None
    why_token: str | None = None

    @property
    def port(self) -> int:
        """The port; a free one when 0 was requested."""
        return int(self.listener.getsockname()[1])

    @property
    def address(self) -> str:
        """Address for a browser, with the token."""
        name = socket.gethostname() if _is_any(self.host) else _bracketed(self.host)
        key = "" if self.token is None else f"?token={quote(self.token, safe='')}"
        return f"http://{name}:{self.port}/{key}"


@contextmanager
def open_door(
    host: str, port: int, token: str | None, *, shared: str | None = None
) -> Iterator[Door]:
    """Listen for as long as this is entered.

    Args:
        host: An address or a name of this machine.
        port: 0 for any that is free.
        token: `AUTO` to have one made, `NO_TOKEN` to let in everybody on this machine; None leaves
            it to who can reach the host.
        shared: The sign that others use this machine, from `why_shared`.

    Raises:
        NotServable: There is no such host here, or the port is taken, or everybody in a network
            would be let in.
    """
    local = _is_loopback(host)
    if token == NO_TOKEN and not local:
        why = f"{host} can be reached from other machines, and --no-token is for this one alone"
        raise NotServable(f"{why} (--host 127.0.0.1)")
    unrequested = token is None and (shared is not None or not local)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, TypeError) as error:  # TypeError: what is no name at all
        raise _not_listening(host, port, error) from error
    if unrequested or token == AUTO:
        token = secrets.token_urlsafe(24)
    with listener:
        reason = shared if unrequested and local else None
        yield Door(listener=listener, host=host, token=token or None, why_token=reason)


def _not_listening(host: str, port: int, error: OSError | TypeError) -> NotServable:
    text = getattr(error, "strerror", None) or str(error)
    of_port = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
    option = "--port" if of_port else "--host"
    why = text.partition(" (while ")[0]  # the rest repeats the address
    return NotServable(f"{host}:{port} cannot be listened on ({why}); see {option}")


def serve(reopen: Callable[[], Registry], door: Door, ready: Callable[[], None]) -> None:
    """Serve until somebody interrupts.

    Args:
        reopen: Opens the registry, again at every load.
        door: From `open_door`.
        ready: Called when visitors may come.
    """
    import uvicorn

    from ckptdb.web.connections import ConnectionLimits, bounded

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            with suppress(TimeoutError):
                await asyncio.wait_for(super().shutdown(sockets), _FAREWELL_SECONDS)
            if self.server_state.tasks:
                # A thread is inside SQLite, and Python would wait for it. It only reads.
                _die_of(self._captured_signals[-1])

    limits = ConnectionLimits.of(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with catalog_of(reopen) as catalog:
        config = uvicorn.Config(
            make_app(reopen, catalog, door, room=limits.most_of_one),
            http=bounded(limits),
            ws="none",
            h11_max_incomplete_event_size=limits.request_bytes,
            backlog=limits.backlog,
            proxy_headers=False,
            # Its log of requests would hold the token, and what strangers send is no news.
            access_log=False,
            log_config=None,
            log_level="error",
        )
        logging.getLogger().addHandler(BoundedHandler())
        # It warns of every answer that somebody has not waited for.
        logging.getLogger("asyncio").setLevel(logging.ERROR)
        gc.freeze()  # what is imported stays: no collection during a page need look at it
        with suppress(KeyboardInterrupt):  # that is how it ends
            Server(config).run(sockets=[door.listener])


def _die_of(number: int) -> None:
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def catalog_of(reopen: Callable[[], Registry]) -> Iterator[engine.Database]:
    """Enter the catalog that is to be served, up to date with the run that was opened.

    Raises:
        CatalogError: There is none, or it cannot be read.
        NotServable: It is no SQLite file.
    """
    with reopen() as registry:
        location = registry.location
        if location.file is None:
            raise NotServable(f"{location} is not a SQLite file; `ckptdb report` shows any catalog")
        if not registry.status().exists:
            raise registry.explain_missing()
        catch_up(registry)  # now, since visitors change nothing
    catalog = engine.Database.open(location)
    try:
        yield catalog
    finally:
        catalog.close()


def make_app(
    reopen: Callable[[], Registry], catalog: engine.Database, door: Door, *, room: int
) -> App:
    """Return the application behind its gate, which leaves part of so much room for others."""
    datasette_app = _import_datasette()
    plugin = importlib.import_module("ckptdb.web.plugin")
    manager = datasette_app.pm
    # It prints a traceback with all local variables for every mistyped query; ours answers.
    manager.unregister(name="datasette.handle_exception")
    manager.register(plugin.Plugin(reopen), "ckptdb")
    # Datasette creates all queries of a page first, and drops the rest when one fails.
    never = r"coroutine '(TableView|\w+Facet)\..* was never awaited"
    warnings.filterwarnings("ignore", never, RuntimeWarning)
    views: Any = importlib.import_module("datasette.views.base")
    views.csv = plugin.InertCsv
    base = secret_base(door.token, door.port)
    settings = {**SETTINGS, "base_url": base}
    datasette = datasette_app.Datasette(files=[], settings=settings, metadata=_metadata())
    datasette.remove_database("_memory")
    datasette.add_database(plugin.CatalogFile(datasette, catalog), name=plugin.NAME)
    loader = datasette.jinja_env.loader
    names = ("_close_open_menus.html", "_codemirror_foot.html", "table.html")
    sources = [loader.get_source(datasette.jinja_env, name)[0] for name in names]
    scripts = " ".join(map(script_hash, plugin.inline_scripts(sources)))
    rules = Rules(
        hosts=_names(door),
        token=door.token,
        base=base,
        page_policy=_PAGE_POLICY,
        table_policy=_TABLE_POLICY.format(scripts=scripts),
    )
    return Gate(Admission(datasette.app(), base=base, room=room), rules)


def _import_datasette() -> Any:
    """Import Datasette without the plugins that happen to be installed beside it."""
    if "datasette.plugins" in sys.modules:
        # Somebody else's, with somebody else's plugins.
        raise NotServable("Datasette runs in this process already; start `ckptdb serve` by itself")
    # The one switch that this version has.
    switch: Any = sys
    switch._called_from_test = True  # noqa: SLF001
    try:
        return importlib.import_module("datasette.app")
    finally:
        del switch._called_from_test  # noqa: SLF001


def _metadata() -> dict[str, Any]:
    tables: dict[str, Any] = {name: {"description": text} for name, text in PURPOSES.items()}
    tables["runs"]["label_column"] = "name"
    tables[VERSION_TABLE]["hidden"] = True
    about = "Times are UTC. abspath(path) makes a path absolute."
    databases = {"catalog": {"description": about, "tables": tables}}
    return {"title": "Checkpoints", "databases": databases}


def _names(door: Door) -> frozenset[str]:
    """Return what a browser may call this server, beside the names of `LOOPBACK`."""
    names = {socket.gethostname(), socket.getfqdn()} if _is_any(door.host) else {door.host}
    return frozenset(standard(f"{_bracketed(name.lower())}:{door.port}") for name in names)


def _is_loopback(host: str) -> bool:
    if _bracketed(host.lower()) in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host

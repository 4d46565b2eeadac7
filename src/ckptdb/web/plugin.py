"""The plugin for Datasette: the page, safe cells, and errors that name the next step.

`ckptdb serve` alone registers it, in its own process; no other Datasette sees it.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import cache
from http import HTTPStatus
from math import inf
from typing import Any, Final, TypeVar
from urllib.parse import unquote_plus

from datasette import hookimpl
from datasette.database import Database, QueryInterrupted
from datasette.utils.asgi import Base400, NotFound, Response
from datasette.views.base import DatasetteError
from markupsafe import Markup

from ckptdb.catalog import (
    engine,
    files,
    query,
    sandbox,
)
from ckptdb.catalog.bounded_query import BoundedQuery
from ckptdb.catalog.worker import Place, Workers
from ckptdb.core.text import clean, inert
from ckptdb.errors import CkptdbError
from ckptdb.registry import Registry
from ckptdb.web import admission, questions, report
from ckptdb.web.data import take_snapshot
from ckptdb.web.gate import App, Receive, RequestScope, Send

NAME: Final = "catalog"
"""Name of the database in every address, wherever the file is."""

ASSETS: Final = "/-/ckptdb/"
_TYPES: Final = {
    report.SCRIPT: "text/javascript; charset=utf-8",
    report.PLOTLY: "text/javascript; charset=utf-8",
    report.STYLE: "text/css; charset=utf-8",
}
_PATIENCE_SECONDS: Final = 5.0
"""Time for which a query waits for the lock of the catalog."""

_TABLE = re.compile(rf"/{NAME}(/\w+(\.\w+)?)?", re.ASCII)
_NONSENSE: Final = (
    ValueError, LookupError, TypeError, OverflowError, RecursionError, UnboundLocalError,
    sqlite3.Error, sqlite3.Warning,
)  # fmt: skip
"""Errors that Datasette raises for an address that it does not expect."""

_LOG = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class Plugin:
    """Hooks of Datasette that this package implements."""

    # Datasette lists a plugin by it, and looks there for templates, of which we have none for it.
    __name__ = "ckptdb"

    def __init__(self, reopen: Callable[[], Registry]) -> None:
        """Show the registry that ``reopen`` returns, opened again at every load."""
        self._reopen = reopen
        # Its own, so that no query of a visitor is before it.
        self._threads = ThreadPoolExecutor(2, "page")

    @hookimpl
    def register_routes(self) -> list[tuple[str, Callable[..., Any]]]:
        """Put the page where Datasette has its list of databases."""
        return [(r"^/$", self._page), (rf"^{ASSETS}(?P<name>[a-z.]+)$", _asset)]

    @hookimpl
    def asgi_wrapper(self, datasette: Any) -> Callable[[App], App]:
        """Bound what all queries of a page take together."""
        seconds = datasette.sql_time_limit_ms / 1000 * questions.LIMITS_A_PAGE

        def wrap(app: App) -> App:
            async def bounded(scope: RequestScope, receive: Receive, send: Send) -> None:
                streams = b"_stream" in scope.get("query_string", b"")
                with questions.making(questions.Page(None if streams else seconds)):
                    await app(scope, receive, send)

            return bounded

        return wrap

    @hookimpl
    def prepare_jinja2_environment(self, env: Any) -> None:
        """Let no text in any table, heading or field hide something or turn its line around."""
        env.finalize = _spelled

    @hookimpl
    def handle_exception(self, datasette: Any, request: Any, exception: Exception) -> Any:
        """Answer with one sentence; only what nobody expected goes to the log."""

        async def answer() -> Response:
            status, title, sentence = _explain(exception, request)
            if request.path.partition("?")[0].endswith(".json"):
                content = {"ok": False, "error": sentence, "status": status, "title": title}
                return Response.json(content, status=status)
            template = datasette.jinja_env.select_template([f"{status}.html", "error.html"])
            content = {
                "ok": False, "error": sentence, "status": status, "title": title,
                "urls": datasette.urls, "app_css_hash": datasette.app_css_hash(),
                "menu_links": list,
            }  # fmt: skip
            return Response.html(await template.render_async(content), status=status)

        return answer

    async def _page(self, datasette: Any) -> Response:
        loop = asyncio.get_running_loop()
        base = datasette.setting("base_url").rstrip("/")
        return Response.html(await loop.run_in_executor(self._threads, self._render, base))

    def _render(self, base: str) -> str:
        with self._reopen() as registry:
            snapshot = take_snapshot(registry)
        return report.render_page(snapshot, assets=base + ASSETS, tables=f"{base}/{NAME}")


def _spelled(value: object) -> object:
    if not isinstance(value, str) or value.isprintable():
        return value
    text = "".join(c if c in "\n\r\t\xa0" else clean(c) for c in value)
    return Markup(text) if isinstance(value, Markup) else text  # noqa: S704  # as it was


async def _asset(request: Any) -> Response:
    name = request.url_vars["name"]
    if name not in _TYPES:
        raise NotFound(f"There is no {name}")
    # Its address changes with it. Through a tunnel the largest takes seconds, packed one.
    headers = {"cache-control": "private, max-age=31536000, immutable", "vary": "accept-encoding"}
    body = _unpacked(name)
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = report.packed(name)
        headers["content-encoding"] = "gzip"
    return Response(body, headers=headers, content_type=_TYPES[name])


@cache
def _unpacked(name: str) -> bytes:
    return report.read(name).encode()  # once, and not for everybody who reads it slowly


def _explain(error: Exception, request: Any) -> tuple[int, str | None, str]:
    if isinstance(error, CkptdbError):
        return 503, "Not now", str(error)
    # The only one in HTML quotes the query; for CSV the other is let through as it is.
    if getattr(error, "message_is_html", False) or isinstance(error, QueryInterrupted):
        return 400, "SQL Interrupted", "The query was stopped: it ran for too long. Narrow it."
    if isinstance(error, DatasetteError):
        # Its default status for a wrong address is 500.
        unsaid = error.status == HTTPStatus.INTERNAL_SERVER_ERROR
        return 400 if unsaid else error.status, error.title, str(error.message)
    if isinstance(error, Base400):
        return error.status, None, str(error.args[0] if error.args else error)
    if isinstance(error, _NONSENSE) and _asks(request):
        return 400, None, _quoted(error, request)
    _LOG.error("A page could not be made", exc_info=error)
    return 500, "A bug in ckptdb or Datasette", "What went wrong is in the log of the server."


def _asks(request: Any) -> bool:
    """Tell whether an address holds more than the name of a table, and so may be wrong."""
    path = _path(request)
    if not path.startswith(f"/{NAME}"):
        return False
    return bool(request.query_string) or _TABLE.fullmatch(path) is None


def _path(request: Any) -> str:
    """Return the path of a page, without the directory of the pages."""
    return str(request.scope.get("route_path", request.path)).partition("?")[0]


def _quoted(error: Exception, request: Any) -> str:
    if isinstance(error, sqlite3.Error | sqlite3.Warning) and "_where" in request.args:
        return str(error)
    address = f"{_path(request)}?{request.query_string}".rstrip("?")
    return f"This address cannot be understood: {clean(unquote_plus(address))[:200]}"


# --- the database -----------------------------------------------------------------------------


class CatalogFile(Database):  # type: ignore[misc]  # Datasette is untyped
    """A catalog as Datasette sees it: reading, and nothing else.

    Every question has a connection of its own, so that none keeps a writer waiting, sees a file
    that has been replaced, or finds what another one has left.
    """

    def __init__(self, datasette: Any, catalog: engine.Database) -> None:
        super().__init__(datasette, path=str(catalog.location.file), is_mutable=True)
        self._catalog = catalog
        assert catalog.location.file is not None  # noqa: S101  # `serve` has looked
        self._file = catalog.location.file
        self._threads = ThreadPoolExecutor(admission.AT_ONCE, "question")
        self._workers = Workers()

    def connect(self, write: bool = False) -> sqlite3.Connection:  # noqa: FBT001, FBT002  # as it is called
        """Open a connection that reads; there is no other."""
        if write:
            raise PermissionError("A catalog is only read here.")
        raw = files.connect(
            self._file,
            # Never `immutable`: a training writes, and SQLite must look for its lock and journal.
            mode=files.READING,
            timeout_seconds=_PATIENCE_SECONDS,
            check_same_thread=False,
            factory=_Connection,
        )
        try:
            self.ds._prepare_connection(raw, self.name)  # noqa: SLF001  # what its own do
            sandbox.confine(raw, self._catalog.location.base, sandbox.Authorizer())
        except BaseException:
            raw.close()
            raise
        return raw

    async def execute(  # noqa: PLR0917  # as it is called
        self,
        sql: str,
        params: Any = None,
        truncate: bool = False,  # noqa: FBT001, FBT002
        custom_time_limit: float | None = None,
        page_size: int | None = None,
        log_sql_errors: bool = False,  # noqa: FBT001, FBT002
    ) -> Any:
        """Answer SQL in a process that the system bounds; nothing of it is printed."""
        del log_sql_errors
        most = int(self.ds.max_returned_rows)
        if most == (page_size or self.ds.page_size):
            most += 1
        page = questions.current_page()
        question = questions.make_question(
            page,
            sql,
            params,
            limit=most if truncate else None,
            milliseconds=min(custom_time_limit or inf, self.ds.sql_time_limit_ms),
        )
        return await self._in_thread(lambda: self._ask(question, page))

    def _ask(self, question: BoundedQuery, page: questions.Page) -> Any:
        place = Place(
            uri=files.find_uri(self._file, mode=files.READING),
            base=self._catalog.location.base,
            patience_seconds=_PATIENCE_SECONDS,
        )
        return questions.answer(self._workers, place, question, page)

    async def execute_fn(self, fn: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """Answer what Datasette itself wants to know of the schema."""
        return await self._in_thread(lambda: self._connected(fn))

    async def _in_thread(self, answer: Callable[[], _Answer]) -> _Answer:
        """Answer in one of Datasette's threads, or in one of those that questions have."""
        threads = self._threads if admission.is_question() else self.ds.executor
        return await asyncio.get_running_loop().run_in_executor(threads, self._answer, answer)

    def _connected(self, fn: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        with closing(self.connect()) as raw:
            return fn(raw)

    def _answer(self, answer: Callable[[], _Answer]) -> _Answer:
        try:
            return self._answer_once(answer)
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_READONLY_ROLLBACK:
                raise
        # A writer died in the middle of a transaction. An ordinary connection undoes it.
        self._catalog.revision()
        return self._answer_once(answer)

    def _answer_once(self, answer: Callable[[], _Answer]) -> _Answer:
        try:
            return answer()
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR
            if code & 0xFF in sandbox.NOT_ITS_FAULT:
                raise self._catalog.explain(error) from error
            raise


class _Cursor(sqlite3.Cursor):
    """Stops before an answer takes all memory: rows are counted by Datasette, bytes by nobody."""

    def fetchmany(self, size: int | None = 1) -> list[Any]:
        """Return so many rows."""
        rows, room = list[Any](), query.LARGEST_ANSWER_BYTES
        while len(rows) < (size or 1) and (row := self.fetchone()) is not None:
            room -= sum(len(value) for value in row if isinstance(value, str | bytes))
            if room < 0:
                raise sqlite3.OperationalError("the answer is too large")
            rows.append(row)
        return rows

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        return self.fetchmany(sys.maxsize)


class _Connection(sqlite3.Connection):
    def cursor(self, factory: Any = _Cursor) -> Any:
        """Return a cursor that counts."""
        return super().cursor(factory)


# --- what is downloaded -----------------------------------------------------------------------


class InertCsv:
    """Stands for the module ``csv`` where Datasette writes: no text becomes a formula."""

    class writer:  # noqa: N801  # as it is called there
        """Like `csv.writer`."""

        def __init__(self, target: Any) -> None:
            self._inner = csv.writer(target)

        def writerow(self, row: Iterable[object]) -> Any:
            """Write a row; what the target returns is returned, and may have to be awaited."""
            return self._inner.writerow([inert(value) for value in row])


def inline_scripts(sources: Sequence[str]) -> tuple[str, ...]:
    """Return the scripts that stand inside templates of Datasette."""
    found = []
    for source in sources:
        for part in source.split("<script>")[1:]:
            script = part.partition("</script>")[0]
            variants = [script]
            if "{{ datasette_allow_facet }}" in script:
                variants = [
                    script.replace("{{ datasette_allow_facet }}", v) for v in ("true", "false")
                ]
            found += variants
    return tuple(script for script in found if "{{" not in script)

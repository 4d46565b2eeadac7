"""The origin of a request: which page it comes from, by the headers of the browser.

A page of another site cannot read an answer, but it can measure how long one takes, and send
requests that keep a server busy. Browsers send the origin of every request
(https://www.w3.org/TR/fetch-metadata/), and no page can change that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

Headers = Mapping[str, Sequence[str]]
"""The headers of a request by their names in lower case."""

_OURS: Final = frozenset({"same-origin", "none"})
"""``none``: an address that was typed, a bookmark, a link in another program."""

_IN_ADVANCE: Final = ("sec-purpose", "purpose", "x-moz", "x-purpose")
"""A browser that loads what somebody may want to see later sends one of them."""


def is_foreign(headers: Headers, host: str) -> bool:
    """Tell whether a page of another site made this request; another port is another site, too.

    Browsers before 2023, and plain HTTP to another machine, leave only ``Origin`` and ``Referer``,
    of which a page can suppress the second.
    """
    if sites := headers.get("sec-fetch-site"):
        return any(site not in _OURS for site in sites)
    pages = (*headers.get("origin", ()), *headers.get("referer", ()))
    return any(_host(page) != host for page in pages)


def is_visit(headers: Headers) -> bool:
    """Tell whether a person goes to this address in a tab of its own, by a link for example."""
    if any(name in headers for name in _IN_ADVANCE):
        return False
    mode, target = headers.get("sec-fetch-mode", ()), headers.get("sec-fetch-dest", ())
    if not mode and not target and "sec-fetch-site" not in headers:
        return True  # an old browser: nothing speaks against it
    return [*mode, *target] == ["navigate", "document"]


def is_mute_browser(headers: Headers) -> bool:
    """Tell whether a browser does not send the origin of its requests."""
    agents = headers.get("user-agent", ())
    return "sec-fetch-site" not in headers and any("Mozilla/" in agent for agent in agents)


def is_typed(headers: Headers) -> bool:
    """Tell whether no page led here: only then a cookie follows a redirection at once."""
    if sites := headers.get("sec-fetch-site"):
        return all(site in _OURS for site in sites)
    return not is_mute_browser(headers)


def _host(page: str) -> str | None:
    try:
        return urlsplit(page).netloc.lower()
    except ValueError:
        return None

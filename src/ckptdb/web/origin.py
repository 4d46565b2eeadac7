"""Which page a request comes from, as far as its browser says it.

A page of another site cannot read an answer, but it can measure how long one takes, and send
questions that keep a server busy. Browsers say of every request where it comes from
(https://www.w3.org/TR/fetch-metadata/), and no page can make them say anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

Said = Mapping[str, Sequence[str]]
"""The headers of a request by their names in lower case."""

_OURS: Final = frozenset({"same-origin", "none"})
"""``none``: an address that was typed, a bookmark, a link in another program."""

_IN_ADVANCE: Final = ("sec-purpose", "purpose", "x-moz", "x-purpose")
"""A browser that loads what somebody may want to see later sends one of them."""


def is_foreign(said: Said, host: str) -> bool:
    """Tell whether a page of another site made this request; another port is another site, too.

    Browsers before 2023, and plain HTTP to another machine, leave only ``Origin`` and ``Referer``,
    of which a page can suppress the second.
    """
    if sites := said.get("sec-fetch-site"):
        return any(site not in _OURS for site in sites)
    pages = (*said.get("origin", ()), *said.get("referer", ()))
    return any(_host(page) != host for page in pages)


def is_visit(said: Said) -> bool:
    """Tell whether a person goes to this address in a tab of its own, by a link for example."""
    if any(name in said for name in _IN_ADVANCE):
        return False
    mode, target = said.get("sec-fetch-mode", ()), said.get("sec-fetch-dest", ())
    if not mode and not target and "sec-fetch-site" not in said:
        return True  # as far as is known
    return [*mode, *target] == ["navigate", "document"]


def is_mute_browser(said: Said) -> bool:
    """Tell whether it is a browser that does not say where its requests come from."""
    agents = said.get("user-agent", ())
    return "sec-fetch-site" not in said and any("Mozilla/" in agent for agent in agents)


def is_typed(said: Said) -> bool:
    """Tell whether no page led here: only then a cookie follows a redirection at once."""
    if sites := said.get("sec-fetch-site"):
        return all(site in _OURS for site in sites)
    return not is_mute_browser(said)


def _host(page: str) -> str | None:
    try:
        return urlsplit(page).netloc.lower()
    except ValueError:
        return None

"""Trees to look at, a browser to look with, and a server to look at them through."""

import re
from dataclasses import dataclass, field

import pytest
from tests.support.planting import plant, plant_hostile
from tests.support.serving import serving


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("tree") / "results")


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    return plant_hostile(tmp_path_factory.mktemp("hostile") / "results")


# --- the server -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(tree, tmp_path_factory):
    with serving(tree, home=tmp_path_factory.mktemp("server")) as served:
        yield served


# --- the browser ------------------------------------------------------------------------------


@dataclass
class Look:
    """A page in the browser, and all that it did beside showing itself."""

    page: object
    requests: list = field(default_factory=list)
    complaints: list = field(default_factory=list)

    def clipboard(self):
        return self.page.evaluate("navigator.clipboard.readText()")

    def said(self):
        """Wait for what the page says when something has been copied."""
        self.page.wait_for_selector("#said.shown")
        return self.page.inner_text("#said")


@pytest.fixture
def look(chromium):
    """Open an address; at the end nothing else has been asked for, and nobody has complained."""
    contexts, looks = [], []

    def open_page(address, *, drawn=True, width=1280, scheme="light", **options):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page = context.new_page()
        seen = Look(page)
        looks.append(seen)
        page.on("request", lambda request: seen.requests.append(request.url))
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))

        def dismiss(dialog):
            seen.complaints.append(f"dialog: {dialog.message}")
            dialog.dismiss()

        page.on("dialog", dismiss)
        page.goto(address)
        if drawn:
            page.wait_for_selector("body[data-drawn]")
        return seen

    yield open_page
    for seen in looks:
        assert seen.complaints == []
        origin = re.match(r"file://|data:|https?://[^/]+", seen.page.url)[0]
        foreign = [url for url in seen.requests if not url.startswith((origin, "data:"))]
        assert foreign == []
    for context in contexts:
        context.close()

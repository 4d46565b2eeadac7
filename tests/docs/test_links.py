"""Links and pictures of README.md and docs/ lead to a file, and to a heading of it."""

import re

import pytest
from tests.support.documents import PAGES, README, ROOT, name_of, read_prose

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)]+)\)")
_PICTURE = re.compile(r"(?:src|srcset)=\"([^\"]+)\"|!\[[^\]]*\]\(([^)]+)\)")


def anchors_of(page):
    """Return the anchors of headings, where GitHub and MkDocs make the same of them."""
    headings = re.findall(r"^#+ (.+)$", read_prose(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"\s", "-", text) for text in plain} & {
        re.sub(r"[-\s]+", "-", text) for text in plain
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page):
    prose = read_prose(page)
    targets = _LINK.findall(prose) + ["".join(pair) for pair in _PICTURE.findall(prose)]
    for target in targets:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors_of(file), target


def links_of(page):
    """Return the files that a page links to."""
    paths = (target.partition("#")[0] for target in _LINK.findall(read_prose(page)))
    return {(page.parent / path).resolve() for path in paths}


def test_readme_leads_to_every_page():
    found, pages = {README}, [README]
    while pages:
        new = (links_of(pages.pop()) & set(PAGES)) - found
        found |= new
        pages += new

    assert found == set(PAGES)

"""The design pages name only files, names and links that exist."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "wshub"
PAGES = sorted((ROOT / "docs" / "design").glob("*.md"))
PLACES = (SOURCE, ROOT)

FILE = re.compile(r"[\w.-]*\w(?:/[\w.-]+)*(?:/|\.(?:py|pyx|pxd|pyi|h|c|md))|[\w.-]+(?:/[\w.-]+)+")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*(?:\(\))?")


def code_spans(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """Return the anchor of each heading, as GitHub makes it."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@cache
def names_in_source() -> set[str]:
    suffixes = {".py", ".pyx", ".pxd", ".pyi", ".h", ".c"}
    folders = [ROOT / folder for folder in ("src", "tests", "benchmarks")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    # Generated C has names that are not in the source.
    files = [path for path in files if path.suffix != ".c" or not path.with_suffix(".pyx").exists()]
    return {name for path in files for name in re.findall(r"\w+", path.read_text())}


def test_there_are_design_pages() -> None:
    assert {page.stem for page in PAGES} == {
        "decisions",
        "glossary",
        "jetstream",
        "memory",
        "overview",
        "paths",
        "states",
        "workers",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = [span for span in code_spans(page) if FILE.fullmatch(span)]
    assert [span for span in named if not any((place / span).exists() for place in PLACES)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_that_a_page_has_is_a_name_in_the_source(page: Path) -> None:
    named = [span for span in code_spans(page) if NAME.fullmatch(span) and not FILE.fullmatch(span)]
    last = {span.removesuffix("()").rpartition(".")[2] for span in named}
    assert sorted(last - names_in_source()) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.stem)
def test_every_link_of_a_page_leads_to_a_heading(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"

"""The documents as tests see them: which there are, their headings, links, code blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.conftest import ROOT

READMES = ("README.md", "README.zh-CN.md")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^(?P<indent> *)```(?P<kind>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One code block: its language, its text, and the mark that stands in a comment before it."""

    kind: str
    text: str
    mark: str


def all_pages() -> list[str]:
    """Return every document of the project, by its path in it."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "scripts/README.md", ROOT / "samples/README.md"]
    return sorted(str(path.relative_to(ROOT)) for path in found)


def told_pages() -> list[str]:
    """Return those that speak of the present; the change log speaks of what was."""
    return [name for name in all_pages() if name != "CHANGELOG.md"]


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def blocks(name: str) -> list[Block]:
    """Return the code blocks of a page."""
    return [
        Block(found["kind"], re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE), found["mark"] or "")
        for found in _BLOCK.finditer(text_of(name))
    ]


def prose(name: str) -> str:
    """Return a page without its code blocks."""
    return _BLOCK.sub("", text_of(name))


def anchors(name: str) -> set[str]:
    """Return what may stand behind the # of a link to a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(name), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(name: str) -> Iterator[tuple[Path, str]]:
    """Yield where each link within the project leads: a file and an anchor of it, which may be empty."""
    here = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(name)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield ((here.parent / path).resolve() if path else here), anchor


def section(text: str, heading: str) -> str:
    """Return what stands between a heading and the next one of its level or above, without code blocks."""
    text = _BLOCK.sub("", text)  # a comment in one looks like a heading
    level = heading.split(" ", 1)[0]
    rest = re.split(rf"^{re.escape(heading)}\n", text, flags=re.MULTILINE)
    assert len(rest) == 2, f"there is no heading {heading!r}, or more than one"
    return re.split(rf"^#{{1,{len(level)}}} ", rest[1], flags=re.MULTILINE)[0]


def rows(text: str, first: str = "`") -> list[list[str]]:
    """Return the cells of all rows of tables whose first cell begins with `first`."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines]

"""Pictures as a test looks at them: what a page holds, whether it needs anything else, whether a PNG is blank."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

from PIL import Image


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self._cell = tag == "td"
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.cells.append("")
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag == "td":
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells[-1] += data
            self.rows[-1][-1] += data

    def row(self, name: str) -> list[str]:
        """The only row of that name."""
        (found,) = [row for row in self.rows if row and row[0] == name]
        return found


def alone(data: bytes) -> Page:
    """The page, which loads nothing and runs nothing."""
    text = data.decode()
    found = Page(text)
    assert text.startswith("<!doctype html>"), "no XML declaration or DTD, which names an address"
    assert "DTD" not in text
    assert not {"script", "link", "img", "iframe", "object", "base", "meta-refresh"} & set(found.tags)
    assert all(link.startswith("#") for link in found.links)
    assert not re.search(r"@import|url\((?!#)", text)
    addresses = set(re.findall(r'(?<!xmlns=")(?<!xmlns:xlink=")https?://[^\s"<]+', text))
    assert not addresses, addresses
    return found


def image(png: bytes) -> Image.Image:
    """The picture, which is not blank."""
    found = Image.open(io.BytesIO(png)).convert("RGB")
    colours = found.getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 16
    assert max(count for count, _ in colours) < 0.97 * found.width * found.height
    return found

"""Pictures of a comparison as inline SVG, by hand: the page is also made where there is no matplotlib. Pure.

Colours are those of the palette as CSS variables, so that they follow the reader's browser; letters are the page's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from orchestrator.tracking.html_page import colour
from orchestrator.tracking.names import clipped
from orchestrator.tracking.palette import GRID, INK, LINES, MUTED, PAPER

WIDTH, HEIGHT = 960, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 200, 18, 56
_NAME = 22
"""Characters of a name beside a line."""
_LINE = 16
"""Pixels between two names."""
_DASHES = ("", "7 4", "2 3")
Format = Callable[[float], str]


def look(number: int) -> tuple[str, str]:
    """Colour and dashes of the run of that number: as many that differ as there are runs in a comparison."""
    return colour(LINES[number % len(LINES)]), _DASHES[number // len(LINES)]


@dataclass(frozen=True)
class Range:
    """Of an axis, with the values that get a line."""

    low: float
    high: float
    ticks: tuple[float, ...]


def nice(low: float, high: float, wanted: int = 6) -> Range:
    """The range, and round values in it: 1, 2 or 5 times a power of ten apart."""
    if not high - low > 1e-9 * max(abs(low), abs(high)):  # equal as far as numbers can tell
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return Range(low, high, tuple(i * step for i in range(first, math.floor(high / step + 1e-9) + 1)))


@dataclass(frozen=True)
class Plane:
    """Two axes, and where they lie on the paper."""

    x: Range
    y: Range
    name: str
    """Unique on the page: what lies outside of the frame is cut off by this name, and a hidden picture cuts nothing."""

    def left(self, x: float) -> float:
        """Pixels from the left."""
        return _LEFT + (x - self.x.low) / (self.x.high - self.x.low) * (WIDTH - _LEFT - _RIGHT)

    def top(self, y: float) -> float:
        """Pixels from the top."""
        return HEIGHT - _BOTTOM - (y - self.y.low) / (self.y.high - self.y.low) * (HEIGHT - _TOP - _BOTTOM)

    def path(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        """Points of a line."""
        return " ".join(f"{self.left(x):.1f},{self.top(y):.1f}" for x, y in zip(xs, ys, strict=True))


def frame(plane: Plane, x_label: str, y_label: str, x_format: Format, y_format: Format) -> list[str]:
    """Lines, numbers and names of both axes."""
    parts, across = [], f'x1="{_LEFT}" x2="{WIDTH - _RIGHT}"'
    for y in plane.y.ticks:
        top = plane.top(y)
        parts.append(f'<line {across} y1="{top:.1f}" y2="{top:.1f}" stroke="{colour(GRID)}"/>')
        parts.append(text(_LEFT - 8, top + 4, y_format(y), anchor="end"))
    base = HEIGHT - _BOTTOM
    parts.append(f'<line {across} y1="{base}" y2="{base}" stroke="{colour(MUTED)}"/>')
    for x in plane.x.ticks:
        left = plane.left(x)
        parts.append(f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{base}" y2="{base + 5}" stroke="{colour(MUTED)}"/>')
        parts.append(text(left, base + 20, x_format(x), anchor="middle"))
    parts.append(text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 12, x_label, anchor="middle", fill=INK))
    middle = (_TOP + base) / 2
    turned = f'transform="rotate(-90 16 {middle:.1f})"'
    parts.append(text(16, middle, y_label, anchor="middle", fill=INK, more=turned))
    return parts


def text(x: float, y: float, words: str, *, anchor: str = "start", fill: str = MUTED, more: str = "") -> str:
    """Words on the paper."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour(fill)}" font-size="13" {more}>'
        f"{escape(words)}</text>"
    )


def upright(plane: Plane, x: float, words: str) -> list[str]:
    """A dashed line at an x, named at its top; to the left of it where there is no room to the right."""
    left = plane.left(x)
    room = left + 8 * len(words) < WIDTH - _RIGHT
    line = f'<line x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" stroke="{colour(MUTED)}"'
    anchor = "start" if room else "end"
    return [f'{line} stroke-dasharray="3 4"/>', text(left + (6 if room else -6), _TOP + 8, words, anchor=anchor)]


def names_beside(plane: Plane, ends: Sequence[tuple[int, str, float]]) -> list[str]:
    """Names of lines to the right of the picture, near the y at which each ends, none over another.

    `ends`: number of the run, name, y.
    """
    places = sorted((min(max(plane.top(y), _TOP + 6), HEIGHT - _BOTTOM - 2), number, name) for number, name, y in ends)
    at, tops = -math.inf, []
    for top, _, _ in places:
        at = max(top, at + _LINE)
        tops.append(at)
    over = max(0.0, (tops[-1] if tops else 0.0) - (HEIGHT - _BOTTOM - 2))
    for i in range(len(tops) - 1, -1, -1):  # back up, as far as those above leave room
        tops[i] = min(tops[i], HEIGHT - _BOTTOM - 2 - _LINE * (len(tops) - 1 - i)) if over else tops[i]
    parts = []
    for top, (_, number, name) in zip(tops, places, strict=True):
        ink, dashes = look(number)
        x = WIDTH - _RIGHT + 8
        parts.append(
            f'<line x1="{x}" x2="{x + 16}" y1="{top:.1f}" y2="{top:.1f}" stroke="{ink}" stroke-width="3"'
            f' stroke-dasharray="{dashes}"/>'
        )
        parts.append(text(x + 21, top + 4, clipped(name, _NAME), fill=INK))
    return parts


def line(plane: Plane, number: int, xs: Sequence[float], ys: Sequence[float], *, faint: bool = False) -> str:
    """A run's curve, cut off at the frame."""
    ink, dashes = look(number)
    weight = 'stroke-width="1" opacity="0.35"' if faint else 'stroke-width="2.2"'
    return (
        f'<polyline points="{plane.path(xs, ys)}" fill="none" stroke="{ink}" {weight} stroke-linejoin="round"'
        f' stroke-dasharray="{dashes}" clip-path="url(#{plane.name})"/>'
    )


def dot(plane: Plane, number: int, x: float, y: float, says: str, *, radius: float = 3.5, hollow: bool = False) -> str:
    """A measured point; `says` is shown by a browser when the mouse is over it. Nothing outside of the frame."""
    if not (plane.x.low <= x <= plane.x.high and plane.y.low <= y <= plane.y.high):
        return ""
    ink, _ = look(number)
    fill = colour(PAPER) if hollow else ink
    return (
        f'<circle cx="{plane.left(x):.1f}" cy="{plane.top(y):.1f}" r="{radius}" fill="{fill}" stroke="{ink}"'
        f' stroke-width="1.6"><title>{escape(says)}</title></circle>'
    )


def framed(plane: Plane, parts: Sequence[str], label: str) -> str:
    """A picture on a plane."""
    box = (
        f'<clipPath id="{plane.name}"><rect x="{_LEFT}" y="{_TOP - 4}" width="{WIDTH - _LEFT - _RIGHT + 4}" '
        f'height="{HEIGHT - _TOP - _BOTTOM + 4}"/></clipPath>'
    )
    return drawing([box, *parts], label)


def drawing(parts: Sequence[str], label: str, height: float = HEIGHT) -> str:
    """The whole picture; `label` says what it shows to those who cannot see it."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui, sans-serif">\n{body}\n</svg>'
    )

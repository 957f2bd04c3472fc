"""Colours that are told apart: on light and dark paper, and by eyes that see no red or no green."""

from itertools import combinations, pairwise

import pytest

from orchestrator.tracking import palette
from orchestrator.tracking.palette import BLUE, DARK, GRID, HAZE, INK, LINES, MUTED, PAPER, RUST, SAND
from orchestrator.tracking.palette import TIME_CLASSES as CLASSES
from orchestrator.tracking.plan_picture import _COLOURS as PARTS
from orchestrator.tracking.run_timeline import _COLOURS as LOST

Rgb = tuple[float, float, float]
EYES = {
    "all": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "no green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
"""Machado, Oliveira, Fernandes 2009, severity 1: on linear RGB."""


def linear(colour: str) -> Rgb:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    )
    return red, green, blue


def lightness(colour: str) -> float:
    """Relative luminance, 0 to 1."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it, 1 to 21."""
    low, high = sorted((lightness(one), lightness(other)))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, eye: str) -> Rgb:
    """CIE L*a*b*, D65, as that eye sees it."""
    seen = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, linear(colour), strict=True)))) for row in EYES[eye]]
    to_xyz = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    xyz = [sum(a * b for a, b in zip(row, seen, strict=True)) for row in to_xyz]
    x, y, z = (
        t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116
        for t in (xyz[0] / 0.95047, xyz[1], xyz[2] / 1.08883)
    )  # fmt: skip
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def difference(one: str, other: str, eye: str) -> float:
    return sum((a - b) ** 2 for a, b in zip(lab(one, eye), lab(other, eye), strict=True)) ** 0.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_can_be_read(dark: bool) -> None:
    paper = DARK[PAPER] if dark else PAPER
    for word in (INK, MUTED, BLUE, RUST):
        assert contrast(DARK[word] if dark else word, paper) >= 4.4, word
    for ground in (SAND, HAZE):
        assert contrast(DARK[MUTED] if dark else MUTED, DARK[ground] if dark else ground) >= 4.2, ground


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("stack", [PARTS, LOST], ids=["memory", "time"])
def test_neighbours_in_a_stack_differ_for_every_eye(stack: dict[str, str], dark: bool, eye: str) -> None:
    colours = [DARK[colour] if dark else colour for colour in stack.values()]
    for one, other in pairwise(colours):
        assert difference(one, other, eye) > 15, (one, other)


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_lines_of_one_picture_differ_for_every_eye(dark: bool, eye: str) -> None:
    colours = [DARK[colour] if dark else colour for colour in LINES]
    for one, other in combinations(colours, 2):
        assert difference(one, other, eye) > 12, (one, other)
    assert all(contrast(one, DARK[PAPER] if dark else PAPER) > 2 for one in colours)


def test_every_colour_has_a_counterpart_on_dark_paper() -> None:
    named = {value for name, value in vars(palette).items() if name.isupper() and isinstance(value, str)}
    assert named == set(DARK)
    assert len(set(DARK.values())) == len(DARK)
    assert {*CLASSES.values(), *PARTS.values(), *LOST.values(), GRID} <= named

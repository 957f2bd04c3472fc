"""Colours of all pictures, each with its counterpart on dark paper.

Used by `tracking.plots` and the pictures beside it; `tracking.html_page` puts the second one in where a reader's
browser is dark. Neighbours in a stack differ in lightness too: nobody needs to tell red from green. SAND and HAZE are
grounds behind a curve.
"""

from __future__ import annotations

PAPER, INK, MUTED, GRID = "#ffffff", "#1f2933", "#66727f", "#e4e7eb"
NAVY, BLUE, SKY, ICE = "#17395f", "#2563a8", "#6fa8dc", "#b5d3ee"
RUST, AMBER, SAND, CRIMSON = "#c2570c", "#f0b429", "#fbeed8", "#9b1c1c"
VIOLET, GREEN, STEEL, SILVER = "#7a4fa3", "#4d9078", "#7b8794", "#b8c2cc"
OCHRE, FOG, HAZE = "#e0a458", "#9aa5b1", "#f1f3f5"

DARK = {
    PAPER: "#12181f", INK: "#e6eaee", MUTED: "#9aa6b2", GRID: "#2c3640",
    NAVY: "#2f6db0", BLUE: "#5b9be0", SKY: "#8fc0ee", ICE: "#d3e6f8",
    RUST: "#f08a3c", AMBER: "#f7cf6b", SAND: "#43351b", CRIMSON: "#e0605f",
    VIOLET: "#a987d1", GREEN: "#6fb89d", STEEL: "#8d99a6", SILVER: "#c9d1d9",
    OCHRE: "#f0c184", FOG: "#aeb8c2", HAZE: "#1d262f",
}  # fmt: skip
"""Light -> dark. Every colour of a picture is one of these, so that none is left over on dark paper."""

TIME_CLASSES = {
    "queued": FOG, "pulling": SILVER, "starting": STEEL, "productive": BLUE,
    "checkpoint": SKY, "recovering": RUST, "lost": CRIMSON, "idle": OCHRE,
}  # fmt: skip
"""Classes of a run's time, see `cost.timeline`."""
LINES = (BLUE, RUST, GREEN, CRIMSON, OCHRE, NAVY, SKY, STEEL)
"""Of several runs in one picture: told apart by every eye, on both papers."""

"""A forecast as a picture: its figures are the forecast's, whatever the forecast is."""

import re
from dataclasses import replace

import pytest
from support.pages import Page, alone, image

from orchestrator.plan.figure import MEMORY, PARTS, Bar, Figure, Row
from orchestrator.tracking.plan_picture import _COLOURS, plan_html, plan_png

HOSTILE = "<script>alert(1)</script> $x_$ & \"'"
LONG = "part_" * 40
SIZES = {
    "weights": 5 * 10**9, "master": 10**9, "activations": 48 * 10**9, "fragmentation": 7 * 10**9, LONG: 10**9,
}  # fmt: skip
BIG = SIZES | {"activations": 900 * 10**9}
FIGURE = Figure(
    bars=(
        Bar("none", chosen=False, fits=False, peak=sum(BIG.values()), parts=BIG),
        Bar("full", chosen=True, fits=True, peak=sum(SIZES.values()), parts=SIZES),
    ),
    usable=76 * 10**9,
    device=80 * 10**9,
    rows=(Row("routed_experts", 6.5, 0.0), Row("attention", 3.25, 0.5), Row("exchange_network", 0.0, 9.25)),
    seconds=9.75,
)


def test_the_page_says_what_the_forecast_says() -> None:
    page = alone(plan_html(FIGURE, HOSTILE, [("note", "one"), ("note", HOSTILE)]))
    assert page.tags.count("svg") == 1
    assert page.tags.count("dd") == 2
    assert page.row("activations") == ["activations", "900.00", "48.00"]
    assert page.row("at its highest") == ["at its highest", "914.00", "62.00"]
    assert ["", "does not fit", "fits"] in page.rows
    assert page.row(PARTS["attention"]) == [PARTS["attention"], "3.250", "33.3%", "0.500"]
    assert page.row(PARTS["exchange_network"]) == [PARTS["exchange_network"], "-", "-", "9.250"]
    assert page.row("together") == ["together", "9.750", "100.0%", "9.750"]


def test_its_colours_follow_the_browser() -> None:
    text = plan_html(FIGURE, "a plan", []).decode()
    drawing = text[text.index("<svg") : text.index("</svg>")]
    assert not re.findall(r"(?:fill|stroke): #\w+", drawing)
    assert drawing.count("var(--c1f2933)") > 10
    style = text[: text.index("</style>")]
    assert {f"--c{colour}:" for colour in re.findall(r"var\(--c(\w+)\)", text)} <= set(re.findall(r"--c\w+:", style))
    assert "prefers-color-scheme: dark" in style


def test_a_png_is_small_and_not_blank() -> None:
    png = plan_png(FIGURE, "a plan", ["$5.31 M", "54 days"])
    assert image(png).width == 900
    assert len(png) < 150_000
    assert png == plan_png(FIGURE, "a plan", ["$5.31 M", "54 days"])


def test_each_part_keeps_its_colour_however_small_it_is() -> None:
    bar = Bar("none", True, True, 80 * 10**9 + len(MEMORY), {"activations": 80 * 10**9} | dict.fromkeys(_COLOURS, 1))
    colours = image(plan_png(replace(FIGURE, bars=(bar,)), "", [])).getcolors(1 << 24) or []
    wanted = {tuple(bytes.fromhex(colour[1:])) for colour in _COLOURS.values()}
    assert wanted <= {colour for count, colour in colours if count > 50}


@pytest.mark.parametrize(
    "figure",
    [
        replace(FIGURE, rows=()),
        replace(FIGURE, bars=()),
        replace(FIGURE, rows=(Row("optimizer", 0.0, 0.0),), seconds=0.0),
        replace(FIGURE, rows=(Row("optimizer", 1e-9, 0.0),), seconds=1e-9),
        replace(FIGURE, rows=tuple(Row(part, 0.1, 0.1) for part in PARTS)),
        replace(FIGURE, bars=(Bar("none", True, True, len(MEMORY), dict.fromkeys(MEMORY, 1)),)),
        replace(FIGURE, bars=(Bar("none", False, False, 10**15, {"weights": 10**15}),)),
        replace(FIGURE, rows=(Row(HOSTILE, 1.0, 2.0), Row(LONG, 1.0, 0.0))),
    ],
    ids=["no-time", "no-memory", "no-seconds", "a-nanosecond", "all-parts", "bytes", "a-petabyte", "names"],
)
def test_unusual_forecasts_are_drawn(figure: Figure) -> None:
    assert image(plan_png(figure, LONG, [LONG, HOSTILE])).width == 900
    Page(plan_html(figure, LONG, []).decode())
    alone(plan_html(figure, HOSTILE, []))


def test_what_is_shown_moves_the_picture() -> None:
    other = replace(FIGURE, rows=(Row("routed_experts", 6.5, 0.5), *FIGURE.rows[1:]))
    assert plan_png(other, "", []) != plan_png(FIGURE, "", [])
    assert plan_png(replace(FIGURE, usable=70 * 10**9), "", []) != plan_png(FIGURE, "", [])

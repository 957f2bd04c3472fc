"""The page: it needs nothing else, holds the numbers of the comparison, and survives names that are markup."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.compared import facts, point
from support.pages import Page

from orchestrator.compare.comparison import compare
from orchestrator.compare.document import Comparison
from orchestrator.compare.facts import Axis, InMlflow, RunFacts
from orchestrator.compare.page import compare_page
from orchestrator.compare.svg import HEIGHT, WIDTH, Plane, Range, names_beside, nice
from orchestrator.status import Phase

LONG = facts("long", {2: 4.0, 6: 3.0, 10: 2.0})
SHORT = facts("short", {2: 3.8, 4: 3.6, 8: 2.4}, configuration={"model.layers": "5"})


class Best(HTMLParser):
    """Cells that are marked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self._in = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self._in = ("class", "best") in attrs
            self.cells += [""] if self._in else []

    def handle_data(self, data: str) -> None:
        if self._in:
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self._in &= tag != "td"


def pictures(page: bytes) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page.decode(), re.DOTALL)]


def words(svg: ElementTree.Element) -> list[str]:
    return ["".join(one.itertext()) for one in svg.iter() if one.tag.endswith("text")]


def test_the_page_holds_the_comparison_and_needs_nothing() -> None:
    found = compare([LONG, SHORT], Axis.dollars)
    data = compare_page(found)
    text, page = data.decode(), Page(data.decode())
    assert text.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", text)
    (link,) = page.links
    kind, _, content = link.partition(",")
    assert kind == "data:application/json;base64"
    assert Comparison.model_validate_json(base64.b64decode(content)) == found
    assert set(re.findall(r"https?://[^\s\"<]+", text)) == {"http://www.w3.org/2000/svg"}
    assert page.row("model.layers") == ["model.layers", "4", "5"]
    assert ["short", "$8.000", "2.4000", "nobody beats it"] in page.rows
    assert ["dollars", "2.5000 ~", "2.4000"] in page.rows
    assert "<td>dollars<small>$8.000</small></td><td>2.5000 ~<small>at 80% of its own</small></td>" in text
    assert "2.4000" in Best(text).cells
    assert "At equal dollars ($8.000) short is best with 2.4000 bits per byte; long 2.5000 (+0.1000)." in text
    assert "From short to long: $2.000 more buy 0.4000 bits per byte, $0.05000 for each 0.01." in text


def test_one_picture_for_each_axis_one_switch_and_the_chosen_first() -> None:
    text = compare_page(compare([LONG, SHORT], Axis.flops)).decode()
    inputs = re.findall(r'<input type="radio" name="axis" id="on-(\w+)"( checked)?>', text)
    assert [axis for axis, _ in inputs] == [axis.value for axis in Axis]
    assert [axis for axis, checked in inputs if checked] == ["flops"]
    for axis in Axis:
        assert f"#on-{axis}:checked ~ .on-{axis} {{ display: block }}" in text
        assert text.count(f'<figure class="on-{axis}">') == 1
        assert text.count(f'<label for="on-{axis}">') == 1
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "a hidden picture with the same name would cut nothing off"
    for name in re.findall(r"url\(#([\w-]+)\)", text):
        assert name in ids


def test_axes_say_their_units() -> None:
    labels = [set(words(svg)) for svg in pictures(compare_page(compare([LONG, SHORT], Axis.step)))]
    expected = ["optimizer steps", "tokens trained", "training work (TFLOP)", "time in which devices were held (hours)"]
    for label, found in zip([*expected, "spent (USD)", "spent in all (USD)"], labels, strict=False):
        assert label in found
    assert "$4" in labels[4]
    assert "equal: $8.000" in labels[4]
    assert "equal: 800 tokens" in labels[1]
    assert {"long", "short"} <= labels[1]


def test_every_word_and_point_lies_on_the_paper() -> None:
    names = [facts(f"run-{i}-{'x' * 30}", {1: 5.0, 20: 2.0 + i / 500}) for i in range(20)]
    for svg in pictures(compare_page(compare(names, Axis.tokens)))[:6]:
        tops = []
        for one in svg.iter():
            if one.tag.endswith("text") and "transform" not in one.attrib:
                x, y, long = float(one.attrib["x"]), float(one.attrib["y"]), 7.4 * len("".join(one.itertext()))
                left = x - {"start": 0.0, "middle": long / 2, "end": long}[one.attrib["text-anchor"]]
                assert left >= -2
                assert left + long <= WIDTH + 2
                assert 0 <= y <= HEIGHT
                if "run-" in "".join(one.itertext()):
                    tops.append(y)
        assert len(tops) == 20
        assert min(b - a for a, b in pairwise(sorted(tops))) > 15, "no name over another"


def test_names_are_no_markup() -> None:
    evil = replace(LONG, name="<b>&\"'", configuration={"<i>": "<script>"})
    text = compare_page(compare([evil, SHORT])).decode()
    assert "<b>&" not in text
    assert "<i>" not in text
    assert "<script" not in text


def test_cautions_stand_at_the_top() -> None:
    text = compare_page(compare([LONG, replace(SHORT, phase=Phase.RUNNING)])).decode()
    assert text.index('<p class="caution">short is Running') < text.index("<svg")


def test_runs_in_mlflow_are_linked() -> None:
    runs = [replace(run, mlflow=InMlflow("sqlite:///x", "1", run.name, None)) for run in (LONG, SHORT)]
    page = Page(compare_page(compare(runs)).decode())
    assert page.links[1].startswith("http://127.0.0.1:5000/#/compare-runs?runs=")


@pytest.mark.parametrize(
    "runs",
    [
        [RunFacts(n, "t", n, Phase.QUEUED) for n in "ab"],
        [LONG, RunFacts("b", "t", "b", Phase.QUEUED)],
        [LONG, replace(SHORT, currency="EUR")],
        [facts(n, {}, points=(point(1, **{"mine/x": 0.0}),)) for n in "ab"],
        [facts(n, {1: 2.0}) for n in "ab"],
        [facts(n, {}, points=tuple(point(i, loss=5.0) for i in range(1, 900))) for n in "ab"],
        [facts("a", {1: 2.0}), facts("b", {}, points=(point(1, bits=3.0, dollars=0.0),))],
    ],
    ids=["nothing", "one-waits", "currencies", "no-direction", "one-point", "many-points", "no-money"],
)
def test_a_page_of_runs_that_lack_something(runs: Sequence[RunFacts]) -> None:
    metric = "mine/x" if any("mine/x" in p.metrics for run in runs for p in run.points) else None
    data = compare_page(compare(runs, Axis.dollars, metric))
    pictures(data)
    assert not re.search(r'"(nan|inf)|[ ,"]nan[ ,"]', data.decode())


def test_money_of_two_currencies_stands_in_each() -> None:
    text = compare_page(compare([LONG, replace(SHORT, currency="EUR")], Axis.tokens)).decode()
    assert "$9.000" in text
    assert "€7.000" in text
    assert "on-dollars" not in re.sub("<style>.*?</style>", "", text, flags=re.DOTALL)


@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_round_values_lie_in_the_range(low: float, length: float) -> None:
    found = nice(low, low + length)
    room = 1e-6 * (found.high - found.low)
    assert room > 0
    assert all(found.low - room <= tick <= found.high + room for tick in found.ticks)
    assert 2 <= len(found.ticks) <= 8


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_names_beside_lines_never_overlap(ys: list[float]) -> None:
    plane = Plane(Range(0, 1, ()), Range(0, 1, ()), "p")
    parts = names_beside(plane, [(i, f"r{i}", y) for i, y in enumerate(ys)])
    tops = sorted(float(y) for y in re.findall(r'<text x="[\d.]+" y="([\d.]+)"', "".join(parts)))
    assert len(tops) == len(ys)
    assert all(b - a > 15 for a, b in pairwise(tops))
    assert tops[0] > 0
    assert tops[-1] < HEIGHT


def test_json_of_the_page_is_the_json_of_the_command() -> None:
    found = compare([LONG, SHORT])
    (link,) = Page(compare_page(found).decode()).links
    assert json.loads(base64.b64decode(link.partition(",")[2])) == found.model_dump(mode="json", by_alias=True)

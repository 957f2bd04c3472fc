"""Pictures of simulated runs: readable whatever the run, and complete in themselves."""

import re
from html.parser import HTMLParser

import pytest

from orchestrator.plan.failures import Cause, Failures, Stragglers, failure_models
from orchestrator.plan.goodput import Recovery
from orchestrator.plan.simulate import Run, Scenario, simulate
from orchestrator.tracking.run_timeline import ROWS, draw_html, draw_png

LLAMA = failure_models()["llama-3"]
HOSTILE = "<script>alert(1)</script> $x_$ & \"'"


def played(failures: Failures = LLAMA, days: float = 54, gpus: int = 16384, spares: int | None = 10) -> Run:
    return simulate(Scenario(gpus, 8, failures, Recovery(spares=spares), seconds=days * 86400))


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[str] = []
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")]
        self._cell = tag == "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.cells.append(data)


def test_the_page_holds_everything_in_itself() -> None:
    run = played()
    text = draw_html(run, "16,384 GPUs").decode()
    page = Page(text)
    assert "script" not in page.tags
    assert {"svg", "table"} <= set(page.tags)
    assert "The bars show, per day, the share" in text
    assert f"What failures take: {1 - run.goodput:.1%} of 54 days" in text, "the title, beside its letters' shapes"
    assert page.links, "the picture uses what it defines"
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"@import|url\((?!#)", text)
    assert text.startswith("<!doctype html>"), "no XML declaration or DTD, which names an address"
    assert "DTD" not in text


def test_the_tables_are_those_of_the_run() -> None:
    run = played()
    cells = Page(draw_html(run, "").decode()).cells
    place = cells.index("faulty GPU")
    lost = run.lost_by_cause()["faulty GPU"]
    assert cells[place + 1 : place + 4] == [
        f"{lost / 3.6e9:.1f}",
        f"{lost / run.wall:.2%}",
        f"{run.counts()['faulty GPU']}",
    ]
    assert cells[cells.index("training that counts") + 2] == f"{run.goodput:.2%}"


def test_a_long_run_with_many_failures_stays_small() -> None:
    run = simulate(Scenario(131072, 8, failure_models()["ant"], Recovery(0.5, 20, 5, 5, 5, 0.5), seconds=60 * 86400))
    assert len(run.incidents) > 15_000
    assert len(draw_html(run, "many")) < 1_000_000
    assert len(draw_png(run, "many")) < 200_000


def test_the_same_run_gives_the_same_bytes() -> None:
    assert draw_html(played(), "twice") == draw_html(played(), "twice")
    assert draw_png(played(), "twice") == draw_png(played(), "twice")


def test_hostile_names_are_text() -> None:
    model = Failures(HOSTILE, (Cause(HOSTILE, per_job_hour=0.1, cure="process"),))
    text = draw_html(played(model), HOSTILE).decode()
    assert "<script" not in text
    assert HOSTILE in Page(text).cells
    assert draw_png(played(model), HOSTILE).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "run",
    [
        played(Failures("never", ()), 54),
        played(days=1 / 86400),
        played(days=0.2),
        played(Failures("slow", (), stragglers=Stragglers(1e-4, 1.5, 3600)), 4),
        played(Failures("many", tuple(Cause(f"cause {n}", per_job_hour=0.02, cure="node") for n in range(3 * ROWS)))),
    ],
    ids=["no-failure", "a-second", "hours", "only-stragglers", "many-causes"],
)
def test_unusual_runs_are_drawn(run: Run) -> None:
    assert draw_png(run, "unusual").startswith(b"\x89PNG")

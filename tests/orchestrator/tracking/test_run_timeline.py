"""Pictures of simulated runs: readable whatever the run, and complete in themselves."""

from decimal import Decimal

import pytest
from support.pages import Page, alone, image

from orchestrator.plan.failures import Cause, Failures, Stragglers, failure_models
from orchestrator.plan.goodput import Recovery
from orchestrator.plan.simulate import Run, Scenario, simulate
from orchestrator.tracking.run_timeline import ROWS, draw_html, draw_png

LLAMA = failure_models()["llama-3"]
HOSTILE = "<script>alert(1)</script> $x_$ & \"'"


def played(failures: Failures = LLAMA, days: float = 54, gpus: int = 16384, spares: int | None = 10) -> Run:
    return simulate(Scenario(gpus, 8, failures, Recovery(spares=spares), seconds=days * 86400))


def html(run: Run, subtitle: str = "") -> bytes:
    return draw_html(run, subtitle, Decimal(3600), "USD")


def test_the_page_holds_everything_in_itself() -> None:
    run = played()
    made = html(run, "16,384 GPUs")
    page, text = alone(made), made.decode()
    assert {"svg", "table"} <= set(page.tags)
    assert "The bars show, per day, the share" in text
    assert f"What failures take: {1 - run.goodput:.1%} of 54 days" in text
    assert page.links, "the picture uses what it defines"


def test_the_tables_are_those_of_the_run() -> None:
    run = played()
    page = Page(html(run).decode())
    lost = run.lost_by_cause()
    assert page.row("faulty GPU")[1:] == [
        f"{lost['faulty GPU'] / 3.6e9:.1f}",
        f"{lost['faulty GPU'] / run.wall:.2%}",
        f"{lost['faulty GPU'] / 1e6:,.2f}",
        f"{run.counts()['faulty GPU']}",
    ]
    assert page.row("training that counts")[2] == f"{run.goodput:.2%}"
    whole, wasted = (row[1:] for row in page.rows if row[:1] == ["together"])
    assert whole == [f"{run.wall / 3.6e9:,.1f}", "100.00%", f"{run.wall / 1e6:,.2f}"]
    assert wasted[1] == f"{1 - run.goodput:.2%}"
    assert wasted[3] == f"{sum(run.counts().values())}"


def test_a_long_run_with_many_failures_stays_small() -> None:
    run = simulate(Scenario(131072, 8, failure_models()["ant"], Recovery(0.5, 20, 5, 5, 5, 0.5), seconds=60 * 86400))
    assert len(run.incidents) > 15_000
    assert len(html(run, "many")) < 1_000_000
    assert len(draw_png(run, "many")) < 200_000


def test_the_same_run_gives_the_same_bytes() -> None:
    assert html(played(), "twice") == html(played(), "twice")
    assert draw_png(played(), "twice") == draw_png(played(), "twice")


def test_hostile_names_are_text() -> None:
    model = Failures(HOSTILE, (Cause(HOSTILE, per_job_hour=0.1, cure="process"),))
    text = html(played(model), HOSTILE).decode()
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
    assert image(draw_png(run, "unusual")).width == 900
    alone(html(run))

"""The page and the picture of a ledger: sums that are the ledger's, and waste where it was paid for."""

import time
from decimal import Decimal
from itertools import pairwise

import pytest
from support.pages import alone, image
from support.runs import RATE, event

from orchestrator.cost.ledger import Held, Ledger, Owner, build_ledger
from orchestrator.tracking.cost_page import bands, cost_page, cost_picture
from orchestrator.tracking.plots import Band, Curve, loss_against_money

NOTHING = Curve([], [])


def story(rate: str = "3600", start: float = 0.0) -> Ledger:
    """Starts for 10 s, trains for 4, loses two of them, recovers for 6, trains for 3, and is idle for 5."""
    events = [
        event("started", start + 9, step=0, tokens=0, world_size=2),
        *(event("progress", start + 10 + n, step=n, tokens=100 * n) for n in range(5)),
        event("ended", start + 14, outcome="failed", failure_class="worker-lost", seq=900),
        event("started", start + 19, attempt=2, step=2, tokens=200, world_size=2),
        *(event("progress", start + 20 + n, attempt=2, step=2 + n, tokens=200 + 100 * n) for n in range(1, 4)),
        event("ended", start + 23, attempt=2, outcome="succeeded", seq=999),
    ]
    price = RATE.model_copy(update={"per_hour": Decimal(rate)})
    return build_ledger(events, [Held(1, start, start + 15), Held(2, start + 15, start + 28)], price)


def test_waste_lies_where_it_was_paid_for() -> None:
    ledger, found = story(), bands(story())
    spans = [(band.why, band.wasted) for band in found]
    assert spans[0] == ("starting", False)
    assert spans[-1] == ("finished", True)
    assert ("worker-lost", True) in spans
    wasted = sum(band.end - band.start for band in found if band.wasted)
    assert wasted == pytest.approx(float(ledger.totals.wasted))
    started = sum(band.end - band.start for band in found if not band.wasted)
    assert started == pytest.approx(float(ledger.totals.cost_by_class["starting"]))
    assert found[-1].end == pytest.approx(float(ledger.totals.cost))
    ends = [edge for band in found for edge in (band.start, band.end)]
    assert ends == sorted(ends)
    assert all(one.why != other.why or one.end < other.start for one, other in pairwise(found))


def test_the_tables_add_up() -> None:
    ledger = story()
    page = alone(cost_page(ledger, NOTHING, NOTHING, title="a run"))
    whole = [row for row in page.rows if row[:1] == ["together"]]
    assert whole[0] == whole[1] == ["together", "28.0", "28.00", "100.0%"]
    assert whole[2][2] == f"{ledger.totals.wasted:.2f}"
    for name, cost in ledger.totals.cost_by_class.items():
        if cost:
            assert page.row(name)[2] == f"{cost:.2f}"
    for cause, cost in ledger.totals.wasted_by_cause.items():
        assert page.row(cause)[2] == f"{cost:.2f}"


@pytest.mark.parametrize(("rate", "shown"), [("0.0816", "0.0006347"), ("3600", "28.00"), ("36000000", "280,000.00")])
def test_amounts_have_the_digits_that_say_something(rate: str, shown: str) -> None:
    page = alone(cost_page(story(rate), NOTHING, NOTHING, title="a run"))
    assert next(row for row in page.rows if row[:1] == ["together"])[2] == shown


def test_long_runs_are_told_in_hours() -> None:
    page = alone(cost_page(build_ledger([], [Held(1, 0, 4 * 3600)], RATE), NOTHING, NOTHING, title="a run"))
    assert page.row("attempt 1")[:2] == ["attempt 1", "4.00"]


def test_pictures_of_any_run() -> None:
    loss = Curve([1.0, 2.0, 25.0, float("nan")], [5.0, float("inf"), 4.0, 3.0])
    free, held = build_ledger([], [], RATE), build_ledger([], [Held(1, 0, 1)], RATE)
    for ledger, curve in (
        (story(), loss), (story("0.0816"), NOTHING), (free, loss), (free, NOTHING), (held, loss)
    ):  # fmt: skip
        assert image(cost_picture(ledger, curve, NOTHING, title="x" * 300)).size == (900, 970)
        alone(cost_page(ledger, curve, curve, title="<script>$x_$</script>"))


def test_a_hostile_job_is_text() -> None:
    ledger = story().model_copy(update={"owner": Owner(job="</svg><script>", team="$t_$", uid="u")})
    alone(cost_page(ledger, NOTHING, NOTHING, title="</svg><script>"))


def test_no_line_is_drawn_across_waste() -> None:
    loss = Curve([1.0, 2.0, 8.0, 9.0], [5.0, 4.0, 4.0, 3.0])
    waste = Band(3.0, 7.0, "worker-lost", wasted=True)

    def drawn(*found: Band) -> bytes:
        return loss_against_money(loss, NOTHING, currency="USD", bands=found, form="svg")

    lines = [drawing.count(b"stroke: #2563a8; stroke-width: 2") for drawing in (drawn(), drawn(waste))]
    assert lines == [1, 2]
    assert drawn(waste) != drawn(Band(3.0, 7.0, "starting", wasted=False))
    assert drawn(waste) == drawn(waste), "the same bytes each time: no date, no names by chance"


def test_a_long_run_with_many_failures_is_drawn_at_once() -> None:
    """A hundred thousand steps, two thousand failures."""
    waste = [Band(50.0 * n + 0.25, 50.0 * n + 0.75, "worker-lost", wasted=True) for n in range(2000)]
    loss = Curve([float(n) for n in range(100_000)], [5.0] * 100_000)
    began = time.process_time()
    image(loss_against_money(loss, NOTHING, currency="USD", bands=waste))
    assert time.process_time() - began < 30

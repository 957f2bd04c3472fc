"""The budget held in a small world (`support.world`): whatever happens, never an overrun, never a second lost."""

import datetime
import random
from decimal import Decimal

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.runs import event as run_event
from support.stories import Story
from support.world import UNITS, Nature, World

from orchestrator.controller.spending import Pace, Spending, words
from orchestrator.cost import budget
from orchestrator.cost.ledger import build_ledger
from orchestrator.cost.tariff import Tariff, tariff_from
from orchestrator.launch.events import BudgetNote
from orchestrator.plan.prices import Price
from orchestrator.spec import Budget

MIDNIGHT = datetime.datetime(2026, 6, 2, tzinfo=datetime.UTC).timestamp()


def prices(*cents: int) -> list[Price]:
    """Of the whole job for an hour, from 1 June 2026 on and changing each midnight."""
    return [
        Price(
            accelerator="H100",
            price_class="on-demand",
            amount=Decimal(price) / 100 / UNITS,
            currency="USD",
            unit="gpu-hour",
            source="s",
            date=datetime.date(2026, 6, 1 + day),
        )
        for day, price in enumerate(cents)
    ]


def tariff(*cents: int) -> Tariff:
    return tariff_from(prices(*cents), UNITS, datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC))


@st.composite
def worlds(draw: st.DrawFn, *, restless: bool = False) -> World:
    step = draw(st.sampled_from([0.7, 3.0, 20.0]))
    nature = Nature(
        step=step,
        save=draw(st.sampled_from([0.0, 0.3, 5.0, 60.0])),
        save_every=draw(st.integers(1, 50)),
        look=step * draw(st.sampled_from([0.5, 1.0, 3.0])),
        sleeps=draw(st.sampled_from([0.0, 0.1, 1.0])),
        sleep=step * draw(st.integers(0, 300)),
        death=draw(st.sampled_from([0.0, 0.01, 0.1])),
        teardown=draw(st.sampled_from([0.0, 1.0, 10.0])),
        restless=draw(st.sampled_from([0.02, 0.2, 1.0])) if restless else 0.0,
        late=draw(st.sampled_from([0.5, 5.0])) if restless else 0.0,
        lost=draw(st.sampled_from([0.0, 0.3])) if restless else 0.0,
        longest=400 if restless else 20_000,  # a price that falls to a ten-thousandth pays for a million
    )
    file = prices(*draw(st.lists(st.integers(100, 10**6), min_size=1, max_size=3)))
    seconds = 61 + Decimal(str(step)) * draw(st.integers(1, 150))  # of less an attempt could not pay for its own stop
    limit = (file[0].amount * UNITS / 3600 * seconds).quantize(Decimal("0.000001")) + Decimal("0.000001")
    now = MIDNIGHT - float(seconds) * draw(st.floats(-0.5, 1.5))
    return World(nature, file, limit, now, random.Random(draw(st.integers(0, 10**6))))


def require_true_books(world: World) -> None:
    """Never an overrun, never a second lost or doubled."""
    ledger = build_ledger(world.story.events, world.held, world.tariffs[1], world.tariffs)
    charged = budget.spent(world.held, world.tariffs)
    rates = [rate for tariff in world.tariffs.values() for rate in tariff.rates]
    slack = max(r.per_hour for r in rates) / 3600 * len(rates) * Decimal("1.5e-6") + Decimal("1e-11")
    assert charged <= world.limit
    assert ledger.totals.cost <= world.limit + slack, "by the meter, which rounds times to microseconds"
    assert abs(ledger.totals.cost - charged) <= slack

    held = sum(round(one.end * 10**6) - round(one.start * 10**6) for one in world.held)
    assert sum((row.seconds for row in ledger.rows), Decimal(0)) == Decimal(held) / 10**6
    assert sum((row.billed_cost for row in ledger.rows), Decimal(0)) == ledger.totals.cost
    assert sum(ledger.totals.cost_by_class.values(), Decimal(0)) == ledger.totals.cost
    assert sum(ledger.totals.wasted_by_cause.values(), Decimal(0)) == ledger.totals.wasted

    mixed = [*world.story.events, *world.notes]
    random.Random(1).shuffle(mixed)
    again = build_ledger(mixed, world.held[::-1], world.tariffs[1], world.tariffs)
    assert again == ledger, "the order in which news come means nothing, and words on money divide no time"


@settings(deadline=None, max_examples=40)
@given(worlds(), st.integers(1, 5))
def test_never_an_overrun_and_never_a_lost_or_doubled_second(world: World, attempts: int) -> None:
    world.live(attempts)
    event(f"{len(world.held)} attempts, {len({stop.fits for stop in world.stops})} kinds of stop")
    require_true_books(world)
    for stop in world.stops:
        foreseen = stop.reserve.heartbeat >= world.nature.step + world.nature.save
        if stop.whole and foreseen and stop.reserve.save >= world.nature.save:
            assert stop.fits, "the last checkpoint fits under the limit"
    assert len(world.notes) <= 3


@settings(deadline=None, max_examples=40)
@given(worlds(restless=True), st.integers(1, 6))
def test_whatever_people_change_meanwhile_the_limit_in_force_holds(world: World, attempts: int) -> None:
    """Raises, lower limits, edited prices, lost controllers, answers that come late and overtake each other."""
    world.live(attempts)
    event(f"limit changed: {min(world.raises, 3)}, prices: {min(world.edits, 3)}")
    require_true_books(world)
    told: list[tuple[str | None, float | None]] = []
    for note in world.notes:
        if note.about == "limit-changed":
            told = []
        else:
            assert (note.limit, note.share) not in told, "a share of a limit is told once, whoever tells it"
            told.append((note.limit, note.share))


@pytest.mark.parametrize("sleeps", [0.0, 1.0])
def test_the_worlds_are_not_empty(sleeps: float) -> None:
    """With the controller awake, and with it down for good: the budget is used up, and not exceeded."""
    nature = Nature(1.0, 2.0, 20, 0.2, sleeps, 1e9 if sleeps else 0.0, 0.001, 1.0)
    world = World(nature, prices(36_000, 72_000), Decimal("200"), MIDNIGHT - 900, random.Random(7))
    world.live(5)
    assert world.stops[-1].fits
    assert world.stops[-1].whole
    assert Decimal(180) < budget.spent(world.held, world.tariffs) <= 200
    assert len(world.notes) == (1 if sleeps else 3), "it was awake at the first look only"


def test_restless_worlds_are_not_empty() -> None:
    """Limits and prices are changed in both directions, attempts go on beyond their first deadline and stop before it,
    and what is left of the money in the end is less than stopping takes."""
    nature = Nature(1.0, 2.0, 20, 1.0, 0.01, 60.0, 0.0, 1.0, restless=0.01, late=5.0, lost=0.1, longest=1000)
    worlds = [World(nature, prices(36_000), Decimal(50), MIDNIGHT, random.Random(seed)) for seed in range(8)]
    for world in worlds:
        world.live(6)
    assert sum(world.raises for world in worlds) > 10
    assert sum(world.edits for world in worlds) > 10
    assert any(world.limit > 50 for world in worlds)
    assert any(world.limit < 50 for world in worlds)
    ends = [one.end - one.start for world in worlds for one in world.held]
    assert min(ends) < 400 < 500 < max(ends), "the first deadline was after 500 s"


def test_what_is_kept_follows_what_was_measured() -> None:
    story = Story()
    story.started(0, 0)
    for step in range(1, 41):
        story.progress(10 * step, step)
        if step % 10 == 0:
            story.saved(10 * step + 45, step, 2.0)  # training stood still for 2 s, the rest was written beside it
    pace = Pace.of(story.events)
    assert (pace.reserve.heartbeat, pace.reserve.save) == (10, 45)
    assert Pace().reserve == budget.Reserve()
    story.started(1000, 40)
    story.progress(1012, 41)
    assert max(Pace.of(story.events).gaps) == 10, "the time of a restart is not that of a step"


def test_shares_are_told_once_and_in_money() -> None:
    limit = Budget(limit="100")
    spending, price = Spending(limit), tariff(360_000)
    looks = [spending.look(Decimal(paid), price, MIDNIGHT, MIDNIGHT + paid) for paid in (49, 50, 60, 97, 99)]
    assert [look.share for look in looks] == [None, Decimal("0.5"), None, Decimal("0.95"), None]
    assert words(Decimal("0.5"), Decimal(50), limit) == "50% of the budget is spent: $50.00 of $100.00"
    assert words(Decimal("0.125"), Decimal(15), limit) == "12.5% of the budget is spent: $15.00 of $100.00"


def shares(spending: Spending, *paid: float) -> list[float | None]:
    looks = [spending.look(Decimal(str(one)), tariff(360_000), MIDNIGHT, MIDNIGHT + one) for one in paid]
    return [None if look.share is None else float(look.share) for look in looks]


def test_the_jobs_own_shares_are_told() -> None:
    spending = Spending(Budget(limit="100", warn_at=[0.1, 0.25, 0.999]))
    assert shares(spending, 5, 10, 30, 50, 95, 99.9) == [None, 0.1, 0.25, None, None, 0.999]
    assert shares(Spending(Budget(limit="100", warn_at=[])), 99) == [None]


def note(about: str, **fields: object) -> BudgetNote:
    found = run_event("budget", 1.0, about=about, message="m", **fields)
    assert isinstance(found, BudgetNote)
    return found


def test_another_launcher_tells_nothing_again() -> None:
    notes = [note("share-spent", share=0.5), note("share-spent", share=0.8), note("price-changed", spent="85")]
    assert shares(Spending(Budget(limit="100"), notes), 85, 96) == [None, 0.95]


def test_of_another_limit_shares_are_told_anew_once_they_are_reached_anew() -> None:
    spending = Spending(Budget(limit="100"))
    assert shares(spending, 96) == [0.95]
    spending.change(Budget(limit="120"), Decimal(96))
    assert shares(spending, 96, 110, 114) == [None, None, 0.95], "80 % of it are spent, which is no news"
    spending.change(Budget(limit="1000"), Decimal(114))
    assert shares(spending, 114, 500) == [None, 0.5]
    notes = [note("share-spent", share=0.95), note("limit-changed", limit="1000", spent="114")]
    assert shares(Spending(Budget(limit="1000"), notes), 114, 500) == [None, 0.5], "another launcher knows that, too"


def test_of_a_lower_limit_more_is_spent() -> None:
    spending = Spending(Budget(limit="1000"))
    assert shares(spending, 90) == [None]
    spending.change(Budget(limit="100"), Decimal(90))
    assert shares(spending, 90) == [0.8]

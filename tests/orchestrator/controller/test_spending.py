"""The budget held in a small world (`support.world`): whatever happens, never an overrun, never a second lost."""

import datetime
import random
from decimal import Decimal

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from support.stories import Story
from support.world import Nature, World

from orchestrator.controller.spending import Pace, Spending
from orchestrator.cost import budget
from orchestrator.cost.ledger import build_ledger
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff
from orchestrator.spec import Budget

MIDNIGHT = datetime.datetime(2026, 6, 2, tzinfo=datetime.UTC).timestamp()


def tariff(*cents: int) -> Tariff:
    """Price of the job for an hour, from 1 June 2026 on and changing each midnight."""
    return Tariff(
        rates=tuple(
            Rate(
                per_hour=Decimal(price) / 100,
                currency="USD",
                units=8,
                unit="gpu-hour",
                source="s",
                date=datetime.date(2026, 6, 1 + day),
            )
            for day, price in enumerate(cents)
        )
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    step = draw(st.sampled_from([0.1, 0.7, 3.0, 20.0]))
    nature = Nature(
        step=step,
        save=draw(st.sampled_from([0.0, 0.3, 5.0, 60.0])),
        save_every=draw(st.integers(1, 50)),
        look=step * draw(st.sampled_from([0.1, 1.0, 3.0])),
        sleeps=draw(st.sampled_from([0.0, 0.1, 1.0])),
        sleep=step * draw(st.integers(0, 300)),
        death=draw(st.sampled_from([0.0, 0.01, 0.1])),
        teardown=draw(st.sampled_from([0.0, 1.0, 10.0])),
    )
    prices = tariff(*draw(st.lists(st.integers(100, 10**6), min_size=1, max_size=3)))
    seconds = Decimal(str(step)) * draw(st.integers(1, 150))
    limit = (prices.rates[0].per_hour / 3600 * seconds).quantize(Decimal("0.000001")) + Decimal("0.000001")
    now = MIDNIGHT - float(seconds) * draw(st.floats(-0.5, 1.5))
    return World(nature, prices, limit, now, random.Random(draw(st.integers(0, 10**6))))


@settings(deadline=None, max_examples=60)
@given(worlds(), st.integers(1, 5))
def test_never_an_overrun_and_never_a_lost_or_doubled_second(world: World, attempts: int) -> None:
    world.live(attempts)
    tariffs = dict.fromkeys(range(1, attempts + 1), world.prices)
    ledger = build_ledger(world.story.events, world.held, world.prices)
    event(f"{len(world.held)} attempts, {len({stop.fits for stop in world.stops})} kinds of stop")

    charged = budget.spent(world.held, tariffs)
    dearest = max(rate.per_hour for rate in world.prices.rates)
    slack = dearest / 3600 * len(world.held) * Decimal("1.5e-6") + Decimal("1e-11")
    assert charged <= world.limit
    assert ledger.totals.cost <= world.limit + slack, "by the meter, which rounds times to microseconds"
    assert abs(ledger.totals.cost - charged) <= slack

    held = sum(round(one.end * 10**6) - round(one.start * 10**6) for one in world.held)
    assert sum((row.seconds for row in ledger.rows), Decimal(0)) == Decimal(held) / 10**6
    assert sum((row.billed_cost for row in ledger.rows), Decimal(0)) == ledger.totals.cost
    assert sum(ledger.totals.cost_by_class.values(), Decimal(0)) == ledger.totals.cost
    assert sum(ledger.totals.wasted_by_cause.values(), Decimal(0)) == ledger.totals.wasted

    mixed = world.story.events.copy()
    random.Random(1).shuffle(mixed)
    assert build_ledger(mixed, world.held[::-1], world.prices) == ledger, "the order in which news come means nothing"

    for stop in world.stops:
        foreseen = stop.reserve.heartbeat >= world.nature.step + world.nature.save
        if stop.whole and foreseen and stop.reserve.save >= world.nature.save:
            assert stop.fits, "the last checkpoint fits under the limit"
    assert len(world.warnings) == len(set(world.warnings)) <= 3


@pytest.mark.parametrize("sleeps", [0.0, 1.0])
def test_the_worlds_are_not_empty(sleeps: float) -> None:
    """With the controller awake, and with it down for good: the budget is used up, and not exceeded."""
    nature = Nature(1.0, 2.0, 20, 0.2, sleeps, 1e9 if sleeps else 0.0, 0.001, 1.0)
    world = World(nature, tariff(36_000, 72_000), Decimal("200"), MIDNIGHT - 900, random.Random(7))
    world.live(5)
    assert world.stops[-1].fits
    assert world.stops[-1].whole
    charged = budget.spent(world.held, dict.fromkeys(range(1, 6), world.prices))
    assert Decimal(180) < charged <= 200
    assert len(world.warnings) == (1 if sleeps else 3), "it was awake at the first look only"


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
    spending, prices = Spending(Budget(limit="100")), tariff(360_000)
    looks = [spending.look(Decimal(paid), prices, MIDNIGHT, MIDNIGHT + paid) for paid in (49, 50, 60, 97, 99)]
    assert [look.warning for look in looks] == [
        None,
        "50% of the budget is spent: $50.00 of $100.00",
        None,
        "95% of the budget is spent: $97.00 of $100.00",
        None,
    ]

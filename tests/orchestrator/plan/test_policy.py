"""Hours and money by class and cause, and what single changes are worth."""

import statistics
from dataclasses import replace
from decimal import Decimal

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.bins import MOST_BINS, bins
from orchestrator.plan.failures import Cause, Failures, Lemons, Stragglers, failure_models
from orchestrator.plan.goodput import Recovery, goodput
from orchestrator.plan.policy import Better, Simulated, better_policies, in_words, simulate_all
from orchestrator.plan.simulate import CLASSES, Scenario, simulate

DAY = 86400
LLAMA = failure_models()["llama-3"]
RATE = Decimal("2.95") * 16384


def scenario(recovery: Recovery, days: float = 20, interval: float | None = None) -> Scenario:
    return Scenario(16384, 8, LLAMA, recovery, seconds=days * DAY, interval_seconds=interval)


def worth(recovery: Recovery, runs: int = 6, interval: float | None = None) -> tuple[Simulated, dict[str, Better]]:
    one = scenario(recovery, interval=interval)
    now = simulate_all(one, RATE, 0, runs)
    return now, {better.name: better for better in better_policies(one, now)}


def test_money_adds_up_to_the_last_digit() -> None:
    now = simulate_all(scenario(Recovery(spares=5)), Decimal("48333.333333"), 3, 7)
    classes, causes = now.by_class(), now.by_cause()
    assert sum(one.cost for one in classes.values()) == now.cost
    assert sum(one.cost for one in causes.values()) + classes["productive"].cost == now.cost
    assert sum(one.share for one in classes.values()) == pytest.approx(1)
    assert sum(one.hours for one in classes.values()) == pytest.approx(20 * 24)
    assert now.cost == pytest.approx(Decimal("48333.333333") * 480)


def test_the_dollars_of_a_cause_are_its_hours_times_gpus_times_the_price() -> None:
    now = simulate_all(scenario(Recovery(spares=5)), RATE, 3, 4)
    for name, one in (now.by_cause() | now.by_class()).items():
        micro = sum(
            run.lost_by_cause().get(name, 0) if name in now.by_cause() else run.times[name]  # type: ignore[call-overload]
            for run in now.runs
        )
        assert one.hours == pytest.approx(micro / 4 / 3.6e9)
        assert float(one.cost) == pytest.approx(one.hours * 16384 * 2.95, rel=1e-9, abs=1e-5), name
        assert one.share == pytest.approx(one.hours / 480), name


def test_causes_are_the_largest_first_and_have_their_failures() -> None:
    now = simulate_all(scenario(Recovery()), RATE, 0, 5)
    shares = [one.share for one in now.by_cause().values()]
    assert shares == sorted(shares, reverse=True)
    assert sum(now.failures().values()) == pytest.approx(419 * 20 / 54, rel=0.1)
    assert next(iter(now.failures())) == "faulty GPU"


def test_each_change_is_worth_what_the_formula_says() -> None:
    base = Recovery(in_place=False)
    now, found = worth(base, runs=10)
    fast = Recovery(in_place=False, save_seconds=1, upload_seconds=6)
    for name, other in (
        ("restart in place", Recovery()),
        ("faster checkpoints", fast),
        ("warm standby", Recovery(in_place=False, replace_seconds=57)),
    ):
        gain = goodput(16384, 8, LLAMA, other).fraction - goodput(16384, 8, LLAMA, base).fraction
        assert found[name].gain == pytest.approx(gain, rel=0.12), name
        before, after = found[name].goodput - found[name].gain, found[name].goodput
        assert float(found[name].worth) == pytest.approx(float(now.cost) * (1 - before / after), rel=0.02), name


def test_the_same_failures_make_differences_sharper_than_the_runs() -> None:
    now, found = worth(Recovery(), runs=10)
    between_runs = statistics.stdev(now.goodputs) / 10**0.5
    assert 0 < found["quicker detection"].gain_error < between_runs / 5


def test_what_is_in_use_is_what_would_be_lost_without() -> None:
    _, with_it = worth(Recovery())
    _, without = worth(Recovery(in_place=False))
    assert with_it["restart in place"].used
    assert not without["restart in place"].used
    assert with_it["restart in place"].gain == pytest.approx(without["restart in place"].gain)
    assert with_it["restart in place"].worth == pytest.approx(without["restart in place"].worth)


def test_spares_are_paid_for() -> None:
    now, found = worth(Recovery(spares=10))
    more = found["more spares"]
    saved = statistics.mean(
        1 - a / b
        for a, b in zip(now.goodputs, simulate_all(scenario(Recovery(spares=13)), RATE, 0, 6).goodputs, strict=True)
    )
    nodes = 3 * RATE / 2048 * 480
    assert "10 -> 13 nodes" in more.change
    assert more.worth == pytest.approx(Decimal(repr(saved)) * now.cost - nodes, abs=Decimal("0.01"))
    assert "more spares" not in worth(Recovery(spares=40), runs=1)[1]
    assert "more spares" not in worth(Recovery(), runs=1)[1]


def test_what_a_reserve_is_worth_when_there_is_always_one() -> None:
    now, found = worth(Recovery(), runs=3)
    reserve = found["spares"]
    assert reserve.used
    assert "0 -> 13 nodes, paid for" in reserve.change
    without, with_it = (goodput(16384, 8, LLAMA, Recovery(spares=spares)).fraction for spares in (0, 13))
    nodes = float(13 * RATE / 2048 * 480)
    assert reserve.goodput == pytest.approx(with_it, abs=0.02)
    assert float(reserve.worth) == pytest.approx(float(now.cost) * (1 - without / with_it) - nodes, rel=0.05)
    never = Failures("never", ())
    quiet = Scenario(8, 8, never, Recovery(), seconds=DAY)
    assert "spares" not in {one.name for one in better_policies(quiet, simulate_all(quiet, RATE, 0, 1))}
    long = replace(scenario(Recovery(repair_hours=1e9)), seconds=60)
    assert "spares" not in {one.name for one in better_policies(long, simulate_all(long, RATE, 0, 1))}


def test_no_more_runs_than_can_be_played_out() -> None:
    with pytest.raises(UsageError, match=r"1,000 times 1,552 failures in 200 days .* or not 1,000 but 128"):
        simulate_all(scenario(Recovery(), days=200), RATE, 0, 1000)


def test_a_given_interval_is_compared_with_the_best() -> None:
    _, found = worth(Recovery(), interval=3600)
    assert found["the best interval"].gain > 0.05
    assert "1 h" not in found["the best interval"].change, "3600 s are shown as 60 min"
    assert "60 min -> 7.75 min" in found["the best interval"].change


def test_excluding_bad_nodes_is_offered_where_there_are_some() -> None:
    model = Failures("lemons", LLAMA.causes, lemons=Lemons(0.02, 0.05))
    one = Scenario(1024, 8, model, Recovery(exclude_after=None), seconds=10 * DAY)
    found = {better.name: better for better in better_policies(one, simulate_all(one, RATE, 0, 3))}
    assert found["exclude bad nodes"].gain > 0.01


def test_a_hopeless_job_saves_nothing() -> None:
    hopeless = Scenario(8, 8, Failures("hot", (Cause("it", per_job_hour=100, cure="process"),)), Recovery(), DAY)
    now = simulate_all(hopeless, RATE, 0, 2)
    assert max(now.goodputs) < 0.001
    for one in better_policies(hopeless, now):
        assert one.worth <= 0, f"{one.name}: {one.goodput} of the time counts, worth {one.worth}"


def test_a_single_run_has_no_error() -> None:
    assert worth(Recovery(), runs=1)[1]["warm standby"].gain_error == 0


@pytest.mark.parametrize("runs", [0, -1, 1001])
def test_absurd_numbers_of_runs(runs: int) -> None:
    with pytest.raises(UsageError, match=f"number of runs must be between 1 and 1,000, got {runs}"):
        simulate_all(scenario(Recovery()), RATE, 0, runs)


@pytest.mark.parametrize("rate", ["NaN", "Infinity", "-1"])
def test_absurd_prices(rate: str) -> None:
    with pytest.raises(UsageError, match=f"price must be finite and not negative, got {rate}"):
        simulate_all(scenario(Recovery()), Decimal(rate), 0, 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (45, "45 s"),
        (119, "119 s"),
        (570, "9.5 min"),
        (7560, "2.1 h"),
        (457920, "5.3 days"),
        (182_390_400, "2,111 days"),
        (1e400, "never"),
    ],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


# ------------------------------------------------------------------ in pieces for the picture
@pytest.mark.parametrize("days", [0.01, 0.3, 2.0, 54.0, 400.0, 3000.0])
def test_pieces_hold_all_of_the_run(days: float) -> None:
    model = Failures("slow", (*LLAMA.causes, Cause("job", per_job_hour=0.01, cure="process")),
                     stragglers=Stragglers(1e-4, 1.3, 900))  # fmt: skip
    two_levels = Recovery(save_seconds=60, local_save_seconds=2, spares=1)
    run = simulate(Scenario(1024, 8, model, two_levels, seconds=days * DAY), 1)
    found = bins(run)
    assert 1 <= found.count <= MOST_BINS
    for name in CLASSES:
        assert sum(found.times[name]) == pytest.approx(run.times[name], abs=5 + 1e-9 * run.wall)
        assert min(found.times[name]) > -1
    for place in range(found.count):
        width = min(found.width, run.wall - place * found.width)
        assert sum(found.times[name][place] for name in CLASSES) == pytest.approx(width, abs=2 + 1e-9 * run.wall)
    assert {cause: sum(counts) for cause, counts in found.failures.items()} == dict(run.counts())

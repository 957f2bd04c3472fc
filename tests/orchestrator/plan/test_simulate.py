"""The simulator: exact bookkeeping, cases worked out by hand, seeds, and agreement with the closed forms."""

import statistics
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.errors import UsageError
from orchestrator.plan.checkpointing import exact_goodput
from orchestrator.plan.failures import Cause, Cure, Failures, Lemons, Stragglers, failure_models
from orchestrator.plan.goodput import LEMONS, Recovery, goodput
from orchestrator.plan.simulate import CLASSES, Run, Scenario, simulate

DAY = 86400
LLAMA = failure_models()["llama-3"]
QUICK = Recovery(save_seconds=10, restart_seconds=60, detect_seconds=20, replace_seconds=40, upload_seconds=0)


def every(seconds: float, cure: Cure = "process", hangs: bool = False) -> Failures:
    return Failures("timer", (Cause("timer", cure=cure, hangs=hangs, every_seconds=(seconds, seconds)),))


def play(failures: Failures, recovery: Recovery, *, seconds: float, interval: float, gpus: int = 8) -> dict[str, float]:
    run = simulate(Scenario(gpus, 8, failures, recovery, seconds=seconds, interval_seconds=interval))
    return {name: micro / 1e6 for name, micro in run.times.items() if micro}


# ------------------------------------------------------------------ by hand
def test_a_failure_takes_back_to_the_last_checkpoint() -> None:
    # 0-100 work, 100-110 save, ..., 330-400 work and failure: 70 s lost; 20 detect, 60 restart; 480-500 work
    found = play(every(400), QUICK, seconds=500, interval=100)
    assert found == {"productive": 320, "checkpoint": 30, "lost": 70, "detecting": 20, "restarting": 60}


def test_losing_a_node_takes_a_replacement() -> None:
    found = play(every(400, "node"), QUICK, seconds=520, interval=100)
    assert found == {
        "productive": 300,
        "checkpoint": 30,
        "lost": 70,
        "detecting": 20,
        "replacing": 40,
        "restarting": 60,
    }
    without = Recovery(10, 60, detect_seconds=20, replace_seconds=40, upload_seconds=0, in_place=False)
    assert play(every(400), without, seconds=520, interval=100) == found


def test_a_hang_is_noticed_later() -> None:
    found = play(
        every(400, hangs=True), Recovery(10, 60, 20, hang_seconds=50, upload_seconds=0), seconds=510, interval=100
    )
    assert (found["detecting"], found["restarting"]) == (50, 60)


def test_a_failure_while_saving_takes_the_whole_interval() -> None:
    # failure at 215 = 5 s into the second save: back to 100
    found = play(every(215), QUICK, seconds=295, interval=100)
    assert found == {"productive": 100, "checkpoint": 15, "lost": 100, "detecting": 20, "restarting": 60}


def test_a_checkpoint_counts_when_it_is_written() -> None:
    # saved 100-110 and 210-220; uploads take 90 s: at 300 the second is not there, at 310 it is
    slow = Recovery(10, 60, 20, upload_seconds=90)
    assert play(every(300), slow, seconds=300.000001, interval=100)["lost"] == 180
    assert play(every(310), slow, seconds=310.000001, interval=100)["lost"] == 90


def test_a_failure_during_recovery_begins_it_again() -> None:
    # failures at 50, 100, 150 ...: 50 s of each recovery of 80 s
    found = play(every(50), QUICK, seconds=200, interval=100)
    assert found == {"lost": 50, "detecting": 60, "restarting": 90}


def test_a_machine_that_was_not_replaced_yet_is_still_due() -> None:
    # lost at 100, replaced from 120 on; the process dies at 150: 150-170 detect, 170-210 replace, then restart
    both = Failures("both", (*every(100, "node").causes, Cause("bug", cure="process", every_seconds=(150, 150))))
    found = play(both, QUICK, seconds=195, interval=1000)
    assert found == {"lost": 100, "detecting": 20 + 20, "replacing": 30 + 25}
    # the same while none is in reserve: lost at 100, dies again at 110, the machine comes back at 1100
    soon = Failures("soon", (*every(100, "node").causes, Cause("bug", cure="process", every_seconds=(110, 110))))
    none = Recovery(10, 60, 20, replace_seconds=40, upload_seconds=0, spares=0, repair_hours=1000 / 3600)
    found = play(soon, none, seconds=1000, interval=1000)
    assert found == {"lost": 100, "detecting": 10 + 20, "waiting": 1000 - 130}


def test_a_checkpoint_that_takes_longer_than_the_rhythm_of_copies_is_written_all_the_same() -> None:
    slow = Recovery(save_seconds=10, upload_seconds=2900, local_save_seconds=1, local_interval_seconds=2000)
    found = goodput(16384, 8, LLAMA, slow)
    assert found.interval_seconds == pytest.approx(4000), "a whole number of copies, and time enough to write it"
    mean, error = mean_and_error(Scenario(16384, 8, LLAMA, slow, seconds=54 * DAY), 8)
    assert abs(mean - found.fraction) < 4 * error + 0.02


def test_copies_in_memory_outlive_processes_but_not_nodes() -> None:
    # copies at 20, 41 (1 s each), 62, 83 ...; failure at 95: 83+1 -> 80 of work saved, 11 s lost
    local = Recovery(10, 60, 20, upload_seconds=0, replace_seconds=40, local_save_seconds=1, local_interval_seconds=20)
    assert play(every(95), local, seconds=100, interval=100)["lost"] == 11
    assert play(every(95, "node"), local, seconds=100, interval=100)["lost"] == 91
    peers = Recovery(10, 60, 20, upload_seconds=0, local_save_seconds=1, local_interval_seconds=20, peer_copies=True)
    assert play(every(95, "node"), peers, seconds=100, interval=100)["lost"] == 11


def test_no_capacity_waits_for_a_repair() -> None:
    # one spare, a repair takes 1000 s: lost at 200 (spare), at 400 (none; the first is back at 1200), 600-1200 finds
    # nothing running but the failure at 400, which waits from 420 to 1200
    few = Recovery(10, 60, 20, replace_seconds=40, upload_seconds=0, spares=1, repair_hours=1000 / 3600)
    assert play(every(200, "node"), few, seconds=1200, interval=100)["waiting"] == 1200 - 420
    # The failure at 1200 strikes when the machine has just come, and has to wait for the one lost at 400.
    assert play(every(200, "node"), few, seconds=1300, interval=100)["waiting"] == 1200 - 420 + 1300 - 1220
    assert "waiting" not in play(every(200, "node"), QUICK, seconds=1300, interval=100)


def test_a_straggler_slows_everything_while_it_lasts() -> None:
    slow = Failures("slow", (), stragglers=Stragglers(per_node_hour=1e5, slowdown=2, seconds=1e6))
    found = play(slow, QUICK, seconds=1000, interval=10_000)
    assert found["slow"] == pytest.approx(500, abs=0.2)
    assert found["productive"] + found["slow"] == 1000


def test_the_work_can_be_given_instead_of_the_time() -> None:
    run = simulate(Scenario(8, 8, every(400), QUICK, work_seconds=380, interval_seconds=100))
    assert (run.wall, run.times["productive"]) == (560_000_000, 380_000_000)
    exact = simulate(Scenario(8, 8, Failures("never", ()), QUICK, work_seconds=300, interval_seconds=100))
    assert exact.times["checkpoint"] == 20_000_000, "nothing is saved by the simulator when the work is done"


# ------------------------------------------------------------------ lemons
def test_lemons_fail_until_they_are_excluded() -> None:
    model = Failures("lemons", (), lemons=Lemons(share=0.5, per_hour=1))
    kept = simulate(Scenario(64, 8, model, Recovery(exclude_after=None), seconds=10 * DAY))
    assert kept.counts()[LEMONS] == pytest.approx(4 * 240, rel=0.1)
    for limit in (1, 3):
        freed = simulate(Scenario(64, 8, model, Recovery(exclude_after=limit), seconds=10 * DAY))
        assert freed.counts()[LEMONS] == 4 * limit
        assert freed.times["replacing"] == pytest.approx(4 * 570e6, rel=0.5), "each takes a replacement once"
    assert freed.goodput > kept.goodput + 0.1


# ------------------------------------------------------------------ every second once
SCENARIOS = st.builds(
    Scenario,
    gpus=st.integers(1, 20_000),
    gpus_per_node=st.sampled_from([1, 4, 8]),
    failures=st.builds(
        Failures,
        name=st.just("any"),
        causes=st.lists(
            st.builds(
                Cause,
                name=st.uuids().map(str),
                per_gpu_hour=st.floats(0, 1e-5),
                per_node_hour=st.floats(0, 1e-5),
                per_job_hour=st.floats(0, 1),
                cure=st.sampled_from(["process", "node"]),
                hangs=st.booleans(),
            ),
            max_size=3,
        ).map(tuple),
        lemons=st.none() | st.builds(Lemons, st.floats(0, 0.01), st.floats(0, 0.1)),
        stragglers=st.none() | st.builds(Stragglers, st.floats(0, 1e-4), st.floats(1, 3), st.floats(1, 5000)),
    ),
    recovery=st.builds(
        Recovery,
        save_seconds=st.floats(0.001, 300),
        restart_seconds=st.floats(0, 3000),
        upload_seconds=st.floats(0, 900),
        in_place=st.booleans(),
        local_save_seconds=st.none() | st.floats(0.001, 10),
        local_interval_seconds=st.none() | st.floats(1, 500),
        peer_copies=st.booleans(),
        spares=st.none() | st.integers(0, 3),
        exclude_after=st.none() | st.integers(1, 3),
    ),
    interval_seconds=st.none() | st.floats(900, 1e4),
)


def in_order(run: Run) -> None:
    """Stretches of training and recoveries follow each other without gap or overlap."""
    pieces = [(one.start, one.end) for one in run.stretches]
    for one in run.incidents:
        spent = one.detecting + one.waiting + one.replacing + one.restarting
        pieces.append((one.at, one.at + spent))
    pieces = sorted(piece for piece in pieces if piece[0] < piece[1])
    assert (pieces[0][0], pieces[-1][1]) == (0, run.wall)
    assert all(before[1] == after[0] for before, after in pairwise(pieces))


@settings(max_examples=60)
@given(scenario=SCENARIOS, days=st.floats(0.1, 20), seed=st.integers(0, 1000))
def test_every_microsecond_is_classified_once(scenario: Scenario, days: float, seed: int) -> None:
    timed = Scenario(**{**scenario.__dict__, "seconds": days * DAY})
    run = simulate(timed, seed)
    assert run.wall == round(days * DAY * 1e6)
    assert set(run.times) == set(CLASSES)
    assert min(run.times.values()) >= 0
    assert sum(run.times.values()) == run.wall
    assert sum(run.lost_by_cause().values()) == run.wall - run.times["productive"]
    in_order(run)
    kept = sum(one.end - one.start - one.checkpoint - one.slow for one in run.stretches) - run.times["lost"]
    assert kept == run.times["productive"]
    assert simulate(timed, seed) == run, "the same seed gives the same run"


# ------------------------------------------------------------------ seeds
def moments(run: Run, cause: str) -> list[int]:
    return [one.at for one in run.incidents if one.cause == cause]


def test_other_seeds_give_other_runs() -> None:
    scenario = Scenario(16384, 8, LLAMA, QUICK, seconds=5 * DAY)
    assert simulate(scenario, 1) != simulate(scenario, 2)


def test_a_new_cause_and_another_policy_move_no_failure() -> None:
    scenario = Scenario(16384, 8, LLAMA, QUICK, seconds=20 * DAY)
    more = Failures("more", (Cause("cosmic rays", per_job_hour=0.2, cure="process"), *LLAMA.causes))
    plain, other = simulate(scenario, 3), simulate(Scenario(16384, 8, more, Recovery(), seconds=20 * DAY), 3)
    assert other.counts()["cosmic rays"] > 50
    for cause in LLAMA.causes:
        assert moments(plain, cause.name) == moments(other, cause.name)


# ------------------------------------------------------------------ against the closed forms
def mean_and_error(scenario: Scenario, seeds: int) -> tuple[float, float]:
    found = [simulate(scenario, seed).goodput for seed in range(seeds)]
    return statistics.mean(found), statistics.stdev(found) / seeds**0.5


SLOWED = Failures("slowed", LLAMA.causes, stragglers=Stragglers(3e-4, 1.5, 600))
LEMONS_TOO = Failures("lemons", LLAMA.causes, lemons=Lemons(0.01, 1 / 24))


@pytest.mark.parametrize(
    ("failures", "recovery"),
    [
        (LLAMA, QUICK),
        (LLAMA, Recovery()),
        (LLAMA, Recovery(in_place=False)),
        (LLAMA, Recovery(save_seconds=120, restart_seconds=1800, upload_seconds=0)),
        (LLAMA, Recovery(save_seconds=60, upload_seconds=600)),
        (LLAMA, Recovery(save_seconds=60, upload_seconds=0, local_save_seconds=2)),
        (LLAMA, Recovery(local_save_seconds=1, peer_copies=True)),
        (LLAMA, Recovery(spares=8)),
        (SLOWED, Recovery()),
        (LEMONS_TOO, Recovery(exclude_after=None)),
        (failure_models()["ant"], Recovery(save_seconds=60, local_save_seconds=2, upload_seconds=0)),
    ],
)
def test_it_agrees_with_the_closed_form(failures: Failures, recovery: Recovery) -> None:
    expected = goodput(16384, 8, failures, recovery).fraction
    mean, error = mean_and_error(Scenario(16384, 8, failures, recovery, seconds=54 * DAY), 24)
    assert abs(mean - expected) < 4 * error + 0.003, f"{mean:.4f} +- {error:.4f} simulated, {expected:.4f} expected"
    assert error < 0.004


@pytest.mark.parametrize(
    ("mtbf", "save", "restart", "interval"),
    [(24.75, 120, 30, 4624), (4.34, 2, 5, 600), (3.09, 10, 10, 472), (3.09, 120, 30, 1635), (1.8, 120, 30, 1247)],
)
def test_exponential_failures_give_dalys_exact_form(mtbf: float, save: float, restart: float, interval: float) -> None:
    """No tolerance but the statistical error: 16,000 failures in each case."""
    one = Failures("one", (Cause("it", per_job_hour=1 / mtbf),))
    recovery = Recovery(save, 60 * restart, detect_seconds=0, replace_seconds=0, upload_seconds=0)
    scenario = Scenario(8, 8, one, recovery, seconds=1000 * mtbf * 3600, interval_seconds=interval)
    mean, error = mean_and_error(scenario, 16)
    expected = exact_goodput(interval, save, 3600 * mtbf, 60 * restart)
    assert abs(mean - expected) < 4 * error, f"{mean:.5f} +- {error:.5f} simulated, {expected:.5f} exact"
    assert error < 0.003


def test_several_causes_with_their_own_recoveries_are_exact_too() -> None:
    causes = (
        Cause("node", per_job_hour=0.3), Cause("bug", per_job_hour=0.5, cure="process"),
        Cause("hang", per_job_hour=0.1, cure="process", hangs=True),
    )  # fmt: skip
    recovery = Recovery(20, 300, 60, 600, replace_seconds=1200, upload_seconds=0)
    model = Failures("three", causes)
    mean, error = mean_and_error(Scenario(8, 8, model, recovery, seconds=1e7), 24)
    expected = goodput(8, 8, model, recovery)
    assert abs(mean - expected.fraction) < 4 * error
    assert error < 0.0015
    run = simulate(Scenario(8, 8, model, recovery, seconds=1e8))
    spent = sum(run.times[name] for name in ("detecting", "replacing", "restarting")) / run.wall
    assert spent == pytest.approx(expected.lost_by_class["recovering"], rel=0.01)


def test_a_repair_goes_on_while_the_loss_is_being_noticed() -> None:
    one = Failures("one", (Cause("it", per_job_hour=0.2, hangs=True),))
    recovery = Recovery(hang_seconds=1800, spares=0, repair_hours=1, upload_seconds=0)
    mean, error = mean_and_error(Scenario(8, 8, one, recovery, seconds=1e7), 16)
    # Two losses within half an hour wait only once, which the formula does not know; the overlap itself is 0.06.
    assert abs(mean - goodput(8, 8, one, recovery).fraction) < 4 * error + 0.005
    assert error < 0.002


def test_drawn_policies_are_as_far_from_the_closed_form_as_chance_has_it() -> None:
    """Deviations over their standard errors, in 40 drawn jobs with seeds of their own: mean 0, spread 1."""
    draw, found = Random(5), list[float]()
    for number in range(40):
        causes = tuple(
            Cause(str(name), per_job_hour=10 ** draw.uniform(-2.5, -0.3), hangs=draw.random() < 0.2,
                  cure="node" if draw.random() < 0.5 else "process")
            for name in range(draw.randint(1, 3))
        )  # fmt: skip
        recovery = Recovery(
            10 ** draw.uniform(0, 2.2), draw.uniform(0, 900), draw.uniform(0, 120), draw.uniform(0, 900),
            draw.uniform(0, 900), upload_seconds=0, in_place=draw.random() < 0.8,
        )  # fmt: skip
        interval, model = draw.choice([None, draw.uniform(200, 8000)]), Failures("drawn", causes)
        expected = goodput(2048, 8, model, recovery, interval)
        seconds = 100 * 3600 * expected.mtbf_hours
        scenario = Scenario(2048, 8, model, recovery, seconds=seconds, interval_seconds=interval)
        runs = [simulate(scenario, 1000 * number + seed).goodput for seed in range(20)]
        error = statistics.stdev(runs) / len(runs) ** 0.5
        found.append((statistics.mean(runs) - expected.fraction) / error)
    assert abs(statistics.mean(found)) < 4 / len(found) ** 0.5
    assert 0.7 < statistics.stdev(found) < 1.5


def test_no_other_interval_is_better() -> None:
    def total(interval: float) -> float:
        scenario = Scenario(16384, 8, LLAMA, QUICK, seconds=54 * DAY, interval_seconds=interval)
        return sum(simulate(scenario, seed).goodput for seed in range(20))

    best = goodput(16384, 8, LLAMA, QUICK).interval_seconds
    assert total(best) > max(total(best / 2), total(best * 2))


# ------------------------------------------------------------------ nonsense
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_impossible_times(bad: float) -> None:
    for given_one in ({"seconds": bad}, {"work_seconds": bad}):
        with pytest.raises(UsageError, match=f"must be more than 0 and at most 3,000,000,000 s, got {bad}"):
            simulate(Scenario(8, 8, LLAMA, QUICK, **given_one))


def test_time_or_work() -> None:
    with pytest.raises(UsageError, match="either the time or the work to simulate, got 0 of the two"):
        simulate(Scenario(8, 8, LLAMA, QUICK))
    with pytest.raises(UsageError, match="got 2 of the two"):
        simulate(Scenario(8, 8, LLAMA, QUICK, seconds=1, work_seconds=1))


def test_too_many_failures_are_refused_before_and_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"failures in 3650 days are too many to play out.* simulate 7.41 days"):
        simulate(Scenario(10_000_000, 8, failure_models()["ant"], QUICK, seconds=3650 * DAY))
    lemons = Failures("lemons", (), lemons=Lemons(share=1, per_hour=1e-9))
    with pytest.raises(UsageError, match=r"1,250,000 of 1,250,000 nodes fail again and again, at most 10,000"):
        simulate(Scenario(10_000_000, 8, lemons, QUICK, seconds=DAY))
    monkeypatch.setattr("orchestrator.plan.simulate.run.MOST_FAILURES", 1000)
    with pytest.raises(UsageError, match=r"after 1,000 failures in .* would still not be over"):
        simulate(Scenario(8, 8, every(50), QUICK, work_seconds=DAY, interval_seconds=100))

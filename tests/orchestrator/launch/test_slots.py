import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.store import small_job

from orchestrator.launch.base import Capacity
from orchestrator.launch.slots import (
    PATIENCE_SECONDS,
    Holding,
    Place,
    Waiting,
    need_of,
    oversubscribed,
    places,
    refusal,
    usable_cores,
)

MACHINE, GPUS = Capacity(8, 2), ("0", "1")


def reasons(used: list[Holding], waiting: list[Waiting]) -> dict[str, str]:
    """What each waits for."""
    return {key: place.why for key, place in places(8, GPUS, used, waiting).items()}


def test_what_a_job_holds() -> None:
    assert need_of(small_job(compute={"accelerator": "cpu", "workers": 3})) == Capacity(3, 0)
    assert need_of(small_job(compute={"accelerator": "cpu", "workers": 3, "cpuPerWorker": 4})) == Capacity(12, 0)
    assert need_of(small_job(compute={"accelerator": "H100", "gpus": 2})) == Capacity(2, 2)


def test_the_oldest_comes_first_and_a_smaller_one_may_pass_for_a_while() -> None:
    large, small = Waiting("large", Capacity(6), 60.0), Waiting("small", Capacity(2), 1.0)
    assert reasons([Holding(5)], [large, small]) == {
        "large": "it needs 6 CPUs; 3 of 8 CPUs are free for it",
        "small": "",
    }
    patient = Waiting("large", Capacity(6), PATIENCE_SECONDS)
    assert reasons([Holding(5)], [patient, small])["small"] == "it needs 2 CPUs; 0 of 8 CPUs are free for it"
    assert reasons([], [patient, small]) == {"large": "", "small": ""}


def test_who_waits_for_gpus_keeps_no_cpu_job_waiting() -> None:
    waiting = [Waiting("gpus", Capacity(2, 2), 9999.0), Waiting("cpus", Capacity(4), 1.0)]
    found = reasons([Holding(1, ("0",))], waiting)
    assert found["gpus"] == "it needs 2 CPUs and 2 GPUs; 7 of 8 CPUs and 1 of 2 GPUs are free for it"
    assert found["cpus"] == ""


def test_each_is_given_the_lowest_free_gpus() -> None:
    gpus = ("0", "2", "5", "10")
    waiting = [Waiting(name, Capacity(1, number), 1.0) for name, number in (("one", 1), ("none", 0), ("two", 2))]
    assert places(8, gpus, [Holding(1, ("2",)), Holding(1, ("7",))], waiting) == {
        "one": Place(gpus=("0",)), "none": Place(), "two": Place(gpus=("5", "10")),
    }  # fmt: skip


def test_a_driver_of_which_nobody_knows_its_gpus_may_have_any() -> None:
    waiting = [Waiting("gpu", Capacity(1, 1), 2.0), Waiting("cpu", Capacity(1), 1.0)]
    found = reasons([Holding(1, None)], waiting)
    assert found == {"gpu": "it needs 1 CPUs and 1 GPUs; 7 of 8 CPUs and 0 of 2 GPUs are free for it", "cpu": ""}


def test_gpus_are_kept_for_who_has_waited_long_and_a_smaller_one_may_pass_before() -> None:
    used, small = [Holding(1, ("1",))], Waiting("small", Capacity(1, 1), 1.0)
    assert places(8, GPUS, used, [Waiting("large", Capacity(2, 2), 1.0), small])["small"].gpus == ("0",)
    found = places(8, GPUS, used, [Waiting("large", Capacity(2, 2), PATIENCE_SECONDS), small])
    assert found["small"].why == "it needs 1 CPUs and 1 GPUs; 5 of 8 CPUs and 0 of 2 GPUs are free for it"


def test_nobody_waits_for_a_job_for_which_there_are_no_longer_enough_gpus() -> None:
    """The service was started again with fewer."""
    waiting = [Waiting("large", Capacity(4, 4), 1e9), Waiting("small", Capacity(1, 2), 1.0)]
    found = places(8, GPUS, [], waiting)
    assert found["large"].why.startswith("the job asks for 4 GPUs, and this machine has 2")
    assert found["small"].gpus == GPUS


def test_a_job_with_more_workers_than_cores_runs_alone_and_that_is_said() -> None:
    huge = Waiting("huge", Capacity(20), 0.0)
    assert reasons([], [huge, Waiting("next", Capacity(1), 0.0)]) == {
        "huge": "",
        "next": "it needs 1 CPUs; 0 of 8 CPUs are free for it",
    }
    assert reasons([Holding(1)], [huge])["huge"] == "it needs 20 CPUs; 7 of 8 CPUs are free for it"
    assert "asks for 20 CPUs, and this machine has 8" in oversubscribed(huge.need, MACHINE)
    assert oversubscribed(Capacity(8), MACHINE) == ""


def test_more_gpus_than_there_are_are_refused_with_both_numbers() -> None:
    assert refusal(Capacity(4, 4), MACHINE).startswith("the job asks for 4 GPUs, and this machine has 2")
    assert refusal(Capacity(99, 2), MACHINE) == ""


def test_the_machine_has_cores() -> None:
    assert usable_cores() >= 1


NAMES = ("0", "1", "2", "3")
NEEDS = st.builds(Capacity, st.integers(1, 12), st.integers(0, 4))


@given(st.lists(st.tuples(NEEDS, st.booleans()), max_size=5), st.lists(NEEDS, max_size=5))
def test_nothing_that_is_free_and_wanted_is_kept_back(
    lived: list[tuple[Capacity, bool]], needs: list[Capacity]
) -> None:
    """Also what a job had that is gone by now (True), while nobody has waited long."""
    ran = places(99, NAMES, [], [Waiting(f"{n}", need, 0.0) for n, (need, _) in enumerate(lived)])
    used = [
        Holding(need.cpus, ran[f"{n}"].gpus) for n, (need, gone) in enumerate(lived) if not ran[f"{n}"].why and not gone
    ]
    waiting = [Waiting(f"{number}", need, 1.0) for number, need in enumerate(needs)]
    found = places(8, NAMES, used, waiting)
    cores = (
        8 - sum(min(8, one.cpus) for one in used) - sum(min(8, w.need.cpus) for w in waiting if not found[w.key].why)
    )
    free = [name for name in NAMES if not any(name in (one.gpus or ()) for one in used)]
    for one in waiting:
        if not found[one.key].why:
            assert list(found[one.key].gpus) == free[: one.need.gpus], "the lowest"
            free = free[one.need.gpus :]
    for one in waiting:
        if found[one.key].why:
            assert min(8, one.need.cpus) > cores or one.need.gpus > len(free)


@given(st.lists(NEEDS, min_size=1, max_size=8), st.lists(st.integers(1, 5), min_size=8, max_size=8), st.booleans())
@example([Capacity(1, 4), Capacity(12, 4)], [5] * 8, True)
def test_everybody_has_a_turn_and_nobody_too_many(needs: list[Capacity], lengths: list[int], stream: bool) -> None:
    """`stream`: at every moment a small job comes in, and one with a GPU; all of them would fit beside what runs."""
    waiting = {f"{number}": need for number, need in enumerate(needs)}
    running: dict[str, tuple[Holding, int]] = {}
    pace = PATIENCE_SECONDS / 4
    for moment in range(400):
        if stream:
            waiting |= {f"cpu-{moment}": Capacity(1), f"gpu-{moment}": Capacity(1, 1)}
        running = {key: (holding, left - 1) for key, (holding, left) in running.items() if left > 1}
        ages = {key: (moment if "-" not in key else moment - int(key[4:])) * pace for key in waiting}
        queue = [Waiting(key, need, ages[key]) for key, need in waiting.items()]
        found = places(8, NAMES, [holding for holding, _ in running.values()], queue)
        for key, place in found.items():
            if not place.why:
                need = waiting.pop(key)
                assert len(place.gpus) == need.gpus, "as many as it needs"
                running[key] = (Holding(need.cpus, place.gpus), lengths[len(key) % 8])
            else:
                assert not place.gpus
        given_out = list(itertools.chain.from_iterable(holding.gpus or () for holding, _ in running.values()))
        assert len(set(given_out)) == len(given_out), "none to two at once"
        assert set(given_out) <= set(NAMES)
        assert sum(min(8, holding.cpus) for holding, _ in running.values()) <= 8
        if not any("-" not in key for key in waiting):
            return
    pytest.fail(f"still waiting: {waiting}")

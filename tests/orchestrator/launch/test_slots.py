import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.store import small_job

from orchestrator.launch.base import Capacity
from orchestrator.launch.slots import (
    PATIENCE_SECONDS,
    Waiting,
    machine_capacity,
    need_of,
    oversubscribed,
    places,
    refusal,
)

MACHINE = Capacity(8, 2)


def test_what_a_job_holds() -> None:
    assert need_of(small_job(compute={"accelerator": "cpu", "workers": 3})) == Capacity(3, 0)
    assert need_of(small_job(compute={"accelerator": "cpu", "workers": 3, "cpuPerWorker": 4})) == Capacity(12, 0)
    assert need_of(small_job(compute={"accelerator": "H100", "gpus": 2})) == Capacity(2, 2)


def test_the_oldest_comes_first_and_a_smaller_one_may_pass_for_a_while() -> None:
    large, small = Waiting("large", Capacity(6), 60.0), Waiting("small", Capacity(2), 1.0)
    assert places(MACHINE, [Capacity(5)], [large, small]) == {
        "large": "it needs 6 CPUs; 3 of 8 CPUs are free for it",
        "small": "",
    }
    patient = Waiting("large", Capacity(6), PATIENCE_SECONDS)
    assert places(MACHINE, [Capacity(5)], [patient, small])["small"] == "it needs 2 CPUs; 0 of 8 CPUs are free for it"
    assert places(MACHINE, [], [patient, small]) == {"large": "", "small": ""}


def test_who_waits_for_gpus_keeps_no_cpu_job_waiting() -> None:
    waiting = [Waiting("gpus", Capacity(2, 2), 9999.0), Waiting("cpus", Capacity(4), 1.0)]
    found = places(MACHINE, [Capacity(1, 1)], waiting)
    assert found["gpus"] == "it needs 2 CPUs and 2 GPUs; 7 of 8 CPUs and 0 of 2 GPUs are free for it"
    assert found["cpus"] == ""


def test_jobs_with_gpus_run_one_at_a_time() -> None:
    one, other = Waiting("one", Capacity(1, 1), 2.0), Waiting("other", Capacity(1, 1), 1.0)
    found = places(MACHINE, [], [one, other])
    assert found == {"one": "", "other": "it needs 1 CPUs and 1 GPUs; 7 of 8 CPUs and 0 of 2 GPUs are free for it"}


def test_a_job_with_more_workers_than_cores_runs_alone_and_that_is_said() -> None:
    huge = Waiting("huge", Capacity(20), 0.0)
    assert places(MACHINE, [], [huge, Waiting("next", Capacity(1), 0.0)]) == {
        "huge": "",
        "next": "it needs 1 CPUs; 0 of 8 CPUs are free for it",
    }
    assert places(MACHINE, [Capacity(1)], [huge])["huge"] == "it needs 20 CPUs; 7 of 8 CPUs are free for it"
    assert "asks for 20 CPUs, and this machine has 8" in oversubscribed(huge.need, MACHINE)
    assert oversubscribed(Capacity(8), MACHINE) == ""


def test_more_gpus_than_there_are_are_refused_with_both_numbers() -> None:
    assert refusal(Capacity(4, 4), MACHINE).startswith("the job asks for 4 GPUs, and this machine has 2")
    assert refusal(Capacity(99, 2), MACHINE) == ""


def test_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(nvmlInit=lambda: (_ for _ in ()).throw(OSError("no driver")))
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert machine_capacity(7) == Capacity(7, 0)
    assert machine_capacity().cpus >= 1
    two = SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 2, nvmlShutdown=lambda: None)
    monkeypatch.setitem(sys.modules, "pynvml", two)
    assert machine_capacity(7) == Capacity(7, 2)


NEEDS = st.builds(Capacity, st.integers(1, 12), st.integers(0, 2))


@given(st.lists(NEEDS, min_size=1, max_size=8), st.lists(st.integers(1, 5), min_size=8, max_size=8), st.booleans())
def test_everybody_has_a_turn_and_nobody_too_many(needs: list[Capacity], lengths: list[int], stream: bool) -> None:
    """`stream`: a small job comes in at every moment, and all of them would fit beside what runs."""
    waiting = {f"{number}": need for number, need in enumerate(needs)}
    running: dict[str, tuple[Capacity, int]] = {}
    pace = PATIENCE_SECONDS / 4
    for moment in range(400):
        if stream:
            waiting[f"small-{moment}"] = Capacity(1)
        running = {key: (need, left - 1) for key, (need, left) in running.items() if left > 1}
        ages = {key: (moment if "-" not in key else moment - int(key[6:])) * pace for key in waiting}
        queue = [Waiting(key, need, ages[key]) for key, need in waiting.items()]
        for key, why in places(MACHINE, [need for need, _ in running.values()], queue).items():
            if not why:
                running[key] = (waiting.pop(key), lengths[len(key) % 8])
        needed = sum(min(8, need.cpus) for need, _ in running.values())
        assert needed <= 8
        assert sum(need.gpus for need, _ in running.values()) <= 2
        if not any("-" not in key for key in waiting):
            return
    pytest.fail(f"still waiting: {waiting}")

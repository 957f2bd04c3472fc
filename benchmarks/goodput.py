"""CPU seconds of the failure simulator, and the same run by two plain models in the same process. No GPU, no torch.

    python benchmarks/goodput.py [--gpus 16384] [--days 54] [--repeat 5] [--runs 20]

The plain models are written here from the rules in docs/goodput.md, share no line of the simulation, and draw their
own failures: one asks at every second what happens, the other has a simpy process for the job and for each cause (left
out if simpy is not installed: `pip install simpy`). Their goodput has to agree with the simulator's, so that this is a
check, too. The least of the repeats counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from orchestrator.plan.failures import Cause, find_failures, node_count
from orchestrator.plan.goodput import Recovery, goodput
from orchestrator.plan.simulate import Scenario, simulate

try:
    import simpy
except ImportError:
    simpy = None

DAY = 86_400.0
Model = Callable[[Scenario, int], float]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpus", type=int, default=16_384)
    parser.add_argument("--days", type=float, default=54.0)
    parser.add_argument("--failures", default="llama-3")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--runs", type=int, default=20, help="of the simulator; the plain ones have fewer")
    given = parser.parse_args(arguments)

    model = find_failures(given.failures)
    scenario = Scenario(given.gpus, 8, model, Recovery(), given.days * DAY)
    expected = goodput(given.gpus, 8, model, scenario.recovery)
    print(f"{given.gpus:,} GPUs for {given.days:g} days, failures as {model.name}: {expected.fraction:.2%} by formula")
    peers: list[tuple[str, Model | None, int]] = [
        ("fathom", by_fathom, given.runs), ("simpy", simpy and by_processes, max(2, given.runs // 2)),
        ("second by second", by_seconds, max(2, given.runs // 10)),
    ]  # fmt: skip
    least = 0.0
    for name, play, runs in peers:
        if play is None:
            print(f"{name}: not installed")
            continue
        found = [play(scenario, seed) for seed in range(runs)]
        seconds = min(_cpu_seconds(play, scenario) for _ in range(given.repeat))
        least = least or seconds
        print(
            f"{name}: {1000 * seconds:,.2f} ms of CPU a run, {seconds / least:,.1f} times; goodput "
            f"{statistics.mean(found):.2%} +- {statistics.stdev(found) / runs**0.5:.2%} ({runs} runs)"
        )


def _cpu_seconds(play: Model, scenario: Scenario) -> float:
    begun = time.process_time()
    play(scenario, 0)
    return time.process_time() - begun


def by_fathom(scenario: Scenario, seed: int) -> float:
    """Of `orchestrator.plan.simulate`."""
    return simulate(scenario, seed).goodput


def _causes(scenario: Scenario) -> list[tuple[Cause, float]]:
    """With failures per second."""
    nodes = node_count(scenario.gpus, scenario.gpus_per_node)
    return [(one, one.per_hour(scenario.gpus, nodes) / 3600) for one in scenario.failures.causes]


def _interval(scenario: Scenario) -> float:
    return goodput(scenario.gpus, scenario.gpus_per_node, scenario.failures, scenario.recovery).interval_seconds


# ------------------------------------------------------------------ the plain models: one level of checkpoints
def by_seconds(scenario: Scenario, seed: int) -> float:
    """Each second of the run in turn."""
    random, how, causes = Random(seed), scenario.recovery, _causes(scenario)
    weights, total = [rate for _, rate in causes], sum(rate for _, rate in causes)
    interval, save, upload = _interval(scenario), how.save_seconds, how.upload_seconds
    work = saved = pending = since = 0.0
    counts_at = float("inf")
    down = machine = stall = 0.0
    for _ in range(round(scenario.seconds or 0)):
        if random.random() < total:
            cause = random.choices(causes, weights)[0][0]
            detect, swap, restart = how.seconds(cause)
            # what is left of an earlier replacement; it begins again with the recovery
            swap = how.replace_seconds if machine > 0 else swap
            down, machine = detect + swap + restart, detect + swap if swap else 0.0
            work, since, stall, counts_at = saved, 0.0, 0.0, float("inf")
        counts_at -= 1
        if counts_at <= 0:
            saved, counts_at = pending, float("inf")
        if down > 0:
            down, machine = down - 1, machine - 1
        elif stall > 0:
            stall -= 1
            if stall <= 0:
                pending, counts_at = work, upload
        else:
            work, since = work + 1, since + 1
            if since >= interval:
                stall, since = save, since - interval
    return work / (scenario.seconds or 1)


def _upload(env: Any, state: dict[str, float], seconds: float) -> Iterator[Any]:  # noqa: ANN401 - simpy is untyped
    work = state["work"]
    try:
        yield env.timeout(seconds)
        state["saved"] = work
    except simpy.Interrupt:
        pass


def by_processes(scenario: Scenario, seed: int) -> float:
    """A simpy process for the job, and for each cause one that interrupts it."""
    env, random, how = simpy.Environment(), Random(seed), scenario.recovery
    interval, state = _interval(scenario), {"work": 0.0, "saved": 0.0, "since": 0.0, "training": False}

    def train() -> Iterator[Any]:
        writing = None
        try:
            while True:
                state["since"], state["training"] = env.now, True
                yield env.timeout(interval)
                state["work"], state["training"] = state["work"] + interval, False
                yield env.timeout(how.save_seconds)
                writing = env.process(_upload(env, state, how.upload_seconds))
        finally:
            if writing is not None and writing.is_alive:
                writing.interrupt()

    def job() -> Iterator[Any]:
        cause: Cause | None = None
        due = False
        while True:
            try:
                if cause is not None:
                    detect, swap, restart = how.seconds(cause)
                    due = due or swap > 0
                    yield env.timeout(detect + (how.replace_seconds if due else 0.0))
                    due = False
                    yield env.timeout(restart)
                    cause = None
                yield from train()
            except simpy.Interrupt as failure:
                cause, state["work"], state["training"] = failure.cause, state["saved"], False

    def fail(cause: Cause, rate: float, running: Any) -> Iterator[Any]:  # noqa: ANN401 - simpy is untyped
        while True:
            yield env.timeout(random.expovariate(rate))
            running.interrupt(cause)

    running = env.process(job())
    for cause, rate in _causes(scenario):
        if rate:
            env.process(fail(cause, rate, running))
    env.run(until=scenario.seconds)
    last = env.now - state["since"] if state["training"] else 0.0
    return (state["work"] + last) / (scenario.seconds or 1)


if __name__ == "__main__":
    main()

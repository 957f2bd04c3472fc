"""What must hold of every forecast: more work takes more, worse machines are no faster, absurd sizes give numbers."""

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.presets import preset
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import dense_models
from orchestrator.plan.search import Candidate, layouts, search
from orchestrator.plan.step_time import step_time
from orchestrator.plan.work import Architecture, model_flops
from orchestrator.plan.workload import Cluster, Parallel, Workload

NAMES = ("mini", "small-h100", "v2-lite-16b", "v3-671b", "llama-3.1-8b")
QUICK = settings(deadline=None, max_examples=40, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def architecture(name: str) -> Architecture:
    return dense_models()[name] if name in dense_models() else preset(name).replace(yarn=None)


def work(name: str, length: int, sequences: int, precision: str = "bf16", tokens: int = 10**12) -> Workload:
    return Workload(architecture(name), length, length * sequences, precision, tokens)  # type: ignore[arg-type]


@cache
def possible(name: str, gpus: int) -> tuple[Parallel, ...]:
    return tuple(layouts(work(name, 4096, 256), Cluster(accelerator("H100"), gpus)))


cases = st.tuples(st.sampled_from(NAMES[1:]), st.sampled_from([8, 16, 64]), st.integers(0, 10**6))


def chosen(case: tuple[str, int, int]) -> tuple[Workload, Cluster, Parallel]:
    name, gpus, number = case
    among = possible(name, gpus)
    return work(name, 4096, 256), Cluster(accelerator("H100"), gpus), among[number % len(among)]


@given(cases)
@QUICK
def test_slower_links_and_memory_are_not_faster(case: tuple[str, int, int]) -> None:
    workload, cluster, parallel = chosen(case)
    device = cluster.accelerator
    before = step_time(workload, cluster, parallel, efficiencies()).seconds
    for slower in (
        replace(device, nvlink_bytes_per_second=device.nvlink_bytes_per_second / 2),
        replace(device, network_bytes_per_second=device.network_bytes_per_second / 2),
        replace(device, memory_bytes_per_second=device.memory_bytes_per_second / 2),
        replace(device, bf16_flops=device.bf16_flops / 2),
    ):
        after = step_time(workload, replace(cluster, accelerator=slower), parallel, efficiencies()).seconds
        assert after >= before * (1 - 1e-9)


@given(cases)
@QUICK
def test_eight_bits_are_not_slower(case: tuple[str, int, int]) -> None:
    """By this model: that they can lose on small experts it does not know (docs/planner.md)."""
    workload, cluster, parallel = chosen(case)
    bf16, fp8 = (
        step_time(replace(workload, precision=precision), cluster, parallel, efficiencies()).seconds
        for precision in ("bf16", "fp8")
    )
    assert fp8 <= bf16 * (1 + 1e-12), "equal where all hangs on the network, but for the order of sums"


@given(cases, st.integers(2, 8))
@QUICK
def test_larger_batches_take_longer_and_pay_no_more_for_a_token(case: tuple[str, int, int], factor: int) -> None:
    workload, cluster, parallel = chosen(case)
    larger = replace(workload, batch_tokens=workload.batch_tokens * factor)
    once, more = (step_time(each, cluster, parallel, efficiencies()) for each in (workload, larger))
    assert once.seconds < more.seconds <= factor * once.seconds * (1 + 1e-9)


@pytest.mark.parametrize("sequences", [64, 256, 1024])
@pytest.mark.parametrize("gpus", [8, 16, 32])
def test_twice_the_gpus_save_time_but_no_gpu_hours(sequences: int, gpus: int) -> None:
    """Of a model that fits everywhere: where memory is short, more GPUs may save recomputation."""
    workload, cluster = work("small-h100", 4096, sequences), Cluster(accelerator("H200"), gpus)
    once = search(workload, cluster, efficiencies())[0].step.seconds
    twice = search(workload, replace(cluster, gpus=2 * gpus), efficiencies())[0].step.seconds
    assert once / 2 * 0.995 <= twice < once


@pytest.mark.parametrize("name", NAMES)
def test_longer_sequences_take_more_flops(name: str) -> None:
    flops = [model_flops(architecture(name), length) for length in (1, 2, 64, 4096, 131_072)]
    assert flops == sorted(flops)
    assert flops[0] < flops[-1]


def sound(candidate: Candidate) -> bool:
    step = candidate.step
    seconds = (*step.parts.values(), *step.overlapped.values())
    return (
        all(math.isfinite(each) and each >= 0 for each in seconds)
        and step.seconds > 0
        and 0 < step.mfu < 1
        and all(size >= 0 for size in candidate.memory.by_part().values())
    )


@given(
    st.sampled_from(NAMES),
    st.sampled_from([1, 2, 7, 64, 4096, 10**6]),
    st.sampled_from([1, 2, 3, 64, 10**4]),
    st.sampled_from([1, 2, 3, 5, 24, 1000, 10**6]),
    st.sampled_from(["fp32", "bf16", "fp8"]),
    st.sampled_from([1, 10**18]),
    st.booleans(),
)
@QUICK
def test_absurd_sizes_give_numbers_or_a_reason(
    name: str, length: int, sequences: int, gpus: int, precision: str, tokens: int, tiny: bool
) -> None:
    """One token, 10^18 tokens, a vocabulary of 8, a million GPUs."""
    try:
        workload = work(name, length, sequences, precision, tokens)
        if tiny and name not in dense_models():
            workload = replace(workload, config=preset(name).replace(yarn=None, vocab_size=8))
        cluster = Cluster(accelerator("H100"), gpus, min(gpus, 8))
        found = search(workload, cluster, efficiencies())
    except ValueError:  # which numbers it names: test_workload and test_search
        return
    assert found
    assert all(map(sound, found))

"""The search's order, what it offers today, and what it says when nothing fits."""

from dataclasses import replace
from itertools import pairwise

import pytest

from model.presets import mini, preset
from model.recipe import Layout
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.footprint import footprint
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import dense_models
from orchestrator.plan.search import fewest, layouts, nearest, needs, search
from orchestrator.plan.step_time import step_time
from orchestrator.plan.workload import RECOMPUTE, Cluster, Parallel, Workload, check

BF16 = "bf16"


def work(name: str, sequences: int, length: int = 4096, precision: str = BF16) -> Workload:
    config = preset(name).replace(yarn=None)
    return Workload(config, length, sequences * length, precision, 10**12)  # type: ignore[arg-type]


def cluster(gpus: int, name: str = "H100") -> Cluster:
    return Cluster(accelerator(name), gpus)


V3, H800 = work("v3-671b", 15_360, precision="fp8"), cluster(2048, "H800")


def test_deepseek_s_own_layout_is_among_the_best() -> None:
    found = search(V3, H800, efficiencies())
    own = Parallel(128, pipeline=16, expert=64, recompute="selective", schedule="dualpipe", dispatch="node")
    place = [candidate.parallel for candidate in found].index(own)
    assert place < 5
    assert found[place].step.tokens_per_second_per_gpu > 0.99 * found[0].step.tokens_per_second_per_gpu
    assert found[place].needs == (
        "pipeline parallelism", "DualPipe", "dispatch once per node",
    )  # fmt: skip


def test_what_fits_comes_first_and_faster_before_slower() -> None:
    found = search(work("v2-236b", 1024), cluster(64), efficiencies())
    fits = [candidate.fits for candidate in found]
    assert True in fits
    assert False in fits
    assert fits == sorted(fits, reverse=True)
    speeds = [candidate.step.tokens_per_second_per_gpu for candidate in found if candidate.fits]
    assert all(later <= earlier * 1.001 for earlier, later in pairwise(speeds))
    peaks = [candidate.memory.peak for candidate in found if not candidate.fits]
    assert peaks == sorted(peaks)
    assert len({candidate.parallel for candidate in found}) == len(found)


def test_candidates_are_what_the_parts_say() -> None:
    workload, gpus = work("v2-lite-16b", 64), cluster(8)
    for candidate in search(workload, gpus, efficiencies()):
        check(workload, gpus, candidate.parallel)
        assert candidate.memory == footprint(workload, candidate.parallel)
        assert candidate.step == step_time(workload, gpus, candidate.parallel, efficiencies())
        assert candidate.fits == (candidate.memory.peak <= 80e9)
        assert candidate.needs == needs(workload.config, candidate.parallel)


def test_what_runs_today_is_a_layout_of_the_engine() -> None:
    today = search(work("v2-lite-16b", 64), cluster(8), efficiencies(), today=True)
    assert today[0].fits
    assert any(not candidate.needs for candidate in search(work("v2-lite-16b", 64), cluster(8), efficiencies()))
    for candidate in today:
        p = candidate.parallel
        assert candidate.needs == ()
        assert (p.tensor, p.pipeline, p.context, p.chunks) == (1, 1, 1, 1)
        accepted = {"world_size": 8, "expert_parallel": p.expert, "micro_batch": p.micro_batch, "accumulation": 1}
        Layout.model_validate(accepted | {"zero_stage": p.zero_stage, "recompute": p.recompute})


def test_no_layout_tried_by_hand_is_better_than_the_best() -> None:
    """All combinations of a small case, without the search's rules."""
    workload, gpus = work("v2-lite-16b", 64), cluster(8)
    best = search(workload, gpus, efficiencies(), today=True)[0]
    for expert in (1, 2, 4, 8):
        for zero in (1, 2, 3):
            for micro in (1, 2, 4, 8):
                for recompute in RECOMPUTE:
                    p = Parallel(8, expert=expert, zero_stage=zero, micro_batch=micro, recompute=recompute)
                    if footprint(workload, p).peak <= 80e9:
                        speed = step_time(workload, gpus, p, efficiencies()).tokens_per_second_per_gpu
                        assert speed <= best.step.tokens_per_second_per_gpu * 1.001, p


def test_needs_name_what_the_engine_lacks() -> None:
    for policy in RECOMPUTE:
        assert needs(mini(), Parallel(8, expert=8, zero_stage=3, recompute=policy)) == ()
    assert needs(mini(), Parallel(2, tensor=2, pipeline=2, chunks=2, context=2)) == (
        "pipeline parallelism", "interleaved stages", "tensor parallelism", "context parallelism",
    )  # fmt: skip
    assert needs(preset("v3.2-671b"), Parallel(8)) == ("training with the sparse-attention indexer",)
    assert needs(dense_models()["llama-3.1-8b"], Parallel(8)) == ("dense grouped-query models",)


def test_nothing_fits_and_what_would() -> None:
    workload, gpus = work("v3-671b", 256), cluster(64)
    found = search(workload, gpus, efficiencies())
    assert not any(candidate.fits for candidate in found)
    near = nearest(workload, gpus, efficiencies())
    assert near is not None
    assert near.closest.needs == ()
    assert near.lacking_bytes == near.closest.memory.peak - 80 * 10**9 > 0
    assert near.gpus_today is not None
    assert near.gpus is not None
    assert near.gpus <= near.gpus_today
    grown = replace(gpus, gpus=near.gpus_today)
    assert search(workload, grown, efficiencies(), today=True)[0].fits
    assert not search(workload, replace(gpus, gpus=near.gpus_today // 2), efficiencies(), today=True)[0].fits


def test_nothing_is_near_where_something_fits() -> None:
    assert nearest(work("v2-lite-16b", 64), cluster(8), efficiencies()) is None


def test_work_that_cannot_be_divided_is_explained() -> None:
    with pytest.raises(ValueError, match=r"a batch of 7 sequences .* 8 x 1 = 8 .*: use 8 \(32768 tokens\)"):
        search(work("v2-lite-16b", 7), cluster(8), efficiencies(), today=True)
    with pytest.raises(ValueError, match="A100 has no 8-bit"):
        search(V3, cluster(2048, "A100"), efficiencies())


def test_long_sequences_are_divided() -> None:
    few = work("v3-671b", 64, length=131_072, precision="fp8")
    found = list(layouts(few, cluster(512)))
    assert found
    assert all(layout.replicas <= 64 for layout in found)
    assert any(layout.context > 1 for layout in found)


def test_racks_of_72_are_doubled_whole() -> None:
    gpus = Cluster(accelerator("GB200"), 4, 72)
    near = nearest(work("v3-671b", 72 * 64), gpus, efficiencies())
    assert near is not None
    assert near.gpus is not None
    assert near.gpus_today is not None
    assert near.gpus_today % 72 == 0
    assert near.gpus <= near.gpus_today


@pytest.mark.parametrize("gpus", [5, 10, 24, 40])
def test_any_number_of_gpus_can_be_searched(gpus: int) -> None:
    """Few long sequences on numbers that are no powers of two: a sequence is shared by divisors of the data only."""
    few = work("v2-lite-16b", 2, length=65_536)
    for layout in layouts(few, Cluster(accelerator("H100"), gpus, min(gpus, 5 if gpus < 24 else 8))):
        assert layout.data % layout.context == 0


def test_pieces_that_divide_the_layers_evenly_are_tried() -> None:
    """60 layers on 4 stages: 5 pieces of 3 layers leave nothing over, 8 would leave 4 of 64 idle."""
    tried = {layout.chunks for layout in layouts(work("v2-236b", 1024), cluster(64)) if layout.pipeline == 4}
    assert {1, 5} <= tried
    assert 2 not in tried, "8 pieces of 7.5 layers: no more even than 5, and a larger bubble"


def test_zero_3_takes_large_micro_batches() -> None:
    """Each micro-batch gathers all weights: the fewer, the better."""
    workload, gpus = work("v2-236b", 256, precision="fp8"), cluster(64, "H200")
    best = search(workload, gpus, efficiencies(), today=True)[0]
    assert best.parallel.zero_stage == 3
    for size in (1, 2, 4):
        for expert in (1, 2, 4, 8, 16, 32):
            p = Parallel(64, expert=expert, zero_stage=3, micro_batch=size, recompute="full")
            if footprint(workload, p).peak <= 141e9:
                assert step_time(workload, gpus, p, efficiencies()).seconds >= best.step.seconds * 0.999, p


def test_fewest_gpus_for_what_is_asked_of_the_layout() -> None:
    workload, gpus = work("v2-lite-16b", 64), cluster(8, "A100")
    free = fewest(workload, gpus, today=True)
    assert free is not None
    whole = fewest(workload, gpus, today=True, asked=lambda one: one if one.recompute == "full" else None)
    assert whole is None, "layouts come without recomputation"
    plain = fewest(workload, gpus, today=True, asked=lambda one: one)
    assert plain is not None
    assert plain > free, "without recomputation it needs more"

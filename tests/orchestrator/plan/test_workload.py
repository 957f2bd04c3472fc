"""What may not go together names both numbers; what may, passes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.presets import mini, preset
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.published import dense_models
from orchestrator.plan.workload import Cluster, Parallel, Workload, check

H100 = accelerator("H100")


def workload(**changes: object) -> Workload:
    base: dict[str, Any] = {
        "config": mini(), "sequence_length": 64, "batch_tokens": 64 * 96, "precision": "bf16", "tokens": 10**6,
    }  # fmt: skip
    return Workload(**(base | changes))


def test_numbers_of_a_workload() -> None:
    assert (workload().sequences, workload().steps) == (96, 163)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_tokens": 100}, r"batch_tokens \(100\) must be a multiple of sequence_length \(64\), e.g. 64"),
        ({"tokens": 0}, "tokens must be a whole number from 1 to"),
        ({"tokens": -1}, "got -1"),
        ({"tokens": float("nan")}, "got nan"),
        ({"tokens": float("inf")}, "got inf"),
        ({"tokens": 10**30}, "got 1000000000000000000000000000000"),
        ({"sequence_length": True}, "got True"),
        ({"sequence_length": "64"}, "got '64'"),
        ({"precision": "fp4"}, "got 'fp4'"),
    ],
)
def test_bad_workloads(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        workload(**changes)


@pytest.mark.parametrize(
    ("gpus", "per_node", "says"),
    [(12, 8, r"gpus \(12\) must be whole nodes of gpus_per_node \(8\): 8 or 16"), (0, 8, "got 0"), (8, -1, "got -1")],
)
def test_bad_clusters(gpus: int, per_node: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Cluster(H100, gpus, per_node)


def test_part_of_a_node_is_a_cluster() -> None:
    assert Cluster(H100, 4, 8).local == 4
    assert Cluster(H100, 16, 8).local == 8


@pytest.mark.parametrize("name", ["data", "tensor", "pipeline", "expert", "micro_batch", "context", "chunks"])
@pytest.mark.parametrize("value", [0, True, 2.0, 1_000_001])
def test_counts_of_a_layout_are_whole_numbers(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a whole number from 1 to 1000000, got {value}"):
        Parallel(**({"data": 4} | {name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": 6, "expert": 4}, r"expert \(4\) must divide data x tensor \(6 x 1 = 6\): 2 does"),
        ({"data": 6, "context": 4}, r"context \(4\) must divide data \(6\): 2 does"),
        ({"data": 4, "zero_stage": 4}, "got 4"),
        ({"data": 4, "zero_stage": True}, "got True"),
        ({"data": 4, "recompute": "some"}, "got 'some'"),
        ({"data": 4, "schedule": "gpipe"}, "got 'gpipe'"),
        ({"data": 4, "dispatch": "both"}, "got 'both'"),
        ({"data": 4, "chunks": 2}, r"chunks \(2\) and schedule 1f1b need pipeline above 1, got 1"),
        ({"data": 4, "pipeline": 3, "schedule": "dualpipe"}, "got 3 and 1: use 4 and 1"),
        ({"data": 4, "pipeline": 2, "zero_stage": 3}, r"zero_stage \(3\) with pipeline \(2\)"),
    ],
)
def test_bad_layouts(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Parallel(**changes)


@pytest.mark.parametrize(
    ("gpus", "parallel", "work", "says"),
    [
        (16, Parallel(data=8), workload(), r"\(8 x 1 x 1 = 8\) must be gpus \(16\)"),
        (16, Parallel(data=1, tensor=16), workload(), r"tensor \(16\) must divide the GPUs of a node \(8\)"),
        (8, Parallel(data=1, pipeline=8), workload(), r"8 x 1 = 8\) exceeds num_hidden_layers \(4\)"),
        (8, Parallel(data=1, tensor=8), workload(), r"tensor \(8\) must divide the heads \(4\): 4 does"),
        (24, Parallel(data=24, expert=3), workload(), r"expert \(3\) must divide n_routed_experts \(16\): 1 does"),
        (8, Parallel(data=8, context=8), workload(sequence_length=4), r"8 x 1\) must divide sequence_length \(4\)"),
        (64, Parallel(data=64), workload(), r"a batch of 96 sequences \(6144 tokens\).* 64 x 1 = 64 .*: use 64 \(4096"),
        (8, Parallel(data=2, pipeline=4, micro_batch=32), workload(), "use 64 .* or 128"),
        (
            8,
            Parallel(data=4, pipeline=2, chunks=2, micro_batch=8),
            workload(),
            r"chunks \(2\), pipeline \(2\).* 3 micro",
        ),
        (8, Parallel(data=2, pipeline=4, schedule="dualpipe", micro_batch=16), workload(), r"stages \(4\), got 3"),
    ],
)
def test_what_does_not_go_together(gpus: int, parallel: Parallel, work: Workload, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(work, Cluster(H100, gpus, 8), parallel)


def test_dense_models_have_no_experts_and_divide_keys() -> None:
    llama = dense_models()["llama-3.1-8b"]
    work = workload(config=llama)
    with pytest.raises(ValueError, match=r"expert \(2\) must divide n_routed_experts \(1\)"):
        check(work, Cluster(H100, 8), Parallel(data=8, expert=2))
    with pytest.raises(ValueError, match=r"tensor \(16\) must divide the heads \(8\): 8 does"):
        check(work, Cluster(H100, 16, 16), Parallel(data=1, tensor=16))


def test_deepseek_v3_passes() -> None:
    work = Workload(preset("v3-671b"), 4096, 62_914_560, "fp8", 14_800_000_000_000)
    parallel = Parallel(128, pipeline=16, expert=64, recompute="selective", schedule="dualpipe", dispatch="node")
    check(work, Cluster(accelerator("H800"), 2048), parallel)
    assert (parallel.micro_batches(work), parallel.tokens(work), parallel.expert_replicas) == (120, 4096, 2)


sizes = st.integers(1, 64)


@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_layouts_that_pass_share_all_work(
    data: int, tensor: int, pipeline: int, expert: int, context: int, micro: int
) -> None:
    work = workload(sequence_length=256, batch_tokens=256 * 64)
    try:
        parallel = Parallel(data, tensor, pipeline, expert, micro_batch=micro, context=context)
        cluster = Cluster(H100, parallel.gpus, parallel.gpus if parallel.gpus < 8 else 8)
        check(work, cluster, parallel)
    except ValueError:
        return
    once = parallel.replicas * parallel.context * parallel.tensor * parallel.tokens(work)
    assert once * parallel.micro_batches(work) == work.batch_tokens

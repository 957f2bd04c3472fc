"""What the engine cannot do is refused with the field and the reason."""

import pytest

from model.precision.policy import policy_of
from model.recipe import PrecisionName
from orchestrator.errors import InvalidJob
from orchestrator.launch.limits import Asked, require_possible


def asked(**changes: object) -> Asked:
    usual = {
        "world_size": 8,
        "expert_parallel": 8,
        "zero_stage": 1,
        "pipeline": 1,
        "precision": "bf16",
        "accelerator": "H100",
    }
    return Asked(**(usual | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_runs_in_fp32(stage: int) -> None:
    require_possible(asked(zero_stage=stage, precision="fp32"))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize(("accelerator", "device"), [("cpu", "cpu"), ("H100", "cuda")])
def test_what_the_tensors_are_is_what_the_policy_says(precision: PrecisionName, accelerator: str, device: str) -> None:
    ours = asked(precision=precision, accelerator=accelerator)
    assert ours.bf16_tensors == (policy_of(precision, device).tensors == "bf16")


def test_8_bits_are_emulated_on_cpus_in_every_stage() -> None:
    for stage in range(4):
        require_possible(asked(precision="fp8", accelerator="cpu", zero_stage=stage))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline": 4}, "spec.parallelism.pipeline: 4 stages cannot run: DeepSpeed's pipeline engine"),
        ({"zero_stage": 0}, "spec.parallelism.zeroStage: is 0, and training.precision is bf16: without ZeRO"),
        (
            {"zero_stage": 0, "precision": "fp8"},
            "spec.parallelism.zeroStage: is 0, and training.precision is fp8: without",
        ),
        ({"precision": "fp8", "accelerator": "A100"}, "spec.training.precision: is fp8, but the A100 has no 8-bit"),
    ],
)
def test_refused_with_the_reason(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        require_possible(asked(**changes))
    assert said in str(caught.value)
    assert len(caught.value.problems) == 1


def test_everything_is_told_at_once() -> None:
    with pytest.raises(InvalidJob) as caught:
        require_possible(asked(pipeline=2, zero_stage=0))
    assert len(caught.value.problems) == 2

"""What the engine cannot do is refused with the field and the reason."""

import pytest

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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pipeline": 4}, "spec.parallelism.pipeline: 4 stages cannot run: DeepSpeed's pipeline engine"),
        ({"zero_stage": 0}, "spec.parallelism.zeroStage: is 0, and training.precision is bf16: without ZeRO"),
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

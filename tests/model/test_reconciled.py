"""Which data is left out after a resume, by the incidents and by the checkpoint itself."""

import pytest

from model.checkpoint import CheckpointError, Identity, Manifest, StoredFile, Topology
from model.loop import reconciled


def manifest(step: int, skipped: tuple[int, ...]) -> Manifest:
    return Manifest(
        identity=Identity(job="j", attempt=1, incarnation="a"),
        epoch=1,
        step=step,
        tokens=0,
        skipped=skipped,
        data_digest="d",
        recipe_digest="r",
        topology=Topology(world_size=1, expert_parallel=1, zero_stage=1, precision="fp32"),
        code_version="0",
        created=0.0,
        files=(StoredFile(name="f", size=0, sha256="0"),),
    )


@pytest.mark.parametrize(
    ("step", "remembered", "incidents", "left_out"),
    [
        (50, (), (), ()),
        (50, (30,), (30,), (30,)),
        (50, (30,), (), (30,)),  # the incidents were lost
        (20, (), (30,), (30,)),  # left out after this checkpoint: still ahead
        (50, (30, 60), (30,), (30, 60)),
    ],
)
def test_both_are_heeded(
    step: int, remembered: tuple[int, ...], incidents: tuple[int, ...], left_out: tuple[int, ...]
) -> None:
    assert reconciled(manifest(step, remembered), incidents) == left_out


def test_a_checkpoint_that_was_trained_on_what_is_left_out_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"step-50 was trained on .* \(data steps \[30\]\).* rm RUN 50"):
        reconciled(manifest(50, ()), (30,))

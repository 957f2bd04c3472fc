"""A checkpoint of one topology made loadable on another: DeepSpeed's universal format.

`convert` is called by one process of each machine, `Topology`s decide in `problem` whether it can work at all.
The form holds FP32 master weights and moments, so that it also serves to go on in another precision.
Read with DeepSpeed 0.19.8.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from model.checkpoint import CheckpointError, Topology


def problem(saved: Topology, wanted: Topology) -> str | None:
    """Why a checkpoint of topology `saved` cannot be loaded on `wanted`; None if it can."""
    if 0 in (saved.zero_stage, wanted.zero_stage):
        return "checkpoints of ZeRO stage 0 have no universal form"
    if (saved.zero_stage == 3) != (wanted.zero_stage == 3):
        return "the universal form of ZeRO stage 3 and that of stages 1 and 2 differ"
    return None


def require_loadable(saved: Topology, wanted: Topology) -> None:
    """CheckpointError that names both topologies where loading would fail or, worse, would not fail."""
    if saved != wanted and (reason := problem(saved, wanted)) is not None:
        raise CheckpointError(
            f"the checkpoint was written by {saved}, this run has {wanted}: {reason}; "
            "resume with the parallelism and precision of the checkpoint"
        )


def convert(source: Path, target: Path) -> None:
    """Write the universal form of the DeepSpeed checkpoint in folder `source` into the new folder `target`.

    One process reads the whole checkpoint, tensor by tensor; `target` takes about as much space again.
    """
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    ds_to_universal.main(
        Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=False,
        )
    )

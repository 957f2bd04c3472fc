"""Step metrics as they are gathered from several processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.plain_loop import run_ranks

from model.loss import Losses
from model.metrics import gather_losses


def gathered(_: Path) -> tuple[dict[str, float], int]:
    rank = dist.get_rank()
    losses = Losses(*(torch.tensor(float(1 + rank)) for _ in Losses._fields))
    return gather_losses([losses], 10 + rank, 1.5 + rank, torch.device("cpu"))


@pytest.mark.processes
def test_cpu_seconds_are_summed_and_losses_averaged(tmp_path: Path) -> None:
    first, second = run_ranks(gathered, 2, tmp_path)
    assert first == second
    metrics, samples = first
    assert metrics["train/cpu_seconds"] == 1.5 + 2.5
    assert metrics["train/loss"] == 1.5
    assert metrics["memory/peak_bytes"] > 1e6
    assert samples == 21

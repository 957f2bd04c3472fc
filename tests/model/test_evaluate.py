"""Bits per byte against a direct computation, window by window."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.forked import in_processes
from support.recipes import TINY

from model.evaluate import evaluate
from model.transformer import CausalLM

LENGTH, DEPTH = 9, 1
WINDOWS = np.random.default_rng(0).integers(0, TINY.vocab_size, (7, LENGTH + 1 + DEPTH))
TOKEN_BYTES = np.arange(TINY.vocab_size, dtype=np.int64) % 5  # 0 stands for end-of-text


class Scorer:
    """The part of an engine that evaluation uses, on a plain model."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self.model = CausalLM(TINY)
        self.model.initialise(0)
        self.passes = 0

    @torch.no_grad()
    def evaluate(self, window_BL: torch.Tensor, depth: int) -> tuple[torch.Tensor, ...]:
        self.passes += 1
        logits: tuple[torch.Tensor, ...] = self.model(window_BL[:, :-1], depth).logits
        return logits


def direct(windows: NDArray[np.int64]) -> dict[str, float]:
    model = Scorer().model
    nats, size, tokens, right = 0.0, 0, 0, 0
    for window in windows:
        with torch.no_grad():
            main, ahead = model(torch.from_numpy(window[None, :-1]), DEPTH).logits
        for i in range(LENGTH):
            powers = main[0, i].double().exp()
            nats -= math.log(powers[window[i + 1]] / powers.sum())
            size += int(TOKEN_BYTES[window[i + 1]])
            tokens += 1
            right += int(ahead[0, i].argmax() == window[i + 2])
    return {
        "eval/loss": nats / tokens,
        "eval/bits_per_byte": nats / math.log(2) / size,
        "eval/mtp_accuracy": right / tokens,
    }


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("batch", "passes"), [(1, 7), (3, 3), (7, 1), (16, 1)])  # 7 windows: 3 + 3 + 1
def test_bits_per_byte_is_the_direct_one_whatever_the_batch(batch: int, passes: int) -> None:
    engine = Scorer()
    result = evaluate(engine, {"text": WINDOWS}, TOKEN_BYTES, batch, DEPTH)  # type: ignore[arg-type]
    expected = direct(WINDOWS)
    assert result.keys() == expected.keys()
    assert result == pytest.approx(expected, rel=1e-5)
    assert engine.passes == passes


@pytest.mark.usefixtures("process_group")
def test_without_prediction_modules_there_is_no_accuracy() -> None:
    windows = WINDOWS[:, :-DEPTH]
    result = evaluate(Scorer(), {"text": windows}, TOKEN_BYTES, 4, 0)  # type: ignore[arg-type]
    expected = direct(WINDOWS)
    assert set(result) == {"eval/loss", "eval/bits_per_byte"}
    assert result["eval/loss"] == pytest.approx(expected["eval/loss"], rel=1e-5)


@pytest.mark.usefixtures("process_group")
def test_scores_that_are_known() -> None:
    """A model that knows nothing needs log2(V) bits per token."""
    engine = Scorer()
    with torch.no_grad():
        engine.model.lm_head.weight.zero_()
    result = evaluate(engine, {"text": WINDOWS}, np.full(TINY.vocab_size, 3), 2, DEPTH)  # type: ignore[arg-type]
    assert result["eval/bits_per_byte"] == pytest.approx(6 / 3)
    assert result["eval/loss"] == pytest.approx(math.log(64))


@pytest.mark.usefixtures("process_group")
def test_each_source_has_its_score_and_all_together_one() -> None:
    parts = {"prose": WINDOWS[:2], "code": WINDOWS[2:]}
    result = evaluate(Scorer(), parts, TOKEN_BYTES, 3, DEPTH)  # type: ignore[arg-type]
    for name, windows in parts.items():
        own = result.pop(f"eval/bits_per_byte/{name}")
        assert own == pytest.approx(direct(windows)["eval/bits_per_byte"], rel=1e-5)
    assert result == pytest.approx(direct(WINDOWS), rel=1e-5)


def share(rank: int, folder: str) -> None:
    """One of two processes; they take 2 * 3 windows per pass."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    engine = Scorer(rank, 2)
    result = evaluate(engine, {"text": WINDOWS}, TOKEN_BYTES, 3, DEPTH)  # type: ignore[arg-type]
    torch.save(result | {"passes": engine.passes}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.processes
def test_processes_share_the_windows_and_make_equally_many_passes(tmp_path: Path) -> None:
    """Seven windows for two processes of three: the second pass has one window, on one process."""
    in_processes(share, 2, str(tmp_path))
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result.pop("passes") == 2
        assert result == pytest.approx(direct(WINDOWS), rel=1e-5)

"""What is known of metrics by their names: units, which direction is better, and which jump from step to step."""

from __future__ import annotations

from typing import Literal

Better = Literal["lower", "higher"]

BITS, LOSS = "eval/bits_per_byte", "train/loss"
_UNITS = {
    "bits_per_byte": "bits per byte",
    "loss": "nats per token",
    "mtp_loss": "nats per token",
    "acc": "share",
    "acc_norm": "share",
    "mtp_accuracy": "share",
    "tokens_per_second": "tokens/s",
    "gflops_per_second": "GFLOP/s",
    "mfu": "share of peak",
    "step_seconds": "s",
    "cpu_seconds": "s",
    "peak_bytes": "bytes",
}
_LOWER = {
    "bits_per_byte", "loss", "mtp_loss", "aux_loss", "perplexity", "step_seconds", "cpu_seconds", "peak_bytes",
    "cv", "max_violation", "dead_share",
}  # fmt: skip
_HIGHER = {"acc", "acc_norm", "mtp_accuracy", "tokens_per_second", "gflops_per_second", "mfu"}
_OF_STEPS = ("train/", "moe/", "memory/")
_PRICED = {"bits per byte", "nats per token", "share"}
_WIDEST = 50


def unit_of(metric: str) -> str:
    """Empty where it has none, or none is known."""
    return _UNITS.get(_kind(metric), "")


def better_of(metric: str) -> Better | None:
    """None where more is neither good nor bad, or nothing is known."""
    kind = _kind(metric)
    return "lower" if kind in _LOWER else "higher" if kind in _HIGHER else None


def window_of(metric: str, steps: int) -> int:
    """Steps that a mean is taken over: those of training are of one batch each and jump; evaluations are of the same
    text every time, and stand for themselves. A tenth of the `steps`, at most 50."""
    return max(1, min(_WIDEST, steps // 10)) if metric.startswith(_OF_STEPS) else 1


def is_priced(metric: str) -> bool:
    """Whether a hundredth of its unit is something that people pay for."""
    return better_of(metric) is not None and unit_of(metric) in _PRICED and not metric.startswith(("moe/", "memory/"))


def _kind(metric: str) -> str:
    """eval/bits_per_byte/SOURCE is bits per byte, eval/arc/acc is acc."""
    parts = metric.split("/")
    return parts[1] if len(parts) > 2 and parts[1] == "bits_per_byte" else parts[-1]

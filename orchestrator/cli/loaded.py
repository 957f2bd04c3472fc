"""Whole models for `fathom generate`: from final weights, an export, or a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from orchestrator.cli.talking import explained, talking
from orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from model.engine.base import Engine
    from model.tokenizer import Tokenizer
    from model.transformer import CausalLM
    from orchestrator.cli.evaluated import Opened

RUN = "job.json"
"""The file that tells a run's folder."""


def require_source(source: Path) -> None:
    """NotFound, before anything costs time, where there can be no model."""
    from orchestrator.launch.weights import find_weights

    if not (source / RUN).exists() and find_weights(str(source)) is None:
        raise NotFound(
            f"no weights in {source} or {source / 'weights'}, and {source} is not the folder of a run with checkpoints"
        )


def final_weights(source: Path, step: int | None) -> str | None:
    """The weights to read, of a folder of weights or of a run; None where it is to be a checkpoint."""
    from orchestrator.launch.weights import find_weights

    weights = find_weights(str(source))
    if step is None:
        return weights
    if weights == str(source):
        raise UsageError(f"{source} is a folder of weights, which has no checkpoints: leave out --step")
    return None


def load(source: Path, step: int | None, say: Callable[[str], None]) -> tuple[CausalLM, Tokenizer, str]:
    """-> model on the host, tokenizer, where they are from. `source`: a folder of weights, or a run's folder: then the
    checkpoint of `step`, without one the final weights, else the newest checkpoint that verifies."""
    with talking(), explained("cannot read the model"):
        return _load(source, step, say)


def _load(source: Path, step: int | None, say: Callable[[str], None]) -> tuple[CausalLM, Tokenizer, str]:
    require_source(source)
    from model.weights import read_model

    if (weights := final_weights(source, step)) is not None:
        return *read_model(weights), weights
    from orchestrator.cli.evaluated import newest_attempt, opened
    from orchestrator.controller.record import Record

    record = Record.open(source)
    with opened(record, newest_attempt(record), step, say) as found:
        return _whole(found), found.tokenizer, found.source


def _whole(found: Opened) -> CausalLM:
    """A plain model of its own, in FP32, from whatever engine was opened."""
    from model.tasks.engines import PlainEngine
    from model.transformer import CausalLM

    if isinstance(found.engine, PlainEngine):
        return found.engine.model
    model = CausalLM(found.recipe.model)
    state = model.state_dict()
    for name, tensor in cast("Engine", found.engine).full_weights():
        state[name].copy_(tensor)
    return model

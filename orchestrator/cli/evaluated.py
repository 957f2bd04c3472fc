"""What `fathom evaluate` evaluates: a run's final weights or a checkpoint, as an engine of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from orchestrator.errors import NotFound

if TYPE_CHECKING:
    from model.checkpoint import Found, Store
    from model.engine.base import Engine
    from model.recipe import Recipe
    from model.tasks.score import Scorer
    from model.tokenizer import Tokenizer
    from orchestrator.controller.record import Record
    from orchestrator.launch.resolve import Resolved


@dataclass(frozen=True)
class Opened:
    """A model with its tokenizer."""

    source: str
    step: int
    tokens: int
    recipe: Recipe
    engine: Scorer
    tokenizer: Tokenizer

    def heldout(self, batch: int) -> dict[str, float]:
        """As at the evaluations in training."""
        from model.data import heldout_windows, verify_heldout
        from model.dataset import read_manifest
        from model.evaluate import evaluate

        recipe, depth = self.recipe, self.recipe.model.num_nextn_predict_layers
        manifest = read_manifest(recipe.data)
        verify_heldout(recipe.data, manifest)
        windows = heldout_windows(recipe.data, manifest, recipe.sequence_length, 1 + depth, recipe.eval_tokens)
        engine = cast("Engine", self.engine)  # it needs no more of it than tasks do
        return evaluate(engine, windows, self.tokenizer.token_byte_lengths(), batch, depth)


@contextmanager
def opened(record: Record, resolved: Resolved, step: int | None, say: Callable[[str], None]) -> Iterator[Opened]:
    """The checkpoint of `step`; without one the final weights, else the newest checkpoint that verifies."""
    from model.tasks.engines import from_checkpoint, from_weights, process_group
    from model.tokenizer import Tokenizer
    from orchestrator.launch.weights import find_weights

    recipe = resolved.recipe
    weights = find_weights(str(record.folder.root)) if step is None else None
    with process_group():
        if weights is not None:
            tokenizer = Tokenizer.load(f"{weights}/tokenizer.json")
            engine, tokens = from_weights(recipe, weights), _tokens(record, recipe)
            yield Opened(weights, recipe.steps, tokens, recipe, engine, tokenizer)
            return
        store, found = verified_checkpoint(record, step, say)
        with from_checkpoint(recipe, store, found) as loaded:
            manifest, tokenizer = found.manifest, Tokenizer.load(recipe.data)
            yield Opened(found.folder, manifest.step, manifest.tokens, recipe, loaded, tokenizer)


def _tokens(record: Record, recipe: Recipe) -> int:
    """Tokens of training behind the final weights, as the run itself counted them."""
    from orchestrator.launch.events import Progress, read

    events, _ = read(record.folder.events)
    counted = [event.tokens for event in events if isinstance(event, Progress) and event.step == recipe.steps]
    return counted[-1] if counted else recipe.total_tokens


def verified_checkpoint(record: Record, step: int | None, say: Callable[[str], None]) -> tuple[Store, Found]:
    """One whose signature and contents have been verified."""
    from model.checkpoint import Found
    from orchestrator.cli.checkpoints import open_run

    root = record.folder.root
    _, store = open_run(root)
    if step is None:
        newest, problems = store.newest()
        for one in problems:
            say(f"checkpoint passed over: {one}")
        if newest is None:
            raise NotFound(f"{root} has neither final weights nor a checkpoint that verifies: nothing to take")
        return store, newest
    try:
        manifest = store.verify(step)
    except FileNotFoundError:
        there = ", ".join(map(str, store.steps())) or "none"
        raise NotFound(f"there is no checkpoint of step {step} in {store.uri}; there are: {there}") from None
    return store, Found(manifest, f"{store.uri}/checkpoints/step-{step}")


def newest_attempt(record: Record) -> Resolved:
    """The newest attempt, which knows the model and where the storage is."""
    from orchestrator.launch.resolve import read_resolved

    attempt = record.folder.last_attempt()
    if not attempt:
        raise NotFound(f"{record.folder.root} has nothing to evaluate: none of its attempts was ever started")
    return read_resolved(record.folder.resolved(attempt))

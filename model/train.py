"""What each Ray Train worker runs: joins the process group, builds the parts, trains, writes the results.

The only module of `model` that knows Ray; `orchestrator.launch.entry` hands it to Ray Train.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from model.checkpoint import CheckpointError, Fenced, Identity, Store
from model.data import TrainingBatches, TrainingWindows, heldout_windows, verify_heldout
from model.dataset import DatasetManifest, read_manifest
from model.flops import count
from model.generate import Sampling, generate
from model.loop import Loop
from model.metrics import NotFinite
from model.recipe import Recipe
from model.reporting import Reporter
from model.stall import StackDump
from model.tasks.evaluation import evaluate_prepared, prepare_tasks
from model.tasks.task import load_tasks
from model.tokenizer import Tokenizer
from model.transformer import CausalLM
from model.weights import load_weights, write_weights

if TYPE_CHECKING:
    from model.engine.zero import ZeroEngine

SAMPLE_LIMIT = 2_000_000_000
"""A sample is written by rank 0 alone, on the host; beyond so many parameters it is left to `fathom generate`."""
PROMPT_TOKENS = 24
SAMPLE_MARK = "\n----- written by the model from here -----\n"


@dataclass(frozen=True)
class Assignment:
    """What a worker is told; travels by pickle."""

    recipe: Recipe
    identity: Identity
    signing_key_file: Path
    reporter: Reporter
    stall_seconds: float
    """Least time without a step after which a process counts as stuck."""


def train_worker(config: dict[str, Assignment]) -> None:
    """Entry point for Ray Train, which calls it in every worker with its own RANK and friends."""
    assignment = config["assignment"]
    if assignment.reporter.has_failed():
        return  # Ray restarts workers after any error; this one was found to be beyond repair
    try:
        _train(assignment)
    except Fenced as error:
        # Quietly: whoever has begun must not be disturbed. Workers that Ray has started again are no strangers.
        if _store(assignment).holder() != assignment.identity:
            assignment.reporter.failed("fenced", str(error))
    except (MemoryError, RuntimeError) as error:
        if _out_of_memory(error):
            assignment.reporter.failed("out-of-memory", f"{type(error).__name__}: {error}")
        raise
    except NotFinite as error:
        assignment.reporter.failed("not-finite", str(error))
        raise
    except (ValueError, TypeError, LookupError, AssertionError, ImportError, FileNotFoundError) as error:
        if not dist.is_initialized():
            raise  # Ray has closed the group because another worker died: whatever this is, it follows from that
        # Deterministic: the same would happen again. Lost peers and broken connections are RuntimeErrors.
        assignment.reporter.failed("user-error", f"{type(error).__name__}: {error}")
        raise


def _out_of_memory(error: BaseException) -> bool:
    """Of the device or of the host; torch has no class of its own for the host."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _train(assignment: Assignment) -> None:
    # here, because DeepSpeed takes seconds to import, and the driver and Ray's controller import this module, too
    from model.engine.zero import ZeroEngine

    recipe = assignment.recipe
    anew = recipe.init_from is None or _begins_anew(_store(assignment))
    engine = ZeroEngine(recipe if anew else recipe.model_copy(update={"init_from": None}))
    if engine.rank == 0:
        print(f"arithmetic: {engine.arithmetic}", flush=True)
    manifest = read_manifest(recipe.data)
    tokenizer = Tokenizer.load(recipe.data)
    with StackDump(assignment.reporter.stack_file(engine.rank), assignment.stall_seconds) as dump:
        loop = _loop(assignment, engine, manifest, tokenizer, dump.postpone)
        steps = loop.run()
    if steps == recipe.steps:
        _finish(assignment, engine, loop, tokenizer)


def _begins_anew(store: Store) -> bool:
    """Whether there is nothing to go on from, so that the initial weights must be read. Signatures and sizes decide:
    where all of such checkpoints turn out to be damaged the loop begins nothing anew, but fails."""
    for step in store.steps():
        with suppress(CheckpointError, FileNotFoundError):
            store.inspect(step)
            return False
    return True


def _loop(
    assignment: Assignment,
    engine: ZeroEngine,
    manifest: DatasetManifest,
    tokenizer: Tokenizer,
    alive: Callable[[], None],
) -> Loop:
    recipe, layout = assignment.recipe, assignment.recipe.layout
    extra = 1 + recipe.model.num_nextn_predict_layers
    weights = {one.source: one.weight for one in recipe.mixture}
    windows = TrainingWindows(recipe.data, manifest, recipe.sequence_length, extra, weights)
    windows.verify(engine.rank, engine.world_size)
    verify_heldout(recipe.data, manifest, engine.rank, engine.world_size)
    heldout = heldout_windows(recipe.data, manifest, recipe.sequence_length, extra, recipe.eval_tokens)
    if engine.rank == 0 and (short := [one.name for one in manifest.sources if one.name not in heldout]):
        assignment.reporter.warning(
            f"the held-out text of {', '.join(short)} is shorter than one sequence ({recipe.sequence_length + extra} "
            "tokens): evaluations leave it out"
        )
    return Loop(
        engine=engine,
        recipe=recipe,
        batches=TrainingBatches(
            windows=windows,
            seed=recipe.seed,
            world_size=layout.world_size,
            micro_batch=layout.micro_batch,
            schedule=recipe.batches,
        ),
        heldout=heldout,
        token_bytes=tokenizer.token_byte_lengths(),
        data_digest=manifest.digest,
        store=_store(assignment),
        reporter=assignment.reporter,
        alive=alive,
        tasks=_tasks(recipe, engine, tokenizer),
        has_initial=engine.recipe.init_from == recipe.init_from,
    )


def _tasks(recipe: Recipe, engine: ZeroEngine, tokenizer: Tokenizer) -> list[Callable[[], dict[str, float]]]:
    """What scores each task of an evaluation."""
    prepared = prepare_tasks(load_tasks(recipe.eval_tasks), tokenizer, recipe.sequence_length)
    sizes = (recipe.sequence_length, recipe.layout.micro_batch, tokenizer.end_of_text)
    return [partial(evaluate_prepared, engine, [one], *sizes) for one in prepared]


def _store(assignment: Assignment) -> Store:
    key = assignment.signing_key_file.read_bytes()
    return Store(assignment.recipe.checkpoint.uri, assignment.identity, key)


def _finish(assignment: Assignment, engine: ZeroEngine, loop: Loop, tokenizer: Tokenizer) -> None:
    """Whole weights into the job's storage, and a sample of what the model writes."""
    recipe, reporter = assignment.recipe, assignment.reporter
    folder = f"{recipe.checkpoint.uri.rstrip('/')}/weights"
    write_weights(folder, recipe.model, engine.full_weights(), tokenizer.to_json(), write=engine.rank == 0)
    if engine.rank != 0 or recipe.sample_tokens == 0:
        return
    if count(recipe.model).total > SAMPLE_LIMIT:
        reporter.warning(f"no sample: write one with `fathom generate {folder}`")
        return
    model = CausalLM(recipe.model)
    load_weights(model, folder)
    size = min(PROMPT_TOKENS, recipe.model.max_position_embeddings // 2)
    prompt = next(iter(loop.heldout.values()))[0, :size].tolist()
    text = generate(model, prompt, tokens=recipe.sample_tokens, sampling=Sampling())
    sample = f"{tokenizer.decode(prompt)}{SAMPLE_MARK}{tokenizer.decode(text)}\n"
    reporter.artifact("sample.txt", sample.encode())

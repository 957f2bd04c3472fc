"""The training loop. Knows no Ray and no orchestrator: an engine, data, a store for checkpoints, a reporter.

Every rank runs it in step: whatever only rank 0 knows (the clock, the order to stop) is broadcast first.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from model.balance import balance_metrics, collect_loads, update_biases
from model.checkpoint import CheckpointError, Manifest, Store, StoredFile, Topology
from model.data import TrainingBatches
from model.engine.base import Engine
from model.evaluate import evaluate
from model.metrics import gather_losses, require_finite, speed
from model.recipe import Recipe
from model.reporting import Reporter
from model.schedule import bias_speed, learning_rate, multi_token_weight

GO, SAVE, STOP = 0, 1, 2
WITHOUT_EFFECT = {"checkpoint", "data", "eval_every_steps", "eval_tokens", "sample_tokens", "peak_flops"}
"""Fields of a recipe that may differ between a checkpoint and its resume; the data has a digest of its own."""


@dataclass
class Loop:
    """One rank's part in training; `run` is collective."""

    engine: Engine
    recipe: Recipe
    batches: TrainingBatches
    heldout: NDArray[np.int64]
    """[N, S + 1 + depth] windows of held-out text."""
    token_bytes: NDArray[np.int64]
    data_digest: str
    store: Store
    reporter: Reporter
    load_ME: Tensor | None = field(default=None, init=False)
    """Tokens per expert over the run so far (since the last start), for the load map."""

    def run(self) -> int:
        """Train from the newest checkpoint to the end, or to an ordered stop. -> steps done."""
        step = self._restore()
        saved_step, saved_at = step, time.monotonic()
        while step < self.recipe.steps:
            order = self._order(saved_at)
            if order != GO and step > saved_step:
                self._save(step)
                saved_step, saved_at = step, time.monotonic()
            if order == STOP:
                return step
            metrics = self._step(step)
            step += 1
            if step % self.recipe.eval_every_steps == 0 or step == self.recipe.steps:
                metrics |= self._evaluate()
            self._report(step, metrics)
        if step > saved_step:
            self._save(step)
        return step

    # ------------------------------------------------------------------ one step
    def _step(self, step: int) -> dict[str, float]:
        began, recipe, engine = time.monotonic(), self.recipe, self.engine
        rate = learning_rate(step, recipe.schedule)
        weight = multi_token_weight(step, recipe.multi_token)
        micro = []
        for k in range(recipe.layout.accumulation):
            window = torch.from_numpy(self.batches.batch_for(step, engine.rank, k)).to(engine.device)
            alpha = recipe.balance.aux_loss_alpha
            micro.append(engine.micro_step(window, ahead_weight=weight, alpha=alpha))
        metrics = gather_losses(micro, engine.device)
        require_finite(step + 1, "the loss", metrics.pop("train/total_loss"))
        norm = engine.step(rate)
        require_finite(step + 1, "the gradient norm", norm)
        metrics |= {"train/grad_norm": norm, "train/learning_rate": rate}
        if engine.routings():
            loads = collect_loads(engine.routings())
            update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
            metrics |= balance_metrics(loads)
            self.load_ME = loads if self.load_ME is None else self.load_ME + loads
        return metrics | speed(recipe, time.monotonic() - began)

    def _evaluate(self) -> dict[str, float]:
        batch, depth = self.recipe.layout.micro_batch, self.recipe.model.num_nextn_predict_layers
        return evaluate(self.engine, self.heldout, self.token_bytes, batch, depth)

    def _report(self, step: int, metrics: dict[str, float]) -> None:
        if self.engine.rank == 0:
            self.reporter.progress(step=step, tokens=step * self.recipe.batch_tokens, metrics=metrics)

    def _order(self, saved_at: float) -> int:
        """What rank 0 wants done before the next step, told to all."""
        order = torch.zeros(1, dtype=torch.int64, device=self.engine.device)
        if self.engine.rank == 0:
            if self.reporter.stop_requested():
                order.fill_(STOP)
            elif time.monotonic() - saved_at >= self.recipe.checkpoint.interval_seconds:
                order.fill_(SAVE)
        dist.broadcast(order, 0)
        return int(order.item())

    # ------------------------------------------------------------------ checkpoints
    def _topology(self) -> Topology:
        layout = self.recipe.layout
        return Topology(
            world_size=layout.world_size,
            expert_parallel=layout.expert_parallel,
            zero_stage=layout.zero_stage,
            precision=self.recipe.precision,
        )

    def _restore(self) -> int:
        """Rank 0 picks the newest checkpoint that verifies and tells the others; -> the step to go on from."""
        choice: list[object] = [None]
        if self.engine.rank == 0:
            self.store.claim()
            found, problems = self.store.newest()
            for problem in problems:
                self.reporter.warning(f"checkpoint passed over: {problem}")
            choice[0] = found
        dist.broadcast_object_list(choice, 0, device=self.engine.device)
        found = choice[0]  # type: ignore[assignment]
        step = 0
        if found is not None:
            manifest = found.manifest
            if manifest.topology != self._topology():
                raise CheckpointError(
                    f"step-{manifest.step} was written on {manifest.topology}, this run is {self._topology()}: "
                    "resume with the same parallelism"
                )
            if (manifest.data_digest, manifest.recipe_digest) != (
                self.data_digest,
                recipe_digest(self.recipe),
            ):
                raise CheckpointError(
                    f"step-{manifest.step} was written with other data or another recipe: start a new job"
                )
            folder = self.store.local_copy(found)
            step = int(self.engine.load(folder, manifest.identity.tag)["step"])
        if self.engine.rank == 0:
            self.reporter.started(
                step=step,
                tokens=step * self.recipe.batch_tokens,
                world_size=self.engine.world_size,
                resumed_from=found.folder if found else None,
            )
        return step

    def _save(self, step: int) -> None:
        began = time.monotonic()
        folder = self.store.staging(step)
        self.engine.save(folder, self.store.identity.tag, {"step": step})
        files: list[list[StoredFile] | None] = [None] * self.engine.world_size
        dist.all_gather_object(files, self.store.upload(step, folder))
        if self.engine.rank == 0:
            stored = tuple(f for rank in files if rank for f in rank)
            manifest = Manifest(
                identity=self.store.identity,
                step=step,
                tokens=step * self.recipe.batch_tokens,
                data_digest=self.data_digest,
                recipe_digest=recipe_digest(self.recipe),
                topology=self._topology(),
                code_version=code_version(),
                created=time.time(),
                files=stored,
            )
            uri = self.store.publish(manifest)
            self.store.prune(self.recipe.checkpoint.keep, step)
            self.reporter.checkpoint_committed(
                step=step,
                uri=uri,
                size_bytes=sum(f.size for f in stored),
                seconds=time.monotonic() - began,
            )
        dist.barrier()  # nobody writes the next checkpoint before this one is published


def recipe_digest(recipe: Recipe) -> str:
    """Of everything that the mathematics of the run depends on; not of where it is stored or how often saved."""
    body = recipe.model_dump(mode="json", exclude=WITHOUT_EFFECT)
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def code_version() -> str:
    """Version of this package."""
    try:
        return version("fathom-train")
    except PackageNotFoundError:
        return "unknown"

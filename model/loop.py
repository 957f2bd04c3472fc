"""The training loop. Knows no Ray and no orchestrator: an engine, data, a store for checkpoints, a reporter.

Every rank runs it in step: whatever only one rank knows (the clock, the order to stop, how far its files are) is
exchanged before each step. A step that is anomalous ends the process group, which starts again from a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from model.anomaly import Incident, LossHistory, Verdict, data_step, describe, judge, skipped_data_steps
from model.balance import balance_metrics, collect_loads, update_biases
from model.checkpoint import CheckpointError, Fenced, Found, Manifest, Store, StoredFile
from model.collective import on_first, together
from model.data import TrainingBatches, sample_checksum
from model.engine.base import Engine
from model.evaluate import evaluate
from model.loss import Losses
from model.metrics import NotFinite, gather_losses, speed
from model.recipe import Recipe
from model.reporting import Reporter
from model.saving import WRITTEN, Saver
from model.schedule import bias_speed, learning_rate, multi_token_weight

GO, SAVE, STOP, REPLACED = 0, 1, 2, 3
WITHOUT_EFFECT: dict[str, Any] = {
    **dict.fromkeys((
        "anomalies", "checkpoint", "data", "eval_every_steps", "eval_tasks", "eval_tokens", "init_from", "layout",
        "peak_flops", "precision", "sample_tokens",
    ), True),
    "optimizer": {"moments_precision"},
}  # fmt: skip
"""Fields of a recipe that may differ between a checkpoint and its resume; data and initial weights have digests of
their own, of the layout only the size of the batch matters, and precision is how something is computed, not what."""


class RolledBack(RuntimeError):
    """A step was anomalous: the processes start again from the last checkpoint."""


@dataclass
class Loop:
    """One rank's part in training; `run` is collective."""

    engine: Engine
    recipe: Recipe
    batches: TrainingBatches
    heldout: Mapping[str, NDArray[np.int64]]
    """By source, [N, S + 1 + depth] windows of held-out text."""
    token_bytes: NDArray[np.int64]
    data_digest: str
    store: Store
    reporter: Reporter
    alive: Callable[[], None] = lambda: None
    """Called before every step: a sign that this process is not stuck."""
    tasks: Sequence[Callable[[], dict[str, float]]] = ()
    """Each scores one task of an evaluation. Collective."""
    has_initial: bool = True
    """Whether the engine holds the weights that the recipe starts from: not where a checkpoint was there to load."""
    load_ME: Tensor | None = field(default=None, init=False)
    """Tokens per expert over the whole run so far, for the load map."""
    _incidents: tuple[Incident, ...] = field(default=(), init=False)
    _skipped: tuple[int, ...] = field(default=(), init=False)
    _history: LossHistory = field(init=False)
    _update_seconds: float = field(default=0.0, init=False)
    """CPU time of this process since the last step's losses were gathered; that of the next step counts it."""

    def run(self) -> int:
        """Train from the newest checkpoint to the end, or to an ordered stop. -> steps done.

        `Fenced` if a newer attempt has begun, `RolledBack` or `NotFinite` where a step is anomalous.
        """
        self._history = LossHistory(self.recipe.anomalies)
        step = self._restore()
        saver = Saver(self.engine, self.store, self.reporter, self.recipe.checkpoint.keep, self._manifest)
        try:
            return self._train(step, saver)
        finally:
            saver.close()

    def _train(self, step: int, saver: Saver) -> int:
        saved_step, saved_at = step, time.monotonic()
        while step < self.recipe.steps:
            self.alive()
            order, written = self._exchange(saver, saved_at)
            if order == REPLACED:
                raise Fenced("a newer attempt of this job has begun")
            if written:
                saver.conclude()
            if order == STOP:
                break
            if order == SAVE and step > saved_step:
                saver.start(step, self._state(step))
                saved_step, saved_at = step, time.monotonic()
            metrics, samples = self._step(step, saver)
            step += 1
            evaluates = step % self.recipe.eval_every_steps == 0 or step == self.recipe.steps
            if evaluates:
                metrics |= self._evaluate(step)
                self._tell_load(step)
            self._report(step, metrics, samples)
            for task in self.tasks if evaluates else ():
                self.alive()
                self._report(step, task(), samples)  # by itself: to whoever watches, a sign of life
        saver.finish()
        if step > saved_step:
            saver.start(step, self._state(step))
            saver.finish()
        self._tell_load(step)
        return step

    # ------------------------------------------------------------------ one step
    def _step(self, step: int, saver: Saver) -> tuple[dict[str, float], int]:
        """One optimizer step. -> metrics, checksum of its samples."""
        began, used, recipe, engine = time.monotonic(), time.process_time(), self.recipe, self.engine
        position = data_step(step, self._skipped)
        micro, checksum = self._micro_steps(step, position)
        gathered = time.process_time()
        metrics, samples = gather_losses(micro, checksum, self._update_seconds + gathered - used, engine.device)
        loss = metrics["train/loss"]
        self._require_sound(step, position, loss, 0.0, saver)
        rate = learning_rate(step, recipe.schedule)
        norm = engine.step(rate)
        if not math.isfinite(norm):
            self._require_sound(step, position, loss, norm, saver)
        self._history.add(step + 1, loss)
        metrics |= {"train/grad_norm": norm, "train/learning_rate": rate}
        if engine.routings():
            loads = collect_loads(engine.routings())
            update_biases(engine.routing_biases(), loads, bias_speed(step, recipe.balance))
            metrics |= balance_metrics(loads)
            self.load_ME = loads if self.load_ME is None else self.load_ME + loads
        tokens = recipe.batches.at(position) * recipe.sequence_length
        self._update_seconds = time.process_time() - gathered
        return metrics | speed(recipe, tokens, time.monotonic() - began), samples

    def _micro_steps(self, step: int, position: int) -> tuple[list[Losses], int]:
        """Forward and backward of this rank's share."""
        engine, recipe, checksum, micro = self.engine, self.recipe, 0, []
        weight, passes = multi_token_weight(step, recipe.multi_token), self.batches.passes(position)
        for k in range(passes):
            numbers = self.batches.numbers_for(position, engine.rank, k)
            windows = self.batches.batch_for(position, engine.rank, k)
            checksum += sample_checksum(numbers, windows)
            window = torch.from_numpy(windows).to(engine.device)
            micro.append(
                engine.micro_step(window, ahead_weight=weight, alpha=recipe.balance.aux_loss_alpha, passes=passes)
            )
        return micro, checksum

    def _evaluate(self, step: int) -> dict[str, float]:
        """Also the proof that the state is sound where no step follows that would show it."""
        batch, depth = self.recipe.layout.micro_batch, self.recipe.model.num_nextn_predict_layers
        scores = evaluate(self.engine, self.heldout, self.token_bytes, batch, depth)
        if not math.isfinite(scores["eval/loss"]):
            raise NotFinite(f"the held-out loss after step {step} is {scores['eval/loss']}: nothing of it is saved")
        return scores

    def _report(self, step: int, metrics: dict[str, float], samples: int) -> None:
        if self.engine.rank == 0:
            self.reporter.progress(step=step, tokens=self._tokens(step), metrics=metrics, samples=samples)

    def _tell_load(self, step: int) -> None:
        """How many tokens each expert has seen, for the load map."""
        if self.engine.rank == 0 and self.load_ME is not None:
            load = {"step": step, "layers": self.engine.layer_names(), "load": self.load_ME.tolist()}
            self.reporter.artifact("expert_load.json", json.dumps(load).encode())

    def _tokens(self, step: int) -> int:
        """Trained up to a step, without the data that was left out."""
        position = data_step(step, self._skipped)
        return self.recipe.batches.samples_done(position, self._skipped) * self.recipe.sequence_length

    def _exchange(self, saver: Saver, saved_at: float) -> tuple[int, bool]:
        """What rank 0 wants done before the next step, and whether all ranks have written a checkpoint's files."""
        order = GO
        if self.engine.rank == 0:
            if saver.replaced():
                order = REPLACED
            elif self.reporter.stop_requested():
                order = STOP
            elif not saver.busy() and time.monotonic() - saved_at >= self.recipe.checkpoint.interval_seconds:
                order = SAVE
        own = torch.tensor([order, saver.state()], device=self.engine.device)
        ranks = [torch.empty_like(own) for _ in range(self.engine.world_size)]
        dist.all_gather(ranks, own)
        states = {int(rank[1]) for rank in ranks}
        return int(ranks[0][0]), states == {WRITTEN}

    # ------------------------------------------------------------------ what should not happen
    def _require_sound(self, step: int, position: int, loss: float, norm: float, saver: Saver) -> None:
        """Ends the process group if this step's numbers are not to be trusted. The same on every rank."""
        verdict = judge(step + 1, position, loss, norm, self._history, self.recipe.anomalies, self._incidents)
        if verdict is None:
            return
        if verdict.action in ("replay", "skip", "fail"):
            saver.drop(step)  # a copy of the state that gave these numbers: nothing has shown yet that it is good
            saver.finish()  # an older copy is: the way back is shorter with it
        on_first(lambda: self._record(verdict))
        if verdict.action == "fail":
            raise NotFinite(f"{describe(verdict)}; lower training.schedule.learningRate or look at this step's data")
        if verdict.action in ("replay", "skip"):
            raise RolledBack(describe(verdict))

    def _record(self, verdict: Verdict) -> None:
        """Rank 0: into the storage, where the next start finds it, and to whoever watches."""
        who, final = self.store.identity, verdict.action in ("replay", "skip", "fail")
        incident = Incident.of(verdict, attempt=who.attempt, incarnation=who.incarnation, time=time.time())
        self._incidents = (*self._incidents, incident)
        rows = [one.model_dump(mode="json") for one in self._incidents]
        try:
            self.store.write_incidents(rows)
        except OSError as error:
            if final:
                raise  # unrecorded, it would be tried again for ever
            self.reporter.warning(f"incidents.json could not be written: {error}")
        self.reporter.anomaly(incident, describe(verdict))
        self.reporter.artifact("incidents.json", json.dumps(rows, indent=1).encode())

    # ------------------------------------------------------------------ checkpoints
    def _restore(self) -> int:
        """Rank 0 picks the newest checkpoint that verifies and tells the others; -> the step to go on from."""
        epoch, found, self._incidents, self._skipped = on_first(self._choose)
        self.store.join(epoch)
        if found is None and not self.has_initial:
            raise CheckpointError("the checkpoint to go on from has gone meanwhile: the initial weights are not loaded")
        step = self._load(found) if found is not None else 0
        if self.engine.rank == 0:
            self.reporter.started(
                step=step,
                tokens=self._tokens(step),
                world_size=self.engine.world_size,
                resumed_from=found.folder if found else None,
                arithmetic=self.engine.arithmetic,
            )
        return step

    def _choose(self) -> tuple[int, Found | None, tuple[Incident, ...], tuple[int, ...]]:
        """Rank 0: begin as the newest writer. -> epoch, checkpoint to go on from, what has happened so far, data steps
        to leave out."""
        epoch = self.store.claim()
        self.store.sweep()
        found, problems = self.store.resume_point()
        for problem in problems:
            self.reporter.warning(f"checkpoint passed over: {problem}")
        incidents = tuple(Incident.model_validate(row) for row in self.store.read_incidents())
        skipped = skipped_data_steps(incidents)
        if found is not None:
            self._require_same_run(found.manifest)
            self.engine.require_loadable(found.manifest.topology)
            skipped = reconciled(found.manifest, skipped)
        return epoch, found, incidents, skipped

    def _require_same_run(self, manifest: Manifest) -> None:
        """CheckpointError unless going on from there continues the same mathematics on the same data."""
        for what, theirs, ours in (
            ("other data", manifest.data_digest, self.data_digest),
            ("another recipe", manifest.recipe_digest, recipe_digest(self.recipe)),
        ):
            if theirs != ours:
                raise CheckpointError(
                    f"step-{manifest.step} was written with {what} (digest {theirs[:12]}, now {ours[:12]}): "
                    "start a new job"
                )

    def _load(self, found: Found) -> int:
        """-> the step of the checkpoint. One process of each machine fetches it."""
        local = Path(tempfile.gettempdir()) / f"fathom-{self.store.tag}"

        def fetch() -> Path | None:
            try:
                return self.store.fetch(found, local) if first_here() else None
            except CheckpointError as error:  # it was good a moment ago: the next start looks again
                raise OSError(str(error)) from error

        try:
            folder = next(path for path in together(fetch) if path is not None)
            state = self.engine.load(folder, found.tag, found.manifest.topology, local / "converted")
            dist.barrier()  # the others of this machine may still read
        finally:
            if first_here():
                shutil.rmtree(local, ignore_errors=True)
        self._history = LossHistory(self.recipe.anomalies, state["losses"])
        load = state.get("load")
        self.load_ME = None if load is None else torch.tensor(load, device=self.engine.device)
        return int(state["step"])

    def _state(self, step: int) -> dict[str, object]:
        load = None if self.load_ME is None else self.load_ME.tolist()
        return {"step": step, "losses": self._history.values(), "load": load}

    def _manifest(self, step: int, files: tuple[StoredFile, ...]) -> Manifest:
        return Manifest(
            identity=self.store.identity,
            epoch=self.store.epoch,
            step=step,
            tokens=self._tokens(step),
            skipped=self._skipped,
            data_digest=self.data_digest,
            recipe_digest=recipe_digest(self.recipe),
            topology=self.engine.topology(),
            code_version=code_version(),
            created=time.time(),
            files=files,
        )


def reconciled(manifest: Manifest, skipped: tuple[int, ...]) -> tuple[int, ...]:
    """Data steps to leave out, by the incidents and by the checkpoint; CheckpointError if it was trained on one."""
    before = {n for n in skipped if n < data_step(manifest.step, skipped)}
    theirs = {n for n in manifest.skipped if n < data_step(manifest.step, manifest.skipped)}
    if late := sorted(before - theirs):
        raise CheckpointError(
            f"step-{manifest.step} was trained on data that was left out later (data steps {late}): remove it with "
            f"`fathom checkpoints rm RUN {manifest.step}` to go on from the one before"
        )
    return tuple(sorted({*skipped, *manifest.skipped}))


def first_here() -> bool:
    """Whether this is the first process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def recipe_digest(recipe: Recipe) -> str:
    """Of everything that the mathematics of the run depends on; not of where it is stored or how it is shared out."""
    body = recipe.model_dump(mode="json", exclude=WITHOUT_EFFECT) | {"batch_sequences": recipe.batch_sequences}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def code_version() -> str:
    """Version of this package."""
    try:
        return version("fathom-train")
    except PackageNotFoundError:
        return "unknown"

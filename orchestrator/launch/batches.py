"""Chooses how batches grow, what they are mixed from, and what is asked of the model on the way.

Called by `orchestrator.launch.choose` only.
"""

from __future__ import annotations

from model.dataset import DatasetManifest
from model.ramp import BatchStage, ramp
from model.recipe import Layout, SourceWeight
from orchestrator.launch.choices import Choices, absolute, refusal
from orchestrator.spec import TrainingJob

_START_SHARE = 5
"""15360 / 3072 sequences in DeepSeek-V3."""


def choose_batches(job: TrainingJob, layout: Layout, sequence: int, choose: Choices) -> tuple[BatchStage, ...]:
    """Sequences of each step: one stage unless the job asks for a ramp."""
    training, unit = job.spec.training, layout.world_size * layout.micro_batch
    final = unit * layout.accumulation
    wanted = training.batch_ramp
    if wanted is None:
        return (BatchStage(first_step=0, sequences=final),)

    def fifth() -> tuple[int, str]:
        start = max(1, final // _START_SHARE // unit) * unit
        return start * sequence, f"a fifth of {final * sequence} tokens, in multiples of {unit * sequence}"

    tokens = choose("spec.training.batchRamp.startTokens", wanted.start_tokens, fifth)
    start, rest = divmod(tokens, sequence * unit)
    if rest or not start or start * unit > final:
        below = min(max(1, start), layout.accumulation) * unit * sequence
        raise refusal(
            "training.batchRamp.startTokens",
            f"{tokens} is no multiple of {unit * sequence} ({layout.world_size} workers x {layout.micro_batch} of "
            f"{sequence} tokens) up to globalBatchTokens {final * sequence}: use {below}",
        )
    return ramp(start * unit, final, round(training.tokens * wanted.share / sequence), unit)


def choose_mixture(job: TrainingJob, manifest: DatasetManifest) -> tuple[SourceWeight, ...]:
    """Weights of all sources: the job's, or else the dataset's; none where all text is to be seen equally often."""
    names, wanted = [source.name for source in manifest.sources], job.spec.data.mixture
    if not wanted:
        own = [(source.name, source.weight) for source in manifest.sources if source.weight is not None]
        return tuple(SourceWeight(source=name, weight=weight) for name, weight in own)
    given = [one.source for one in wanted]
    if sorted(given) != sorted(names):
        raise refusal(
            "data.mixture",
            f"weighs {', '.join(given)}, but the dataset has {', '.join(names)}: give each of them one weight",
        )
    weights = {one.source: one.weight for one in wanted}
    return tuple(SourceWeight(source=name, weight=weights[name]) for name in names)


def choose_tasks(job: TrainingJob, *, pending: bool = False) -> tuple[str, ...]:
    """Files of evaluation tasks, each read now, unless only the pods can: what is wrong with one shows before anything
    starts."""
    files = tuple(absolute(task) for task in job.spec.training.evaluation.tasks)
    if not pending:
        read_tasks(files)
    return files


def read_tasks(files: tuple[str, ...]) -> None:
    """InvalidJob for what is wrong with one."""
    try:
        from model.tasks.task import load_tasks  # needs jinja2, which a controller's image may lack

        load_tasks(files)
    except ImportError:
        pass  # the workers will read them
    except (ValueError, OSError) as error:
        raise refusal("training.evaluation.tasks", str(error)) from None

"""What a plan is asked for: one training run, with every open field filled in and noted. Imports no torch.

Called by `orchestrator.cli.plan` and `orchestrator.plan.estimate`. A request is made from a TrainingJob, so that a plan
and the run that follows mean the same; the dataset need not exist yet. Invariant: a Request that exists is possible as
far as arithmetic can tell, and InvalidJob or UsageError name both numbers of what is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic.alias_generators import to_camel

from model.config import Frozen, ModelConfig
from model.recipe import PrecisionName
from model.released import read_released
from orchestrator.errors import InvalidJob, Problem, UsageError
from orchestrator.jobfile import make_job, read_document
from orchestrator.plan import defaults
from orchestrator.plan.hardware import Accelerator, accelerators
from orchestrator.plan.hardware import accelerator as find_accelerator
from orchestrator.plan.overridden import preset_as_overridden, replaced
from orchestrator.plan.workload import Cluster, Recompute, Workload
from orchestrator.spec import Compute, JobSpec, Parallelism, TrainingJob

T = TypeVar("T", int, str)
Engine = Literal["today", "any"]
"""Whose layouts a forecast is for: those that our engine runs today, or any that the planner knows."""

FLAGS = {
    "preset": "model.preset",
    "accelerator": "compute.accelerator",
    "gpus": "compute.gpus",
    "gpus-per-node": "compute.gpusPerNode",
    "price-class": "compute.priceClass",
    "tokens": "training.tokens",
    "batch-tokens": "training.globalBatchTokens",
    "precision": "training.precision",
    "sequence-length": "data.sequenceLength",
}
"""Option of `fathom plan` -> field of `spec` that it stands for."""

_STAND_IN = "H100"
"""Stands in a job for an accelerator that hardware files know and the job's form does not yet."""


class Assumed(Frozen, alias_generator=to_camel, populate_by_name=True):
    """A field that the request left open."""

    field: str
    value: str
    reason: str


@dataclass(frozen=True)
class Wish:
    """What the request says of the layout; None: whatever is best."""

    expert: int | None = None
    zero_stage: int | None = None
    micro_batch: int | None = None
    recompute: Recompute | None = None


@dataclass(frozen=True)
class Request:
    """One training run to be forecast."""

    name: str
    """Of the model: a preset, or where its weights lie."""
    config: ModelConfig
    device: Accelerator | None
    """None: processor cores."""
    gpus: int
    """GPUs, or processes on CPUs."""
    gpus_per_node: int
    tokens: int
    sequence_length: int
    batch_tokens: int
    precision: PrecisionName
    price_class: str
    wish: Wish
    assumed: tuple[Assumed, ...]
    engine: Engine = "today"
    checkpoint_seconds: float | None = None
    """Between checkpoints; None: the best."""
    cpus: int = 1
    """Processor cores of each process on CPUs."""

    @property
    def accelerator(self) -> str:
        """Name of the device."""
        return "cpu" if self.device is None else self.device.name

    @property
    def workload(self) -> Workload:
        """As the planner's parts take it."""
        return Workload(self.config, self.sequence_length, self.batch_tokens, self.precision, self.tokens)

    @property
    def cluster(self) -> Cluster:
        """As the planner's parts take it; not on CPUs."""
        assert self.device is not None, "processor cores are no cluster of GPUs"
        return Cluster(self.device, self.gpus, self.gpus_per_node)


def make_request(
    file: Path | None,
    flags: Mapping[str, str],
    assignments: Sequence[str] = (),
    *,
    hardware: Path | None = None,
    engine: Engine | None = None,
) -> Request:
    """From a job file, from flags (names of `FLAGS` with what the user wrote), or from a file with flags over it.

    `hardware`: the user's own file of accelerators. `engine`: None takes `today` for a job file, which is to be run,
    and `any` for flags, which ask what a model takes.
    """
    document = _skeleton() if file is None else read_document(file)
    given = dict(flags)
    for name, text in given.items():
        if not text.strip():
            raise UsageError(f"--{name} is empty: give a value, or leave it out")
    own = given.pop("accelerator", None)
    changes = [f"{FLAGS[name]}={text}" for name, text in given.items()]
    if own is not None:
        changes.append(f"compute.accelerator={_formal(own, hardware)}")
    elif file is None:
        raise UsageError("give a job file, or --preset, --accelerator, --gpus and --tokens")
    try:
        job = make_job(document, [*changes, *assignments])
        request = request_of(job, own, hardware)
    except InvalidJob as error:
        raise _in_words_of(flags, error, file) from None
    return replace(request, engine=engine or ("any" if file is None else "today"))


def request_of(job: TrainingJob, accelerator: str | None = None, hardware: Path | None = None) -> Request:
    """The request that a job makes; `accelerator`: its name where the job's form has none for it."""
    spec, assumed = job.spec, _Assuming([])
    name = accelerator or spec.compute.accelerator
    device = None if name == "cpu" else find_accelerator(name, hardware)
    config, label = _architecture(spec)
    gpus, per_node = _machines(spec, name, assumed)
    precision = assumed("training.precision", spec.training.precision, lambda: defaults.precision_on(name))
    _require_eight_bits(device, precision)
    sequence = assumed(
        "data.sequenceLength",
        spec.data.sequence_length,
        lambda: defaults.sequence_length(config.max_position_embeddings),
    )
    _require_length(spec, sequence, config)
    _require_experts(spec, gpus, config)
    return Request(
        name=label,
        config=config,
        device=device,
        gpus=gpus,
        gpus_per_node=per_node,
        tokens=spec.training.tokens,
        sequence_length=sequence,
        batch_tokens=_batch(spec, gpus, sequence, assumed),
        precision=precision,  # type: ignore[arg-type]  # one of the names, as the form says
        price_class=spec.compute.price_class,
        wish=wish_of(spec.parallelism),
        assumed=tuple(assumed.made),
        checkpoint_seconds=_seconds(spec.checkpoint.interval_minutes),
        cpus=spec.compute.cpu_per_worker or 1,
    )


def wish_of(given: Parallelism) -> Wish:
    """What a job says of the layout."""
    return Wish(given.expert, given.zero_stage, given.micro_batch, given.recompute)


@dataclass(frozen=True)
class _Assuming:
    """Collects what is assumed."""

    made: list[Assumed]

    def __call__(self, field: str, given: T | None, choose: Callable[[], tuple[T, str]]) -> T:
        if given is not None:
            return given
        value, reason = choose()
        self.made.append(Assumed(field=field, value=str(value), reason=reason))
        return value


def _skeleton() -> dict[str, Any]:
    """A job without a file. Its data need not exist, and is not looked at."""
    return {"metadata": {"name": "plan"}, "spec": {"data": {"source": "unknown"}}}


def _formal(accelerator: str, hardware: Path | None) -> str:
    """The name as the form of a job takes it; UsageError for devices that nobody knows."""
    known = get_args(Compute.model_fields["accelerator"].annotation)
    if accelerator in known:
        return accelerator
    devices = accelerators(hardware)
    if accelerator not in devices:
        near = get_close_matches(accelerator.upper(), devices, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "add a row to the file that FATHOM_HARDWARE names"
        raise UsageError(f"unknown accelerator {accelerator[:60]!r} (known: {', '.join(devices)}): {hint}")
    return _STAND_IN


def _in_words_of(flags: Mapping[str, str], error: InvalidJob, file: Path | None) -> InvalidJob:
    """Fields that were, or should have been, given as options are named as options; without a file all others as
    `--set` takes them."""
    options = {f"spec.{path}": f"--{name}" for name, path in FLAGS.items() if name in flags or file is None}
    if file is None and "preset" not in flags:
        options["spec.model"] = "--preset"

    def named(problem: Problem) -> Problem:
        path = problem.path
        for flag in FLAGS.values():
            path = path.replace(f"--set {flag}=", f"--{next(n for n, p in FLAGS.items() if p == flag)} ")
        bare = f"--set {path.removeprefix('spec.')}" if file is None and path.startswith("spec.") else path
        return Problem(options.get(path, bare), problem.message)

    return InvalidJob([named(problem) for problem in error.problems])


def _refusal(path: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(f"spec.{path}", message)])


# ------------------------------------------------------------------ the parts of a request


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def _architecture(spec: JobSpec) -> tuple[ModelConfig, str]:
    wanted = spec.model
    if wanted.preset is not None:
        return preset_as_overridden(wanted), wanted.preset
    assert wanted.init_from is not None, "the form requires one of them"
    for folder in (wanted.init_from, f"{wanted.init_from.rstrip('/')}/weights"):
        try:
            return replaced(read_released(folder), wanted.overrides.config_changes()), wanted.init_from
        except FileNotFoundError:
            continue
        except (ValueError, OSError, ImportError) as error:
            raise _refusal("model.initFrom", str(error)) from None
    raise _refusal("model.initFrom", f"no config.json in {wanted.init_from} or its folder weights: name a preset")


def _machines(spec: JobSpec, name: str, assumed: _Assuming) -> tuple[int, int]:
    """GPUs, and those of one machine; on CPUs all processes share one."""
    world = spec.compute.world_size
    if name == "cpu":
        return world, world
    per_node = assumed("compute.gpusPerNode", spec.compute.gpus_per_node, lambda: defaults.gpus_per_node(world))
    if wrong := defaults.fill_nodes(world, per_node):
        raise _refusal("compute.gpus", wrong)
    return world, per_node


def _require_eight_bits(device: Accelerator | None, precision: str) -> None:
    if device is not None and precision == "fp8" and device.fp8_flops is None:
        message = f"is fp8, but the {device.name} has no 8-bit floating point: use bf16, or H100 and newer"
        raise _refusal("training.precision", message)


def _require_length(spec: JobSpec, sequence: int, config: ModelConfig) -> None:
    if spec.task == "pretrain" and sequence > config.max_position_embeddings:
        raise _refusal(
            "data.sequenceLength",
            f"{sequence} exceeds the model's longest, {config.max_position_embeddings}: shorten it, or raise "
            "model.overrides.maxPositions",
        )


def _require_experts(spec: JobSpec, gpus: int, config: ModelConfig) -> None:
    expert, experts = spec.parallelism.expert, config.n_routed_experts
    if expert is not None and experts % expert:
        sizes = [size for size in range(1, min(gpus, experts) + 1) if experts % size == 0 and gpus % size == 0]
        near = min(sizes, key=lambda size: abs(size - expert))
        raise _refusal(
            "parallelism.expert", f"{expert} does not divide the model's {experts} routed experts: use {near}"
        )


def _batch(spec: JobSpec, gpus: int, sequence: int, assumed: _Assuming) -> int:
    training = spec.training
    unit = gpus * sequence * (spec.parallelism.micro_batch or 1)
    batch = assumed(
        "training.globalBatchTokens",
        training.global_batch_tokens,
        lambda: defaults.batch_tokens(spec.model.preset, training.tokens, unit),
    )
    if batch % sequence:
        below = batch // sequence * sequence
        sizes = f"{below} or {below + sequence}" if below else str(sequence)
        raise _refusal(
            "training.globalBatchTokens", f"{batch} is no multiple of {sequence}, the sequence length: use {sizes}"
        )
    if training.tokens < batch:
        raise _refusal(
            "training.tokens",
            f"{training.tokens} is less than one batch of {batch} ({gpus} workers x {sequence} tokens at least): use "
            f"{batch} or more, or fewer workers",
        )
    return batch

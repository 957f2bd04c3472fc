"""Decides everything that a TrainingJob leaves open. Called by the launchers before anything starts.

Starts nothing and imports no torch. Invariants: the same job on the same data, prices, hardware and
efficiencies gives the same result; it carries the hard deadline, so that a budget holds with nobody watching.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from pydantic import Field, ValidationError

from model.config import Frozen
from model.recipe import Recipe
from orchestrator.cost.budget import Deadlines, Reserve, deadlines, lasts, to_hold
from orchestrator.cost.meter import Rate
from orchestrator.cost.tariff import Tariff, tariff_from
from orchestrator.errors import OverBudget, UsageError
from orchestrator.launch.choices import Choice, Choices, absolute, refusal
from orchestrator.launch.choose import choose_recipe, continue_recipe, kept_choices
from orchestrator.launch.dataset import in_claims
from orchestrator.launch.files import in_short
from orchestrator.plan.prices import PriceBook, valid_at
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob


class JobRef(Frozen):
    """Which job this is."""

    namespace: str
    name: str
    uid: str


class TrackingTarget(Frozen):
    """Where MLflow files the run."""

    experiment: str
    tags: dict[str, str]


class Resolved(Frozen):
    """One attempt, fully decided; written as `resolved.json`."""

    job: JobRef
    attempt: int = Field(ge=1)
    incarnation: str
    recipe: Recipe
    workers: int = Field(ge=1)
    cpus_per_worker: int = Field(ge=1)
    gpus_per_worker: int = Field(ge=0, le=1)
    gpus: tuple[str, ...] | None = None
    """Those that it was given, as `launch.devices` names them; None: it was not started, or by an earlier version."""
    memory_bytes_per_worker: int | None = Field(None, ge=1)
    rate: Rate
    """What the whole job costs while it holds its machines, when the attempt is started."""
    later_rates: tuple[Rate, ...] = ()
    """What it costs from the dates of those on, as far as the price file knew."""
    hard_deadline_seconds: float | None = Field(None, gt=0)
    """Held seconds after which the budget is gone, if the attempt begins at once. None: no budget."""
    money_left: Decimal | None = Field(None, gt=0)
    """What the limit leaves for this attempt: its driver stops itself before that is gone, whenever it began."""
    reserve: Reserve = Reserve()
    """What is kept of the money for stopping."""
    restarts_without_progress: int = Field(ge=0)
    """Restarts of the workers inside this attempt that may follow each other without a new checkpoint."""
    stall_seconds: float = Field(gt=0)
    """Least time without a step that counts as a stall; see `launch.watch`."""
    tracking: TrackingTarget
    storage_uri: str
    """Where events, logs, ledger and checkpoints of the job lie."""
    chosen: tuple[Choice, ...]
    data_pending: bool = False
    """Nobody has read the dataset yet: the driver completes the recipe in its pod (`launch.pending`)."""

    @property
    def gpus_held(self) -> tuple[str, ...] | None:
        """What no other job may be given while this attempt runs; None: it has some, and nobody knows which."""
        return self.gpus if self.gpus_per_worker else ()

    @property
    def tariff(self) -> Tariff:
        """What the attempt pays, as that changes with time."""
        return Tariff(rates=(self.rate, *self.later_rates))

    def deadlines(self, start: float) -> Deadlines | None:
        """When the attempt must stop if it holds its devices from `start` (unix seconds); None without a budget."""
        left = self.money_left
        if left is None and self.hard_deadline_seconds is not None:  # written by an earlier version
            left = to_hold(self.tariff, start, self.hard_deadline_seconds)
        return None if left is None else deadlines(left, self.tariff, start, self.reserve)


def resolve(
    job: TrainingJob,
    *,
    uid: str,
    attempt: int,
    incarnation: str,
    settings: Settings,
    storage_uri: str,
    spent: Decimal | int = 0,
    earlier: Resolved | None = None,
    reserve: Reserve | None = None,
    prices: PriceBook | None = None,
    read_data: bool = True,
) -> Resolved:
    """Decide one attempt of `job`; `spent` is what earlier attempts cost, `storage_uri` the run's own folder, `reserve`
    what is known of how long this job takes to stop, `prices` those to use (absent: read now). Without `read_data`, and
    where the job reads from a volume claim, what depends on the dataset is left open (`Resolved.data_pending`).

    All that the mathematics depends on stays as the `earlier` attempt had it. InvalidJob for what cannot run,
    OverBudget where nothing is left, UsageError for a bad file of prices, hardware or efficiencies.
    """
    spec, choose = job.spec, Choices()
    now = datetime.now(UTC)
    tariff = _tariff(job, prices or PriceBook.load(settings.price_file), earlier, now)
    reserve = reserve or Reserve()
    left = _left(job, Decimal(spent))
    deadline = None if left is None else _seconds(job, left, tariff, now.timestamp(), reserve)
    storage = _storage(job, storage_uri, earlier, choose)
    pending = not read_data or in_claims(job) or (earlier is not None and earlier.data_pending)
    if earlier is None:
        recipe = choose_recipe(job, storage, settings, choose, pending=pending, elsewhere=not read_data)
    else:
        recipe = continue_recipe(job, storage, earlier.recipe, settings, choose, pending=pending)
    memory = spec.compute.memory_per_worker
    return Resolved(
        job=JobRef(namespace=job.metadata.namespace, name=job.metadata.name, uid=uid),
        attempt=attempt,
        incarnation=incarnation,
        recipe=recipe,
        workers=spec.compute.world_size,
        cpus_per_worker=choose("spec.compute.cpuPerWorker", spec.compute.cpu_per_worker, lambda: (1, "one core each")),
        gpus_per_worker=0 if recipe.device == "cpu" else 1,
        memory_bytes_per_worker=None if memory is None else quantity_bytes(memory),
        rate=tariff.rates[0],
        later_rates=tariff.rates[1:],
        hard_deadline_seconds=deadline,
        money_left=left,
        reserve=reserve,
        restarts_without_progress=spec.retry.stop_after_attempts_without_progress,
        stall_seconds=spec.retry.stall_minutes * 60,
        tracking=TrackingTarget(
            experiment=choose(
                "spec.tracking.experiment",
                spec.tracking.experiment,
                lambda: (job.metadata.name, "the job's name"),
            ),
            tags=dict(spec.tracking.tags),
        ),
        storage_uri=storage,
        chosen=(*(kept_choices(earlier.chosen) if earlier is not None else ()), *choose.made),
        data_pending=pending,
    )


def _storage(job: TrainingJob, own: str, earlier: Resolved | None, choose: Choices) -> str:
    """Where the job's events, ledger and checkpoints lie."""
    given = job.spec.checkpoint.uri
    if given is not None and earlier is not None:
        return earlier.storage_uri  # the working directory may be another one by now
    return absolute(choose("spec.checkpoint.uri", given, lambda: (own, "the run's own folder")))


def read_resolved(path: Path) -> Resolved:
    """One that was written; UsageError if it cannot be read."""
    try:
        return Resolved.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise UsageError(
            f"{path} cannot be read: {in_short(error)}; if another version of Fathom wrote it, use that version"
        ) from None


# Money


def _tariff(job: TrainingJob, book: PriceBook, earlier: Resolved | None, now: datetime) -> Tariff:
    """Price of the whole job per hour, from now on."""
    compute, budget = job.spec.compute, job.spec.budget
    history = book.history(compute.accelerator, compute.price_class)
    price = valid_at(history, now.date())
    units = compute.world_size * ((compute.cpu_per_worker or 1) if compute.accelerator == "cpu" else 1)
    if budget is not None and budget.currency != price.currency:
        raise refusal(
            "budget.currency",
            f"is {budget.currency}, but {compute.accelerator} is priced in {price.currency} "
            f"({price.source}): use {price.currency}, or set FATHOM_PRICES to prices in {budget.currency}",
        )
    if earlier is not None and earlier.rate.currency != price.currency:
        raise UsageError(
            f"attempt {earlier.attempt} was paid in {earlier.rate.currency}, the price of {compute.accelerator} is in "
            f"{price.currency} now ({price.source}): set FATHOM_PRICES to prices in {earlier.rate.currency}"
        )
    return tariff_from(history, units, now)


def _left(job: TrainingJob, spent: Decimal) -> Decimal | None:
    """The rest of the budget; OverBudget if there is none."""
    budget = job.spec.budget
    if budget is None:
        return None
    left = budget.amount - spent
    if left <= 0:
        raise OverBudget(f"spec.budget.limit is {budget.limit} {budget.currency}, {spent} is spent: raise the limit")
    return left


def _seconds(job: TrainingJob, left: Decimal, tariff: Tariff, now: float, reserve: Reserve) -> float:
    """Seconds that it pays for; OverBudget if those are no more than stopping takes."""
    seconds = float(lasts(left, tariff, now))
    if seconds <= reserve.seconds:
        assert job.spec.budget is not None
        raise OverBudget(
            f"spec.budget.limit is {job.spec.budget.limit} {tariff.currency}: the {left.normalize():f} that are left "
            f"pay for {max(0.0, seconds):.1f} s, and the last checkpoint and the end take {reserve.seconds:.0f} s: "
            "raise it"
        )
    return seconds


# Text to values


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def quantity_bytes(quantity: str) -> int:
    """Bytes of a Kubernetes quantity such as 2Gi, in the form that `Compute.memory_per_worker` admits."""
    number = quantity.rstrip("".join(_UNITS))
    return int(number) * _UNITS[quantity.removeprefix(number)]

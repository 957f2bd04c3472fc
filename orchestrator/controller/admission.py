"""Whether a job may be submitted: what can be wrong with it is found here, in seconds, before anything starts.

Called by `fathom train` and by the API, so that both refuse the same. Starts and writes nothing. Invariant: neither the
dataset, where the workers could not read it, nor the storage is opened on behalf of whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.files import local_path
from orchestrator.controller.teams import require_leave
from orchestrator.errors import FathomError, InvalidJob, OverBudget, Problem, UsageError
from orchestrator.launch.base import Launcher
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.plan.prices import PriceBook
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob


def check(job: TrainingJob, settings: Settings, launcher: Launcher | None = None) -> Resolved:
    """The job as its first attempt would run now, on this machine unless `launcher` runs it elsewhere.

    InvalidJob with all that is wrong; OverBudget if its limit, or its team's money, does not let it start; UsageError
    for a bad file of prices, hardware, efficiencies or budgets.
    """
    book = PriceBook.load(settings.price_file)
    remote = launcher is not None and launcher.capacity() is None
    problems = [*([] if remote else _unreachable(job)), *_unpriced(job, book)]
    resolved, refused = None, list[FathomError]()
    if not problems:
        try:
            resolved = resolve(
                job, uid="check", attempt=1, incarnation="check", settings=settings, storage_uri=str(settings.home),
                prices=book, read_data=not remote,
            )  # fmt: skip
            if launcher is not None:
                launcher.check(job, resolved)
        except InvalidJob as error:
            problems += error.problems
        except OverBudget as error:
            refused.append(error)
    if problems:
        raise InvalidJob(problems)
    try:
        require_leave(job, settings)
    except OverBudget as error:
        refused.append(error)
    if refused:
        raise OverBudget("\n".join(map(str, refused)))
    assert resolved is not None, "what was not refused was resolved"
    return resolved


def _unreachable(job: TrainingJob) -> Iterator[Problem]:
    """What the workers on this machine could not open."""
    import fsspec  # late: brings asyncio

    source, storage = job.spec.data.source, job.spec.checkpoint.uri
    if local_path(source) is None:
        message = f"is {source}, but training reads local or mounted folders only: copy the dataset first"
        yield Problem("spec.data.source", message)
    if storage is None or "://" not in storage:
        return
    if "::" in storage:
        yield Problem("spec.checkpoint.uri", f"is {storage}, a chain of URLs: give the last of them alone")
        return
    try:
        fsspec.get_filesystem_class(storage.partition("://")[0])  # not made: some connect at once
    except (ImportError, ValueError) as error:
        yield Problem("spec.checkpoint.uri", f"cannot write to {storage}: {error}")


def _unpriced(job: TrainingJob, book: PriceBook) -> Iterator[Problem]:
    compute = job.spec.compute
    try:
        book.history(compute.accelerator, compute.price_class)
    except UsageError as error:
        path = "priceClass" if book.classes(compute.accelerator) else "accelerator"
        yield Problem(f"spec.compute.{path}", str(error))


def units(job: TrainingJob) -> int:
    """Devices, or processor cores, that a job pays for."""
    compute = job.spec.compute
    return compute.world_size * ((compute.cpu_per_worker or 1) if compute.accelerator == "cpu" else 1)

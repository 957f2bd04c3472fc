"""What a run is expected to take: forecast once, before it starts, kept in its folder, held against what it took.

Called by the launcher and by whoever shows a run. Invariants: a forecast is written before the first attempt and never
again, so that hindsight cannot better it; that there is none, or no readable one, is never an error of the run.
"""

from __future__ import annotations

from decimal import Decimal

from pydantic import ValidationError

from model.config import Frozen
from orchestrator.controller.record import Record
from orchestrator.cost.ledger import Ledger
from orchestrator.errors import FathomError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.files import replace_file
from orchestrator.launch.resolve import Resolved
from orchestrator.plan import defaults
from orchestrator.plan.basis import Basis
from orchestrator.plan.estimate import estimate
from orchestrator.plan.forecast import Plan
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.request import Request, Wish
from orchestrator.settings import Settings


def expect(record: Record, resolved: Resolved, settings: Settings) -> Plan | None:
    """The forecast of this run; made now if its first attempt has not begun. None where there is none."""
    if record.folder.forecast.exists() or resolved.attempt > 1 or record.folder.events.exists():
        return expected(record.folder)
    try:
        plan = estimate(request_of_run(record, resolved, settings), Basis.load(settings))
    except FathomError:
        return None  # the run was resolved, so it starts, whatever the planner makes of it
    replace_file(record.folder.forecast, plan.model_dump_json(indent=1))
    return plan


def expected(folder: RunFolder) -> Plan | None:
    """The forecast that was made before the run; None where there is none that can be read."""
    try:
        return Plan.model_validate_json(folder.forecast.read_bytes())
    except (OSError, ValidationError):
        return None


def request_of_run(record: Record, resolved: Resolved, settings: Settings) -> Request:
    """What the planner is asked: the run as it was resolved, with nothing left open."""
    spec, recipe = record.job.spec, resolved.recipe
    on_cpus, layout = spec.compute.accelerator == "cpu", recipe.layout
    per_node = spec.compute.gpus_per_node or defaults.gpus_per_node(resolved.workers)[0]
    return Request(
        name=spec.model.preset or spec.model.init_from or resolved.job.name,
        config=recipe.model,
        device=None if on_cpus else accelerator(spec.compute.accelerator, settings.hardware_file),
        gpus=resolved.workers,
        gpus_per_node=resolved.workers if on_cpus else per_node,
        tokens=recipe.total_tokens,
        sequence_length=recipe.sequence_length,
        batch_tokens=recipe.batch_tokens,
        precision=recipe.precision,
        price_class=spec.compute.price_class,
        wish=Wish(layout.expert_parallel, layout.zero_stage, layout.micro_batch, layout.recompute),
        assumed=(),
        checkpoint_seconds=recipe.checkpoint.interval_seconds,
        cpus=resolved.cpus_per_worker,
    )


class Against(Frozen):
    """A forecast of money and what was paid for the same."""

    low: Decimal
    expected: Decimal
    high: Decimal
    actual: Decimal
    currency: str
    what: str
    """What both figures are of: everything that was held, or only the seconds that trained."""


def against(plan: Plan | None, ledger: Ledger) -> Against | None:
    """None where no money was forecast, or where it was in another currency."""
    if plan is None or plan.cost is None or plan.cost.currency != ledger.rate.currency:
        return None
    steps_only = plan.goodput is None  # on CPUs; see `plan.on_cpus.COUNTED`
    return Against(
        low=plan.cost.low,
        expected=plan.cost.expected,
        high=plan.cost.high,
        actual=ledger.totals.cost_by_class["productive"] if steps_only else ledger.totals.cost,
        currency=ledger.rate.currency,
        what="productive time" if steps_only else "all held time",
    )

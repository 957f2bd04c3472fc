"""What a plan says: one document, camelCase in JSON, every number finite. Made by `plan.estimate`; imports no torch."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer
from pydantic.alias_generators import to_camel

from model.config import Frozen
from orchestrator.plan.request import Assumed

_CENT = Decimal("0.01")


def _number(amount: Decimal) -> float:
    """A forecast needs no more than cents, or six digits below one; up to 10 billion a float holds the cents."""
    return float(amount.quantize(_CENT)) if abs(amount) >= 1 else float(f"{amount:.6g}")


Money = Annotated[Decimal, Field(allow_inf_nan=False), PlainSerializer(_number, when_used="json")]
"""Exact inside; a plain number in JSON."""


class Out(Frozen, alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True):
    """A piece of a plan."""


class Range(Out):
    """A forecast."""

    low: float
    expected: float
    high: float


class Cost(Out):
    """The same in money."""

    low: Money
    expected: Money
    high: Money
    currency: str


class Width(Out):
    """One reason why low and high differ: factors on what is expected, and where they come from."""

    affects: Literal["hours", "price"]
    low: float
    high: float
    reason: str


class Asked(Out):
    """The run that was asked for, in numbers."""

    model: str
    accelerator: str
    gpus: int
    gpus_per_node: int
    tokens: int
    sequence_length: int
    batch_tokens: int
    steps: int
    precision: str
    price_class: str


class Architecture(Out):
    """Parameters and work; see `model.flops`."""

    parameters: int
    active_parameters: int
    mtp_parameters: int
    """Added by multi-token prediction."""
    flops_per_token: float
    """Training, causal, without multi-token prediction: the convention of MFU here and of most published figures."""
    flops_per_token_with_mtp: float | None
    total_flops: float
    """Of the whole run, by the first convention."""


class Layout(Out):
    """One way to lay the run out, and what it gives."""

    data: int
    tensor: int
    pipeline: int
    expert: int
    context: int
    """Groups that share each sequence."""
    zero_stage: int
    micro_batch: int
    """Sequences of one forward pass."""
    recompute: str
    schedule: str | None
    """Of the stages, where there are several."""
    chunks: int
    """Pieces of the model in each stage."""
    dispatch: str | None
    """Of tokens to experts on other GPUs: once to each `expert`, or once to each `node`."""
    fits: bool
    needs: tuple[str, ...]
    """What the engine would have to learn first; empty: runs today."""
    memory_peak: int
    step_seconds: float
    tokens_per_second_per_gpu: float
    mfu: float
    gpu_hours: float
    cost: Money


class Memory(Out):
    """Bytes on one GPU, that which has most."""

    by_part: dict[str, int]
    peak: int
    usable: int
    """Of the device: what is sold; the little more that it reports is the reserve, fragmentation is a part."""
    device: int
    """As sold."""
    spare: int
    """Usable less peak; negative: that much is missing."""
    fits: bool
    by_recompute: dict[str, int]
    """Peak with each policy of recomputation, the rest of the layout as it is."""
    by_part_of_recompute: dict[str, dict[str, int]]
    """The same by part; that of the layout's own policy is `by_part`."""
    would_fit: tuple[str, ...] = ()
    """What would make it fit, where it does not."""


class Step(Out):
    """Time of one optimizer step in the chosen layout."""

    seconds: float
    parts: dict[str, float]
    """Seconds that nothing else hides; they add up to `seconds`."""
    overlapped: dict[str, float]
    """Seconds that pass behind other parts."""
    tokens_per_second_per_gpu: float
    teraflops_per_gpu: float
    mfu: float
    mfu_convention: str


class GoodputPart(Out):
    """How much of the paid time counts, with machines that fail."""

    fraction: float
    checkpoint_minutes: float | None
    """Training time between two checkpoints that costs least; None: nothing ever fails."""
    mtbf_hours: float | None
    """Mean time between failures of the whole job; None: nothing ever fails."""
    lost: dict[str, float]
    """Shares of the paid time, by cause."""
    lost_cost: dict[str, Money]
    convention: str
    """What is and is not counted in the expected hours."""
    source: str
    assumptions: tuple[str, ...]


class Energy(Out):
    """Electricity of the GPUs and what cools them."""

    kilowatt_hours: Range
    watts_per_gpu: float
    power_usage_effectiveness: float
    reason: str


class PriceTag(Out):
    """Of one device-hour."""

    amount: Money
    currency: str
    unit: str
    price_class: str
    source: str
    date: datetime.date


class Alternative(Out):
    """Another way to train the same tokens, which costs less."""

    change: str
    accelerator: str
    precision: str
    price_class: str
    layout: Layout
    hours: float
    gpu_hours: float
    cost: Money
    saves: Money
    saves_hours: float
    """Negative: it takes longer."""
    reason: str
    """What to know before choosing it."""


class Plan(Out):
    """Everything that is known before a run. On CPUs time and money only where they are calibrated."""

    request: Asked
    assumed: tuple[Assumed, ...]
    architecture: Architecture
    memory: Memory | None = None
    layout: Layout | None = None
    """The one that all figures here are for."""
    step: Step | None = None
    hours: Range | None = None
    """Wall clock."""
    gpu_hours: Range | None = None
    """Of all devices: on CPUs core-hours."""
    cost: Cost | None = None
    width: tuple[Width, ...] = ()
    """Why low and high lie where they do."""
    energy: Energy | None = None
    price: PriceTag
    goodput: GoodputPart | None = None
    layouts: tuple[Layout, ...] = ()
    """The best that the engine runs today."""
    other_layouts: tuple[Layout, ...] = ()
    """Faster ones that it cannot run yet: the best for each set of things that it lacks."""
    alternatives: tuple[Alternative, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know to read the figures right."""

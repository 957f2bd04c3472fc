"""A plan as tables for people. Called by `orchestrator.cli.plan`.

Everything fits 80 columns: long texts stand in lines of their own and wrap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.cli.model import short
from orchestrator.cost.meter import money
from orchestrator.plan.figure import memory_label, time_label

if TYPE_CHECKING:
    from orchestrator.plan.against import Column
    from orchestrator.plan.forecast import Alternative, Layout, Plan, Range

_SHOWN_CAUSES = 4


def plan_tables(plan: Plan, columns: Sequence[Column] = ()) -> Group:
    """All of it; what is most wanted comes first."""
    parts: list[RenderableType] = [title(plan), _answer(plan)]
    if plan.assumed:
        parts += [_heading("Assumed, because nothing was said"), _assumed(plan)]
    if plan.memory is not None:
        parts += [_heading("Memory of the fullest GPU"), _memory(plan), *_memory_remarks(plan)]
    if plan.step is not None:
        parts += [_heading(f"Time of one step: {plan.step.seconds:.3g} s"), _step(plan), *_step_remarks(plan)]
    if plan.layouts or plan.other_layouts:
        parts += [_heading("Layouts that fit"), *_layouts(plan)]
    if plan.goodput is not None:
        parts += [_heading("Failures and checkpoints"), *_goodput(plan)]
    if plan.layout is not None:
        parts += [_heading("Cheaper ways, with as many GPUs"), *_alternatives(plan)]
    if columns:
        parts += [_heading("Beside published runs"), _against(columns, plan), *_against_remarks(columns)]
    return Group(*parts, _heading("Where the figures come from"), *_sources(plan))


_LEGEND = (
    "DP data, TP tensor, PP pipeline (VP pieces per stage), CP context, EP expert parallel; Z ZeRO's stage; micro: "
    "sequences per pass; recompute: activations computed again in the backward pass."
)


# ------------------------------------------------------------------ the answer


def title(plan: Plan) -> Text:
    """The run that was asked for."""
    asked = plan.request
    unit = "processes on CPUs" if asked.accelerator == "cpu" else asked.accelerator
    return Text(
        f"{asked.model}: {short(asked.tokens)} tokens on {asked.gpus:,} {unit}, {asked.precision}", style="bold"
    )


def _answer(plan: Plan) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in answers(plan):
        table.add_row(Text(name, style="dim"), value)
    return table


def answers(plan: Plan) -> Iterator[tuple[str, Text]]:
    """What is most wanted, each with its name."""
    built = plan.architecture
    active = f"{short(built.parameters)} parameters, {short(built.active_parameters)} used by each token"
    yield "model", Text(f"{active}, {short(built.flops_per_token, 'FLOP')} per token")
    if plan.cost is None or plan.hours is None or plan.gpu_hours is None:
        yield "cost", Text(plan.notes[0])
        return
    cost, hours = plan.cost, plan.hours
    low, high = big_money(cost.low, cost.currency), big_money(cost.high, cost.currency)
    paid = Text.assemble((big_money(cost.expected, cost.currency), "bold"), f"   ({low} to {high})")
    yield "cost", paid
    yield "time", Text.assemble((time(hours.expected), "bold"), f"   ({time(hours.low)} to {time(hours.high)})")
    unit = "core" if plan.request.accelerator == "cpu" else "GPU"
    yield f"{unit}-hours", _ranged(plan.gpu_hours)
    yield "price", Text(f"{money(plan.price.amount, cost.currency)} per {unit}-hour, {plan.price.price_class}")
    if plan.step is not None:
        speed, flops = plan.step.tokens_per_second_per_gpu, plan.step.teraflops_per_gpu
        yield "speed", Text(f"{speed:,.0f} tokens/s per GPU = {flops:,.0f} TFLOP/s, {plan.step.mfu:.1%} MFU")
    if plan.memory is not None:
        memory = plan.memory
        words = f"{gigabytes(memory.peak)} of {gigabytes(memory.usable)} per GPU, {gigabytes(memory.spare)} to spare"
        yield "fits", Text(words)
    if plan.layout is not None:
        schedule = ", DualPipe" if plan.layout.schedule == "dualpipe" else ""
        sent = ", tokens sent once per node" if plan.layout.dispatch == "node" else ""
        yield "layout", Text(f"{layout_name(plan.layout)}{schedule}, recompute {plan.layout.recompute}{sent}")
        if plan.layout.needs and plan.layouts:
            yield "today", _today(plan.layouts[0], plan)
    if plan.energy is not None:
        yield "energy", Text(f"{short(plan.energy.kilowatt_hours.expected * 1000, 'Wh')}, GPUs and their cooling")
    for note in plan.notes:
        yield "note", Text(note)


def _today(layout: Layout, plan: Plan) -> Text:
    """What our engine would take."""
    cost, hours = big_money(layout.cost, plan.price.currency), layout.gpu_hours / plan.request.gpus
    words = f"{cost}, {time(hours)} with {layout_name(layout)}, the best that our engine runs today (--engine today)"
    return Text(words, style="yellow")


def _ranged(hours: Range) -> Text:
    low, expected, high = (
        f"{value:,.0f}" if hours.low >= 100 else f"{value:.3g}" for value in (hours.low, hours.expected, hours.high)
    )
    return Text.assemble((expected, "bold"), f"   ({low} to {high})")


def _assumed(plan: Plan) -> Table:
    table = _table("FIELD", ">VALUE", "WHY")
    for one in plan.assumed:
        table.add_row(one.field, _grouped(one.value), one.reason)
    return table


# ------------------------------------------------------------------ memory and time


def _memory(plan: Plan) -> Table:
    assert plan.memory is not None
    table = _table("PART", ">GB", ">SHARE")
    for name, size in plan.memory.by_part.items():
        if size:
            share = "" if name == "update" else f"{size / plan.memory.peak:.0%}"
            table.add_row(memory_label(name), f"{size / 1e9:.2f}", share)
    table.add_row("at its highest", f"{plan.memory.peak / 1e9:.2f}", "100%", style="bold")
    return table


def _memory_remarks(plan: Plan) -> Iterator[RenderableType]:
    assert plan.memory is not None
    fits = {name: size <= plan.memory.usable for name, size in plan.memory.by_recompute.items()}
    words = [
        f"{name} {gigabytes(size)} ({'fits' if fits[name] else 'does not fit'})"
        for name, size in plan.memory.by_recompute.items()
    ]
    yield _lines(f"By recomputation: {', '.join(words)}.")
    if plan.memory.by_part.get("update"):
        yield _lines("The update takes its memory when activations are gone: only the larger of the two counts.")


def _step(plan: Plan) -> Table:
    assert plan.step is not None
    table = _table("PART", ">SECONDS", ">SHARE", ">HIDDEN")
    names = list(dict.fromkeys([*plan.step.parts, *plan.step.overlapped]))
    for name in names:
        seconds, hidden = plan.step.parts.get(name, 0.0), plan.step.overlapped.get(name, 0.0)
        table.add_row(
            time_label(name),
            f"{seconds:.3f}" if seconds else "-",
            f"{seconds / plan.step.seconds:.1%}" if seconds else "-",
            f"{hidden:.3f}" if hidden else "",
        )
    return table


def _step_remarks(plan: Plan) -> Iterator[RenderableType]:
    assert plan.step is not None
    yield _lines("Hidden seconds pass behind other parts and cost nothing.")
    yield _lines(f"MFU: {plan.step.mfu_convention}.")


# ------------------------------------------------------------------ layouts and alternatives


def layout_name(layout: Layout) -> str:
    """Short: the sizes above 1."""
    sizes = (
        ("DP", layout.data),
        ("TP", layout.tensor),
        ("PP", layout.pipeline),
        ("VP", layout.chunks),
        ("CP", layout.context),
        ("EP", layout.expert),
    )
    words = [f"{name}{size}" for name, size in sizes if size > 1]
    return " ".join([*(words or ["1 GPU"]), f"Z{layout.zero_stage}"])


def _layouts(plan: Plan) -> Iterator[RenderableType]:
    table = _table("LAYOUT", ">MICRO", "RECOMPUTE", ">GB", ">S/STEP", ">MFU", ">COST")
    for heading, layouts in (("runs today", plan.layouts), ("faster, not yet", plan.other_layouts)):
        if layouts:
            table.add_row(Text(heading, style="bold"))
        for layout in layouts:
            table.add_row(
                f" {layout_name(layout)}",
                str(layout.micro_batch),
                layout.recompute,
                f"{layout.memory_peak / 1e9:.1f}",
                f"{layout.step_seconds:.3g}",
                f"{layout.mfu:.1%}",
                big_money(layout.cost, plan.price.currency),
            )
    yield table
    for layout in plan.other_layouts:
        yield _lines(f"{layout_name(layout)} needs {', '.join(layout.needs)}.")
    yield _lines(_LEGEND)


def _alternatives(plan: Plan) -> Iterator[RenderableType]:
    if not plan.alternatives:
        yield _lines("None among the accelerators, precisions and price classes in the price list.")
        return
    table = _table("CHANGE TO", ">COST", ">SAVES", ">TIME", ">SAVES", ">GPU-HOURS")
    for one in plan.alternatives:
        table.add_row(
            one.change,
            big_money(one.cost, plan.price.currency),
            big_money(one.saves, plan.price.currency),
            time(one.hours),
            _later(one),
            f"{one.gpu_hours:,.0f}",
        )
    yield table
    for one in plan.alternatives:
        yield _lines(f"{one.change}: {one.reason}.")


def _later(one: Alternative) -> str:
    return time(one.saves_hours) if one.saves_hours >= 0 else f"-{time(-one.saves_hours)}"


# ------------------------------------------------------------------ failures


def _goodput(plan: Plan) -> Iterator[RenderableType]:
    found = plan.goodput
    assert found is not None
    often = "nothing fails" if found.mtbf_hours is None else f"a failure every {time(found.mtbf_hours)}"
    save = "" if found.checkpoint_minutes is None else f"; best saved every {found.checkpoint_minutes:,.0f} minutes"
    yield _lines(f"{found.fraction:.1%} of the paid time counts (goodput): {often}{save}.")
    causes = sorted(found.lost, key=lambda name: -found.lost[name])[:_SHOWN_CAUSES]
    lost = [f"{name} {big_money(found.lost_cost[name], plan.price.currency)}" for name in causes]
    if lost:
        yield _lines(f"Of the money goes to {', '.join(lost)}.")
    yield _lines(f"{found.convention[0].upper()}{found.convention[1:]}.")


# ------------------------------------------------------------------ comparison


def _against(columns: Sequence[Column], plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for column in columns:
        table.add_column(column.title, justify="right")
    currency, price = plan.price.currency, money(plan.price.amount, plan.price.currency)
    rows: list[tuple[str, list[str]]] = [
        ("parameters", [short(c.parameters) for c in columns]),
        ("used by each token", [short(c.active_parameters) for c in columns]),
        ("tokens", [_or(c.tokens, short) for c in columns]),
        ("GPUs", [f"{c.gpus:,} {c.accelerator}" if c.gpus else c.accelerator for c in columns]),
        ("GPU-hours, pre-training", [f"{c.gpu_hours:,.0f}" for c in columns]),
        ("  per trillion tokens", [_or(c.gpu_hours_per_trillion_tokens, lambda h: f"{h:,.0f}") for c in columns]),
        ("GPU-hours, all stages", [f"{c.total_gpu_hours:,.0f}" for c in columns]),
        ("training FLOPs", [_or(c.flops, lambda f: f"{f:.2e}") for c in columns]),
        ("MFU of the whole run", [_or(c.mfu, lambda m: f"{m:.1%}") for c in columns]),
        (f"cost at {price} an hour", [big_money(c.cost_at_same_price, currency) for c in columns]),
        ("  all stages", [big_money(c.total_cost_at_same_price, currency) for c in columns]),
        ("cost at its GPU's price", [_or(c.cost_at_own_price, lambda m: big_money(m, currency)) for c in columns]),
    ]
    for name, values in rows:
        table.add_row(name, *values)
    return table


def _or(value: float | Decimal | None, shown: Callable[[Any], str]) -> str:
    return "-" if value is None else shown(value)


def _against_remarks(columns: Sequence[Column]) -> Iterator[RenderableType]:
    for column in columns:
        yield _lines(f"{column.title}: without {column.excludes}. Source: {column.source}.")


# ------------------------------------------------------------------ sources


def _sources(plan: Plan) -> Iterator[RenderableType]:
    for width in plan.width:
        yield _lines(f"{width.affects}, x {width.low:.2f} to {width.high:.2f}: {width.reason}.")
    price = plan.price
    yield _lines(f"price: {price.source} ({price.date}).")
    if plan.goodput is not None:
        yield _lines(f"failures: {plan.goodput.source}; {'; '.join(plan.goodput.assumptions)}.")
    if plan.energy is not None:
        yield _lines(f"energy: {plan.energy.reason}.")


# ------------------------------------------------------------------ words


def time(hours: float) -> str:
    """`54.2 days`, `3.5 h`, `12 min`, `40 s`."""
    for size, unit, digits in ((24.0, "days", 1), (1.0, "h", 1), (1 / 60, "min", 0)):
        if hours >= 2 * size:
            return f"{hours / size:,.{digits}f} {unit}"
    return f"{hours * 3600:,.3g} s"


def big_money(amount: Decimal, currency: str) -> str:
    """`$5.33 M`; below a million to the cent, as `money`."""
    for size, unit in ((Decimal(10**9), "B"), (Decimal(10**6), "M")):
        if abs(amount) >= size:
            return f"{money(amount / size, currency)} {unit}"
    return money(amount if abs(amount) < 1000 else amount.quantize(Decimal(1)), currency).removesuffix(".00")


def gigabytes(size: float) -> str:
    """Decimal, as memory is sold."""
    return f"{size / 1e9:.1f} GB"


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold cyan")


def _lines(text: str) -> RenderableType:
    return Padding(Text(text, style="dim"), (0, 0, 0, 2))


def _table(*headings: str) -> Table:
    """Headings that begin with ">" stand above numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        right = heading.startswith(">")
        table.add_column(heading.lstrip(">"), justify="right" if right else "left", no_wrap=right)
    return table

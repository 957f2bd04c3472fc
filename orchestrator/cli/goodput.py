"""`fathom goodput`: what if machines fail? Goodput, lost hours and money by cause, how often to save, what would help.

Registered by `orchestrator.cli.main`. Data goes to stdout only. Every figure of the simulation is a mean over the runs.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.cli.pictures import Form, require_picture, write_picture
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.plan.goodput import Goodput, Recovery
    from orchestrator.plan.policy import Better, Simulated
    from orchestrator.plan.simulate import Scenario

DAY = 86400.0
CAUSES_SHOWN = 8
MOST_DAYS = 34_000
MOST_MINUTES = 16_000_000


def goodput_command(
    gpus: Annotated[int, typer.Option(help="GPUs of the job.")],
    days: Annotated[float, typer.Option(help="Days that the job holds them.")] = 30.0,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs that are lost together.")] = 8,
    failures: Annotated[
        str, typer.Option(help="llama-3, rsc-1, rsc-1-measured, opt-175b, opt-175b-aws, ant, or a YAML file.")
    ] = "llama-3",
    interval: Annotated[
        float | None, typer.Option(help="Seconds of training between two checkpoints. Left out: the best.")
    ] = None,
    save_seconds: Annotated[float, typer.Option(help="Training stands still so long for a checkpoint.")] = 10.0,
    upload_seconds: Annotated[float, typer.Option(help="It counts so long after; written in the background.")] = 60.0,
    restart_minutes: Annotated[float, typer.Option(help="From new processes to the first new step.")] = 5.0,
    replace_minutes: Annotated[float, typer.Option(help="What another machine takes on top.")] = 9.5,
    detect_seconds: Annotated[float, typer.Option(help="Until a dead job is noticed.")] = 60.0,
    hang_minutes: Annotated[float, typer.Option(help="Until a job that stands still is noticed.")] = 10.0,
    in_place: Annotated[bool, typer.Option(help="New processes on the same machines where that is a cure.")] = True,
    local_save_seconds: Annotated[
        float | None,
        typer.Option(help="Standstill for a copy in memory, between the checkpoints. Left out: no copies."),
    ] = None,
    peer_copies: Annotated[bool, typer.Option("--peer-copies", help="Another node holds the copies, too.")] = False,
    spares: Annotated[int | None, typer.Option(help="Nodes in reserve. Left out: there is always one.")] = None,
    repair_hours: Annotated[float, typer.Option(help="Until a lost node is back in reserve.")] = 24.0,
    exclude_after: Annotated[int, typer.Option(help="A node that failed so often is replaced; 0: never.")] = 2,
    accelerator: Annotated[str, typer.Option(help="What the price is of.")] = "H100",
    price_class: Annotated[str, typer.Option(help="How it is bought.")] = "on-demand",
    price: Annotated[str | None, typer.Option(help="USD per GPU-hour, instead of the price file's.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first run; the same seed gives the same failures.")] = 0,
    runs: Annotated[int, typer.Option(help="How many runs to simulate.")] = 20,
    output: OutputOption = Output.table,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", "--timeline", help="Draw the first run into this file: .html (one page) or .png."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture that is there already.")] = False,
) -> None:
    """Say what failures will cost a long run: goodput, lost hours and dollars by cause, how often to save.

    Example: fathom goodput --gpus 16384 --days 54 --plot timeline.html
    """
    from orchestrator.plan.failures import find_failures
    from orchestrator.plan.goodput import Recovery
    from orchestrator.plan.simulate import Scenario

    form = require_picture(plot, force=force) if plot is not None else None
    _check_times(days, restart=restart_minutes, replace=replace_minutes, hang=hang_minutes)
    if exclude_after < 0:
        raise UsageError(f"--exclude-after must be 0 (never) or more, got {exclude_after}")
    if peer_copies and local_save_seconds is None:
        raise UsageError("--peer-copies needs --local-save-seconds: how long training stands still for a copy")
    recovery = Recovery(
        save_seconds, restart_minutes * 60, detect_seconds, hang_minutes * 60, replace_minutes * 60, upload_seconds,
        in_place, local_save_seconds, None, peer_copies, spares, repair_hours, exclude_after or None,
    )  # fmt: skip
    scenario = Scenario(gpus, gpus_per_node, find_failures(failures), recovery, days * DAY, None, interval)
    answer = _answer(scenario, _price(accelerator, price_class, price), seed, runs)
    if plot is not None and form is not None:
        write_picture(plot, partial(_drawn, form, answer))
    if not for_programs(_content(answer), output, [scenario.failures.name]):
        _print_table(answer)


@dataclass(frozen=True)
class GpuPrice:
    """Of one GPU for an hour."""

    amount: Decimal
    currency: str
    source: str


@dataclass(frozen=True)
class Answer:
    """All that is printed."""

    scenario: Scenario
    price: GpuPrice
    expected: Goodput
    """By the closed form."""
    best: Goodput
    """With the best interval."""
    simulated: Simulated
    better: list[Better]

    @property
    def recovery(self) -> Recovery:
        """Of the scenario."""
        return self.scenario.recovery


def _answer(scenario: Scenario, price: GpuPrice, seed: int, runs: int) -> Answer:
    from orchestrator.plan.goodput import goodput
    from orchestrator.plan.policy import better_policies, simulate_all

    size = scenario.gpus, scenario.gpus_per_node, scenario.failures, scenario.recovery
    expected, best = goodput(*size, scenario.interval_seconds), goodput(*size)
    now = simulate_all(scenario, price.amount * scenario.gpus, seed, runs)
    return Answer(scenario, price, expected, best, now, better_policies(scenario, now))


def _price(accelerator: str, price_class: str, own: str | None) -> GpuPrice:
    from orchestrator.plan.prices import PriceBook
    from orchestrator.settings import Settings

    if own is None:
        found = PriceBook.load(Settings.load().price_file).price(accelerator, price_class)
        return GpuPrice(found.amount, found.currency, f"{found.source} ({found.date})")
    try:
        amount = Decimal(own)
    except ArithmeticError as error:
        raise UsageError(f"--price must be a number of USD per GPU-hour, got {own!r}") from error
    if not (amount.is_finite() and 0 <= amount <= 1_000_000):
        raise UsageError(f"--price must be between 0 and 1,000,000 USD per GPU-hour, got {own}")
    return GpuPrice(amount, "USD", "--price")


def _check_times(days: float, **minutes: float) -> None:
    """In the units of the flags; all else is checked in seconds."""
    if not 0 < days <= MOST_DAYS:
        raise UsageError(f"--days must be more than 0 and at most {MOST_DAYS:,}, got {days:g}")
    for flag, value in minutes.items():
        if not 0 <= value <= MOST_MINUTES:
            raise UsageError(f"--{flag}-minutes must be between 0 and {MOST_MINUTES:,}, got {value:g}")


def _drawn(form: Form, answer: Answer) -> bytes:
    from orchestrator.tracking.run_timeline import draw_html, draw_png

    scenario = answer.scenario
    run = answer.simulated.runs[0]
    subtitle = (
        f"{scenario.gpus:,} GPUs, failures as {scenario.failures.name}, seed {run.seed}: "
        f"{len(run.incidents):,} failures, goodput {run.goodput:.1%}"
    )
    if form == "png":
        return draw_png(run, subtitle)
    return draw_html(run, subtitle, answer.price.amount * scenario.gpus, answer.price.currency)


# ------------------------------------------------------------------ for programs
def _content(answer: Answer) -> dict[str, Any]:
    """Plain values; amounts are strings, what is infinite is null."""
    from orchestrator.plan.checkpointing import daly, young
    from orchestrator.plan.failures import node_count
    from orchestrator.plan.goodput import ORIGINS

    scenario, simulated, best = answer.scenario, answer.simulated, answer.best
    model, goodputs, mtbf = scenario.failures, simulated.goodputs, 3600 * answer.expected.mtbf_hours
    fails = mtbf < float("inf")
    save = scenario.recovery.save_seconds
    return {
        "gpus": scenario.gpus,
        "nodes": node_count(scenario.gpus, scenario.gpus_per_node),
        "days": (scenario.seconds or 0) / DAY,
        "failures": {
            "model": model.name, "source": model.source, "date": str(model.date),
            "mtbfHours": mtbf / 3600 if fails else None,
            "expected": (scenario.seconds or 0) / mtbf if fails else 0.0,
            "simulated": sum(simulated.failures().values()),
            "byCause": dict(simulated.failures()),
        },
        "recovery": {_camel(key): value for key, value in asdict(scenario.recovery).items()},
        "origins": {_camel(key): value for key, value in ORIGINS.items()},
        "interval": {
            "recommendedSeconds": _finite(best.interval_seconds),
            "usedSeconds": _finite(answer.expected.interval_seconds),
            "localSeconds": _finite(answer.expected.local_interval_seconds),
            "youngSeconds": young(save, mtbf) if fails else None,
            "dalySeconds": daly(save, mtbf) if fails else None,
        },
        "goodput": {
            "expected": answer.expected.fraction, "atRecommendedInterval": best.fraction,
            "simulated": sum(goodputs) / len(goodputs), "low": min(goodputs), "high": max(goodputs),
            "runs": len(goodputs), "seed": simulated.runs[0].seed,
        },
        "time": {name: _lost(one) for name, one in simulated.by_class().items()},
        "lostByCause": {name: _lost(one) for name, one in simulated.by_cause().items()},
        "cost": {
            "total": _cents(simulated.cost), "lost": _cents(_lost_cost(simulated)),
            "currency": answer.price.currency, "perGpuHour": str(answer.price.amount), "source": answer.price.source,
        },
        "better": [
            {_camel(key): _cents(value) if isinstance(value, Decimal) else value for key, value in asdict(one).items()}
            for one in answer.better
        ],
    }  # fmt: skip


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _finite(value: float | None) -> float | None:
    return value if value is not None and value < float("inf") else None


def _cents(amount: Decimal) -> str:
    return str(amount.quantize(Decimal("0.01")))


def _lost(one: Any) -> dict[str, Any]:  # noqa: ANN401 - plan.policy is imported late
    return {"hours": one.hours, "share": one.share, "cost": _cents(one.cost)}


def _lost_cost(simulated: Simulated) -> Decimal:
    return simulated.cost - simulated.by_class()["productive"].cost


# ------------------------------------------------------------------ for people
_CLASSES = {
    "productive": "training that counts",
    "lost": "work done again",
    "checkpoint": "standing still to save",
    "slow": "slowed by stragglers",
    "detecting": "failed, not noticed yet",
    "waiting": "waiting for a machine",
    "replacing": "getting another machine",
    "restarting": "starting processes, loading",
}


def _print_table(answer: Answer) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout)
    console = console if console.is_terminal else Console(file=sys.stdout, width=120)
    for line in _headline(answer):
        console.print(line, highlight=False, markup=False)
    for table in (_class_table(answer), _cause_table(answer), _better_table(answer)):
        if table.row_count:
            console.print()
            console.print(table)
    if answer.recovery.spares is None:
        text = (
            "A lost machine is taken to be replaced at once from a reserve, whose price is not in the cost; --spares N "
            "simulates a limited one."
        )
        console.print(f"\n{text}", highlight=False, markup=False)


def _headline(answer: Answer) -> list[str]:
    from orchestrator.cost.meter import money
    from orchestrator.plan.policy import in_words

    scenario, simulated, expected = answer.scenario, answer.simulated, answer.expected
    goodputs, days = simulated.goodputs, (scenario.seconds or 0) / DAY
    mean, lost = sum(goodputs) / len(goodputs), _lost_cost(simulated)
    model = scenario.failures
    failures = sum(simulated.failures().values())
    every = (
        "no failures" if expected.mtbf_hours == float("inf") else f"one every {in_words(3600 * expected.mtbf_hours)}"
    )
    used = "given" if scenario.interval_seconds is not None else "the best"
    lines = [
        f"{scenario.gpus:,} GPUs for {days:g} days, failures as {model.name}: {every}, {failures:,.0f} in a run",
        f"goodput {mean:.1%} ({min(goodputs):.1%} to {max(goodputs):.1%} in {len(goodputs)} simulated runs; "
        f"{expected.fraction:.1%} by formula)",
        "no checkpoints, since nothing fails"
        if expected.interval_seconds == float("inf")
        else f"checkpoint every {in_words(expected.interval_seconds)} of training ({used})",
        f"cost {money(simulated.cost, answer.price.currency)}, of it {money(lost, answer.price.currency)} lost; "
        f"{answer.price.amount} {answer.price.currency} per GPU-hour: {answer.price.source}",
        f"failure rates: {model.source} ({model.date})",
    ]
    if scenario.interval_seconds is not None:
        best = answer.best
        lines.insert(3, f"the best is every {in_words(best.interval_seconds)}: {best.fraction:.1%} by formula")
    if expected.local_interval_seconds is not None:
        lines.insert(3, f"a copy in memory every {in_words(expected.local_interval_seconds)}")
    return lines


def _table(*headings: str) -> Any:  # noqa: ANN401 - rich is imported late
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right", no_wrap=place > 0)
    return table


def _class_table(answer: Answer) -> Any:  # noqa: ANN401 - rich is imported late
    from orchestrator.cost.meter import money

    table = _table("WHERE THE TIME GOES", "HOURS", "SHARE", "COST")
    for name, one in answer.simulated.by_class().items():
        if one.hours:
            cost = money(one.cost, answer.price.currency)
            table.add_row(_CLASSES[name], f"{one.hours:,.1f}", f"{one.share:.2%}", cost)
    return table


def _cause_table(answer: Answer) -> Any:  # noqa: ANN401 - rich is imported late
    from rich.text import Text

    from orchestrator.cost.meter import money

    table, counts = _table("LOST BY CAUSE", "FAILURES", "HOURS", "SHARE", "COST"), answer.simulated.failures()
    causes = list(answer.simulated.by_cause().items())
    for name, one in causes[:CAUSES_SHOWN]:
        cost, count = money(one.cost, answer.price.currency), f"{counts[name]:,.1f}" if name in counts else "-"
        table.add_row(Text(name), count, f"{one.hours:,.1f}", f"{one.share:.2%}", cost)
    rest = causes[CAUSES_SHOWN:]
    if rest:
        cost = money(sum((one.cost for _, one in rest), Decimal(0)), answer.price.currency)
        count = f"{sum(counts.get(name, 0) for name, _ in rest):,.1f}"
        hours, share = sum(one.hours for _, one in rest), sum(one.share for _, one in rest)
        table.add_row(f"{len(rest)} more (-o json)", count, f"{hours:,.1f}", f"{share:.2%}", cost)
    return table


def _better_table(answer: Answer) -> Any:  # noqa: ANN401 - rich is imported late
    from orchestrator.cost.meter import money

    table = _table("WHAT ONE CHANGE WOULD BE WORTH", "GOODPUT", "GAIN, POINTS", "WORTH")
    for one in answer.better:
        name = f"{one.name} (in use: what it saves now)" if one.used else one.name
        gain = f"{100 * one.gain:+.2f} ± {100 * one.gain_error:.2f}"
        table.add_row(f"{name}: {one.change}", f"{one.goodput:.1%}", gain, money(one.worth, answer.price.currency))
    return table

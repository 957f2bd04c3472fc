"""`fathom plan`: what a run will take, before it runs. Needs no GPU and no torch.

Registered by `orchestrator.cli.main`. Data goes to stdout only; every number in the JSON is finite.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.cli.pictures import Form, require_picture, write_picture
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.plan.against import Column
    from orchestrator.plan.forecast import Plan
    from orchestrator.plan.request import Request


class EngineChoice(StrEnum):
    """Whose layouts the forecast is for."""

    today = "today"
    any = "any"


def plan_command(
    job: Annotated[Path | None, typer.Argument(help="A TrainingJob; its dataset need not exist.")] = None,
    preset: Annotated[str | None, typer.Option(help="Architecture; `fathom model` lists them.")] = None,
    accelerator: Annotated[str | None, typer.Option(help="Kind of GPU, e.g. H100.")] = None,
    gpus: Annotated[str | None, typer.Option(help="GPUs of the whole run.", metavar="NUMBER")] = None,
    tokens: Annotated[str | None, typer.Option(help="Tokens to train on, e.g. 14.8T.", metavar="NUMBER")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32, bf16 or fp8.")] = None,
    sequence_length: Annotated[str | None, typer.Option(help="Tokens per sequence.", metavar="NUMBER")] = None,
    batch_tokens: Annotated[str | None, typer.Option(help="Tokens per optimizer step.", metavar="NUMBER")] = None,
    price_class: Annotated[str | None, typer.Option(help="Which price of the price list, e.g. on-demand.")] = None,
    gpus_per_node: Annotated[str | None, typer.Option(help="GPUs of one machine.", metavar="NUMBER")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Any field of a job, e.g. model.overrides.layers=8; repeatable.", metavar="FIELD=VALUE"
        ),
    ] = None,
    compared: Annotated[
        list[str] | None,
        typer.Option("--against", help="A published run, e.g. llama-3.1-405b; repeatable.", metavar="RUN"),
    ] = None,
    engine: Annotated[
        EngineChoice | None,
        typer.Option(
            help="Layouts that Fathom runs today, or any known one. Left out: today for a job file, any for options."
        ),
    ] = None,
    failures: Annotated[
        str | None, typer.Option(help="Failure rates: a packaged model or a YAML file.", metavar="NAME_OR_FILE")
    ] = None,
    output: OutputOption = Output.table,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw memory and time by part into this file: .html (one page) or .png.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a picture that is there already.")] = False,
) -> None:
    """Forecast a run: will it fit, how long, what will it cost, how to lay it out.

    Examples: fathom plan job.yaml
    |  fathom plan --preset v3-671b --accelerator H800 --gpus 2048 --tokens 14.8T --precision fp8 --plot plan.html
    """
    given = {
        "preset": preset,
        "accelerator": accelerator,
        "gpus": gpus,
        "tokens": tokens,
        "precision": precision,
        "sequence-length": sequence_length,
        "batch-tokens": batch_tokens,
        "price-class": price_class,
        "gpus-per-node": gpus_per_node,
    }
    flags = {name: text for name, text in given.items() if text is not None}
    form = require_picture(plot, force=force) if plot is not None else None
    plan, columns = _made(job, flags, assignments or [], engine, failures, compared or [])
    if plot is not None and form is not None:
        write_picture(plot, partial(_drawn, form, plan))
    _print(plan, columns, output)


def _made(
    job: Path | None,
    flags: dict[str, str],
    assignments: list[str],
    engine: EngineChoice | None,
    failures: str | None,
    compared: list[str],
) -> tuple[Plan, tuple[Column, ...]]:
    from orchestrator.plan.against import against
    from orchestrator.plan.basis import FAILURES, Basis
    from orchestrator.plan.estimate import estimate
    from orchestrator.plan.known import known_run
    from orchestrator.plan.request import make_request
    from orchestrator.settings import Settings

    settings = Settings.load()
    for name in compared:
        known_run(name)  # a wrong name is said before anything is computed
    request: Request = make_request(
        job,
        flags,
        assignments,
        hardware=settings.hardware_file,
        engine=engine.value if engine is not None else None,
    )
    basis = Basis.load(settings, failures or FAILURES)
    plan = estimate(request, basis)
    return plan, against(plan, compared, basis.prices) if compared else ()


def _drawn(form: Form, plan: Plan) -> bytes:
    from orchestrator.cli.planned import answers, title
    from orchestrator.plan.figure import figure_of
    from orchestrator.tracking.plan_picture import plan_html, plan_png

    try:
        figure = figure_of(plan)
    except ValueError as error:
        raise UsageError("; ".join([f"--plot has nothing to draw: {error}", *plan.notes[:1]])) from None
    found = [(name, text.plain) for name, text in answers(plan)]
    if form == "html":
        return plan_html(figure, title(plan).plain, found)
    said = [(name, text.replace("   ", " ")) for name, text in found]
    first = "; ".join(text for name, text in said if name in ("cost", "time", "speed"))
    rest = [f"{name}: {text}" for name, text in said if name in ("layout", "today")]
    return plan_png(figure, title(plan).plain, [line for line in (first, *rest) if line])


def _print(plan: Plan, columns: tuple[Column, ...], output: Output) -> None:
    document = plan.model_dump(mode="json")
    if columns:
        document["against"] = [column.model_dump(mode="json") for column in columns]
    if for_programs(document, output, [plan.request.model]):
        return
    from rich.console import Console

    from orchestrator.cli.planned import plan_tables

    Console(file=sys.stdout, highlight=False).print(plan_tables(plan, columns))

"""`fathom calibrate`: the planner's constants fitted to one's own finished runs. Registered by `orchestrator.cli.main`.

Results go to stdout or into the file after --write, remarks to stderr.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Group

    from orchestrator.plan.calibrate import Calibration
    from orchestrator.plan.observed import Observed
    from orchestrator.settings import Settings


def calibrate_command(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of finished runs, or JSON files of the form that -o json prints."),
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(help="An MLflow that holds finished runs; with --experiment.", metavar="URI")
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow's experiment; alone: in the MLflow of the settings.", metavar="NAME")
    ] = None,
    accelerator: Annotated[
        str | None,
        typer.Option(
            help="On which GPUs those runs in MLflow were that do not say so: of earlier versions.", metavar="NAME"
        ),
    ] = None,
    output: OutputOption = Output.table,
    write: Annotated[
        Path | None,
        typer.Option(help="Write the constants into this file, for FATHOM_EFFICIENCIES.", metavar="FILE"),
    ] = None,
) -> None:
    """Fit the planner's constants to finished runs, and show how well each run is forecast, and was before.

    On GPUs these are shares of peaks, on CPUs the rates of one core. Start: the constants that ship with Fathom.

    Examples: fathom calibrate runs/a runs/b --write efficiencies.yaml
    |  fathom calibrate --experiment mini
    """
    from orchestrator.plan.calibrate import calibrate, file_text
    from orchestrator.plan.cpu import cpu_priors
    from orchestrator.plan.efficiency import efficiencies
    from orchestrator.plan.hardware import accelerators
    from orchestrator.settings import Settings

    settings = Settings.load()
    runs = _runs(sources or [], settings, mlflow, experiment, accelerator)
    found = calibrate(runs, efficiencies(), accelerators(settings.hardware_file), cpu_priors())
    if write is not None:
        _write(write, lambda today: file_text(found, write, today))
    if for_programs(content(found, runs), output, [run.name for run in runs]):
        return
    from rich.console import Console

    Console(file=sys.stdout, highlight=False).print(tables(found))


def _runs(
    sources: list[Path], settings: Settings, mlflow: str | None, experiment: str | None, accelerator: str | None
) -> list[Observed]:
    from orchestrator.controller.finished import observed
    from orchestrator.plan.observed import read_observations

    if mlflow is not None and experiment is None:
        raise UsageError("--mlflow needs --experiment: which runs to take")
    if not sources and experiment is None:
        raise UsageError("no runs: give folders of runs, a JSON file, or --experiment NAME")
    found: list[Observed] = []
    for source in sources:
        found += read_observations(source) if os.path.exists(source) and not source.is_dir() else [observed(source)]
    if experiment is not None:
        from importlib.util import find_spec

        if find_spec("mlflow") is None:
            raise UsageError("reading MLflow needs mlflow: install with `pip install 'fathom-train[train]'`")
        from orchestrator.tracking.finished import from_mlflow

        def remark(text: str) -> None:
            print(f"left out: {text}", file=sys.stderr)

        found += from_mlflow(mlflow or settings.tracking_uri, experiment, accelerator, remark)
    return found


def _write(path: Path, text: Any) -> None:  # noqa: ANN401 - a function of today's date
    import datetime

    from orchestrator.cli.files import write_file
    from orchestrator.plan.efficiency import efficiencies

    if os.path.exists(path):
        efficiencies(path)  # rows that no plan could read are not carried on
    content = text(datetime.datetime.now(datetime.UTC).date())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.resolve()  # a link stays one
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}") from error
    write_file(target, content.encode())
    print(f"{path}: written; set FATHOM_EFFICIENCIES={path.absolute()} to plan with it", file=sys.stderr)


def content(found: Calibration, runs: list[Observed]) -> dict[str, Any]:
    """Everything, for programs; "runs" is what can be given again."""
    return {
        "device": found.device,
        "constants": [
            {"name": one.constant.name, "prior": one.constant.prior, "value": one.value, "spread": one.spread}
            for one in found.constants
        ],
        "errors": [
            {
                "name": one.name,
                "measuredSeconds": one.measured,
                "before": one.before,
                "after": one.after,
                "leftOut": one.left_out,
            }
            for one in found.errors
        ],
        "runs": [one.model_dump(mode="json", exclude_none=True) for one in runs],
    }


def tables(found: Calibration) -> Group:
    """The same for people."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from orchestrator.plan.calibrate import GROUPS

    what = "CPU seconds of all workers" if found.device == "cpu" else "seconds"
    constants = Table("CONSTANT", "BEFORE", "AFTER", "UNCERTAIN BY", box=None, pad_edge=False, header_style="bold")
    for one in found.constants:
        spread = f"{one.spread:.0%}" if one.constant.prior else f"{one.spread:.2g}"
        constants.add_row(one.constant.name, f"{one.constant.prior:.4g}", f"{one.value:.4g}", spread)
    runs = Table("RUN", "MEASURED", "BEFORE", "AFTER", "LEFT OUT", box=None, pad_edge=False, header_style="bold")
    for error in found.errors:
        shown = (f"{_off(forecast, error.measured)}" for forecast in (error.before, error.after, error.left_out))
        runs.add_row(Text(error.name), f"{error.measured:.4g}", *shown)
    others = "all other runs" if len(found.errors) <= GROUPS else f"the runs outside its group, one of {GROUPS}"
    legend = (
        f"MEASURED: {what} of a step. Forecast over measured before and after the fit; LEFT OUT: by a fit to {others}, "
        "which is what to expect of a run that is still to come."
    )
    return Group(constants, Text(), runs, Text(legend, style="dim"))


def _off(forecast: float | None, measured: float) -> str:
    return "-" if forecast is None else f"{forecast / measured - 1:+.1%}"

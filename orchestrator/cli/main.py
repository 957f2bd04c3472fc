"""The `fathom` command: registers the command groups, turns errors into messages and exit codes.

Data goes to stdout, talk to stderr. Commands import what is heavy only when they run.
"""

from __future__ import annotations

import sys

import typer

from orchestrator.cli.budget import budget_command
from orchestrator.cli.calibrate import calibrate_command
from orchestrator.cli.checkpoints import checkpoints_app
from orchestrator.cli.cost import cost_command
from orchestrator.cli.data import data_app
from orchestrator.cli.evaluate import evaluate_command
from orchestrator.cli.export import export_command
from orchestrator.cli.generate import generate_command
from orchestrator.cli.goodput import goodput_command
from orchestrator.cli.metrics import metrics_command
from orchestrator.cli.mlflow import mlflow_command
from orchestrator.cli.model import model_command
from orchestrator.cli.plan import plan_command
from orchestrator.cli.sync import sync_command
from orchestrator.cli.train import train_command
from orchestrator.errors import FathomError

EXIT_CODES = (
    "Exit codes: 0 ok, 1 run failed, 2 wrong usage or job, 3 not found, 4 conflict, 5 over budget, 130 stopped."
)

app = typer.Typer(
    help="Train DeepSeek-style language models, and know the price at every moment.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train_command)
app.command("plan")(plan_command)
app.command("cost")(cost_command)
app.command("budget")(budget_command)
app.command("evaluate")(evaluate_command)
app.command("export")(export_command)
app.command("generate")(generate_command)
app.command("goodput")(goodput_command)
app.command("metrics")(metrics_command)
app.command("model")(model_command)
app.command("calibrate")(calibrate_command)
app.command("sync")(sync_command)
app.command("mlflow")(mlflow_command)
app.add_typer(data_app, name="data")
app.add_typer(checkpoints_app, name="checkpoints")


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    except FathomError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)  # whoever read our output has gone; there is nobody to tell


if __name__ == "__main__":
    main()

"""The `fathom` command: registers the command groups, turns errors into messages and exit codes.

Data goes to stdout, talk to stderr. Commands import what is heavy only when they run.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from typing import Annotated, cast

import typer

from orchestrator.cli.apply import apply_command
from orchestrator.cli.budget import budget_command
from orchestrator.cli.calibrate import calibrate_command
from orchestrator.cli.change import cancel_command, delete_command, resume_command, suspend_command
from orchestrator.cli.checkpoints import checkpoints_app
from orchestrator.cli.compare import compare_command
from orchestrator.cli.completion import completion_command, is_completing, quietly
from orchestrator.cli.controller import controller_command
from orchestrator.cli.cost import cost_command
from orchestrator.cli.data import data_app
from orchestrator.cli.demo import demo_command
from orchestrator.cli.doctor import doctor_command
from orchestrator.cli.evaluate import evaluate_command
from orchestrator.cli.explain import explain_command
from orchestrator.cli.export import export_command
from orchestrator.cli.follow import events_command, logs_command, wait_command
from orchestrator.cli.generate import generate_command
from orchestrator.cli.goodput import goodput_command
from orchestrator.cli.groups import Grouped
from orchestrator.cli.jobs import get_command, list_command
from orchestrator.cli.metrics import metrics_command
from orchestrator.cli.mlflow import mlflow_command
from orchestrator.cli.model import model_command
from orchestrator.cli.plan import plan_command
from orchestrator.cli.serve import serve_command
from orchestrator.cli.sync import sync_command
from orchestrator.cli.tokens import token_app
from orchestrator.cli.top import top_command
from orchestrator.cli.train import train_command
from orchestrator.cli.why import why_command
from orchestrator.errors import FathomError, Interrupted, RunFailed

EXIT_CODES = (
    "Exit codes: 0 ok, 1 run failed, 2 wrong usage or job, 3 not found, 4 conflict, 5 over budget, 130 stopped."
)

app = typer.Typer(
    cls=Grouped,
    help="Train DeepSeek-style language models, and know the price at every moment.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options, and its errors come in boxes
)


@app.callback()
def _of_all(
    context: Annotated[
        str | None,
        typer.Option(help="Of your kubeconfig: ask the controller of that cluster. FATHOM_CONTEXT is the same."),
    ] = None,
) -> None:
    """Before any command."""
    if context is not None:
        from orchestrator.client.find import elsewhere

        chosen = elsewhere(os.environ, context)
        for name in set(os.environ) - set(chosen):
            del os.environ[name]
        os.environ["FATHOM_CONTEXT"] = context


_JOBS, _MONEY, _MODELS, _SERVICE = "Jobs", "Plans and money", "Data and models", "The service"
app.command("apply", rich_help_panel=_JOBS)(apply_command)
app.command("list", rich_help_panel=_JOBS)(list_command)
app.command("get", rich_help_panel=_JOBS)(get_command)
app.command("logs", rich_help_panel=_JOBS)(logs_command)
app.command("events", rich_help_panel=_JOBS)(events_command)
app.command("top", rich_help_panel=_JOBS)(top_command)
app.command("wait", rich_help_panel=_JOBS)(wait_command)
app.command("why", rich_help_panel=_JOBS)(why_command)
app.command("compare", rich_help_panel=_JOBS)(compare_command)
app.command("suspend", rich_help_panel=_JOBS)(suspend_command)
app.command("resume", rich_help_panel=_JOBS)(resume_command)
app.command("cancel", rich_help_panel=_JOBS)(cancel_command)
app.command("delete", rich_help_panel=_JOBS)(delete_command)
app.command("train", rich_help_panel=_JOBS)(train_command)
app.command("plan", rich_help_panel=_MONEY)(plan_command)
app.command("cost", rich_help_panel=_MONEY)(cost_command)
app.command("budget", rich_help_panel=_MONEY)(budget_command)
app.command("goodput", rich_help_panel=_MONEY)(goodput_command)
app.command("calibrate", rich_help_panel=_MONEY)(calibrate_command)
app.command("model", rich_help_panel=_MODELS)(model_command)
app.command("evaluate", rich_help_panel=_MODELS)(evaluate_command)
app.command("generate", rich_help_panel=_MODELS)(generate_command)
app.command("export", rich_help_panel=_MODELS)(export_command)
app.command("metrics", rich_help_panel=_MODELS)(metrics_command)
app.command("sync", rich_help_panel=_MODELS)(sync_command)
app.command("mlflow", rich_help_panel=_MODELS)(mlflow_command)
app.add_typer(data_app, name="data", rich_help_panel=_MODELS)
app.add_typer(checkpoints_app, name="checkpoints", rich_help_panel=_MODELS)
app.command("serve", rich_help_panel=_SERVICE)(serve_command)
app.command("controller", rich_help_panel=_SERVICE)(controller_command)
app.command("explain", rich_help_panel=_SERVICE)(explain_command)
app.command("doctor", rich_help_panel=_SERVICE)(doctor_command)
app.command("completion", rich_help_panel=_SERVICE)(completion_command)
app.command("demo", rich_help_panel=_SERVICE)(demo_command)
app.add_typer(token_app, name="token", rich_help_panel=_SERVICE)


for one in [command for known in (app, data_app, checkpoints_app, token_app) for command in known.registered_commands]:
    assert one.callback is not None
    # the whole first paragraph: what typer takes by itself ends with the line
    one.short_help = " ".join((inspect.getdoc(one.callback) or "").split("\n\n")[0].split())

_Refused = cast(
    "type[typer.BadParameter]", next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
)
"""Every error of the command line's own; where it is defined depends on the version of typer."""


def main() -> None:
    """Entry point of the console script."""
    if is_completing():
        quietly(app)
    code = _outcome()
    error = _lost()
    failed = 0 if error is None else _give_up(error)
    sys.exit(code or failed)


def _outcome() -> int:
    """Run the command; -> its exit code."""
    try:
        code = app(prog_name="fathom", standalone_mode=False)
    except FathomError as error:
        _say(f"error: {error}")
        return error.exit_code
    except _Refused as error:
        text, context = error.format_message(), error.ctx
        if text.startswith("Usage:"):  # nothing was asked for: this is the help
            _say(text)
        else:
            _say(f"error: {text}" + (f"\nTry '{context.command_path} --help' for help." if context else ""))
        return error.exit_code
    except typer.Abort:
        _say("error: stopped")  # Ctrl-C or Ctrl-D at a question
        return Interrupted.exit_code
    except OSError as error:
        if _lost("\n") is None:  # one character more: without a buffer nothing is left that could fail again
            raise
        return _give_up(error)
    return code if isinstance(code, int) else 0


def _lost(more: str = "") -> OSError | None:
    """Send what is left of the output, and `more`; -> why it does not get through."""
    try:
        print(end=more, flush=True)
    except OSError as error:
        return error
    return None


def _give_up(error: OSError) -> int:
    """Say that the output is lost, unless its reader went by himself; -> the exit code."""
    sys.stdout = io.StringIO()  # what comes after is for nobody, and must not fail when Python ends
    if not isinstance(error, BrokenPipeError):
        _say(f"error: the output cannot be written: {error.strerror or error}")
    return RunFailed.exit_code


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()

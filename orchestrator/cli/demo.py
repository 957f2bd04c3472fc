"""`fathom demo`: what a user would type, typed for him: serve, plan, apply, follow, compare. Called by `make demo`.

Each step is a command of its own that is shown before it runs. A service that runs in this home already is used and
left alone; one that was started here ends with the demo, however that ends.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import Interrupted, NotFound, RunFailed

READY_SECONDS, _PAUSE, _STOP_SECONDS = 60.0, 0.2, 20.0
PAGE = "comparison.html"


def demo_command(
    jobs: Annotated[list[Path], typer.Argument(help="TrainingJobs, which run one after the other.")],
    by: Annotated[str, typer.Option(help="Axis of the comparison: step, tokens, flops, hours or dollars.")] = "dollars",
) -> None:
    """Show Fathom at work: start its service, plan, submit and follow some short jobs, and compare them.

    Example: fathom demo k8s/samples/demo-sparse.yaml k8s/samples/demo-dense.yaml
    """
    from orchestrator.settings import Settings

    home = Settings.load().home
    try:
        with _service(home) as ours:
            names = [_run(job) for job in jobs]
            if len(names) > 1:
                _fathom("compare", *names, "--by", by, "--html", str(home / PAGE), "--force")
    except KeyboardInterrupt:
        raise Interrupted(f"the demo was stopped; what it left is in {home}") from None
    _say(_look_around(names, home, ours))


def _run(job: Path) -> str:
    """-> the name under which it ran: a free one, so that an earlier demo stays as it was."""
    name = _free_name(job)
    _fathom("plan", str(job))
    try:
        _fathom("apply", str(job), "--set", f"metadata.name={name}", "--yes", "--follow")
    except KeyboardInterrupt:
        _fathom("suspend", name, "--wait")  # what nobody follows any more should not go on on its own
        raise
    return name


def _free_name(job: Path) -> str:
    from orchestrator.client import Client
    from orchestrator.jobfile import load_job

    metadata = load_job(job).metadata
    number, name = 1, metadata.name
    with Client() as client:
        while True:
            try:
                client.get(f"{metadata.namespace}/{name}")
            except NotFound:
                return name
            number += 1
            name = f"{metadata.name}-{number}"


@contextmanager
def _service(home: Path) -> Iterator[bool]:
    """A service for this home; -> whether it was started here, to end with the demo."""
    if _answers():
        yield False
        return
    home.mkdir(parents=True, exist_ok=True)
    log = home / "serve.log"
    _say(f"$ fathom serve --port 0 > {log} &")
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli", "serve", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the command in front, and ends the service after it
        )
    try:
        _wait(process, log)
        yield True
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _answers():
        if process.poll() is not None:
            raise RunFailed(f"the service ended with exit code {process.returncode} as it started: see {log}")
        if time.monotonic() > deadline:
            raise RunFailed(f"the service did not answer within {READY_SECONDS:.0f} s: see {log}")
        time.sleep(_PAUSE)


def _answers() -> bool:
    from orchestrator.client import Client
    from orchestrator.errors import FathomError

    with suppress(FathomError), Client() as client:
        client.me()
        return True
    return False


def _fathom(*arguments: str) -> None:
    """Run a command in front; RunFailed if it fails, after what it said itself."""
    shown = " ".join(shlex.quote(argument) for argument in arguments)
    _say(f"\n$ fathom {shown}")
    code = subprocess.run([sys.executable, "-m", "orchestrator.cli", *arguments], check=False).returncode
    if code:
        raise RunFailed(f"`fathom {shown}` ended with exit code {code}")


def _look_around(names: list[str], home: Path, ours: bool) -> str:
    first = names[0]
    lines = [
        "",
        f"The comparison as a page: {home / PAGE}",
        "Look around" + (" (the demo's service has ended: start it again with `fathom serve`)" if ours else "") + ":",
        "  fathom list                       what there is, and what it costs",
        f"  fathom why {first:<23}why it is where it is, and what to do",
        f"  fathom logs {first:<22}what it printed",
        f"  fathom cost {first:<22}where each second and cent went",
        "  fathom mlflow                     the same runs in MLflow",
    ]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

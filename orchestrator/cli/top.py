"""`fathom top`: what the running jobs do now: loss, speed, balance of experts, money, time left."""

from __future__ import annotations

import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Column, Output, OutputOption, coloured, show, table, talk
from orchestrator.cli.served import connect, detachable
from orchestrator.cli.spark import sparkline

if TYPE_CHECKING:
    from orchestrator.client import Client, Job

_REFRESH_SECONDS = 2.0
_KEPT, _SPARK_WIDTH = 2_000, 16
_LIVE = ("Starting", "Running")
_HELD = ("NAME", "PHASE", "STEP", "LOSS", "TOK/S", "SPENT", "LIMIT", "BURN/H", "ETA")


@dataclass
class Trend:
    """What the metrics of one job say, read on from where the last look ended."""

    cursor: str = ""
    losses: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    """Step and loss, each step as it was done last."""
    latest: dict[str, float] = field(default_factory=dict)

    def update(self, client: Client, job: Job) -> None:
        """What came since."""
        while True:
            page = client.metrics_since(job, self.cursor)
            for record in page.items:
                self._add(record["step"], record["metrics"])
            came, self.cursor = self.cursor, page.next
            if not page.more or page.next == came:
                return

    def _add(self, step: int, metrics: dict[str, float]) -> None:
        self.latest |= metrics
        while self.losses and self.losses[-1][0] >= step:
            self.losses.pop()  # work that was lost, and is done again
        if "train/loss" in metrics:
            self.losses.append((step, metrics["train/loss"]))


def top_command(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="NAME or TEAM/NAME. Left out: all that run.")
    ] = None,
    output: OutputOption = Output.table,
) -> None:
    """Watch jobs train: loss and its course, tokens/s, balance of experts, money, time left. Off a terminal: once.

    Examples: fathom top  |  fathom top mini  |  fathom top -o json
    """
    trends: dict[str, Trend] = {}
    with connect() as client:
        if output is Output.table and sys.stdout.isatty():
            _live(client, job, trends)
            return
        jobs = _seen(client, job, trends)
    if not jobs and output in (Output.table, Output.wide):
        talk("no job runs now; `fathom list` shows all")
        return
    documents = [one.document() | {"metrics": trends[one.key].latest} for one in jobs]
    if output in (Output.table, Output.wide):
        print(_table(jobs, trends, colour=coloured(sys.stdout)), end="")
        return
    from orchestrator.cli.job_rows import key_of

    show(documents, output, columns=(), row=lambda _: {}, name=key_of, one=job is not None)


def columns() -> list[Column]:
    """Those of `fathom list` that move, the balance and the course of the loss."""
    from orchestrator.cli.job_rows import COLUMNS

    kept = [column for column in COLUMNS if column.heading in _HELD]
    kept.insert([column.heading for column in kept].index("TOK/S") + 1, Column("BALANCE", right=True))
    return [*kept, Column("LOSS SO FAR")]


def cells(job: Job, trend: Trend) -> dict[str, str]:
    """BALANCE: by how much the most loaded expert exceeds its share; +0% is even."""
    from datetime import UTC, datetime

    from orchestrator.cli.job_rows import row

    over = trend.latest.get("moe/max_violation")
    return {
        **row(job, datetime.now(UTC), with_team=True),
        "BALANCE": "" if over is None else f"{over:+.0%}",
        "LOSS SO FAR": sparkline([loss for _, loss in trend.losses], _SPARK_WIDTH),
    }


def _table(jobs: list[Job], trends: dict[str, Trend], *, colour: bool) -> str:
    return table(columns(), [cells(one, trends[one.key]) for one in jobs], colour=colour)


def _seen(client: Client, name: str | None, trends: dict[str, Trend]) -> list[Job]:
    jobs = [client.get(name)] if name is not None else list(client.list(phases=_LIVE))
    for one in jobs:
        trends.setdefault(one.key, Trend()).update(client, one)
    return jobs


def _live(client: Client, name: str | None, trends: dict[str, Trend]) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from orchestrator.client.outcome import at_rest

    came_back = "jobs go on; come back with `fathom top`"
    console: Any = Console(highlight=False)
    with detachable(came_back), Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            jobs = _seen(client, name, trends)
            text = _table(jobs, trends, colour=coloured(sys.stdout)) if jobs else "no job runs now\n"
            live.update(Text.from_ansi(text, no_wrap=True), refresh=True)
            if name is not None and at_rest(jobs[0]):
                return
            time.sleep(_REFRESH_SECONDS)

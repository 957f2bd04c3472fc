"""Progress of a run: one live panel on a terminal, one `key=value` line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from orchestrator.cost.meter import money

if TYPE_CHECKING:
    from orchestrator.controller.follower import Snapshot
    from orchestrator.controller.record import Record

LINE_SECONDS = 10.0
_console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """A remark for the person, above the live panel if there is one."""
    _console.print(f"· {message}", markup=False, soft_wrap=True)


def duration(seconds: float | None) -> str:
    """3 h 05 m, 4 m 10 s, 12 s, or a dash."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} m"
    return f"{minutes} m {rest:02d} s" if minutes else f"{rest} s"


class Display:
    """Shows snapshots; use as a context manager."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._began = self._line_at = time.monotonic()
        self._last_step = -1
        self._bar = Progress(BarColumn(bar_width=None), TextColumn("{task.percentage:>5.1f} %"), expand=True)
        self._task: TaskID = self._bar.add_task("steps", total=None)
        self._live = Live(console=_console, refresh_per_second=4, transient=True) if _console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        else:
            say(f"run folder {self._record.folder.root}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def show(self, snapshot: Snapshot) -> None:
        """Called several times a second."""
        if self._live:
            self._live.update(self._panel(snapshot))
        elif self._due(snapshot):
            print(line(snapshot), file=sys.stderr, flush=True)

    def _due(self, snapshot: Snapshot) -> bool:
        seen, now = snapshot.observation, time.monotonic()
        if seen.step == self._last_step or (now - self._line_at < LINE_SECONDS and seen.step < seen.steps):
            return False
        self._last_step, self._line_at = seen.step, now
        return seen.step > 0

    def _panel(self, snapshot: Snapshot) -> Table:
        seen = snapshot.observation
        self._bar.update(self._task, total=seen.steps, completed=seen.step)
        grid = Table.grid(expand=True)
        root = escape(str(self._record.folder.root))
        grid.add_row(f"[bold]{self._record.job.metadata.name}[/bold]  {_phase(snapshot)}  [dim]{root}")
        grid.add_row(self._bar)
        grid.add_row("   ".join(f"[dim]{name}[/dim] {value}" for name, value in facts(snapshot).items()))
        return grid


def _phase(snapshot: Snapshot) -> str:
    if snapshot.stopping:
        return "[yellow]saving and stopping (Ctrl-C again to end at once)[/yellow]"
    if not snapshot.observation.running:
        return f"[cyan]starting {snapshot.resolved.workers} workers[/cyan]"
    return "[green]training[/green]"


def facts(snapshot: Snapshot) -> dict[str, str]:
    """What a person wants to see of a running job."""
    seen = snapshot.observation
    found = {"step": f"{seen.step}/{seen.steps}"}
    for name, metric, form in (
        ("loss", "train/loss", "{:.3f}"),
        ("bits/byte", "eval/bits_per_byte", "{:.3f}"),
        ("2nd token", "train/mtp_accuracy", "{:.1%}"),
        ("balance cv", "moe/cv", "{:.2f}"),
    ):
        if metric in seen.metrics:
            found[name] = form.format(seen.metrics[metric])
    if speed := seen.tokens_per_second:
        found["tokens/s"] = f"{speed:,.0f}"
    found["spent"] = money(snapshot.spent, snapshot.resolved.rate.currency)
    found["left"] = duration(seen.seconds_left)
    if seen.restarts:
        found["restarts"] = str(seen.restarts)
    return found


def line(snapshot: Snapshot) -> str:
    """The same for programs: `step=10/100 loss=3.21 ...`, one line."""
    seen, speed = snapshot.observation, snapshot.observation.tokens_per_second
    left = seen.seconds_left
    values: dict[str, object] = {"step": f"{seen.step}/{seen.steps}", "tokens": seen.tokens}
    for name, metric in (("loss", "train/loss"), ("bits_per_byte", "eval/bits_per_byte"), ("moe_cv", "moe/cv")):
        if metric in seen.metrics:
            values[name] = f"{seen.metrics[metric]:.4f}"
    values["tokens_per_second"] = f"{speed:.0f}" if speed else "nan"
    values[f"cost_{snapshot.resolved.rate.currency.lower()}"] = f"{snapshot.spent:.6f}"
    values["seconds_left"] = round(left) if left is not None else "nan"
    return " ".join(f"{name}={value}" for name, value in values.items())

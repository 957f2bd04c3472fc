"""Holds the failure model against published figures: `python -m orchestrator.plan.cases` prints docs/goodput.md's.

Each case has the figure as published, the closed form's and the simulator's. Invariants: what a case assumes is the
publisher's own figure or a default of `Recovery`, never chosen so that the case comes out; the error is that of the
simulation, as it comes. Imports no torch.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Literal

from orchestrator.plan.checkpointing import availability_period, budget_per_failure, optimal_interval
from orchestrator.plan.failures import Cause, Failures, failure_models
from orchestrator.plan.goodput import Recovery, goodput
from orchestrator.plan.policy import simulate_all
from orchestrator.plan.simulate import Run, Scenario, simulate

Kind = Literal["input", "formula", "predicted"]
"""The published figure made the rates, so that the row only checks the arithmetic; another's formula or worked example,
which ours has to repeat; or a figure that had no part in anything."""
DAY, HOUR = 86_400.0, 3_600.0
_SEEDS = range(20)


@dataclass(frozen=True)
class Case:
    """One published figure."""

    name: str
    kind: Kind
    published: float
    closed: float
    simulated: float
    form: str = "{:.3g}"
    """How the figures are printed."""
    share: bool = False
    """A share of time: the error is in points."""

    @property
    def error(self) -> float:
        """Simulated against published: relative, or the difference of shares."""
        return self.simulated - self.published if self.share else self.simulated / self.published - 1

    def row(self) -> str:
        """Of the table."""
        error = f"{100 * self.error:+.1f} points" if self.share else f"{self.error:+.1%}"
        figures = [self.form.format(value) for value in (self.published, self.closed, self.simulated)]
        return f"| {self.name} | {' | '.join(figures)} | {error} | {self.kind} |"


@cache
def cases() -> tuple[Case, ...]:
    """All of them."""
    parts: tuple[Callable[[], list[Case]], ...] = (
        _llama, _rsc, _ant, _glm, _clockwork, _changlan, _byterobust, _deepseek, _aws,
    )  # fmt: skip
    return tuple(case for part in parts for case in part())


def report() -> str:
    """The table, as Markdown."""
    lines = ["| case | published | closed form | simulated | error | kind |", "|---|---|---|---|---|---|"]
    lines += [case.row() for case in cases()]
    misses = [case for case in cases() if case.kind == "predicted"]
    shares = [abs(case.error) for case in misses if case.share]
    lines += [
        "",
        f"Of {len(shares)} predicted shares the median absolute error is {100 * statistics.median(shares):.1f} points, "
        f"the largest {100 * max(shares):.1f}.",
    ]
    return "\n".join(lines) + "\n"


def _runs(
    gpus: int, failures: Failures, recovery: Recovery, days: float, interval: float | None = None, per_node: int = 8
) -> list[Run]:
    scenario = Scenario(gpus, per_node, failures, recovery, seconds=days * DAY, interval_seconds=interval)
    return [simulate(scenario, seed) for seed in _SEEDS]


def _mean_goodput(runs: list[Run]) -> float:
    return statistics.mean(run.goodput for run in runs)


def _hours_between(failures: Failures, gpus: int) -> float:
    """Mean time between simulated failures of a job; 1,000 in each run, whatever the job does about them."""
    hours = 1000 * failures.mtbf_hours(gpus, 8)
    runs = _runs(gpus, failures, Recovery(1, 0, 0, 0, 0, 0), hours / 24)
    return sum(run.wall for run in runs) / sum(len(run.incidents) for run in runs) / 3.6e9


# ------------------------------------------------------------------ the cases
def _llama() -> list[Case]:
    """Grattafiori et al. 2024, arXiv 2407.21783: 419 in 54 days on 16,384 H100; more than 90 % of the time counted."""
    model = failure_models()["llama-3"]
    quick = Recovery(10, 600, detect_seconds=0, hang_seconds=0, replace_seconds=0, upload_seconds=0)
    runs, own = _runs(16384, model, quick, 54), _runs(16384, model, Recovery(), 54)
    failures = [sum(run.counts()[cause] for run in runs) / len(runs) for cause in ("faulty GPU", "software bug")]
    total = sum(len(run.incidents) for run in runs) / len(runs)
    size = (16384, 8, model)
    return [
        Case("Llama 3 405B, 16,384 GPUs, 54 days: failures", "input", 419, 1296 / model.mtbf_hours(16384, 8), total),
        Case("- of them faulty GPUs", "input", 148, 1296 * model.causes[0].per_hour(16384, 2048), failures[0]),
        Case("- of them software bugs", "input", 54, 1296 * model.causes[2].per_hour(16384, 2048), failures[1]),
        _share("- goodput (more than), R 10 min, C 10 s", "formula", 0.90, goodput(*size, quick).fraction, runs),
        _share("- goodput (more than), our defaults", "predicted", 0.90, goodput(*size, Recovery()).fraction, own),
    ]


def _rsc() -> list[Case]:
    """Kokolis et al. 2024, arXiv 2410.21680. The job's own rate in rsc-1-measured is what the 7.9 h leave."""
    one, two = failure_models()["rsc-1"], failure_models()["rsc-1-measured"]
    rows: list[tuple[str, Kind, float, Failures, int, float]] = [
        ("RSC-1, hours between failures: 16,384 GPUs", "input", 1.8, one, 16384, 1),
        ("- 131,072 GPUs, minutes", "formula", 13.5, one, 131072, 60),
        ("- 1,024 GPUs, from the nodes' rate alone", "predicted", 7.9, one, 1024, 1),
        ("- 1,024 GPUs, with a rate of the job's own", "input", 7.9, two, 1024, 1),
    ]
    return [
        Case(name, kind, known, unit * model.mtbf_hours(gpus, 8), unit * _hours_between(model, gpus))
        for name, kind, known, model, gpus, unit in rows
    ]


def _ant() -> list[Case]:
    """DLRover, stabilize_llm_training_cn.md: 0.27 % of cards a day, and what that means for a job of 1,000."""
    model = failure_models()["ant"]
    hits: set[tuple[int, int]] = set()
    for run in _runs(1000, model, Recovery(1, 0, 0, 0, 0, 0), 100):
        hits |= {(run.seed, int(one.at / 1e6 // DAY)) for one in run.incidents}
    simulated = len(hits) / (100 * len(_SEEDS))
    return [Case("Ant, 1,000 cards: days with a failure", "formula", 0.93, 1 - (1 - 0.0027) ** 1000, simulated,
                 "{:.1%}", share=True)]  # fmt: skip


def _glm() -> list[Case]:
    """DLRover's GLM-65B on 1,536 H800 (README, flash_checkpoint.md): goodput 69 % without it, 90 % with quicker
    restarts, 95 % with flash checkpoints on top. A checkpoint every 1.5 h, standing still for 2 min; then every tenth
    of its 250 steps 0.2 s for a copy in memory. Phases of a restart: stabilize_llm_training_cn.md, before and after.
    """
    model, gpus, interval = failure_models()["ant"], 1536, 1.5 * HOUR
    by_hand = Recovery(120, 13 * 60, detect_seconds=600, replace_seconds=2 * HOUR, upload_seconds=0)
    elastic = Recovery(120, 5 * 60, detect_seconds=0, replace_seconds=570, upload_seconds=0)
    flash = Recovery(
        0.2, 5 * 60, detect_seconds=0, replace_seconds=570, upload_seconds=60, local_save_seconds=0.2,
        local_interval_seconds=interval / 25,
    )  # fmt: skip
    rows = [("without DLRover", 0.69, by_hand), ("with it", 0.90, elastic), ("and with flash checkpoints", 0.95, flash)]
    return [
        _share(f"{'- ' if place else 'GLM-65B, 1,536 GPUs, goodput: '}{name}", "predicted", known,
               goodput(gpus, 8, model, recovery, interval).fraction, _runs(gpus, model, recovery, 60, interval))
        for place, (name, known, recovery) in enumerate(rows)
    ]  # fmt: skip


def _clockwork() -> list[Case]:
    """clockwork.io: 3,000 steps on 64 H200, a failure every 2,700 to 4,500 s, a checkpoint every 100 steps: 405 minutes
    where failures cost nothing, 818 with restarts. R is what the 818 leave, 23.5 min; 456 is what R = 0 would give."""
    causes = (Cause("injected", cure="process", every_seconds=(2700.0, 4500.0)),)
    work, interval, mean = 405 * 60.0, 405 * 60.0 / 30, 3600.0

    def minutes(restart: float, failures: Failures) -> float:
        recovery = Recovery(1e-6, restart, detect_seconds=0, upload_seconds=0)
        scenario = Scenario(64, 8, failures, recovery, work_seconds=work, interval_seconds=interval)
        return statistics.mean(simulate(scenario, seed).wall for seed in range(200)) / 6e7

    injected, never = Failures("injected", causes), Failures("never", ())
    rows: list[tuple[str, Kind, float, float, Failures]] = [
        ("Clockwork, minutes for 3,000 steps: no failures", "input", 405, 0.0, never),
        ("- restart at once, work done again", "formula", 456, 0.0, injected),
        ("- restart in 23.5 min", "input", 818, 23.5 * 60, injected),
    ]
    found = []
    for name, kind, known, restart, model in rows:
        lost = (interval / 2 + restart) / mean if model.causes else 0.0
        found.append(Case(name, kind, known, 405 / (1 - lost), minutes(restart, model), "{:.0f}"))
    return found


def _changlan() -> list[Case]:
    """The worked example on changlan.org, by NVIDIA's formula (arXiv 2410.18124): M 6,000 s, R 600 s, C 10 s, steps of
    15 s. Simulated: the best of 6, 12, 24, 48 and 96 steps over the same failures; nearer ones differ too little."""
    save, mtbf, restart, step = 10.0, 6000.0, 600.0, 15.0
    recovery = Recovery(save, restart, detect_seconds=0, replace_seconds=0, upload_seconds=0)
    model = Failures("one", (Cause("it", per_job_hour=3600 / mtbf),))

    def simulated(steps: int) -> float:
        scenario = Scenario(8, 8, model, recovery, seconds=2e7, interval_seconds=steps * step)
        return _mean_goodput([simulate(scenario, seed) for seed in range(4)])

    best = max((6, 12, 24, 48, 96), key=simulated)
    theirs = (availability_period(save, mtbf, restart) - save) / step
    return [Case("changlan.org, steps between checkpoints", "formula", 24, theirs, best, "{:.1f}")]


def _byterobust() -> list[Case]:
    """ByteRobust, arXiv 2509.16293: 97 % on 9,600 GPUs. At Llama 3's rates a failure may then cost 9.5 min in all:
    simulated with checkpoints of 1 s, and for the restart what they leave of it. And what our defaults would give."""
    model = failure_models()["llama-3"]
    mtbf = 3600 * model.mtbf_hours(9600, 8)
    whole, save = budget_per_failure(0.97, mtbf), 1.0
    interval = optimal_interval(save, mtbf)
    restart = whole - mtbf * save / interval - interval / 2
    tight = Recovery(save, restart, detect_seconds=0, hang_seconds=0, replace_seconds=0, upload_seconds=0)
    spent = _runs(9600, model, tight, 90)
    failed = sum(len(run.incidents) for run in spent)
    each = sum(run.wall - run.times["productive"] for run in spent) / failed / 6e7
    size = (9600, 8, model)
    return [
        Case("ByteRobust, 9,600 GPUs: minutes that a failure may cost for 97 %", "formula", 9.5, whole / 60, each),
        _share("- goodput if it costs that", "formula", 0.97, goodput(*size, tight).fraction, spent),
        _share("- goodput, Llama 3's rates and our defaults", "predicted", 0.97, goodput(*size, Recovery()).fraction,
               _runs(9600, model, Recovery(), 90)),
    ]  # fmt: skip


def _deepseek() -> list[Case]:
    """DeepSeek-V3, arXiv 2412.19437, table 1: hours held are hours paid, at 2 dollars. No failures are published."""
    never = Failures("never", ())

    def held(gpu_hours: float) -> Scenario:
        return Scenario(2048, 8, never, Recovery(), work_seconds=gpu_hours / 2048 * 3600)

    simulated = simulate_all(held(2.788e6), Decimal(2) * 2048, 0, 1)
    run = simulate(held(180e3 * 14.8))
    return [
        Case("DeepSeek-V3, thousand GPU-hours for 14.8T tokens", "formula", 2664, 180 * 14.8,
             2048 * run.wall / 3.6e12, "{:.0f}"),
        Case("- days for a trillion tokens on 2,048 GPUs", "formula", 3.66, 180e3 / 2048 / 24,
             run.wall / 1e6 / DAY / 14.8),
        Case("- million dollars", "formula", 5.576, 2.788 * 2, float(simulated.cost) / 1e6, "{:.3f}"),
    ]  # fmt: skip


def _aws() -> list[Case]:
    """AWS on OPT-175B: 124 instances, 105 restarts in two months."""
    model = failure_models()["opt-175b-aws"]
    runs = _runs(992, model, Recovery(1, 0, 0, 0, 0, 0), 60)
    rate = sum(len(run.incidents) for run in runs) / (124 * 1440 * len(runs))
    return [
        Case("AWS, OPT-175B: failures per hour of an instance", "input", 0.000588, model.per_hour(992, 8) / 124, rate,
             "{:.4%}"),
    ]  # fmt: skip


def _share(name: str, kind: Kind, published: float, closed: float, runs: list[Run]) -> Case:
    assert 0 < closed < 1
    return Case(name, kind, published, closed, _mean_goodput(runs), "{:.1%}", share=True)


if __name__ == "__main__":
    print(report(), end="")

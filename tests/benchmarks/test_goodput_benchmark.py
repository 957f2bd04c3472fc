"""`benchmarks/goodput.py` in a small size, and its plain models against the simulator: an independent check of it."""

import re
import statistics

import pytest

from benchmarks import goodput as benchmark
from orchestrator.plan.failures import Cause, Failures, failure_models
from orchestrator.plan.goodput import Recovery
from orchestrator.plan.simulate import Scenario

LLAMA = failure_models()["llama-3"]
HARD = Failures("hard", (Cause("node", per_job_hour=1), Cause("bug", per_job_hour=1, cure="process")))


def test_it_runs_and_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.main(["--gpus", "16384", "--days", "1", "--repeat", "1", "--runs", "3"])
    out = capsys.readouterr().out
    assert "16,384 GPUs for 1 days, failures as llama-3: 88.26% by formula" in out
    found = dict(re.findall(r"^(fathom|second by second): .*?([\d.]+) times", out, flags=re.MULTILINE))
    assert found["fathom"] == "1.0"
    assert float(found["second by second"]) > 3, "playing out events is quicker than asking at each second"
    assert "simpy: " in out


@pytest.mark.parametrize(
    ("failures", "days"), [(LLAMA, 20.0), (HARD, 8.0)], ids=["llama-3", "failures during recoveries"]
)
@pytest.mark.parametrize("name", ["by_seconds", "by_processes"])
def test_plain_models_agree_with_the_simulator(name: str, failures: Failures, days: float) -> None:
    scenario = Scenario(16384, 8, failures, Recovery(), days * benchmark.DAY)
    ours = [benchmark.by_fathom(scenario, seed) for seed in range(30)]
    theirs = [getattr(benchmark, name)(scenario, seed) for seed in range(3 if name == "by_seconds" else 12)]
    error = statistics.variance(ours) / len(ours) + statistics.variance(ours) / len(theirs)
    difference = abs(statistics.mean(ours) - statistics.mean(theirs))
    assert difference < 4 * error**0.5, f"{difference:.4f} apart, expected within {error**0.5:.4f}"

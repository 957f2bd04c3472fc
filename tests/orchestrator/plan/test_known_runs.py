from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.known import DATA, known_run, known_runs, read_runs


@pytest.mark.parametrize(
    ("name", "parameters", "gigaflops", "mfu"),
    [  # reference table 1.6: implied utilisation, causal, dense BF16 peak
        ("deepseek-v3", 671_026_404_352, 250.4, 0.391),
        ("llama-3.1-405b", 405_853_388_800, 2524, 0.358),
        ("llama-3.1-70b", 70_553_706_496, 449, 0.270),
        ("llama-3.1-8b", 8_030_261_248, 51.5, 0.148),
    ],
)
def test_utilisation_of_published_runs(name: str, parameters: int, gigaflops: float, mfu: float) -> None:
    run = known_run(name)
    assert run.parameters[0] == parameters
    assert run.tokens is not None
    assert run.flops is not None
    assert run.flops / run.tokens / 1e9 == pytest.approx(gigaflops, rel=1e-3)
    assert run.mfu == pytest.approx(mfu, abs=0.001)


def test_the_costs_that_were_published() -> None:
    v3, r1 = known_run("deepseek-v3"), known_run("deepseek-r1")
    assert v3.total_gpu_hours == 2_788_000
    assert v3.assumed_price == Decimal("2.00")
    assert v3.total_gpu_hours * v3.assumed_price == 5_576_000
    assert (r1.total_gpu_hours, r1.total_gpu_hours * v3.assumed_price) == (147_336, 294_672)
    assert (r1.on_top_of, r1.flops, r1.mfu) == ("deepseek-v3", None, None)


def test_every_run_says_where_it_comes_from_and_what_it_leaves_out() -> None:
    for run in known_runs().values():
        assert run.source
        assert run.excludes
        assert run.date.year >= 2024


def test_unknown_runs_and_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'llama-405b'; did you mean llama-3.1-405b\?"):
        known_run("llama-405b")
    text = DATA.read_text()
    for broken, message in (
        (text.replace("model: llama-3.1-8b", "model: llama-9"), "row 5: model: .*no preset 'llama-9'"),
        (text.replace("name: deepseek-r1", "name: deepseek-v3"), "5 rows, but only 4"),
        (text.replace("onTopOf: deepseek-v3", "onTopOf: gpt"), "on top of 'gpt'"),
        (text.replace("gpuHours: 2664000", "gpuHours: .nan"), "row 1: stages.0.gpuHours"),
        ("", "must be a list"),
    ):
        path = tmp_path / "runs.yaml"
        path.write_text(broken)
        with pytest.raises(UsageError, match=message):
            read_runs(path)

"""What a picture of a plan shows: each part once, and sums that are the plan's."""

import pytest

from orchestrator.plan.basis import Basis
from orchestrator.plan.estimate import estimate
from orchestrator.plan.figure import at_the_peak, figure_of, memory_label, time_label
from orchestrator.plan.forecast import Plan
from orchestrator.plan.request import make_request
from orchestrator.settings import Settings

RUNS = [
    {"preset": "v3-671b", "accelerator": "H800", "gpus": "2048", "tokens": "14.8T", "precision": "fp8"},
    {"preset": "v2-lite-16b", "accelerator": "H100", "gpus": "16", "tokens": "100B"},
    {"preset": "v2-lite-16b", "accelerator": "A100", "gpus": "64", "tokens": "1B", "sequence-length": "1024"},
]


def planned(flags: dict[str, str]) -> Plan:
    return estimate(make_request(None, flags, []), Basis.load(Settings.load(), "llama-3"))


@pytest.fixture(scope="module", params=RUNS, ids=["v3", "lite", "lite-a100"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return planned(request.param)


def test_memory_adds_up_under_each_policy(plan: Plan) -> None:
    assert plan.memory is not None
    assert plan.layout is not None
    figure = figure_of(plan)
    assert [bar.policy for bar in figure.bars] == list(plan.memory.by_recompute)
    for bar in figure.bars:
        assert sum(bar.parts.values()) == bar.peak == plan.memory.by_recompute[bar.policy]
        assert bar.fits == (bar.peak <= figure.usable)
    (chosen,) = [bar for bar in figure.bars if bar.chosen]
    assert chosen.policy == plan.layout.recompute
    assert chosen.peak == plan.memory.peak
    assert chosen.parts.items() <= plan.memory.by_part.items()
    assert set(plan.memory.by_part) - set(chosen.parts) <= {
        "update", *(name for name, size in plan.memory.by_part.items() if not size)
    }  # fmt: skip


def test_time_adds_up_and_each_part_is_there_once(plan: Plan) -> None:
    assert plan.step is not None
    figure = figure_of(plan)
    names = [row.part for row in figure.rows]
    assert len(set(names)) == len(names)
    assert set(names) == {*plan.step.parts, *plan.step.overlapped}
    assert sum(row.counts for row in figure.rows) == pytest.approx(figure.seconds, rel=1e-9)
    assert figure.seconds == plan.step.seconds
    assert {row.part: row.hidden for row in figure.rows if row.hidden} == plan.step.overlapped


def test_parts_have_words_of_their_own(plan: Plan) -> None:
    figure = figure_of(plan)
    times = [time_label(row.part) for row in figure.rows]
    sizes = [memory_label(part) for part in figure.bars[0].parts]
    assert len(set(times)) == len(times)
    assert len(set(sizes)) == len(sizes)
    assert memory_label("activations") == "activations"
    assert time_label("activations") == "norms, activations: memory traffic"
    assert time_label("not_known_yet") == "not known yet"


def test_either_the_update_or_what_the_backward_pass_holds() -> None:
    parts = {"weights": 3, "master": 0, "gradients": 2, "moments": 1, "activations": 10, "update": 4}
    assert at_the_peak(parts, 16) == {"weights": 3, "gradients": 2, "moments": 1, "activations": 10}
    large = parts | {"update": 40, "fragmentation": 6}
    assert at_the_peak(large, 52) == {"weights": 3, "gradients": 2, "moments": 1, "update": 40, "fragmentation": 6}
    with pytest.raises(ValueError, match="add up to 16 or 10 bytes, not 17"):
        at_the_peak(parts, 17)


def test_seconds_that_are_no_number_are_refused(plan: Plan) -> None:
    assert plan.step is not None
    broken = plan.step.model_copy(update={"parts": plan.step.parts | {"optimizer": float("nan")}})
    with pytest.raises(ValueError, match="must be finite, got nan"):
        figure_of(plan.model_copy(update={"step": broken}))


def test_half_a_plan_is_half_a_figure(plan: Plan) -> None:
    assert figure_of(plan.model_copy(update={"step": None})).rows == ()
    assert figure_of(plan.model_copy(update={"memory": None})).bars == ()
    with pytest.raises(ValueError, match="no memory and no time"):
        figure_of(plan.model_copy(update={"memory": None, "step": None}))


def test_the_json_has_memory_under_each_policy(plan: Plan) -> None:
    assert plan.memory is not None
    document = plan.model_dump(mode="json")["memory"]
    assert document["byPartOfRecompute"].keys() == document["byRecompute"].keys()
    assert plan.layout is not None
    assert document["byPartOfRecompute"][plan.layout.recompute] == document["byPart"]

"""DeepSpeed in every layout gives the same mathematics as one plain process.

ZeRO 0 to 3, experts over 1, 2 and 4 processes, 2 and 4 processes in all, with multi-token prediction, bias updates and
auxiliary loss, gradient accumulation and recomputation.
"""

from pathlib import Path

import pytest
import torch
from support import parity
from support.engine_worker import STEPS, Case, Outcome, run

from model.recipe import Layout

pytestmark = pytest.mark.processes
Matrix = dict[str, list[Outcome]]
NAMES = {world: [case.name for case in parity.sample(world)] for world in (2, 4)}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Matrix]:
    folder = tmp_path_factory.mktemp("parity")
    return {world: run(folder, world, parity.sample(world)) for world in NAMES}


@pytest.fixture(scope="module")
def plain() -> dict[str, Outcome]:
    one = parity.layout(1, 1, 1)
    return {
        "sgd": parity.one_process(parity.recipe(one, steep=True), by_sgd=True),
        "adamw": parity.one_process(parity.recipe(one)),
    }


@pytest.mark.parametrize(("world", "name"), [(world, name) for world, names in NAMES.items() for name in names])
def test_equal_to_one_process(results: dict[int, Matrix], plain: dict[str, Outcome], world: int, name: str) -> None:
    case = next(case for case in parity.sample(world) if case.name == name)
    expected = plain[name.partition("-")[0]]
    far = parity.distance(case, results[world][name], expected)
    assert far.loss < 3e-6
    assert far.gradient < 1e-6
    assert far.norm < 1e-5
    assert far.weight < (1e-6 if case.sgd else 2e-4)  # Adam divides by the root of a small second moment
    assert far.loads_equal, "tokens per expert differ: counted twice, or routed otherwise"
    assert max(expected.norms) > case.recipe.optimizer.grad_clip, "clipping was not exercised"


def test_the_reference_moves(plain: dict[str, Outcome]) -> None:
    """Otherwise equality would say little."""
    for outcome in plain.values():
        biases = [v for n, v in outcome.weights.items() if n.endswith("e_score_correction_bias")]
        assert all(bias.abs().max() > 0 for bias in biases)
    assert not torch.equal(plain["sgd"].weights["lm_head.weight"], plain["adamw"].weights["lm_head.weight"])


@pytest.mark.parametrize("world", list(NAMES))
def test_our_router_and_experts_run_inside_autoep(results: dict[int, Matrix], world: int) -> None:
    for name, ranks in results[world].items():
        passes = STEPS * (2 if "accumulate" in name else 1)
        for outcome in ranks:
            # of one layer and of the prediction module
            assert outcome.router_calls == [passes] * 2, name
            # experts do not tell a first pass from a recomputed one
            assert outcome.expert_calls == [passes * (2 if "recompute" in name else 1)] * 2, name


def test_growing_batches_of_isolated_documents_equal_one_process(tmp_path: Path) -> None:
    """One pass in the first steps, two in the later ones."""
    layouts = [
        Layout(world_size=2, expert_parallel=2, zero_stage=stage, micro_batch=2, accumulation=2)
        for stage in parity.STAGES
    ]
    cases = [Case(f"z{of.zero_stage}", parity.growing(of), sgd=True) for of in layouts]
    whole = Layout(world_size=1, expert_parallel=1, zero_stage=0, micro_batch=2, accumulation=4)
    expected = parity.one_process(parity.growing(whole), by_sgd=True)
    without = parity.growing(whole).model_copy(update={"isolate_documents": False})
    assert parity.one_process(without, by_sgd=True).losses != expected.losses
    for name, ranks in run(tmp_path, 2, cases).items():
        case = next(case for case in cases if case.name == name)
        far = parity.distance(case, ranks, expected)
        assert max(far.loss, far.norm) < 1e-5, name
        assert max(far.gradient, far.weight) < 1e-6, name
        assert far.loads_equal, name


def test_bf16_stays_close_to_fp32(tmp_path: Path) -> None:
    ways = ((1, "none"), (2, "none"), (3, "selective"))
    share = {"world_size": 2, "expert_parallel": 2, "micro_batch": 4, "accumulation": 1}
    layouts = [Layout.model_validate(share | {"zero_stage": stage, "recompute": policy}) for stage, policy in ways]
    bf16 = {"precision": "bf16"}
    cases = [Case(f"z{of.zero_stage}", parity.recipe(of).model_copy(update=bf16), gradients=False) for of in layouts]
    expected = parity.one_process(parity.recipe(parity.layout(1, 1, 1)))
    for name, ranks in run(tmp_path, 2, cases).items():
        torch.testing.assert_close(ranks[0].losses, expected.losses, rtol=1e-2, atol=0, msg=parity.named(name))
        assert ranks[0].losses != expected.losses

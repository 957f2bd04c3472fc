"""Selective recomputation: the same gradients to the bit, from less that is kept."""

import gc
import weakref
from typing import Any

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from benchmarks.memory import Alive
from model import again as module
from model.again import again, choose
from model.config import ModelConfig
from model.loss import training_losses
from model.mla import LatentAttention
from model.precision import use
from model.precision.backends import Sizes
from model.precision.backends import choose as choose_products
from model.precision.policy import policy_of
from model.recipe import PrecisionName
from model.rope import rotation
from model.transformer import CausalLM, documents_of

SIZES = Sizes(inputs=32, outputs=16)


def made(config: ModelConfig, precision: PrecisionName) -> CausalLM:
    model = CausalLM(config)
    model.initialise(1)
    policy = policy_of(precision, "cpu")
    use(model, choose_products(policy, torch.device("cpu"), SIZES).products)
    return model.bfloat16() if policy.tensors == "bf16" else model


def window(config: ModelConfig, length: int, batch: int = 2) -> Tensor:
    shape = batch, length + 1 + config.num_nextn_predict_layers
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def loss(model: CausalLM, of: Tensor, end_of_text: int | None = None) -> Tensor:
    depth, tokens = model.config.num_nextn_predict_layers, of[:, :-1]
    documents = None if end_of_text is None else documents_of(tokens, end_of_text)
    return training_losses(model(tokens, depth, documents, of), of, ahead_weight=0.3, alpha=0.01).total


def gradients(model: CausalLM) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize(
    ("length", "end_of_text", "changes"),
    [(16, None, {}), (16, 3, {"q_lora_rank": None}), (576, 3, {})],  # probabilities of up to 512 keys are kept
)
def test_gradients_are_equal_to_the_bit(
    precision: PrecisionName, length: int, end_of_text: int | None, changes: dict[str, Any]
) -> None:
    config = TINY.replace(num_hidden_layers=2, **changes)
    model, of, found = made(config, precision), window(config, length), {}
    for policy in ("none", "selective", "full"):
        choose(model, policy)
        model.zero_grad()
        for part in of.chunk(2):  # accumulated
            loss(model, part, end_of_text).backward()  # type: ignore[no-untyped-call]
        found[policy] = gradients(model)
    assert len(found["none"]) == len(list(model.parameters()))
    for policy in ("selective", "full"):
        for name, gradient in found["none"].items():
            assert torch.equal(gradient, found[policy][name]), (policy, name)
    calls = {block.routing.calls for block in model.blocks().values() if block.routing is not None}
    assert calls == {3 * 2}, "tokens of the second run were counted"


def test_by_the_kernel_of_gpus_too() -> None:
    """Which in double precision runs on CPUs."""
    attention = LatentAttention(TINY).double()
    x = torch.randn(2, 16, TINY.hidden_size, dtype=torch.float64)
    cos, sin = (each.double() for each in rotation(TINY, 16, x.device))
    found = []
    for selective in (False, True):
        attention.selective = selective
        attention.zero_grad()
        attention(x, cos, sin).square().sum().backward()
        found.append([p.grad.clone() for p in attention.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(attention.parameters()))
    assert all(map(torch.equal, *found))


def test_the_auxiliary_loss_alone_has_the_same_gradients() -> None:
    """The gradient comes to the router first, not to what the layer gives."""
    model, of, found = made(TINY, "fp32"), window(TINY, 16), []
    for policy in ("none", "selective"):
        choose(model, policy)
        model.zero_grad()
        model(of[:, :-1], 1).balance_loss.backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list["weakref.ref[Any]"]:
    """Everything that is to be computed again."""
    made: list[weakref.ref[Any]] = []

    class Watched(module._Run):
        def __init__(self, *args: Any) -> None:  # noqa: ANN401
            super().__init__(*args)
            made.append(weakref.ref(self))

    monkeypatch.setattr(module, "_Run", Watched)
    return made


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.57), ("bf16", 0.53), ("fp8", 0.7)])
def test_little_is_kept_and_nothing_outlives_its_backward_pass(
    precision: PrecisionName, share: float, runs: list["weakref.ref[Any]"]
) -> None:
    config = TINY.replace(hidden_size=128, num_hidden_layers=4)
    model, of, kept = made(config, precision), window(config, 128), {}
    for policy in ("none", "selective"):
        choose(model, policy)
        model.zero_grad()
        gc.disable()  # what waits for the collector waits too long
        try:
            with Alive(model.parameters(), 0) as alive:
                total = loss(model, of)
            kept[policy] = alive.bytes
            total.backward()  # type: ignore[no-untyped-call]
            assert total.requires_grad, "the loss is still there"
            assert not [run for run in runs if run() is not None]
        finally:
            gc.enable()
    assert len(runs) > 4 * 5
    assert kept["selective"] < share * kept["none"]


def test_without_gradients_nothing_is_emptied(runs: list["weakref.ref[Any]"]) -> None:
    model, of = made(TINY, "fp32"), window(TINY, 16)
    choose(model, "selective")
    with torch.no_grad():
        model(of[:, :-1], 1)
    assert runs == []


def test_a_graph_that_is_kept_serves_twice() -> None:
    model, of = made(TINY, "fp32"), window(TINY, 16)
    choose(model, "selective")
    logits = model(of[:, :-1]).logits[0]
    logits.square().sum().backward(retain_graph=True)
    once = gradients(model)
    logits.square().sum().backward()
    assert all(torch.equal(2 * once[name], gradient) for name, gradient in gradients(model).items())


def test_inputs_that_are_handed_through_stay() -> None:
    x = torch.arange(6.0).requires_grad_()
    y = x * 2
    out = again(True, lambda a: (a, a.exp()), lambda both: (both[0].square() * both[1]).sum(), y)
    assert y.tolist() == [0, 2, 4, 6, 8, 10]
    out.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * y.exp() * (2 * y + y.square()))


def test_a_second_run_that_keeps_something_else() -> None:
    runs = []

    def other(x: Tensor) -> Tensor:
        runs.append(1)
        return x.exp().sin() if len(runs) == 1 else x.exp()

    x = torch.ones(3, requires_grad=True)
    out = again(True, other, lambda made: made.square().sum(), x)
    with pytest.raises(RuntimeError, match="the second run keeps 1 tensors, the first kept 2"):
        out.backward()  # type: ignore[no-untyped-call]

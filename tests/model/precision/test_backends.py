"""Backends are tried against the reference, and passed over with the reason; those of GPUs as far as a CPU can."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from model.precision import HIGH
from model.precision.backends import (
    TOLERANCE,
    Candidate,
    Choice,
    Sizes,
    candidates,
    choose,
    distance,
    first_sound,
)
from model.precision.fp8 import Arithmetic, Fp8Products
from model.precision.policy import policy_of
from model.precision.reference import Reference
from model.precision.scaled_mm import ScaledMm

CPU = torch.device("cpu")
SIZES = Sizes(inputs=136, outputs=72)


class WrongScale(Reference):
    """Blocks of rows get the scale of the row before."""

    def rows(self, x: Tensor) -> Tensor:
        return super().rows(x.roll(1, 0)) * x.abs().amax() / x.abs().amax()


class WrongWeightGradient(Reference):
    """Right in the forward pass and for the rows' gradient."""

    def backward(self, *args: Any, **options: Any) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        dx, dw = super().backward(*args, **options)
        return dx, None if dw is None else dw * 1.02


class WrongExpert(Reference):
    """Right for one matrix; among experts, the first rows of each go to the one before."""

    def forward(self, x_NI: Tensor, w_EOI: Tensor, ends_E: Tensor, *, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        shifted = torch.cat((ends_E[:-1] + 4, ends_E[-1:]))
        return super().forward(x_NI, w_EOI, shifted, keep=keep)


class NotANumber(Reference):
    def rows(self, x: Tensor) -> Tensor:
        return super().rows(x) * torch.nan


class Breaks(Reference):
    def backward(self, *args: Any, **options: Any) -> tuple[Tensor | None, Tensor | None]:  # noqa: ANN401
        raise RuntimeError("CUDA error:\n  no kernel image")


def absent() -> Arithmetic:
    raise RuntimeError("Found empty `transformer-engine` meta package installed")


def far(arithmetic: Arithmetic) -> float:
    return distance(arithmetic, SIZES, CPU, torch.float32)


def chosen(*makes: Callable[[], Arithmetic], **options: Any) -> Choice:  # noqa: ANN401
    return first_sound([Candidate(f"b{i}", make) for i, make in enumerate(makes)], far, **options)


def backend(choice: Choice) -> str:
    assert isinstance(choice.products, Fp8Products)
    return type(choice.products.arithmetic).__name__


def test_the_first_that_works_is_taken() -> None:
    choice = chosen(Reference, absent)
    assert backend(choice) == "Reference"
    assert choice.text == "fp8: b0, 0.0e+00 from the reference"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (absent, r"b0: RuntimeError: Found empty `transformer-engine` meta package installed"),
        (Breaks, r"b0: RuntimeError: CUDA error: no kernel image"),
        (WrongScale, rf"b0: \d\.\de[+-]\d\d away from the reference, more than {TOLERANCE}"),
        (WrongWeightGradient, r"b0: 2\.0e-02 away"),
        (NotANumber, r"b0: nan away"),
    ],
)
def test_what_does_not_work_is_passed_over_with_the_reason(make: Callable[[], Arithmetic], said: str) -> None:
    choice = chosen(make, Reference)
    assert backend(choice) == "Reference"
    assert re.search(said, choice.text), choice.text
    assert choice.text.startswith("fp8: b1, 0.0e+00 from the reference; b0: ")


def test_what_only_goes_wrong_among_experts_is_noticed() -> None:
    assert far(WrongExpert()) > TOLERANCE


def test_without_any_the_run_goes_on_in_bf16() -> None:
    choice = chosen(absent, WrongWeightGradient)
    assert choice.products is HIGH
    assert re.fullmatch(r"bf16 instead of fp8; b0: RuntimeError: Found .*; b1: 2\.0e-02 away .*", choice.text)


def test_what_fails_in_another_process_is_taken_by_none() -> None:
    choice = chosen(Reference, Reference, agree=lambda problems: [problems, ["OSError: none here", ""]])
    assert choice.text == "fp8: b1, 0.0e+00 from the reference; b0: OSError: none here"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_other_policies_multiply_as_their_tensors_are(name: Any) -> None:  # noqa: ANN401
    choice = choose(policy_of(name, "cuda"), torch.device("cuda"), SIZES)
    assert (choice.products, choice.text) == (HIGH, f"{name}: all products in {name.upper()}")


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": True}, False),
        ({"architecture": "x86_64", "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_a_cpu_without_bf16_says_what_is_quicker(
    capabilities: dict[str, Any], slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    text = choose(policy_of("bf16", "cpu"), CPU, SIZES).text
    assert ("quicker with precision fp32" in text) == slow
    assert choose(policy_of("fp32", "cpu"), CPU, SIZES).text == "fp32: all products in FP32"


def test_without_a_gpu_the_reference_stands_in() -> None:
    choice = choose(policy_of("fp8", "cpu"), CPU, SIZES)
    assert backend(choice) == "Reference"
    assert choice.text == "fp8: 8-bit products emulated by the reference backend in FP32 (no GPU)"


def test_an_older_gpu_goes_on_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    choice = choose(policy_of("fp8", "cuda"), torch.device("cuda"), SIZES)
    assert choice.products is HIGH
    assert choice.text == "bf16 instead of fp8: the GPU has compute capability 8.0, 8-bit products need 9.0"


def test_here_neither_backend_of_gpus_runs_and_both_say_why() -> None:
    choice = first_sound(candidates(), far)
    assert choice.products is HIGH
    assert re.search(r"Transformer Engine: ModuleNotFoundError: No module named 'transformer_engine", choice.text)
    assert re.search(r"torch scaled_mm: \w+Error: ", choice.text), choice.text


def test_the_tensors_of_a_policy() -> None:
    table = {(name, device): policy_of(name, device) for name in ("fp32", "bf16", "fp8") for device in ("cpu", "cuda")}
    assert {key: policy.tensors for key, policy in table.items()} == {
        ("fp32", "cpu"): "fp32", ("fp32", "cuda"): "fp32", ("bf16", "cpu"): "bf16", ("bf16", "cuda"): "bf16",
        ("fp8", "cpu"): "fp32", ("fp8", "cuda"): "bf16",
    }  # fmt: skip
    assert [name for (name, _), policy in table.items() if policy.eight_bits] == ["fp8", "fp8"]


# ------------------------------------------------------------------- as the GPU's functions would be called
def scaled_mm_by_its_rules(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    kind_a: ScalingType,
    scale_b: Tensor,
    kind_b: ScalingType,
    *,
    output_dtype: torch.dtype,
) -> Tensor:
    """torch 2.13's rules for block scales on CUDA (aten/native/cuda/ScaledBlas.cpp), then the product in FP32."""
    (rows, inner), (_, columns) = a.shape, b.shape
    blocks, filled = -(-inner // 128), -(-inner // 512) * 4
    assert (a.dtype, b.dtype, scale_a.dtype, scale_b.dtype) == (torch.float8_e4m3fn,) * 2 + (torch.float32,) * 2
    assert inner == b.shape[0]
    assert inner % 16 == columns % 16 == 0
    assert a.is_contiguous()
    assert b.t().is_contiguous()
    assert kind_a == ScalingType.BlockWise1x128
    assert scale_a.shape == (rows, blocks)
    assert scale_a.stride() in {(1, rows), (1, 1)}
    left = a.float() * scale_a.repeat_interleave(128, 1)[:, :inner]
    if kind_b == ScalingType.BlockWise128x128:
        assert scale_b.shape == (filled, -(-columns // 128))
        assert scale_b.stride() in {(1, filled), (1, 1)}
        spread = scale_b.repeat_interleave(128, 0)[:inner].repeat_interleave(128, 1)[:, :columns]
    else:
        assert kind_b == ScalingType.BlockWise1x128
        assert scale_b.shape == (columns, blocks)
        assert scale_b.stride() in {(1, columns), (1, 1)}
        spread = scale_b.repeat_interleave(128, 1)[:, :inner].T
    return (left @ (b.float() * spread)).to(output_dtype)


@pytest.mark.parametrize("sizes", [Sizes(128, 128), Sizes(200, 320), Sizes(640, 8)])
def test_scaled_mm_is_called_by_its_rules(sizes: Sizes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_mm", scaled_mm_by_its_rules)
    assert distance(ScaledMm(), sizes, CPU, torch.float32) < 1e-6
    assert distance(ScaledMm(), sizes, CPU, torch.bfloat16) < 3e-3


def test_an_expert_without_rows_has_no_gradient_by_scaled_mm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_mm", scaled_mm_by_its_rules)
    ends = torch.tensor([0, 16, 16], dtype=torch.int32)
    x, w = torch.randn(16, 32, requires_grad=True), torch.randn(3, 48, 32, requires_grad=True)
    Fp8Products(ScaledMm()).grouped(x, w, ends).sum().backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert [bool(g.any()) for g in w.grad] == [False, True, False]

"""Which arithmetic the 8-bit products run on: the first backend that works here and agrees with the reference.

Transformer Engine, then torch's `scaled_mm`, on a GPU of Hopper's generation or newer; the reference on CPUs. Nothing a
backend does wrong ends a run: what cannot be imported, raises, or gives other numbers than the reference is passed
over, and the reasons are told. A GPU on which none works goes on in BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.precision.fp8 import Arithmetic, Fp8Products
from model.precision.policy import Policy
from model.precision.products import HIGH, Products
from model.precision.reference import Reference

TOLERANCE = 0.01
"""Largest relative distance to the reference, by the Frobenius norm. Quantising alone is 0.04 away from the exact
product; a sum in another order, or of 14 bits as on Hopper, is a few thousandths away from the reference."""
HOPPER = (9, 0)


@dataclass(frozen=True)
class Candidate:
    """A backend that may or may not work."""

    name: str
    make: Callable[[], Arithmetic]
    """May raise anything."""


@dataclass(frozen=True)
class Choice:
    """What products run on, and why."""

    products: Products
    text: str
    """One line for people: the log and MLflow show it."""


@dataclass(frozen=True)
class Sizes:
    """Matrices to try a backend with."""

    inputs: int
    outputs: int


def candidates() -> list[Candidate]:
    """In order of preference."""
    return [Candidate("Transformer Engine", _transformer_engine), Candidate("torch scaled_mm", _scaled_mm)]


def choose(
    policy: Policy,
    device: torch.device,
    sizes: Sizes,
    agree: Callable[[list[str]], list[list[str]]] = lambda problems: [problems],
) -> Choice:
    """Products for `policy` on `device`; `agree` gives every process the problems of all, so that all choose alike."""
    if not policy.eight_bits:
        return Choice(HIGH, f"{policy.name}: {_high(policy, device)}")
    if device.type != "cuda":
        return Choice(
            Fp8Products(Reference()),
            f"fp8: 8-bit products emulated by the reference backend in {policy.tensors.upper()} (no GPU)",
        )
    if (capability := torch.cuda.get_device_capability(device)) < HOPPER:
        version = ".".join(map(str, capability))
        return Choice(HIGH, f"bf16 instead of fp8: the GPU has compute capability {version}, 8-bit products need 9.0")
    return first_sound(candidates(), lambda one: distance(one, sizes, device), agree)


def first_sound(
    options: Sequence[Candidate],
    distance_to_reference: Callable[[Arithmetic], float],
    agree: Callable[[list[str]], list[list[str]]] = lambda problems: [problems],
) -> Choice:
    """The first that works in every process; BF16 if there is none. All of them are tried in every process."""
    tried = [_try(one, distance_to_reference) for one in options]
    everywhere = agree([problem for _, _, problem in tried])
    said: list[str] = []
    for (arithmetic, distance_here, _), option, problems in zip(
        tried, options, zip(*everywhere, strict=True), strict=True
    ):
        problem = next(filter(None, problems), "")
        if arithmetic is not None and not problem:
            checked = f"{option.name}, {distance_here:.1e} from the reference"
            return Choice(Fp8Products(arithmetic), "; ".join([f"fp8: {checked}", *said]))
        said.append(f"{option.name}: {problem}")
    return Choice(HIGH, "; ".join(["bf16 instead of fp8", *said]))


def _try(option: Candidate, measure: Callable[[Arithmetic], float]) -> tuple[Arithmetic | None, float, str]:
    """-> the arithmetic, its distance, what is wrong with it ("": nothing)."""
    try:
        arithmetic = option.make()
        far = measure(arithmetic)
    except Exception as error:  # noqa: BLE001 - Transformer Engine raises RuntimeError on import, CUDA anything
        text = " ".join(str(error).split())
        return None, 0.0, f"{type(error).__name__}: {text[:200]}"
    if not far <= TOLERANCE:  # NaN is not
        return None, far, f"{far:.1e} away from the reference, more than {TOLERANCE}"
    return arithmetic, far, ""


def distance(arithmetic: Arithmetic, sizes: Sizes, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Largest relative distance to the reference over the three products, for one matrix and for experts."""
    ends = torch.tensor([8, 136, 144, 384], dtype=torch.int32, device=device)  # one block and parts of blocks
    return max(
        _distance(arithmetic, sizes, ends[-1:], device, dtype), _distance(arithmetic, sizes, ends, device, dtype)
    )


def _distance(arithmetic: Arithmetic, sizes: Sizes, ends_E: Tensor, device: torch.device, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)

    def sample(*shape: int) -> Tensor:
        """Rows of different size, so that a scale in the wrong place shows."""
        spread = torch.exp2(torch.randint(-6, 6, (*shape[:-1], 1), generator=generator))
        return (torch.randn(*shape, generator=generator) * spread).to(device, dtype)

    rows = int(ends_E[-1])
    x, dy = sample(rows, sizes.inputs), sample(rows, sizes.outputs)
    w = sample(ends_E.numel(), sizes.outputs, sizes.inputs)
    theirs, ours = (_products(one, x, w, dy, ends_E) for one in (arithmetic, Reference()))
    return max(_relative(a, b) for a, b in zip(theirs, ours, strict=True))


def _products(arithmetic: Arithmetic, x: Tensor, w: Tensor, dy: Tensor, ends_E: Tensor) -> list[Tensor]:
    y, kept = arithmetic.forward(x, w, ends_E, keep=True)
    dx, dw = arithmetic.backward(dy, w, kept, ends_E, inputs=True)
    assert dx is not None
    assert dw is not None
    return [y, dx, dw]


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def _high(policy: Policy, device: torch.device) -> str:
    slow = policy.tensors == "bf16" and device.type == "cpu" and not bf16_is_quick(torch.cpu.get_capabilities())
    # measured with oneDNN held back: 2.2 times as long as FP32 with AVX512 alone, 89 times with AVX2
    hint = "; this CPU has no instructions for them and is much quicker with precision fp32" if slow else ""
    return f"all products in {policy.tensors.upper()}{hint}"


def bf16_is_quick(capabilities: Mapping[str, object]) -> bool:
    """Of a CPU, by what `torch.cpu.get_capabilities` says; of other processors than x86 nothing is known here."""
    if capabilities.get("architecture") != "x86_64":
        return True
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _transformer_engine() -> Arithmetic:
    from model.precision.transformer_engine import TransformerEngine

    return TransformerEngine()


def _scaled_mm() -> Arithmetic:
    from model.precision.scaled_mm import ScaledMm

    return ScaledMm()

"""What `gpu.py` measures with: the device, checks of FP8 backends, the training step, single products."""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.flops import attention_matrices, dense_matrices, flops_per_token, shared_matrices
from model.loss import training_losses
from model.optim import without_compiler
from model.precision import Products, use
from model.precision.backends import TOLERANCE, Candidate, candidates
from model.precision.fp8 import Arithmetic
from model.precision.reference import Reference
from model.presets import preset
from model.transformer import CausalLM

Report = dict[str, Any]
PEAKS = {
    "A100": (312e12, None), "H100 80GB HBM3": (989.4e12, 1978.9e12), "H100 SXM": (989.4e12, 1978.9e12),
    "H800": (989.4e12, 1978.9e12), "H200": (989.4e12, 1978.9e12), "B200": (2250e12, 4500e12),
}  # fmt: skip
"""Dense BF16 and FP8 peaks in FLOP/s by a part of the device's name; the PCIe variants are slower and not listed."""
GROUP = 178_956_971
"""Elements whose gradients are in FP32 at the same time, as in DeepSpeed's groups of experts."""
AHEAD_WEIGHT, ALPHA, CLIP, LEARNING_RATE = 0.3, 1e-4, 1.0, 1e-4
ALIGN, REPEATS = 8, 5
"""Rows of an expert are multiples of the first; single products are timed in groups of the second."""
CHECKS: dict[str, tuple[list[int], int, int]] = {
    "linear": ([512], 1536, 768),
    "linear, not of 128": ([264], 576, 1600),
    "linear, one block": ([128], 128, 128),
    "linear, few rows": ([8], 256, 384),
    "grouped": ([128, 384, 512, 1024], 1536, 768),
    "grouped, not of 128": ([8, 136, 144, 384, 520, 608], 768, 1536),
    "grouped, narrow": ([40, 200, 264], 160, 208),
    "grouped, empty experts": ([0, 128, 128, 200, 200], 256, 384),
}
"""Name -> ends of the experts' rows (multiples of 8, as the model pads them), inputs, outputs (multiples of 16)."""


# ------------------------------------------------------------------ device
class Device(Protocol):
    """The few things in which a GPU differs from a CPU."""

    name: str

    def seconds(self, work: Callable[[], object]) -> float:
        """Of one call."""

    def reset_peak(self) -> None:
        """Begin to look for the highest use of memory."""

    def peak(self) -> int:
        """Bytes at most since then."""

    def facts(self) -> Report:
        """For the report."""

    def release(self) -> None:
        """Give freed memory back."""


class Cuda:
    """The current GPU."""

    name = "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """See `Device`."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000

    def reset_peak(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """See `Device`."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def facts(self) -> Report:
        """See `Device`."""
        properties = torch.cuda.get_device_properties(0)
        return {
            "device": properties.name,
            "memory": properties.total_memory,
            "capability": list(torch.cuda.get_device_capability(0)),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def release(self) -> None:
        """See `Device`."""
        torch.cuda.empty_cache()


class Cpu:
    """One thread of this machine: only to run this program where there is no GPU."""

    name = "cpu"

    def seconds(self, work: Callable[[], object]) -> float:
        """See `Device`."""
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    def reset_peak(self) -> None:
        """Nothing: a process's peak cannot be reset portably."""

    def peak(self) -> int:
        """Of the whole process."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def facts(self) -> Report:
        """See `Device`."""
        return {"device": platform.machine(), "memory": None, "capability": None}

    def release(self) -> None:
        """Nothing."""


def device_of(name: str) -> Device:
    """By name."""
    return Cuda() if name == "cuda" else Cpu()


def peaks(device_name: str, args: argparse.Namespace) -> tuple[float | None, float | None]:
    """Dense BF16 and FP8 peak: given, or known by the device's name."""
    known = next((peak for part, peak in PEAKS.items() if part in device_name and "PCIe" not in device_name), None)
    bf16, fp8 = known or (None, None)
    return (args.peak_bf16 or bf16), (args.peak_fp8 or fp8)


# ------------------------------------------------------------------ backends
def options(device: Device) -> list[Candidate]:
    """FP8 backends to try; on a CPU the reference stands for one."""
    return [*candidates(), *([Candidate("reference", Reference)] if device.name == "cpu" else [])]


def sample(generator: torch.Generator, device: Device, *shape: int) -> Tensor:
    """BF16 rows of different size, so that a scale in the wrong place shows."""
    spread = torch.exp2(torch.randint(-6, 6, (*shape[:-1], 1), generator=generator, device=device.name))
    return (torch.randn(*shape, generator=generator, device=device.name) * spread).to(torch.bfloat16)


def three_products(arithmetic: Arithmetic, x: Tensor, w: Tensor, dy: Tensor, ends: Tensor) -> dict[str, Tensor]:
    """Output, gradient of the input, gradient of the weight."""
    y, kept = arithmetic.forward(x, w, ends, keep=True)
    dx, dw = arithmetic.backward(dy, w, kept, ends, inputs=True)
    assert dx is not None
    assert dw is not None
    return {"y": y, "dx": dx, "dw": dw}


def exact_products(x: Tensor, w: Tensor, dy: Tensor, ends: Tensor) -> dict[str, Tensor]:
    """The same in FP32 without quantising, expert by expert."""
    y, dx, dw = x.new_zeros(len(x), w.shape[1]).float(), torch.zeros_like(x).float(), torch.zeros_like(w).float()
    begin = 0
    for expert, end in enumerate(ends.tolist()):
        rows = slice(begin, end)
        y[rows], dx[rows] = x[rows].float() @ w[expert].float().T, dy[rows].float() @ w[expert].float()
        dw[expert] = dy[rows].float().T @ x[rows].float()
        begin = end
    return {"y": y, "dx": dx, "dw": dw}


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Relative distance of each product by the Frobenius norm."""
    return {name: float((a[name].double() - b[name].double()).norm() / b[name].double().norm()) for name in a}


def check(arithmetic: Arithmetic, device: Device, case: tuple[list[int], int, int]) -> Report:
    """One backend, one shape."""
    ends_list, inputs, outputs = case
    generator = torch.Generator(device.name).manual_seed(0)
    ends = torch.tensor(ends_list, dtype=torch.int32, device=device.name)
    x = sample(generator, device, ends_list[-1], inputs)
    w = sample(generator, device, len(ends_list), outputs, inputs)
    dy = sample(generator, device, ends_list[-1], outputs)
    ours, exact = three_products(Reference(), x, w, dy, ends), exact_products(x, w, dy, ends)
    found = relative(three_products(arithmetic, x, w, dy, ends), ours)
    return {
        "from_reference": found,
        "reference_from_exact": relative(ours, exact),
        "passed": all(far <= TOLERANCE for far in found.values()),
    }


def attempt(work: Callable[[], Report]) -> Report:
    """What it returns, or how it failed."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - backends and CUDA raise anything; all of it belongs into the report
        text = " ".join(str(error).split())
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {"error": f"{type(error).__name__}: {text[:500]}", "at": f"{Path(where.filename).name}:{where.lineno}"}


# ------------------------------------------------------------------ training
def build(config: ModelConfig, device: Device) -> CausalLM:
    """BF16 weights made on the device, buffers in FP32 as DeepSpeed leaves them."""
    with torch.device("meta"):
        model = CausalLM(config)
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            value = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device.name)
            value = value.fill_(1.0) if isinstance(module, nn.RMSNorm) else value.normal_(0, config.initializer_range)
            module.register_parameter(name, nn.Parameter(value))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device.name))
    for block in model.blocks().values():
        block.recompute = True
    return model


class Masters:
    """AdamW on FP32 copies of BF16 weights. Only one group's gradients are in FP32 at a time."""

    def __init__(self, model: nn.Module, device: Device) -> None:
        self.pairs = [(p, p.detach().float().requires_grad_()) for p in model.parameters()]
        decay = [{"params": [m for p, m in self.pairs if p.ndim >= 2], "weight_decay": 0.1}]
        plain = [{"params": [m for p, m in self.pairs if p.ndim < 2], "weight_decay": 0.0}]
        self.adam = without_compiler(
            torch.optim.AdamW(decay + plain, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=device.name == "cuda" or None)
        )

    def groups(self) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
        """Pairs of about `GROUP` elements together."""
        group, size = [], 0
        for pair in self.pairs:
            group.append(pair)
            size += pair[0].numel()
            if size >= GROUP:
                yield group
                group, size = [], 0
        if group:
            yield group

    @torch.no_grad()
    def step(self) -> None:
        """Clip by the global norm, update, copy to BF16, clear gradients."""
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p, _ in self.pairs if p.grad is not None]
        scale = (CLIP / (torch.stack(norms).norm() + 1e-6)).clamp(max=1.0)  # stays on the device: nothing waits
        for group in self.groups():
            for parameter, master in group:
                if parameter.grad is not None:
                    master.grad = parameter.grad.float().mul_(scale)
                    parameter.grad = None
            self.adam.step()  # passes over what has no gradient
            for parameter, master in group:
                parameter.copy_(master)
                master.grad = None


def train(args: argparse.Namespace, device: Device, products: Products) -> Report:
    """The largest micro-batch that fits, halving from the one asked for."""
    config = preset(args.preset)
    model = build(config, device)
    use(model, products)
    masters, tried = Masters(model, device), []
    batch = args.micro_batch
    while True:
        try:
            return measure_steps(args, device, model, masters, batch) | {"did_not_fit": tried}
        except torch.OutOfMemoryError as error:
            tried.append({"micro_batch": batch, "error": " ".join(str(error).split())[:300]})
        # outside of the handler: the exception held the frames, and the frames the activations
        model.zero_grad(set_to_none=True)
        for _, master in masters.pairs:
            master.grad = None
        device.release()
        if batch == 1:
            return {"error": "out of memory with one sequence", "did_not_fit": tried}
        batch //= 2


def measure_steps(args: argparse.Namespace, device: Device, model: CausalLM, masters: Masters, batch: int) -> Report:
    """Medians over rounds of whole steps, each on text of its own."""
    config, losses = model.config, []
    depth = config.num_nextn_predict_layers
    generator = torch.Generator().manual_seed(1)

    def passes() -> None:
        # squared: a skewed distribution, so that there is something to learn and routing is not uniform
        noise = torch.rand(batch, args.sequence + 1 + depth, generator=generator) ** 2
        window = (noise * config.vocab_size).long().to(device.name)
        output = model(window[:, :-1], depth, window_BL=window)
        loss = training_losses(output, window, ahead_weight=AHEAD_WEIGHT, alpha=ALPHA).total
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())

    for _ in range(args.warmup):
        passes()
        masters.step()
    device.reset_peak()
    both, updates = [], []
    began = time.monotonic()
    while len(both) < args.rounds and (len(both) < 3 or time.monotonic() - began < args.seconds_limit / 4):
        passing = device.seconds(passes)
        updates.append(device.seconds(masters.step))
        both.append(passing + updates[-1])
    return step_report(args, device, config, batch, both, updates) | {
        "losses": [round(float(loss), 4) for loss in losses],
        "peak_bytes": device.peak(),
    }


def step_report(
    args: argparse.Namespace, device: Device, config: ModelConfig, batch: int, both: list[float], updates: list[float]
) -> Report:
    """Throughput and MFU of steps that took so many seconds."""
    step, tokens = statistics.median(both), batch * args.sequence
    flops = flops_per_token(config, args.sequence, causal=True, mtp=config.num_nextn_predict_layers > 0)
    bf16, fp8 = peaks(device.facts()["device"], args)
    rate = tokens / step * flops
    return {
        "micro_batch": batch,
        "sequence": args.sequence,
        "rounds": len(both),
        "step_seconds": step,
        "step_seconds_all": both,
        "update_seconds": statistics.median(updates),
        "tokens_per_second": tokens / step,
        "flops_per_token": flops,
        "teraflops": rate / 1e12,
        "mfu_convention": "causal, forward and backward, prediction modules included, recomputation not counted",
        "mfu_of_bf16_peak": rate / bf16 if bf16 else None,
        "mfu_of_fp8_peak": rate / fp8 if fp8 else None,
    }


# ------------------------------------------------------------------ single products
def shapes(config: ModelConfig, tokens: int) -> dict[str, tuple[list[int], int, int]]:
    """The model's products as in `CHECKS`: each matrix once, and the experts' with rows shared unequally."""
    named = {"attention": attention_matrices(config), "dense": dense_matrices(config)[1:]}
    named["shared expert"] = shared_matrices(config)[1:]
    found = {f"{name} {out}x{inputs}": ([tokens], inputs, out) for name, of in named.items() for out, inputs in of}
    share = torch.rand(config.n_routed_experts, generator=torch.Generator().manual_seed(2)) + 0.5
    rows = (share / share.sum() * tokens * config.num_experts_per_tok / ALIGN).ceil().long() * ALIGN
    ends = rows.cumsum(0).tolist()
    hidden, inner = config.hidden_size, config.moe_intermediate_size
    return found | {"experts up": (ends, hidden, inner), "experts down": (ends, inner, hidden)}


def time_product(ways: dict[str, Products], device: Device, case: tuple[list[int], int, int], rounds: int) -> Report:
    """Seconds of forward and backward for each way, in turns."""
    ends_list, inputs, outputs = case
    generator = torch.Generator(device.name).manual_seed(3)
    ends = torch.tensor(ends_list, dtype=torch.int32, device=device.name)
    x = sample(generator, device, ends_list[-1], inputs).requires_grad_()
    shape = (outputs, inputs) if len(ends_list) == 1 else (len(ends_list), outputs, inputs)
    w = sample(generator, device, *shape).requires_grad_()
    dy = sample(generator, device, ends_list[-1], outputs)

    def work(products: Products) -> None:
        x.grad = w.grad = None
        y = products.linear(x, w) if w.ndim == 2 else products.grouped(x, w, ends)
        y.backward(dy)

    def repeat(products: Products) -> None:
        for _ in range(REPEATS):  # so that the GPU works while the host prepares the next
            work(products)

    out: Report = {}
    times: dict[str, list[float]] = {}
    for number in range(rounds + 2):
        for name, products in ways.items():
            if "error" in out.get(name, {}):
                continue
            done = attempt(lambda products=products: {"seconds": device.seconds(lambda: repeat(products)) / REPEATS})
            if "error" in done:
                out[name] = done
            elif number >= 2:
                times.setdefault(name, []).append(done["seconds"])
    flops = 6 * ends_list[-1] * inputs * outputs
    for name, values in times.items():
        if name not in out:
            median = statistics.median(values)
            out[name] = {"seconds": median, "teraflops": flops / median / 1e12}
    return out

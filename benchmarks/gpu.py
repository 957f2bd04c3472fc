"""One GPU and a model of ours: step time, tokens/s, MFU, peak memory in BF16 and FP8; FP8 backends checked.

    python benchmarks/gpu.py --out gpu.json [--preset small-h100] [--seconds-limit 540]

Needs torch >= 2.11, pydantic and the folder `model/` beside `benchmarks/`; no DeepSpeed, Ray, transformers, compiler.
Every section runs in a process of its own, so that a crash or a hang of one (a wrong kernel poisons its CUDA context)
costs only that section, and gpu.json is replaced after each, so that a time limit leaves what was measured.

    machine      device, versions, which FP8 backends import and why others do not
    train-bf16   the whole training step: forward, backward with full recomputation, clipping, AdamW
    check        each backend's three products against the reference on the same tensors, for awkward shapes too
    attention    which of PyTorch's kernels takes our head dimensions, and its time
    train-fp8    as train-bf16, with each backend that passed
    products     single products over the model's shapes: BF16 against each backend that passed

Against the product (one process of `model.engine`, ZeRO-1): the same modules, losses, BF16 weights and gradients, FP32
master weights and moments, updated group by group; but the experts are `model.moe`'s, without AutoEP's layer around
them, AdamW is torch's fused one, there is no reduction bucket (1 GB) and no update of routing biases.
MFU is by the causal convention: `model.flops.flops_per_token`, prediction modules included, over the dense peak.

`--device cpu --preset mini --sequence 64` runs everything but CUDA's own calls, with the reference as FP8 backend.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # before torch: large blocks come and go
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from gpu_work import (  # noqa: E402
    CHECKS,
    Device,
    Report,
    attempt,
    check,
    device_of,
    options,
    peaks,
    shapes,
    time_product,
    train,
)
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from model.precision import HIGH, Products  # noqa: E402
from model.precision.fp8 import Arithmetic, Fp8Products  # noqa: E402
from model.presets import preset  # noqa: E402


# ------------------------------------------------------------------ sections
def machine(args: argparse.Namespace, device: Device, _: Report) -> Report:
    """Where this was measured, and what is there."""
    found = {one.name: attempt(lambda one=one: {"imported": bool(one.make())}) for one in options(device)}
    bf16, fp8 = peaks(device.facts()["device"], args)
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return device.facts() | versions | {"peak_bf16": bf16, "peak_fp8": fp8, "backends": found}


def check_backends(_: argparse.Namespace, device: Device, __: Report) -> Report:
    """Every backend over `CHECKS`."""
    out: Report = {}
    for option in options(device):
        made: list[Arithmetic] = []
        failed = attempt(lambda option=option, made=made: {"made": made.append(option.make())})
        if not made:
            out[option.name] = failed
            continue
        cases = {
            name: attempt(lambda made=made, case=case: check(made[0], device, case)) for name, case in CHECKS.items()
        }
        out[option.name] = {"cases": cases, "passed": all(one.get("passed", False) for one in cases.values())}
    return out


def sound(report: Report) -> list[str]:
    """Backends that can be used for training: what the model never asks of them (empty experts) may fail."""
    checked = report.get("check", {})
    cases = {name: found.get("cases", {}) for name, found in checked.items() if isinstance(found, dict)}
    return [
        name
        for name, of in cases.items()
        if of and all(one.get("passed") for case, one in of.items() if "empty" not in case)
    ]


def passed(report: Report, device: Device) -> dict[str, Arithmetic]:
    """The same, ready."""
    return {option.name: option.make() for option in options(device) if option.name in sound(report)}


def attention(args: argparse.Namespace, device: Device, _: Report) -> Report:
    """Forward and backward of latent attention's core, one sequence, by each of PyTorch's kernels."""
    c = preset(args.preset)

    def run(backend: SDPBackend) -> Report:
        shape = (1, c.num_attention_heads, args.sequence)
        q, k = (torch.randn(*shape, c.qk_head_dim, device=device.name, dtype=torch.bfloat16) for _ in range(2))
        v = torch.randn(*shape, c.v_head_dim, device=device.name, dtype=torch.bfloat16)
        inputs = [t.requires_grad_() for t in (q, k, v)]

        def work() -> None:
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(*inputs, is_causal=True).sum().backward()

        work()
        return {"seconds": statistics.median(device.seconds(work) for _ in range(args.rounds))}

    kernels = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")
    return {name: attempt(lambda name=name: run(getattr(SDPBackend, name))) for name in kernels}


def train_bf16(args: argparse.Namespace, device: Device, _: Report) -> Report:
    """In the precision of the tensors."""
    return train(args, device, HIGH)


def train_fp8(args: argparse.Namespace, device: Device, report: Report) -> Report:
    """With the backend that `args.backend` names."""
    return train(args, device, Fp8Products(passed(report, device)[args.backend]))


def products(args: argparse.Namespace, device: Device, report: Report) -> Report:
    """Over the model's shapes."""
    ways: dict[str, Products] = {"bf16": HIGH}
    ways |= {name: Fp8Products(one) for name, one in passed(report, device).items()}
    found = shapes(preset(args.preset), args.micro_batch * args.sequence)
    return {
        name: attempt(lambda case=case: time_product(ways, device, case, args.rounds)) for name, case in found.items()
    }


SECTIONS: dict[str, Callable[[argparse.Namespace, Device, Report], Report]] = {
    "machine": machine,
    "train-bf16": train_bf16,
    "check": check_backends,
    "attention": attention,
    "train-fp8": train_fp8,
    "products": products,
}


# ------------------------------------------------------------------ running them
def save(report: Report, target: Path) -> None:
    """Whole or not at all."""
    new = target.with_name(target.name + ".new")
    new.write_text(json.dumps(report, indent=1))
    os.replace(new, target)


def plan(report: Report, args: argparse.Namespace) -> Iterator[tuple[str, str | None]]:
    """Sections in order, training in FP8 once for each backend that has passed by then."""
    for name in args.sections.split(","):
        if name != "train-fp8":
            yield name, None
            continue
        for backend in sound(report):
            yield name, backend


def run_here(name: str, backend: str | None, args: argparse.Namespace, report: Report) -> Report:
    """One section in this process."""
    args.backend = backend
    return attempt(lambda: SECTIONS[name](args, device_of(args.device), report))


def run_apart(name: str, backend: str | None, args: argparse.Namespace, report: Report, limit: float) -> Report:
    """One section in a process of its own, for at most so many seconds."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "given.json", Path(folder) / "out.json"
        given.write_text(json.dumps(report))
        command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:], "--child", name, str(given), str(out)]
        command += ["--backend", backend] if backend else []
        try:
            done = subprocess.run(command, timeout=limit, capture_output=True, text=True)
        except subprocess.TimeoutExpired:
            return {"error": f"stopped after {limit:.0f} seconds"}
        if not out.exists():
            return {"error": f"its process ended with {done.returncode}", "said": done.stderr[-2000:]}
        result: Report = json.loads(out.read_text())
        return result


def arguments(given: list[str] | None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--preset", default="small-h100")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds-limit", type=float, default=540, help="for everything")
    parser.add_argument("--sequence", type=int, default=4096)
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences; halved until it fits")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--peak-bf16", type=float, help="dense FLOP/s of the device, where its name is not known")
    parser.add_argument("--peak-fp8", type=float)
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--here", action="store_true", help="all sections in this process")
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    parser.add_argument("--child", nargs=3, metavar=("SECTION", "GIVEN", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if unknown := set(args.sections.split(",")) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --device cpu only shows that the program runs")
    return args


def main(given: list[str] | None = None) -> Report:
    """See the module."""
    args, began = arguments(given), time.monotonic()
    if args.child:
        name, report_file, out = args.child
        save(run_here(name, args.backend, args, json.loads(Path(report_file).read_text())), Path(out))
        return {}
    report: Report = {"preset": args.preset, "arguments": {name: str(value) for name, value in vars(args).items()}}
    for name, backend in plan(report, args):
        left = args.seconds_limit - (time.monotonic() - began)
        if left < 5:
            result: Report = {"error": "no time left"}
        else:
            result = (
                run_here(name, backend, args, report) if args.here else run_apart(name, backend, args, report, left)
            )
        if backend is None:
            report[name] = result
        else:
            report.setdefault(name, {})[backend] = result
        report["seconds"] = round(time.monotonic() - began, 1)
        save(report, args.out)
        print(f"{report['seconds']:7.1f} s  {name} {backend or ''}  {result.get('error', 'done')}", flush=True)
    with contextlib.suppress(KeyError, TypeError):
        print(json.dumps({"bf16": report["train-bf16"]["tokens_per_second"]}))
    return report


if __name__ == "__main__":
    main()

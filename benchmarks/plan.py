"""CPU-seconds of the planner's search, and how many layouts it weighs. No GPU, no torch.

    python benchmarks/plan.py [--repeat 5]

Each case runs in this process, after one search that fills the caches of counts; the least of the repeats counts.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from model.presets import preset
from orchestrator.plan.efficiency import efficiencies
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.search import layouts, nearest, search
from orchestrator.plan.workload import Cluster, Workload

CASES = [
    ("v3-671b", "H800", 2048, 4096, 15_360, "fp8"),
    ("v3-671b", "H800", 2048, 131_072, 480, "fp8"),
    ("v3-671b", "H100", 1920, 4096, 15_360, "bf16"),
    ("v2-lite-16b", "H100", 8, 4096, 64, "bf16"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    for name, device, gpus, length, sequences, precision in CASES:
        workload = Workload(preset(name).replace(yarn=None), length, length * sequences, precision, 10**12)
        cluster = Cluster(accelerator(device), gpus)
        first = _seconds(workload, cluster)
        best = min(_seconds(workload, cluster) for _ in range(repeat))
        count = sum(1 for _ in layouts(workload, cluster))
        print(f"{name} on {gpus} {device}, {length} tokens, {precision}: {count} layouts, "
              f"{best:.3f} s of CPU (first {first:.3f})")  # fmt: skip
    small = Cluster(accelerator("H100"), 64)
    begun = time.process_time()
    found = nearest(
        Workload(preset("v3-671b").replace(yarn=None), 4096, 4096 * 256, "bf16", 10**12), small, efficiencies()
    )
    seconds = time.process_time() - begun
    assert found is not None
    print(
        f"what would fit, 671B on 64 H100: {found.gpus_today} GPUs today, {found.gpus} at all, {seconds:.3f} s of CPU"
    )


def _seconds(workload: Workload, cluster: Cluster) -> float:
    begun = time.process_time()
    search(workload, cluster, efficiencies())
    return time.process_time() - begun


if __name__ == "__main__":
    main()

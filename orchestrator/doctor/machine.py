"""What the machine has: cores, memory, GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from orchestrator.doctor.findings import Finding, Place, State
from orchestrator.launch.devices import VISIBLE, visible_gpus

GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
_LITTLE_MEMORY, _LITTLE_SHARED = 2 * GIB, GIB
_PATIENCE_SECONDS = 30.0


def processor(place: Place) -> Iterator[Finding]:
    """Cores that this process may use."""
    import psutil

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quota = _cpu_quota(_CGROUP / "cpu.max")
    cores = allowed if quota is None else min(float(allowed), quota)
    says = f"{cores:g} cores" + (f" of {psutil.cpu_count()}" if psutil.cpu_count() != cores else "")
    if cores < 2:
        yield Finding("processor", State.WARN, says, "one worker and Ray share a core: training is slow")
    else:
        yield Finding("processor", State.OK, says)


def memory(place: Place) -> Iterator[Finding]:
    """Main memory, and the shared memory that Ray keeps its objects in."""
    import psutil

    seen = psutil.virtual_memory()
    limit = _number(_CGROUP / "memory.max")
    total = min(seen.total, limit or seen.total)
    free = min(seen.available, max(0, total - (_number(_CGROUP / "memory.current") or 0)) if limit else seen.available)
    says = f"{free / GIB:.1f} GiB of {total / GIB:.1f} GiB free"
    if free < _LITTLE_MEMORY:
        yield Finding("memory", State.WARN, says, "end something else: Ray and two small workers take about 2 GiB")
    else:
        yield Finding("memory", State.OK, says)
    if os.path.isdir("/dev/shm") and (shared := shutil.disk_usage("/dev/shm")).total < _LITTLE_SHARED:
        says = f"/dev/shm has {shared.total / GIB:.2f} GiB: Ray takes a slower folder instead"
        yield Finding("memory", State.WARN, says, "give the container more, e.g. docker run --shm-size=2g")


def gpus(place: Place) -> Iterator[Finding]:
    """By nvidia-smi, which comes with the driver."""
    program = shutil.which("nvidia-smi", path=place.env.get("PATH"))
    if program is None:
        yield Finding("gpus", State.OK, "none (no nvidia-smi): jobs with accelerator cpu run here")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        yield Finding("gpus", State.FAIL, f"nvidia-smi does not answer for {_PATIENCE_SECONDS:.0f} s", _DRIVER)
        return
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode or not lines:
        said = " ".join((done.stderr or done.stdout).split()) or f"it ended with {done.returncode}"
        yield Finding("gpus", State.FAIL, f"nvidia-smi finds none: {said}", _DRIVER)
        return
    says, usable = f"{len(lines)}: {'; '.join(dict.fromkeys(lines))}", visible_gpus(place.env)
    if not usable:
        do = f"correct {VISIBLE}" if VISIBLE in place.env else "install the package nvidia-ml-py"
        yield Finding("gpus", State.WARN, f"{says}; jobs may use none of them", f"{do}: jobs on GPUs are refused")
        return
    chosen = f"; jobs may use {','.join(usable)} ({VISIBLE})" if VISIBLE in place.env else ""
    yield Finding("gpus", State.OK, says + chosen)


_DRIVER = "look after the driver: jobs on GPUs cannot run until nvidia-smi shows them"


def _cpu_quota(path: Path) -> float | None:
    """Of the container, in cores."""
    try:
        quota, period = path.read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max", too
        return None

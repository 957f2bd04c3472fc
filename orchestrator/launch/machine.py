"""How busy this machine is: a thread of the driver looks every ten seconds, and what it sees becomes an event.

Names and units are those of MLflow's system metrics without their prefix: megabytes are 10**6 bytes, the network is
counted from the first look, the disk is that of `/`. Invariant: whatever fails here is told once and left out;
training goes on, and so does looking. GPUs are seen where `pynvml` (package nvidia-ml-py) and a driver are there.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import psutil

from orchestrator.launch.devices import visible_gpus
from orchestrator.launch.reporter import FileReporter

LOOK_SECONDS = 10.0
_SHORTEST = 1.0
"""Seconds between two looks if looking itself is slow."""
_NODE_LENGTH = 253

Part = Callable[[], dict[str, float]]
Parts = Mapping[str, Part]
"""By what a person calls them; each may fail without the others."""


class LoadMeter:
    """Reports the load of this machine for as long as the driver lives."""

    def __init__(
        self,
        reporter: FileReporter,
        *,
        parts: Callable[[], Parts] | None = None,
        node: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """`parts` begins to count, and gives what is looked at from then on; called by the thread that looks."""
        self._reporter, self._make, self._clock, self._wait = reporter, parts or machine_parts, clock, wait
        self._node = (node or platform.node() or "localhost")[:_NODE_LENGTH]
        self._parts: Parts | None = None
        self._told: set[str] = set()

    def start(self) -> None:
        """Look until the driver ends."""
        try:
            threading.Thread(target=self._run, name="machine", daemon=True).start()
        except RuntimeError as error:  # no more threads: training needs none of this
            self._tell("starting", error)

    def _run(self) -> None:
        while True:
            begun = self._clock()
            self.look()
            self._wait(max(_SHORTEST, LOOK_SECONDS - (self._clock() - begun)))

    def look(self) -> None:
        """Look once; the first time there is nothing to compare with yet, so that nothing is reported."""
        try:
            if self._parts is None:
                self._parts = self._make()
                return
            found: dict[str, float] = {}
            for name, part in self._parts.items():
                found |= self._measured(name, part)
            if found:
                self._reporter.machine_load(self._node, found)
        except Exception as error:  # noqa: BLE001 - e.g. a disk that fails: no reason to end training
            self._tell("reporting", error)

    def _measured(self, name: str, part: Part) -> dict[str, float]:
        try:
            return part()
        except Exception as error:  # noqa: BLE001 - whatever a driver or a kernel without /proc may raise
            self._tell(name, error)
            return {}

    def _tell(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            problem = f"{type(error).__name__}: {error}"
            print(f"load of this machine: {what} failed, told once: {problem}", file=sys.stderr, flush=True)


def machine_parts() -> Parts:
    """Processor, memory, disk, network and GPUs of this machine; counts from now on."""
    psutil.cpu_percent()  # compares with the call before, of the same thread
    parts = {"the processor": _processor, "the memory": _memory, "the disk": _disk, "the network": _network()}
    return parts | _gpus()


def _processor() -> dict[str, float]:
    return {"cpu_utilization_percentage": psutil.cpu_percent()}


def _memory() -> dict[str, float]:
    memory = psutil.virtual_memory()
    return {
        "system_memory_usage_megabytes": _megabytes(memory.used),
        "system_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
    }


def _disk() -> dict[str, float]:
    disk = psutil.disk_usage(os.sep)
    return {
        "disk_usage_percentage": disk.percent,
        "disk_usage_megabytes": _megabytes(disk.used),
        "disk_available_megabytes": _megabytes(disk.free),
    }


def _network() -> Part:
    before: Any = psutil.net_io_counters()

    def part() -> dict[str, float]:
        now: Any = psutil.net_io_counters()
        if before is None or now is None:  # a machine without a network, of which the stubs know nothing
            return {}
        return {
            "network_receive_megabytes": (now.bytes_recv - before.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - before.bytes_sent) / 1e6,
        }

    return part


def _gpus() -> dict[str, Part]:
    """Of those that this process may use; nothing where there are none, or where nobody can tell."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = {_number(name, place): _handle(nvml, name) for place, name in enumerate(visible_gpus(os.environ))}
    except Exception:  # noqa: BLE001 - not installed, no driver, no device: all the usual on a machine without GPUs
        return {}
    kinds = {"memory": _gpu_memory, "utilization": _gpu_utilization, "power": _gpu_power}
    return {
        f"the {kind} of GPU {index}": partial(part, nvml, handle, f"gpu_{index}")
        for index, handle in handles.items()
        for kind, part in kinds.items()
    }


def _number(name: str, place: int) -> int:
    """That of the machine; an instance of a partitioned GPU has none but its place."""
    return int(name) if name.isdecimal() else place


def _handle(nvml: Any, name: str) -> object:  # noqa: ANN401 - a module
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else nvml.nvmlDeviceGetHandleByUUID(name)


def _gpu_memory(nvml: Any, handle: object, name: str) -> dict[str, float]:  # noqa: ANN401 - a module
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        f"{name}_memory_usage_percentage": round(100 * memory.used / memory.total, 1),
        f"{name}_memory_usage_megabytes": _megabytes(memory.used),
    }


def _gpu_utilization(nvml: Any, handle: object, name: str) -> dict[str, float]:  # noqa: ANN401 - a module
    return {f"{name}_utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)}


def _gpu_power(nvml: Any, handle: object, name: str) -> dict[str, float]:  # noqa: ANN401 - a module
    milliwatts, limit = nvml.nvmlDeviceGetPowerUsage(handle), nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
    return {
        f"{name}_power_usage_watts": round(milliwatts / 1000, 1),
        f"{name}_power_usage_percentage": round(100 * milliwatts / limit, 1),
    }


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)

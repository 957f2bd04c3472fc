"""A `pynvml` of a machine with GPUs: as much of it as Fathom asks for."""

from __future__ import annotations

import types


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml(types.ModuleType):
    """So many GPUs, the second of which does not tell its power, and MIG instances."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2, instances: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self._count, self._instances = count, instances
        self.users = 0
        """Who has begun and not ended."""

    def nvmlInit(self) -> None:
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self._count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < self._count:
            raise NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid not in self._instances:
            raise NVMLError("Not Found")
        return 100 + self._instances.index(uuid)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}a{'0' * 6}-beef"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=(handle + 1) * 10_000_000_000, total=80_000_000_000)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=50 + handle)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 1:
            raise NVMLError("Not Supported")
        return 350_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: int) -> int:
        return 700_000

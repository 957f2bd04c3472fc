"""The GPUs of this machine that this process may use, and what a driver is told of those that are its own.

A GPU is named as CUDA_VISIBLE_DEVICES names it: by its number in NVML's order, which is that of the PCI bus, or, if it
is an instance of a partitioned GPU (MIG), by its UUID. Invariant: two names are never of the same device.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
VISIBLE = "CUDA_VISIBLE_DEVICES"
_NUMBER = re.compile(r"\s*\+?(\d{1,9})")
"""What CUDA takes for one: the rest of a word does not count."""


class Nvml(Protocol):
    """What is asked of the driver."""

    def count(self) -> int:
        """GPUs of the machine, whether this process may use them or not."""
        ...

    def uuid(self, number: int) -> str:
        """Of a whole GPU, e.g. GPU-8932f937-d72c-4106-c12f-20bd9faed9f6."""
        ...

    def knows(self, uuid: str) -> bool:
        """Whether there is a device of this UUID."""
        ...


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the GPUs that a process with this environment may use, the lowest first; none without a driver."""
    try:
        with closing(_Pynvml()) as nvml:
            return among(environ.get(VISIBLE), nvml)
    except Exception:  # noqa: BLE001 - no package, no driver, or a broken one: no GPU to give out
        return ()


def among(value: str | None, nvml: Nvml) -> tuple[str, ...]:
    """The names that a value of CUDA_VISIBLE_DEVICES stands for, as CUDA reads it: None is all, the first word that
    means no device ends the list, and a device named twice leaves none. Words of one kind only: numbers, UUIDs of GPUs
    (or how those begin, if that is clear), or UUIDs of MIG instances."""
    count, words = nvml.count(), [] if value is None else value.split(",")
    if value is None:
        return _names(range(count))
    if value.startswith("MIG-"):
        return _names(_unlike(word if nvml.knows(word) else None for word in _unlike(_begun("MIG-", words))))
    if value.startswith("GPU-"):
        uuids = [nvml.uuid(number) for number in range(count)]
        return _names(sorted(_unlike(_of_uuid(word, uuids) for word in _unlike(_begun("GPU-", words)))))
    numbers = _unlike(int(number[1]) if (number := _NUMBER.match(word)) else None for word in words)
    return _names(sorted(_unlike(number if number < count else None for number in numbers)))


def own(gpus: Sequence[str]) -> dict[str, str]:
    """For the environment of a driver to which these were given; none hides all, which a job on CPUs would else find,
    and take memory of. The order is said too: CUDA's own begins with the fastest."""
    return {VISIBLE: ",".join(gpus), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def in_words(gpus: Sequence[str] | None) -> str:
    """E.g. `GPUs 0,1 of this machine`; None: some."""
    if gpus is None:
        return "GPUs of this machine, and nobody knows which"
    return f"GPU{'s' * (len(gpus) != 1)} {','.join(gpus)} of this machine" if gpus else ""


def _begun(prefix: str, words: Iterable[str]) -> Iterable[str | None]:
    return (word if word.startswith(prefix) else None for word in words)


def _unlike(found: Iterable[T | None]) -> list[T]:
    """Until the first None; nothing at all if one is there twice."""
    kept: list[T] = []
    for one in found:
        if one is None:
            break
        if one in kept:
            return []
        kept.append(one)
    return kept


def _of_uuid(word: str, uuids: Sequence[str]) -> int | None:
    found = [number for number, uuid in enumerate(uuids) if uuid.startswith(word)]
    return found[0] if len(found) == 1 else None


def _names(found: Iterable[int | str]) -> tuple[str, ...]:
    return tuple(str(one) for one in found)


class _Pynvml:
    """By the package nvidia-ml-py, which calls the driver's library."""

    def __init__(self) -> None:
        self._nvml: Any = importlib.import_module("pynvml")
        self._nvml.nvmlInit()

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def count(self) -> int:
        return int(self._nvml.nvmlDeviceGetCount())

    def uuid(self, number: int) -> str:
        return str(self._nvml.nvmlDeviceGetUUID(self._nvml.nvmlDeviceGetHandleByIndex(number)))

    def knows(self, uuid: str) -> bool:
        try:
            self._nvml.nvmlDeviceGetHandleByUUID(uuid)
        except self._nvml.NVMLError:
            return False
        return True

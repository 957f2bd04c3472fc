"""Checkpoints without files: DeepSpeed's state is copied to host memory and written later, by another thread.

DeepSpeed decides what belongs into which file and hands it to its checkpoint engine; this one only keeps copies.
So training stands still for the copy alone, and no error of a disk can occur between DeepSpeed's barriers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.engine.lean_deepspeed import CheckpointCommitInfo, CheckpointEngine


class HostCheckpoints(CheckpointEngine):  # type: ignore[misc]
    """DeepSpeed's checkpoint engine that saves to memory and loads from files."""

    def __init__(self) -> None:
        super().__init__(None)
        self._files: dict[str, object] = {}

    def take(self) -> dict[str, object]:
        """File name -> content of everything that was saved since the last call."""
        files, self._files = self._files, {}
        return files

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to prepare."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """No folder is needed."""

    def save(self, state_dict: object, path: str) -> None:
        """Keep a copy under the file's name."""
        name = Path(path).name
        assert name not in self._files, name
        self._files[name] = host_copy(state_dict)

    def load(self, path: str, map_location: Any = None) -> Any:  # noqa: ANN401 - whatever was saved
        """The files hold more than tensors; their digests were verified before."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:
        """Files are written elsewhere."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """Copies hold their own storage: DeepSpeed need not clone before."""
        return False


def host_copy(value: object) -> object:
    """A copy whose tensors lie in host memory and are changed by nobody; containers keep their types."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        new = copy.copy(value)  # the type and its attributes too: module state carries metadata
        for key, item in value.items():
            new[key] = host_copy(item)
        return new
    if isinstance(value, list):
        return [host_copy(item) for item in value]
    if isinstance(value, tuple):
        items: list[Any] = [host_copy(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value

"""Reads single tensors out of safetensors by what `model.headers` has found, from local files and URLs alike.

One tensor is in memory at a time, and nothing is mapped: memory stays at that of the largest tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, BinaryIO, Self

import torch
from torch import Tensor

from model.fit import Piece
from model.headers import ITEM_BYTES, Headers, Stored
from model.precision.blocks import dequantise_weight

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F8_E4M3": torch.float8_e4m3fn}
"""What is read and written, by its name in the files."""
_READ_AHEAD = 1 << 24


class Tensors:
    """Open files; at most one at a time, since what is read in their order needs no more."""

    def __init__(self, headers: Headers) -> None:
        self._fs, self._root = headers.file_system
        self._name = ""
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, piece: Piece) -> Tensor:
        """A piece as it is stored, or in FP32 if it has scales."""
        stored = piece.stored
        tensor = self._expert(stored, piece.index) if piece.index else self.stored(stored)
        if piece.scale is None:
            return tensor
        return dequantise_weight(tensor, self.stored(piece.scale), torch.float32)

    def pair(self, piece: Piece) -> tuple[Tensor, Tensor]:
        """8 bits and scales, as they are stored."""
        assert piece.scale is not None
        return self.stored(piece.stored), self.stored(piece.scale)

    def stored(self, stored: Stored) -> Tensor:
        """A whole stored tensor."""
        return self._bytes(stored, stored.start, stored.shape)

    def _expert(self, stored: Stored, index: Sequence[int | slice]) -> Tensor:
        """Of a stack, one expert's part: whole rows, so that its bytes are together."""
        expert, *rows = index
        assert isinstance(expert, int)
        shape = stored.shape[1:]
        size = math.prod(shape) * ITEM_BYTES[stored.dtype]
        return self._bytes(stored, stored.start + expert * size, shape)[tuple(rows)]

    def _bytes(self, stored: Stored, start: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape) * ITEM_BYTES[stored.dtype]
        file = self._open(stored.file)
        file.seek(start)
        raw = bytearray(size)
        filled = 0
        while filled < size:
            part = file.read(min(size - filled, _READ_AHEAD))
            if not part:
                raise ValueError(f"{self._root}/{stored.file} ends before byte {start + size}: it has changed")
            raw[filled : filled + len(part)] = part
            filled += len(part)
        if not size:
            return torch.empty(shape, dtype=DTYPES[stored.dtype])
        return torch.frombuffer(raw, dtype=DTYPES[stored.dtype]).view(shape)

    def _open(self, name: str) -> BinaryIO:
        if self._file is None or self._name != name:
            self._close()
            opened: Any = self._fs.open(f"{self._root}/{name}", "rb")
            self._file, self._name = opened, name
        assert self._file is not None
        return self._file

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

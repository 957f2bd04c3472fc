"""Writes the released layout, as transformers opens it: safetensors files, configuration, tokenizer.

Tensor by tensor: a file's header is known before its data, so memory stays at that of the largest tensor. All is
written into a folder beside the wanted one, which takes its place when everything is there.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from model.config import ModelConfig
from model.fit import FP8, SCALE
from model.flops import BLOCK
from model.headers import INDEX, ITEM_BYTES, SINGLE
from model.names import DiskEntry, Shape, disk_entries, is_buffer, is_quantised
from model.precision.blocks import dequantise_weight, quantise_weight
from model.reading import DTYPES
from model.released import to_released
from model.tokenizer import Tokenizer

Dtype = Literal["fp32", "bf16", "fp8"]
Pair = tuple[Tensor, Tensor]
Read = Callable[[DiskEntry], Tensor | Pair]
"""Gives one tensor in whatever type it is kept in; for FP8 also as it is stored: 8 bits and scales."""
_STORED = {"fp32": "F32", "bf16": "BF16", "fp8": "BF16"}
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp8": "bfloat16"}
QUANTISATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
"""As in DeepSeek-V3's config.json."""


@dataclass(frozen=True)
class Planned:
    """One tensor that will be written."""

    entry: DiskEntry
    dtype: str
    """As in the header of the file."""

    @property
    def parts(self) -> list[tuple[str, str, Shape]]:
        """Name, type and shape of what stands in the file: with FP8 the scales too."""
        name, shape = self.entry.name, self.entry.shape
        own = [(name, self.dtype, shape)]
        blocks = tuple(-(-size // BLOCK) for size in shape)
        return own + ([(name + SCALE, "F32", blocks)] if self.dtype == FP8 else [])

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(_bytes(dtype, shape) for _, dtype, shape in self.parts)


def _bytes(dtype: str, shape: Shape) -> int:
    return ITEM_BYTES[dtype] * torch.Size(shape).numel()


def planned(config: ModelConfig, dtype: Dtype, entries: Sequence[DiskEntry] | None = None) -> list[Planned]:
    """What will be written, in order. Routers' selection biases stay in FP32: their steps are too small for BF16."""

    def stored(entry: DiskEntry) -> str:
        if is_buffer(entry.memory_name):
            return "F32"
        return FP8 if dtype == "fp8" and is_quantised(entry) else _STORED[dtype]

    return [Planned(entry, stored(entry)) for entry in (disk_entries(config) if entries is None else entries)]


def shards(plan: Sequence[Planned], shard_bytes: int) -> dict[str, list[Planned]]:
    """The files and what is in them; only a tensor that is larger by itself makes a file larger than `shard_bytes`."""
    files: list[list[Planned]] = [[]]
    size = 0
    for one in plan:
        if files[-1] and size + one.size > shard_bytes:
            files.append([])
            size = 0
        files[-1].append(one)
        size += one.size
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {f"model-{i:05d}-of-{len(files):05d}.safetensors": held for i, held in enumerate(files, start=1)}


def write_release(
    folder: Path,
    config: ModelConfig,
    read: Read,
    tokenizer: Tokenizer,
    *,
    dtype: Dtype,
    shard_bytes: int = 4 * 10**9,
    force: bool = False,
) -> int:
    """Write everything into the new folder `folder`; -> bytes of its tensors.

    FileExistsError if it is there and not `force` (then it is replaced when all is written); any other error leaves
    what was there as it was.
    """
    with _replacing(folder, force=force) as target:
        files = shards(planned(config, dtype), shard_bytes)
        for name, held in files.items():
            _write_file(target / name, held, read)
        total = sum(one.size for held in files.values() for one in held)
        if len(files) > 1:
            where = {part: name for name, held in files.items() for one in held for part, _, _ in one.parts}
            _write_json(target / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        _write_json(target / "config.json", released_config(config, tokenizer, dtype))
        _write_json(target / "generation_config.json", _token_ids(tokenizer))
        _write_json(target / "tokenizer_config.json", _tokenizer_config(config, tokenizer))
        (target / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return total


def released_config(config: ModelConfig, tokenizer: Tokenizer, dtype: Dtype) -> dict[str, Any]:
    """`config.json`: the architecture, the type of the weights and the special tokens."""
    data = to_released(config) | {"torch_dtype": _TORCH_NAMES[dtype]} | _token_ids(tokenizer)
    return data | ({"quantization_config": QUANTISATION} if dtype == "fp8" else {})


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Training knows one special token between texts: it ends one and begins the next."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.end_of_text)


def _tokenizer_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), tokenizer.end_of_text_name),
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, held: Sequence[Planned], read: Read) -> None:
    """One safetensors file: header, then each tensor as it comes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in held:
        for name, dtype, shape in one.parts:
            start, end = end, end + _bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for one in held:
            _write_tensor(file, read(one.entry), one)
        file.flush()
        os.fsync(file.fileno())


def _write_tensor(file: BinaryIO, given: Tensor | Pair, one: Planned) -> None:
    """ValueError for a wrong shape, and for numbers that are not finite."""
    parts = _in_8_bits(given) if one.dtype == FP8 else (_single(given).to(DTYPES[one.dtype]),)
    for part, (name, _, shape) in zip(parts, one.parts, strict=True):
        if tuple(part.shape) != shape:
            raise ValueError(f"{name} has {list(part.shape)}, should have {list(shape)}")
        if not bool(part.float().isfinite().all()):
            raise ValueError(f"{name} holds what is no finite number: nothing is exported")
        file.write(part.contiguous().view(-1).view(torch.uint8).numpy().data)


def _single(given: Tensor | Pair) -> Tensor:
    return given if isinstance(given, Tensor) else dequantise_weight(*given, torch.float32)


def _in_8_bits(given: Tensor | Pair) -> Pair:
    """Twice: a block whose largest was rounded down to half of the range gets a smaller scale the second time, with the
    same values. So what was read from 8 bits gives the same 8 bits."""
    return quantise_weight(_single(quantise_weight(given))) if isinstance(given, Tensor) else given


@contextmanager
def _replacing(folder: Path, *, force: bool) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, or goes if anything fails."""
    if not force and os.path.lexists(folder):
        raise FileExistsError(f"{folder} exists: name another folder, or replace it with --force")
    if force and os.path.lexists(folder) and not _is_export(folder):
        raise FileExistsError(f"{folder} exists and is no export (it has no config.json): it is not replaced")
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    target, old = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("tmp", "old"))
    target.mkdir()
    try:
        yield target
        if os.path.lexists(folder):
            folder.rename(old)
            try:
                target.rename(folder)
            except OSError:
                old.rename(folder)
                raise
        else:
            target.rename(folder)
    finally:
        shutil.rmtree(target, ignore_errors=True)
    with suppress(OSError):
        shutil.rmtree(old)


def _is_export(folder: Path) -> bool:
    """What --force may replace: a real folder of weights, or an empty one."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return (folder / "config.json").is_file() or not any(folder.iterdir())

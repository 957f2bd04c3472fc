"""Writes the released layout, as transformers opens it: safetensors files, configuration, tokenizer.

Tensor by tensor: a file's header is known before its data, so memory stays at that of the largest tensor. All is
written into a folder beside the wanted one, which takes its place when everything is there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
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
from model.files import local_path
from model.fit import FP8, SCALE, Piece, require_vocabulary
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
_WEIGHTS = re.compile(r"model[\w.-]*\.safetensors|" + re.escape(INDEX))
_OWN_FILES = re.compile(
    rf"(generation_)?config\.json|tokenizer[\w.-]*\.json|special_tokens_map\.json|{_WEIGHTS.pattern}"
)
"""All that --force may delete."""


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


def lossless(pieces: Sequence[Piece]) -> Dtype:
    """The type that nothing of these is lost in. Selection biases do not count: they are FP32 in all."""
    weights = [piece for piece in pieces if not is_buffer(piece.entry.memory_name)]
    plain = {piece.stored.dtype for piece in weights if piece.scale is None}
    if not plain <= {"BF16"}:
        return "fp32"
    if all((piece.scale is not None) == is_quantised(piece.entry) for piece in weights):
        return "fp8"
    return "bf16" if all(piece.scale is None for piece in weights) else "fp32"


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
    source: str | None = None,
) -> int:
    """Write everything into the new folder `folder`; -> bytes of its tensors. `source`: the folder that is read.

    FileExistsError if it is there and not `force` (then it is replaced when all is written); any other error leaves
    what was there as it was. ValueError where the source would be replaced.
    """
    require_vocabulary(config, tokenizer.vocab_size, tokenizer.name)
    _require_apart(folder, source)
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
            if bool(_single(given).isfinite().all()):
                raise ValueError(f"{name} holds numbers too large for {one.dtype}: export it with --dtype fp32")
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
    _put_back(folder)
    _require_replaceable(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{folder} cannot be made: {folder.parent} is no folder, or lies in a file") from None
    _remove_left_over(folder)
    target, held = _draft(folder)
    old = target.with_suffix(".old")
    try:
        yield target
        _require_replaceable(folder, force=force)  # it may have changed meanwhile
        try:
            if os.path.lexists(folder):
                folder.rename(old)
            target.rename(folder)
        except BaseException:  # Ctrl-C too
            if os.path.lexists(old) and not os.path.lexists(folder):
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(target, ignore_errors=True)
        os.close(held)
    with suppress(OSError):
        if os.path.lexists(old):
            shutil.rmtree(old)
        for superseded in _beside(folder, "old"):  # by writers that were killed when they had done all but this
            if not _lives(superseded.with_suffix(".tmp")):
                _remove(superseded)


def _put_back(folder: Path) -> None:
    """What a writer had moved away that was killed before its own was in its place: it is the only copy."""
    if os.path.lexists(folder) or not os.path.isdir(folder.parent):
        return
    found = [path for path in _beside(folder, "old") if _is_ours(path) and not _lives(path.with_suffix(".tmp"))]
    if found:
        with suppress(OSError):  # a living writer was quicker
            max(found, key=os.path.getmtime).rename(folder)


def _beside(folder: Path, ending: str) -> list[Path]:
    """What exports to `folder` have put beside it."""
    name = re.compile(re.escape(f".{folder.name}.") + rf"[0-9a-f]{{8}}\.{ending}")
    return [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]


def _is_ours(path: Path) -> bool:
    """Whether it is a folder that holds nothing but what an export writes."""
    plain = path.is_dir() and not path.is_symlink()
    return plain and all(_OWN_FILES.fullmatch(inside.name) for inside in path.iterdir())


def _lives(draft: Path) -> bool:
    """Whether the writer of a draft is known to live: it holds the lock."""
    with suppress(OSError):
        descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            return _locked(descriptor) is False
        finally:
            os.close(descriptor)
    return False


def _draft(folder: Path) -> tuple[Path, int]:
    """A new folder beside `folder`, and a descriptor that holds its lock for as long as this process lives."""
    while True:
        target = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
        target.mkdir()
        with suppress(FileNotFoundError):  # removed as a leftover before it was locked
            held = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
            if _locked(held) is not False and target.exists():
                return target, held
            os.close(held)


def _locked(descriptor: int) -> bool | None:
    """Whether the lock of a folder is ours now; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove_left_over(folder: Path) -> None:
    """Drafts of this export whose writers were killed: nobody holds their lock. Where that cannot be told they stay."""
    for path in _beside(folder, "tmp"):
        _remove(path)


def _remove(path: Path) -> None:
    """If it holds nothing but an export, and nobody has locked it."""
    with suppress(OSError):  # a link or a file; gone meanwhile; not ours to remove
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if _locked(descriptor) and _is_ours(path):
                shutil.rmtree(path)
        finally:
            os.close(descriptor)


def _require_replaceable(folder: Path, *, force: bool) -> None:
    """FileExistsError, unless `folder` is absent, or `force` is given and it is an export or empty."""
    if not os.path.lexists(folder):
        return
    if not force:
        raise FileExistsError(f"{folder} exists: name another folder, or replace it with --force")
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder} exists and is no export (no folder): it is not replaced")
    held = sorted(folder.iterdir())
    foreign = [p.name for p in held if p.is_symlink() or not p.is_file() or not _OWN_FILES.fullmatch(p.name)]
    if foreign:
        raise FileExistsError(f"{folder} exists and is no export (it holds {foreign[0][:200]!r}): it is not replaced")
    if held and not any(_WEIGHTS.fullmatch(path.name) for path in held):
        raise FileExistsError(f"{folder} exists and is no export (it holds no weights): it is not replaced")


def _require_apart(folder: Path, source: str | None) -> None:
    """ValueError if what is read would be replaced."""
    path = None if source is None else local_path(source)
    if path is None:
        return
    read, out = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    if read == out or out in read.parents:
        raise ValueError(f"{folder} is or holds what is read, {source}: name another folder")

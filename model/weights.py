"""Whole weights on disk in the released layout: written at the end of a run, read by `fathom generate`.

One folder: `model-0000N.safetensors` files with their index, `config.json` and `tokenizer.json`. Written tensor by
tensor, so that memory stays near one file whatever the size of the model.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable

import fsspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.dataset import local_path
from model.names import DiskEntry, disk_entries
from model.released import read_released, to_released
from model.tokenizer import Tokenizer
from model.transformer import CausalLM

INDEX = "model.safetensors.index.json"
FILE_BYTES = 4 * 2**30


class _Writer:
    """Collects tensors and writes a file whenever enough have come together."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(uri)
        self.fs.makedirs(self.root, exist_ok=True)
        self.pending: dict[str, Tensor] = {}
        self.where: dict[str, str] = {}
        self.size = self.files = self.total = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep one tensor; may write a file."""
        size = tensor.numel() * tensor.element_size()
        if self.pending and self.size + size > FILE_BYTES:
            self.flush()
        self.pending[name] = tensor.contiguous()
        self.size += size
        self.total += size

    def flush(self) -> None:
        """Write what is pending as one file."""
        if not self.pending:
            return
        self.files += 1
        name = f"model-{self.files:05d}.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            save_file(self.pending, f"{folder}/{name}", metadata={"format": "pt"})
            self.fs.put_file(f"{folder}/{name}", f"{self.root}/{name}")
        self.where |= dict.fromkeys(self.pending, name)
        self.pending, self.size = {}, 0

    def text(self, name: str, content: object) -> None:
        """Write a small file: text as it is, anything else as JSON."""
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        self.fs.pipe_file(f"{self.root}/{name}", text.encode())


def write_weights(
    uri: str, config: ModelConfig, tensors: Iterable[tuple[str, Tensor]], tokenizer_json: str, *, write: bool
) -> None:
    """Write all tensors (memory names, whole) below `uri`. Every rank iterates, since that is collective;
    only the one with `write` keeps what it gets. The index comes last."""
    entries: dict[str, list[DiskEntry]] = defaultdict(list)
    for entry in disk_entries(config):
        entries[entry.memory_name].append(entry)
    writer = _Writer(uri) if write else None
    for name, tensor in tensors:
        if writer is None:
            continue
        for entry in entries[name]:
            writer.add(entry.name, tensor[entry.index].clone())
    if writer is None:
        return
    writer.flush()
    absent = [e.name for named in entries.values() for e in named if e.name not in writer.where]
    if absent:
        raise ValueError(f"{len(absent)} tensors never came to be written to {uri}, e.g. {absent[0]}")
    writer.text("config.json", to_released(config))
    writer.text("tokenizer.json", tokenizer_json)
    writer.text(INDEX, {"metadata": {"total_size": writer.total}, "weight_map": writer.where})


@torch.no_grad()
def load_weights(model: CausalLM, uri: str) -> None:
    """Fill `model` (a plain CausalLM) from a folder that `write_weights` made; ValueError lists what is wrong."""
    fs, root = fsspec.core.url_to_fs(uri.rstrip("/"))
    try:
        where: dict[str, str] = json.loads(fs.cat_file(f"{root}/{INDEX}"))["weight_map"]
    except FileNotFoundError:
        raise FileNotFoundError(f"no weights in {uri}: {INDEX} is missing") from None
    state = model.state_dict()
    entries = [e for e in disk_entries(model.config) if not e.copy]
    missing = [e.name for e in entries if e.name not in where]
    if missing:
        raise ValueError(f"{uri} lacks {len(missing)} of {len(entries)} tensors, e.g. {missing[0]}")
    by_file: dict[str, list[DiskEntry]] = defaultdict(list)
    for entry in entries:
        by_file[where[entry.name]].append(entry)
    with tempfile.TemporaryDirectory() as folder:
        for name, wanted in by_file.items():
            path = f"{root}/{name}"
            if local_path(uri) is None:
                path = f"{folder}/{name}"
                fs.get_file(f"{root}/{name}", path)
            _copy_from(path, wanted, state)


def _copy_from(path: str, entries: list[DiskEntry], state: dict[str, Tensor]) -> None:
    with safe_open(path, framework="pt") as file:
        for entry in entries:
            tensor, target = file.get_tensor(entry.name), state[entry.memory_name][entry.index]
            if tensor.shape != target.shape:
                raise ValueError(
                    f"{entry.name} in {path} has shape {tuple(tensor.shape)}, the model needs {tuple(target.shape)}"
                )
            target.copy_(tensor)


def read_model(uri: str) -> tuple[CausalLM, Tokenizer]:
    """The model and the tokenizer of a folder that `write_weights` made, on the host."""
    path = local_path(uri)
    if path is None:
        raise ValueError(f"weights are read from local or mounted folders only, got {uri}: copy them first")
    model = CausalLM(read_released(path))
    load_weights(model, uri)
    return model, Tokenizer.load(uri)

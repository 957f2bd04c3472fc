"""Whole weights on disk in the released layout: written at the end of a run, read by `fathom generate`.

One folder: `model-0000N.safetensors` files with their index, `config.json` and `tokenizer.json`. Written tensor by
tensor, so that memory stays near one file whatever the size of the model.
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress

import fsspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from model.config import ModelConfig
from model.fit import Piece, fit, require_vocabulary
from model.headers import INDEX as INDEX
from model.headers import Headers, read_headers
from model.names import DiskEntry, disk_entries
from model.reading import Tensors
from model.released import read_released, to_released
from model.tokenizer import Tokenizer
from model.transformer import CausalLM

FILE_BYTES = 4 * 2**30


class _Writer:
    """Collects tensors and writes a file whenever enough have come together."""

    def __init__(self, uri: str) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(uri)
        self.fs.makedirs(self.root, exist_ok=True)
        with suppress(FileNotFoundError):  # of earlier weights: until the end there must be none
            self.fs.rm_file(f"{self.root}/{INDEX}")
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
def load_weights(model: CausalLM, uri: str, fingerprint: str | None = None) -> None:
    """Fill `model` (a plain CausalLM) from a folder or URL in the released layout, tensor by tensor.

    ValueError lists all that does not fit, before anything is copied; one for numbers that are not finite, for copies
    of embedding or head that are none, and for weights that have changed since `fingerprint` was taken.
    """
    headers = read_headers(uri)
    if fingerprint not in (None, headers.fingerprint):
        raise ValueError(f"the weights in {uri} have changed since the job began: put the first ones back")
    _fill(model, headers, fit(model.config, headers))


def _fill(model: CausalLM, headers: Headers, pieces: Sequence[Piece]) -> None:
    uri, state = headers.uri, model.state_dict()
    with Tensors(headers) as tensors:
        for piece in sorted(pieces, key=lambda piece: (piece.stored.file, piece.stored.start)):
            if not piece.entry.copy:
                tensor = tensors.read(piece)
                if not bool(tensor.isfinite().all()):
                    raise ValueError(f"{piece.entry.name} in {uri}/{piece.stored.file} holds what is no finite number")
                state[piece.entry.memory_name][piece.entry.index].copy_(tensor)
        for piece in pieces:
            if piece.entry.copy and not _equal(tensors.read(piece), state[piece.entry.memory_name]):
                raise ValueError(
                    f"{piece.entry.name} in {uri} differs from {piece.entry.memory_name}: a prediction module with an "
                    "embedding or head of its own is not supported; leave the module out (num_nextn_predict_layers, "
                    "or mtpDepth in a job)"
                )


def _equal(stored: Tensor, own: Tensor) -> bool:
    return torch.equal(stored, own.detach().to(stored.dtype))


def read_model(uri: str) -> tuple[CausalLM, Tokenizer]:
    """The model and the tokenizer of a folder or URL in the released layout, on the host."""
    config, headers = read_released(uri), read_headers(uri)
    pieces = fit(config, headers)  # before there is a model: a configuration may ask for any size
    tokenizer = Tokenizer.load(uri)
    require_vocabulary(config, tokenizer.vocab_size, tokenizer.name)
    model = CausalLM(config)
    with torch.no_grad():
        _fill(model, headers, pieces)
    return model, tokenizer

"""Whether stored tensors are those of an architecture, and which of them goes where. No torch.

Accepts the released layout (a tensor per expert, FP8 with `weight_scale_inv`, prediction modules as further layers)
and stacked experts, as transformers 5 holds them in memory. All that is wrong is said in one ValueError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from model.config import ModelConfig
from model.flops import BLOCK
from model.headers import Headers, Stored, shown
from model.names import DOWN, GATE_UP, DiskEntry, disk_entries, memory_shapes, stacked_name

PLAIN = ("F32", "BF16", "F16")
FP8 = "F8_E4M3"
SCALE = "_scale_inv"
LINES = 20
"""Of what is wrong, at most so many lines are shown."""
MANY = 100_000
"""Tensors; released models have fewer, so up to here all that is missing is listed."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_MODULE_PARTS = ("eh_proj", "enorm", "hnorm")
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class Piece:
    """One tensor to read: `memory[entry.index] = stored[index]`, times its scales if it has any."""

    entry: DiskEntry
    stored: Stored
    index: tuple[int | slice, ...] = ()
    """Of a stored stack of experts, the part that is this entry."""
    scale: Stored | None = None


@dataclass
class _Findings:
    """What is wrong, by kind."""

    files: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    mistyped: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)

    def text(self, expected: int) -> str:
        """Counts, then the first lines of each kind; empty if nothing is wrong."""
        kinds = {
            "damaged or inconsistent": self.files,
            f"missing of {expected}": self.missing,
            "of another shape": self.misshapen,
            "of a type that is not read": self.mistyped,
            "unknown": self.extra,
        }
        found = {kind: lines for kind, lines in kinds.items() if lines}
        counts = ", ".join(f"{len(lines)} {kind}" for kind, lines in found.items())
        each = max(1, LINES // max(1, len(found)))
        shown = [f"  {kind}: {line}" for kind, lines in found.items() for line in lines[:each]]
        left = sum(len(lines) for lines in found.values()) - len(shown)
        return "\n".join([counts, *shown, *([f"  and {left} more"] if left else [])]) if found else ""


def fit(config: ModelConfig, headers: Headers) -> list[Piece]:
    """What to read for each tensor of the released layout, copies of embedding and head included where they are there.

    ValueError lists what is missing, unknown, misshapen, of a wrong type or damaged. Prediction modules beyond
    `config.num_nextn_predict_layers` are left out.
    """
    _require_about_as_many(config, headers)
    entries = disk_entries(config)
    needed = [entry for entry in entries if not entry.copy]
    _require_modules(config, headers)
    findings = _Findings(files=list(headers.problems))
    used: set[str] = set()
    pieces = [piece for entry in entries if (piece := _piece(config, entry, headers, findings, used)) is not None]
    layers = config.num_hidden_layers
    beyond = range(layers + config.num_nextn_predict_layers, layers + module_count(config, headers))
    findings.extra = [
        f"{shown(name)} {list(stored.shape)}"
        for name, stored in sorted(headers.tensors.items())
        if name not in used and not _left_out(name, beyond)
    ]
    if text := findings.text(len(needed)):
        raise ValueError(f"{headers.uri} does not hold the weights of this architecture: {text}")
    return pieces


def require_vocabulary(config: ModelConfig, tokens: int, tokenizer: str) -> None:
    """ValueError if the tokenizer has numbers that the embedding has no row for."""
    if tokens > config.vocab_size:
        raise ValueError(
            f"{tokenizer} has {tokens} tokens, the model's vocabulary {config.vocab_size}: "
            "put the tokenizer there that the weights were trained with"
        )


def _require_about_as_many(config: ModelConfig, headers: Headers) -> None:
    """Before anything is enumerated: a configuration may ask for any number of tensors, files hold what they hold."""
    per_expert = {GATE_UP: 2, DOWN: 1}
    expected = sum(
        next((count * shape[0] for end, count in per_expert.items() if name.endswith(end)), 1)
        for name, shape in memory_shapes(config).items()
    )
    experts = config.n_routed_experts
    stacks = sum(len(stored.shape) == 3 and stored.shape[0] == experts for stored in headers.tensors.values())
    there = len(headers.tensors) + len(headers.unread) + 2 * experts * stacks
    if expected > MANY and expected > 2 * there:
        told = "".join(f"\n  {problem}" for problem in headers.problems[:LINES])
        raise ValueError(
            f"{headers.uri} does not hold the weights of this architecture: {len(headers.tensors)} tensors are there, "
            f"{expected} are needed for {config.num_hidden_layers} layers and {experts} experts{told}"
        )


def module_count(config: ModelConfig, headers: Headers) -> int:
    """Prediction modules that are stored behind the main layers."""
    names = headers.tensors.keys() | headers.unread
    count = 0
    while any(f"model.layers.{config.num_hidden_layers + count}.{part}.weight" in names for part in _MODULE_PARTS):
        count += 1
    return count


def _require_modules(config: ModelConfig, headers: Headers) -> None:
    """One sentence, not a line for every tensor, where the modules were never stored."""
    there, wanted = module_count(config, headers), config.num_nextn_predict_layers
    if there < wanted and headers.tensors:
        raise ValueError(
            f"{headers.uri} holds {there} of the {wanted} prediction modules of its configuration "
            "(transformers writes none): set num_nextn_predict_layers in its config.json, or mtpDepth in a job, "
            f"to {there}"
        )


def _left_out(name: str, beyond: range) -> bool:
    """Whether a stored tensor is known and not needed; `beyond`: layers of prediction modules that the model drops."""
    match = _LAYER.match(name)
    return (match is not None and int(match[1]) in beyond) or _IGNORED.fullmatch(name) is not None


def _piece(
    config: ModelConfig, entry: DiskEntry, headers: Headers, findings: _Findings, used: set[str]
) -> Piece | None:
    """Where an entry is stored; None if it is not, which is among the findings unless it may be left out."""
    stored, name, shape = headers.tensors.get(entry.name), entry.name, entry.shape
    index: tuple[int | slice, ...] = ()
    if stored is None and entry.expert is not None:
        name = stacked_name(config, entry)
        stored, index, shape = headers.tensors.get(name), entry.index, entry.stack
    if stored is None:
        if not entry.copy and entry.name not in headers.unread and name not in headers.unread:
            findings.missing.append(entry.name)
        return None
    first = name not in used  # of a stack, faults are told once
    used.add(name)
    if stored.shape != shape:
        if first:
            findings.misshapen.append(f"{name} has {list(stored.shape)}, the model needs {list(shape)}")
        return None
    if stored.dtype == FP8 and not index and len(shape) == 2:
        return _scaled(entry, stored, headers, findings, used)
    if stored.dtype not in PLAIN and first:
        findings.mistyped.append(f"{name} is {stored.dtype}, read are {', '.join(PLAIN)} and matrices in {FP8}")
    return Piece(entry, stored, index)


def _scaled(entry: DiskEntry, stored: Stored, headers: Headers, findings: _Findings, used: set[str]) -> Piece | None:
    """A matrix in FP8, which needs a scale for each block."""
    name = entry.name + SCALE
    scale = headers.tensors.get(name)
    if scale is None:
        if name not in headers.unread:
            findings.missing.append(f"{name}, the scales of a tensor in FP8")
        return None
    used.add(name)
    blocks = tuple(-(-size // BLOCK) for size in stored.shape)
    if scale.shape != blocks:
        findings.misshapen.append(f"{name} has {list(scale.shape)}, blocks of {BLOCK} need {list(blocks)}")
    if scale.dtype != "F32":
        findings.mistyped.append(f"{name} is {scale.dtype}, scales are F32")
    return Piece(entry, stored, scale=scale)

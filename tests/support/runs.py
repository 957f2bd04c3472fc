"""One run as the launcher sees it: its data, a resolved attempt, its events, and what they cost."""

from __future__ import annotations

import datetime
import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from orchestrator.cost.meter import Rate
from orchestrator.launch.events import Event
from orchestrator.launch.resolve import JobRef, Resolved, TrackingTarget
from orchestrator.spec import TrainingJob
from support.recipes import tiny_recipe

EVENT: TypeAdapter[Event] = TypeAdapter(Event)
RATE = Rate(
    per_hour=Decimal("3600"),
    currency="USD",
    units=2,
    unit="cpu-hour",
    source="a list",
    date=datetime.date(2026, 6, 1),
)
"""A dollar a second."""


def event(kind: str, time: float, *, attempt: int = 1, seq: int | None = None, **fields: Any) -> Event:  # noqa: ANN401
    """An event of incarnation i; `seq` follows the time unless given."""
    number = round(time * 10) + 1 if seq is None else seq
    keys = {"kind": kind, "job": "u", "attempt": attempt, "incarnation": f"i{attempt}", "seq": number, "time": time}
    return EVENT.validate_python(keys | fields)


def resolved(*, attempt: int = 1, storage: str = "unused", **changes: Any) -> Resolved:  # noqa: ANN401
    """Two CPU workers; `changes` are fields of `Resolved`."""
    values: dict[str, Any] = {
        "job": JobRef(namespace="default", name="tiny", uid="u"),
        "attempt": attempt,
        "incarnation": f"i{attempt}",
        "recipe": tiny_recipe(),
        "workers": 2,
        "cpus_per_worker": 1,
        "gpus_per_worker": 0,
        "rate": RATE,
        "restarts_without_progress": 2,
        "stall_seconds": 300.0,
        "tracking": TrackingTarget(experiment="tiny", tags={}),
        "storage_uri": storage,
        "chosen": (),
    }
    return Resolved.model_validate(values | changes)


def tiny_job(source: str = "data", **metadata: str) -> TrainingJob:
    """A job that is valid in form; its data need not exist."""
    spec = {
        "model": {"preset": "mini"},
        "data": {"source": source, "sequenceLength": 32},
        "training": {"tokens": 100_000, "globalBatchTokens": 256},
        "compute": {"accelerator": "cpu", "workers": 2},
    }
    return TrainingJob.model_validate({"metadata": {"name": "tiny"} | metadata, "spec": spec})


def _side(name: str, tokens: int) -> dict[str, Any]:
    shards = [{"name": f"text/{name}-00000.bin", "tokens": tokens, "sha256": hashlib.sha256(name.encode()).hexdigest()}]
    return {"documents": 3, "tokens": tokens, "bytes": 3 * tokens, "shards": shards}


def dataset(
    folder: Path, *, train: int = 1_000_000, heldout: int = 20_000, vocabulary: int = 4096, sha256: str = "2" * 64
) -> Path:
    """A prepared dataset without its shards: its manifest is all that resolving may read; `sha256` of its tokenizer."""
    splits = {"train": _side("train", train), "heldout": _side("heldout", heldout)}
    manifest = {
        "version": 2,
        "digest": "0" * 64,
        "inputs_digest": "1" * 64,
        "tokenizer": {"sha256": sha256, "vocab_size": vocabulary, "end_of_text": 0},
        "dtype": "uint32",
        "sources": [{"name": "text", "uri": "text"} | splits],
        "baselines": {"order0_bits_per_byte": 4.5, "xz_bits_per_byte": 1.5, "xz_bytes": 60_000},
    }
    lines = [f"{sha256} 0 tokenizer.json\n"]
    for side in splits.values():
        [shard] = side["shards"]
        lines.append(f"{shard['sha256']} {shard['tokens']} {shard['name']}\n")
    manifest["digest"] = hashlib.sha256("".join(lines).encode()).hexdigest()
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder

"""The architecture of a job: a preset, or that of the weights it starts from. Called by `launch.choose` only.

Weights are looked at by their headers alone: no torch, and nothing of what they hold is read. Invariant: weights that
training could not read are refused here, before anything starts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from model.config import ModelConfig
from model.dataset import MAX_TOKENIZER_BYTES, TOKENIZER, DatasetManifest
from model.files import read_file
from model.fit import fit, module_count
from model.headers import Headers, read_headers
from model.released import read_released
from orchestrator.errors import InvalidJob, Problem, UsageError
from orchestrator.launch.choices import CLAIM, Choices, absolute, refusal
from orchestrator.launch.weights import find_weights
from orchestrator.plan.overridden import FRIENDLY, preset_as_overridden, replaced
from orchestrator.spec import TrainingJob

_FREE = {
    "num_nextn_predict_layers", "max_position_embeddings", "initializer_range", "rope_theta", "routed_scaling_factor",
    "num_experts_per_tok", "n_group", "topk_group",
}  # fmt: skip
"""Fields that no weight's shape depends on, prediction modules dropped apart: a job may override them."""
_NOT_COMPARED = {"num_nextn_predict_layers", "max_position_embeddings", "initializer_range", "yarn"}
"""Fields in which a preset and weights of that preset may differ: training itself changes them."""


@dataclass(frozen=True)
class Initial:
    """Weights to start from."""

    uri: str
    """Absolute: the folder or URL that holds them."""
    fingerprint: str


@dataclass(frozen=True)
class Architecture:
    """What is trained, and from where."""

    config: ModelConfig
    initial: Initial | None = None


_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
"""Schemes of fsspec that ask one known service each, with the credentials of the process."""


def choose_architecture(job: TrainingJob, choose: Choices, *, elsewhere: bool = False) -> Architecture:
    """The preset with its overrides, or the configuration of the weights. InvalidJob names fields and values.

    `elsewhere`: it is trained on other machines than this one, whose files and network are not the job's to ask.
    """
    wanted = job.spec.model
    if wanted.init_from is None:
        return Architecture(_from_preset(job, choose))
    if elsewhere:
        require_store(wanted.init_from)
    uri = _weights_folder(absolute(wanted.init_from))
    try:
        stored = read_released(uri)
        headers = read_headers(uri)
        config = _from_weights(job, stored, headers)
        fit(config, headers)
    except (ValueError, OSError, ImportError) as error:
        raise refusal("model.initFrom", str(error)) from None
    return Architecture(config, Initial(uri, headers.fingerprint))


def _from_preset(job: TrainingJob, choose: Choices) -> ModelConfig:
    """Random weights begin before any context extension."""
    wanted = job.spec.model
    config = preset_as_overridden(job.spec.model)
    _require_dense(config, "model.preset", f"{wanted.preset} has", "use v3-671b")
    if (yarn := config.yarn) is None:
        return config
    original = choose(
        "spec.model.overrides.maxPositions",
        wanted.overrides.max_positions,
        lambda: (yarn.original_max_position_embeddings, "pre-training comes before the context extension by YaRN"),
    )
    return config.replace(yarn=None, max_position_embeddings=original)


def _require_dense(config: ModelConfig, path: str, what: str, remedy: str) -> None:
    if config.index_n_heads:
        raise refusal(
            path,
            f"{what} a sparse-attention indexer of {config.index_n_heads} heads, "
            f"which can be counted and not yet trained: {remedy}",
        )


# Weights


def require_store(uri: str) -> None:
    """InvalidJob for `model.initFrom` that is no plain address in an object store: a path would be one of the
    controller's pod, and http:// a request that the controller makes, wherever it may call."""
    if uri.startswith(CLAIM):
        what = "which only the job's pods can read"
    elif "::" in uri or uri.partition("://")[0] not in _STORES or "://" not in uri:
        what = "which is no address in an object store"
    else:
        return
    raise refusal(
        "model.initFrom",
        f"is {uri}, {what}; the architecture must be known before the pods start: copy the weights to an object store "
        f"({', '.join(f'{name}://' for name in _STORES)})",
    )


def _weights_folder(uri: str) -> str:
    """The folder itself, or that of a run's final weights."""
    if uri.startswith(CLAIM):
        raise refusal("model.initFrom", f"is {uri}, a volume claim of Kubernetes, which this machine cannot read")
    try:
        found = find_weights(uri)
    except (ValueError, OSError, ImportError, UsageError) as error:
        raise refusal("model.initFrom", f"cannot read {uri}: {error}") from None
    if found is not None:
        return found
    raise refusal(
        "model.initFrom",
        f"no weights in {uri} or {uri}/weights: there must be a config.json beside .safetensors files, as "
        "`fathom export` and released models have them",
    )


def _from_weights(job: TrainingJob, stored: ModelConfig, headers: Headers) -> ModelConfig:
    """The stored architecture, checked against the preset, with the overrides that leave the weights as they are."""
    wanted = job.spec.model
    _require_dense(stored, "model.initFrom", f"{headers.uri} has", "start from a model without one")
    if wanted.preset is not None:
        _require_agreement(preset_as_overridden(job.spec.model), stored, wanted.preset, headers.uri)
    changes = wanted.overrides.config_changes()
    values = stored.model_dump()
    fixed = {name: value for name, value in changes.items() if name not in _FREE and value != values[name]}
    if fixed:
        raise InvalidJob(
            [
                Problem(
                    f"spec.model.overrides.{FRIENDLY[name]}",
                    f"is {value}, the weights of model.initFrom are made for {values[name]}: leave it out",
                )
                for name, value in fixed.items()
            ]
        )
    config = replaced(stored, changes)
    there = module_count(stored, headers)
    if config.num_nextn_predict_layers > there:
        raise refusal(
            "model.overrides.mtpDepth",
            f"{config.num_nextn_predict_layers} prediction modules are wanted, {headers.uri} holds {there}: "
            f"use --set model.overrides.mtpDepth={there}",
        )
    return config


def _require_agreement(asked: ModelConfig, stored: ModelConfig, name: str, uri: str) -> None:
    ours, theirs = asked.model_dump(), stored.model_dump()
    differing = [
        f"{FRIENDLY.get(field, field)} {ours[field]} and {theirs[field]}"
        for field in ours
        if field not in _NOT_COMPARED and ours[field] != theirs[field]
    ]
    if differing:
        raise refusal(
            "model.preset",
            f"{name} is not the architecture in {uri} ({', '.join(differing)}): leave model.preset out, or start from "
            "other weights",
        )


def require_same_tokenizer(initial: Initial, manifest: DatasetManifest, source: str, folder: str) -> None:
    """The weights' tokenizer must be the dataset's: the same tokens by the same numbers. `source` is what the job calls
    the dataset, `folder` where it lies."""
    where = f"{initial.uri}/{TOKENIZER}"
    prepare = f"`fathom data prepare SOURCE OUT --tokenizer {where}`"
    try:
        raw = read_file(where, MAX_TOKENIZER_BYTES)
    except FileNotFoundError:
        raise refusal(
            "model.initFrom",
            f"{initial.uri} has no {TOKENIZER}, so nobody can tell whether {source} was made with the right one: put "
            "the tokenizer that the weights were trained with there",
        ) from None
    except (OSError, ValueError, ImportError) as error:
        raise refusal("model.initFrom", f"cannot read {where}: {error}") from None
    if hashlib.sha256(raw).hexdigest() == manifest.tokenizer.sha256 or _same(raw, folder):
        return
    raise refusal(
        "data.source", f"{source} was made with another tokenizer than the weights of model.initFrom: run {prepare}"
    )


def _same(raw: bytes, folder: str) -> bool:
    """Whether two files, which may be written differently, hold the same tokens and ways to find them."""
    try:
        other = json.loads(read_file(f"{folder.rstrip('/')}/{TOKENIZER}", MAX_TOKENIZER_BYTES))
        own = json.loads(raw)
    except (OSError, ValueError, RecursionError):
        return False
    parts = ("model", "added_tokens", "normalizer", "pre_tokenizer")
    return isinstance(own, dict) and isinstance(other, dict) and all(own.get(p) == other.get(p) for p in parts)

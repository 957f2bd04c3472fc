"""What the dataset of a job decides, and whether it fits to the rest of the recipe.

Called by `launch.choose` where the dataset can be read before the attempt starts, and by `launch.pending` where only
its pods can.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from model.config import ModelConfig
from model.dataset import MAX_TOKENIZER_BYTES, DatasetManifest, read_manifest
from model.files import read_file
from orchestrator.launch.choices import CLAIM, Choices, absolute, refusal
from orchestrator.spec import TrainingJob

MAX_EVAL_TOKENS = 1 << 17


def in_claims(job: TrainingJob) -> bool:
    """Whether the job reads from a volume claim, which nobody but its pods mounts."""
    data = job.spec.data
    return any(
        uri.startswith(CLAIM) for uri in (data.source, data.tokenizer or "", *job.spec.training.evaluation.tasks)
    )


def read_dataset(
    job: TrainingJob, folder: str, config: ModelConfig, where: Callable[[str], str] = absolute
) -> DatasetManifest:
    """The manifest of the dataset in `folder`, fitting to the model. `where` says where the file lies for this process
    that the job names as its tokenizer."""
    source = job.spec.data.source
    try:
        manifest = read_manifest(folder)
    except FileNotFoundError:
        raise refusal(
            "data.source", f"no prepared dataset at {source}: run `fathom data prepare SOURCE {source}`"
        ) from None
    except (ValueError, OSError) as error:
        raise refusal("data.source", str(error)) from None
    _check_tokenizer(job, manifest, where)
    vocabulary = manifest.tokenizer.vocab_size
    if vocabulary > config.vocab_size:
        raise refusal(
            "model.overrides.vocabSize",
            f"the model has {config.vocab_size} entries, the tokenizer of {source} has {vocabulary}: "
            f"use --set model.overrides.vocabSize={vocabulary}",
        )
    return manifest


def _check_tokenizer(job: TrainingJob, manifest: DatasetManifest, where: Callable[[str], str]) -> None:
    """A tokenizer that the job names must be the dataset's."""
    wanted, source = job.spec.data.tokenizer, job.spec.data.source
    if wanted is None:
        return
    try:
        found = hashlib.sha256(read_file(where(wanted), MAX_TOKENIZER_BYTES)).hexdigest()
    except (OSError, ValueError, ImportError) as error:
        raise refusal("data.tokenizer", f"cannot read {wanted}: {error}") from None
    if found != manifest.tokenizer.sha256:
        raise refusal(
            "data.tokenizer",
            f"{wanted} has SHA-256 {found[:12]}..., {source} was made with {manifest.tokenizer.sha256[:12]}...: run "
            f"`fathom data prepare SOURCE OUT --tokenizer {wanted}`, or leave it out",
        )


def check_lengths(sequence: int, config: ModelConfig, manifest: DatasetManifest) -> None:
    """One training sequence must fit into both sides of the data."""
    needed = sequence + 1 + config.num_nextn_predict_layers
    sides = [(f"training data of {source.name}", source.train.tokens) for source in manifest.sources]
    sides.append(("held-out data", max(source.heldout.tokens for source in manifest.sources)))
    for side, tokens in sides:
        if needed > tokens:
            raise refusal(
                "data.sequenceLength",
                f"{sequence} needs {needed} tokens (the next and those of multi-token prediction included), "
                f"the {side} has {tokens}: shorten it, or prepare more text",
            )


def choose_eval_tokens(job: TrainingJob, manifest: DatasetManifest, choose: Choices) -> int:
    """Held-out tokens of each evaluation."""
    heldout = manifest.tokens("heldout")
    reason = f"all {heldout}, at most {MAX_EVAL_TOKENS}"
    given = job.spec.training.evaluation.tokens
    return choose("spec.training.evaluation.tokens", given, lambda: (min(heldout, MAX_EVAL_TOKENS), reason))

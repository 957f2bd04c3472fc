"""Checkpoints in a job's storage: written under a fence, signed, verified before anything is unpickled.

`Store` is the face of it. No torch, so that the command line and a controller can look at checkpoints.
"""

from model.checkpoint.manifest import (
    MANIFEST,
    CheckpointError,
    Fenced,
    Identity,
    Manifest,
    StoredFile,
    Topology,
    Unfinished,
)
from model.checkpoint.store import Found, Store

__all__ = [
    "MANIFEST",
    "CheckpointError",
    "Fenced",
    "Found",
    "Identity",
    "Manifest",
    "Store",
    "StoredFile",
    "Topology",
    "Unfinished",
]

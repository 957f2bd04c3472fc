"""What stands in the files beside a checkpoint's own: who wrote it, what it consists of, and a signature over that.

Values only: nothing here touches storage.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any, Literal

from pydantic import Field, ValidationError

from model.config import Frozen

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


class Unfinished(CheckpointError):
    """Its writer ended before publishing it."""


class Superseded(CheckpointError):
    """Its writer had been replaced when it published: it never counted."""


class Fenced(RuntimeError):
    """A newer writer of the job has begun: this process must publish nothing."""


class Identity(Frozen):
    """Who writes: unique for each start of a Ray cluster."""

    job: str
    attempt: int = Field(ge=1)
    incarnation: str = Field(pattern=r"^[A-Za-z0-9.-]{1,64}$")

    @property
    def tag(self) -> str:
        """First part of the folder name of this writer's files; its epoch follows."""
        return f"{self.attempt}-{self.incarnation}"


class Topology(Frozen):
    """What must be equal between saving and loading."""

    world_size: int
    expert_parallel: int
    zero_stage: int
    precision: str

    def __str__(self) -> str:
        """For people: how training was spread."""
        parts = ["1 process" if self.world_size == 1 else f"{self.world_size} processes"]
        parts += [f"experts over {self.expert_parallel}"] if self.expert_parallel > 1 else []
        return ", ".join([*parts, f"ZeRO-{self.zero_stage}", self.precision])


class StoredFile(Frozen):
    """One file of a checkpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    size: int = Field(ge=0)
    sha256: str


class Manifest(Frozen):
    """What a checkpoint consists of; `signature` is an HMAC-SHA256 over everything else."""

    version: Literal[2] = 2
    identity: Identity
    epoch: int = Field(ge=1)
    """Which start of workers wrote it, counted over the job's life; see `model.checkpoint.fence`."""
    step: int = Field(ge=0)
    tokens: int
    data_digest: str
    recipe_digest: str
    topology: Topology
    code_version: str
    created: float
    skipped: tuple[int, ...] = ()
    """Data steps that were left out on the way here."""
    files: tuple[StoredFile, ...] = Field(min_length=1)
    signature: str = ""

    @property
    def tag(self) -> str:
        """Name of the folder that holds the files."""
        return folder_tag(self.identity, self.epoch)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def signed(self, key: bytes) -> Manifest:
        """A copy with its signature."""
        return self.model_copy(update={"signature": self._mac(key)})

    def verify_signature(self, key: bytes) -> None:
        """CheckpointError unless the signature was made with `key`."""
        if not same_mac(self.signature, self._mac(key)):
            raise CheckpointError("the signature does not match: written with another key, or changed since")

    def says_the_same(self, other: Manifest) -> bool:
        """Equal but for the moment of writing, and so for the signature."""
        apart = {"created": 0.0, "signature": ""}
        return self.model_copy(update=apart) == other.model_copy(update=apart)

    def _mac(self, key: bytes) -> str:
        return mac(key, self.model_dump(mode="json", exclude={"signature"}))


def folder_tag(identity: Identity, epoch: int) -> str:
    """Folder of one writer's files: no two writers ever share one."""
    return f"{identity.tag}-{epoch}"


def tag_epoch(name: str) -> int | None:
    """The epoch in a folder's name; None if it is not the folder of a writer."""
    first, _, last = name.rpartition("-")
    return int(last) if "-" in first and last.isascii() and last.isdecimal() and len(last) < 18 else None


def parse_manifest(data: bytes, key: bytes) -> Manifest:
    """A manifest whose signature is right; CheckpointError in one sentence for anything else."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise CheckpointError(f"its manifest is not valid: {first_problem(error)}") from None
    manifest.verify_signature(key)
    return manifest


def first_problem(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]


def parse_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """ValueError for anything that is not JSON, however deep or broken."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def mac(key: bytes, body: Any) -> str:  # noqa: ANN401 - any JSON value
    """HMAC-SHA256 over the sorted JSON of `body`."""
    return hmac.new(key, json.dumps(body, sort_keys=True).encode(), hashlib.sha256).hexdigest()


def same_mac(given: object, right: str) -> bool:
    """Compares in constant time; whatever was found in a file may be given."""
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), right.encode())

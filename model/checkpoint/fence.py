"""Who may write, and whose checkpoints count.

Every start of a job's workers claims the storage anew: `checkpoints/fence/00000007.json`, created exclusively,
gives it epoch 7. Then it notes in `00000007-accepted.json` which checkpoints it found, as [step, epoch]. From
that moment a checkpoint of an older epoch counts only if it is noted there. So a replaced writer that wakes up
late may pass its own check and still publish: nobody will read it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from model.checkpoint.manifest import CheckpointError, Fenced, Identity, parse_json
from model.checkpoint.storage import Storage
from model.config import Frozen

FENCE = "fence"
_NAME = re.compile(r"([0-9]{8,17})(-accepted)?\.json")
_LIMIT = 64 * 1024 * 1024
_TRIES = 100


class Claim(Frozen):
    """A writer's claim to the storage."""

    identity: Identity
    epoch: int
    created: float
    key: str
    """Names the signing key without giving it away."""


@dataclass(frozen=True)
class Acceptance:
    """Which checkpoints count."""

    epoch: int
    """The newest writer that has noted what it found; 0 if none has."""
    accepted: frozenset[tuple[int, int]]
    """(step, epoch) of what it found."""

    def counts(self, step: int, epoch: int) -> bool:
        """Whether it was published before a newer writer had taken over."""
        return epoch >= self.epoch or (step, epoch) in self.accepted


class Fences:
    """The claims of all writers of one job, in `folder` of its storage."""

    def __init__(self, storage: Storage, folder: str, identity: Identity, key: bytes) -> None:
        self._storage, self._folder, self._identity = storage, f"{folder}/{FENCE}", identity
        self._key = hmac.new(key, b"fathom fence", hashlib.sha256).hexdigest()[:16]

    def take(self, created: float) -> int:
        """Claim the next epoch. CheckpointError if the storage is another job's, Fenced if a later attempt's."""
        for _ in range(_TRIES):
            claimed, accepted = self._numbers()
            self._require_ours(claimed)
            epoch = max([0, *claimed, *accepted]) + 1
            claim = Claim(identity=self._identity, epoch=epoch, created=created, key=self._key)
            try:
                self._storage.create(self._name(epoch), claim.model_dump_json().encode())
            except FileExistsError:
                continue  # another writer was first: look at it again
            return epoch
        raise OSError(f"{self._folder}: other writers claimed it first, {_TRIES} times")

    def accept(self, epoch: int, found: Callable[[], list[tuple[int, int]]]) -> None:
        """Note what there is, (step, epoch) each, as found now: after the claim, before anybody reads."""
        self._storage.write(self._name(epoch, "-accepted"), json.dumps(sorted(found())).encode())

    def check(self, epoch: int) -> None:
        """Fenced unless `epoch` is the newest claim."""
        claimed, accepted = self._numbers()
        newest = max([0, *claimed, *accepted])
        if newest > epoch:
            other = self._newest_claim(claimed)
            name = f" ({_words(other.identity)})" if other and other.epoch == newest else ""
            raise Fenced(f"epoch {newest}{name} has begun, this is epoch {epoch} ({_words(self._identity)})")
        if epoch not in claimed:
            raise Fenced(f"the claim of epoch {epoch} has vanished: {self._folder} was emptied while it was used")

    def holder(self) -> Identity | None:
        """Who has claimed the storage last."""
        newest = self._newest_claim(self._numbers()[0])
        return newest.identity if newest else None

    def acceptance(self) -> Acceptance:
        """The rule in force. Notes that are damaged are passed over: better an old rule than no checkpoint."""
        _, accepted = self._numbers()
        for epoch in sorted(accepted, reverse=True):
            try:
                rows = parse_json(self._storage.read(self._name(epoch, "-accepted"), _LIMIT))
                return Acceptance(epoch, frozenset((int(step), int(other)) for step, other in rows))
            except (FileNotFoundError, ValueError, TypeError, OverflowError):
                continue
        return Acceptance(0, frozenset())

    def _require_ours(self, claimed: list[int]) -> None:
        newest = self._newest_claim(claimed)
        if newest is None:
            return
        if newest.identity.job != self._identity.job:
            raise CheckpointError(
                f"the storage holds checkpoints of another job ({newest.identity.job}, this one is "
                f"{self._identity.job}): give each job a checkpoint.uri of its own"
            )
        if newest.key != self._key:
            raise CheckpointError(
                "the storage was last claimed with another signing key, so that none of its checkpoints would be "
                "accepted: put that key back (FATHOM_SIGNING_KEY_FILE), or give the job another checkpoint.uri"
            )
        if newest.identity.attempt > self._identity.attempt:
            raise Fenced(f"attempt {newest.identity.attempt} has begun, this is attempt {self._identity.attempt}")

    def _newest_claim(self, claimed: list[int]) -> Claim | None:
        """The newest that can be read."""
        for epoch in sorted(claimed, reverse=True):
            try:
                return Claim.model_validate_json(self._storage.read(self._name(epoch), _LIMIT))
            except (FileNotFoundError, ValidationError):
                continue
        return None

    def _numbers(self) -> tuple[list[int], list[int]]:
        """Epochs that were claimed, and those with a note of what was accepted."""
        names = [m for m in map(_NAME.fullmatch, self._storage.entries(self._folder)) if m]
        return [int(m[1]) for m in names if not m[2]], [int(m[1]) for m in names if m[2]]

    def _name(self, epoch: int, suffix: str = "") -> str:
        return f"{self._folder}/{epoch:08d}{suffix}.json"


def _words(identity: Identity) -> str:
    return f"attempt {identity.attempt}, incarnation {identity.incarnation}"

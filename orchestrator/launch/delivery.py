"""What the driver of an attempt in a cluster posts to the controller, and what it gets for it.

The pod with Ray's head keeps a run folder of its own, as a laptop does; what is new in it travels here, over and over
until it is acknowledged, so that an answer that was lost costs nothing. The controller keeps the same files in its own
folder of the run. Invariants: `Receipt` says what is stored, and the next delivery goes on from there; whoever is not
the pod of this attempt and incarnation stores nothing.
"""

from __future__ import annotations

import base64
from typing import Annotated, Final

from pydantic import Field, field_validator

from orchestrator.launch.events import Answer, Count, Event, Identifier, Wire

PATH: Final = "/v1/deliveries"
"""Below the controller's address, by POST, with the pod's projected token as bearer."""
MOST_EVENTS = 500
MOST_LOG_BYTES = 256 * 1024
MOST_FILE_BYTES = 1024 * 1024
"""Of one artifact; larger ones stay in the pod, and its log says so."""
MOST_BODY_BYTES = 4 * 1024 * 1024
"""Of a delivery as JSON."""

FileName = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)*$")]


class Artifact(Wire):
    """A file to keep beside the run."""

    name: FileName
    data: str = Field(max_length=4 * (MOST_FILE_BYTES // 3 + 1))
    """Base64."""

    @field_validator("data")
    @classmethod
    def _is_base64(cls, text: str) -> str:
        base64.b64decode(text, validate=True)  # binascii.Error is a ValueError
        return text

    @property
    def content(self) -> bytes:
        """As it was in the pod."""
        return base64.b64decode(self.data)


class Delivery(Wire):
    """What is new of one incarnation of an attempt; empty: only the answer is wanted."""

    namespace: Identifier
    name: Identifier
    """Of the TrainingJob."""
    job: Identifier
    """Its uid."""
    attempt: int = Field(ge=1)
    incarnation: Identifier
    """The RayCluster."""
    events: tuple[Event, ...] = Field((), max_length=MOST_EVENTS)
    """In the order of their `seq`, each of this attempt and incarnation."""
    log: str = Field("", max_length=MOST_LOG_BYTES)
    """Text of the attempt's log, from `log_offset` on."""
    log_offset: Count = 0
    """Bytes of the log (UTF-8) that came before."""
    artifacts: tuple[Artifact, ...] = Field((), max_length=20)


class Receipt(Wire):
    """What the controller has stored of the incarnation, and what it wants."""

    seq: Count = 0
    """Of the last event that is stored; the next delivery begins after it."""
    log_offset: Count = 0
    """Bytes of the incarnation's log that are stored."""
    answer: Answer
    """As `events.read_control` gives it on a laptop."""

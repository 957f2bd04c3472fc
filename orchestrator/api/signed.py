"""A plan's id says what was planned, and is signed: nothing has to be kept of it, and nobody can make one up. Pure.

It holds a digest of the job, the price and the machines that the plan was made for, and until when it counts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from orchestrator.errors import StalePlan, UsageError
from orchestrator.spec import TrainingJob

VALID = timedelta(minutes=15)
_PURPOSE = b"fathom plan v1"


@dataclass(frozen=True)
class Planned:
    """What a plan was made for."""

    job: str
    """Digest."""
    price: str
    """Of a device-hour, in words."""
    machines: str
    """Of the service, in words."""
    until: int
    """Unix seconds."""


def digest(job: TrainingJob) -> str:
    """Of everything that a job says, its defaults included."""
    text = json.dumps(job.document(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sign(planned: Planned, key: bytes) -> str:
    """The id."""
    body = json.dumps(asdict(planned), separators=(",", ":")).encode()
    return f"{_text(body)}.{_text(_mac(body, key))}"


def verify(text: str, key: bytes) -> Planned:
    """What was signed; UsageError if it was not signed with this key."""
    try:
        body, mac = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split("."))
    except (ValueError, binascii.Error):
        body = mac = b""
    if not body or not hmac.compare_digest(mac, _mac(body, key)):
        raise UsageError("plan is no id that this service gave: take that of an answer to POST /v1/plans")
    return Planned(**json.loads(body))


def require_fresh(planned: Planned, now: Planned, moment: datetime) -> None:
    """StalePlan if submitting would start something else than what was planned; it says what has changed."""
    changed = list(_changed(planned, now, moment))
    if changed:
        raise StalePlan(f"{'; '.join(changed)}: plan it again")


def _changed(planned: Planned, now: Planned, moment: datetime) -> Iterator[str]:
    if planned.until < moment.timestamp():
        at = datetime.fromtimestamp(planned.until, UTC)
        yield f"the plan counted until {at:%Y-%m-%d %H:%M:%S} UTC"
    if planned.job != now.job:
        yield "the job is not the one that was planned"
    if planned.price != now.price:
        yield f"the price was {planned.price} and is {now.price}"
    if planned.machines != now.machines:
        yield f"this machine had {planned.machines} and has {now.machines}"


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _mac(body: bytes, key: bytes) -> bytes:
    """With a key of its own: a signature of a plan is none of a checkpoint."""
    return hmac.new(hmac.digest(key, _PURPOSE, "sha256"), body, "sha256").digest()

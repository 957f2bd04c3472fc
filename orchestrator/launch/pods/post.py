"""Posts one delivery to the controller.

Invariants: whatever the other side does, each step of it has a limit in time and the answer one in size; the token goes
to the one address that the environment names, by no proxy, and follows no redirect.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from pydantic import ValidationError

from orchestrator.launch.delivery import PATH, Delivery, Receipt
from orchestrator.launch.files import in_short

CONNECT_SECONDS, QUIET_SECONDS, ANSWER_SECONDS = 5.0, 10.0, 20.0
"""To connect; without a byte; for a whole answer."""
MOST_ANSWER_BYTES = 64 * 1024
MOST_TOKEN_BYTES = 64 * 1024
_SHOWN = 300


class Undelivered(Exception):
    """It may have been stored or not: try again."""


class Fenced(Exception):
    """A newer attempt or incarnation has begun: this one has nothing to say any more."""


class Post:
    """To one controller, over one connection. Used by one thread."""

    def __init__(self, url: str, token_file: Path, authority: Path | None = None) -> None:
        """`authority`: certificates (PEM) by which the controller is known; None: those that the machine trusts."""
        self._url, self._token_file, self._authority = url.rstrip("/") + PATH, token_file, authority
        self._client: httpx2.Client | None = None

    def __call__(self, delivery: Delivery) -> Receipt:
        """Undelivered with the reason, Fenced."""
        body = delivery.model_dump_json(by_alias=True).encode()
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        with _troubles():
            self._client = self._client or self._connect()
            with self._client.stream("POST", self._url, content=body, headers=headers) as response:
                return _receipt(response.status_code, _whole(response))

    def close(self) -> None:
        """The connection, if there is one."""
        if self._client is not None:
            self._client.close()

    def _connect(self) -> httpx2.Client:
        return httpx2.Client(
            timeout=httpx2.Timeout(QUIET_SECONDS, connect=CONNECT_SECONDS),
            trust_env=False,
            verify=ssl.create_default_context(cafile=self._authority),
        )

    def _token(self) -> str:
        """As it is now: Kubernetes puts a new one there before the old one ends."""
        try:
            with self._token_file.open("rb") as file:
                token = file.read(MOST_TOKEN_BYTES).decode("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise Undelivered(f"the token in {self._token_file} cannot be read: {error}") from None
        if not token or not token.isprintable() or " " in token:
            raise Undelivered(f"{self._token_file} holds no token")
        return token


@contextmanager
def _troubles() -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:  # OSError: e.g. certificates that cannot be read
        raise Undelivered(f"{type(error).__name__}: {error}") from None


def _whole(response: httpx2.Response) -> bytes:
    until, found = time.monotonic() + ANSWER_SECONDS, b""
    for piece in response.iter_bytes():
        found += piece
        if len(found) > MOST_ANSWER_BYTES:
            raise Undelivered(f"the answer has more than {MOST_ANSWER_BYTES} bytes")
        if time.monotonic() > until:
            raise Undelivered(f"the answer takes more than {ANSWER_SECONDS:.0f} s")
    return found


def _receipt(status: int, body: bytes) -> Receipt:
    if status == 200:
        try:
            return Receipt.model_validate_json(body)
        except ValidationError as error:
            raise Undelivered(f"the answer is no receipt: {in_short(error)}") from None
    code, detail = _problem(body)
    if status == 409 and code == "fenced":
        raise Fenced(detail or "the controller knows a newer attempt")
    raise Undelivered(f"answered {status}: {detail or body[:_SHOWN].decode(errors='replace')}")


def _problem(body: bytes) -> tuple[str, str]:
    """Code and detail of an error (RFC 9457)."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return "", ""
    if not isinstance(found, dict):
        return "", ""
    return str(found.get("code", "")), str(found.get("detail", ""))[:_SHOWN]

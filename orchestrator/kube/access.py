"""Who somebody is (TokenReview) and what they may do (SubjectAccessReview), as the API server says.

Both fail closed: whatever is not a plain yes is a no. An API server that does not answer, or that does not let us ask,
is told apart (Unavailable, 503): nobody has been refused then, and clients try again.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.errors import FathomError, Forbidden, Unauthorized, Unavailable
from orchestrator.kube.client import Kube
from orchestrator.kube.remembered import Remembered
from orchestrator.kube.resources import ACCESS_REVIEWS, TOKEN_REVIEWS, Json, Target

_LONGEST_TOKEN = 16 << 10
_KEPT = 4096


@dataclass(frozen=True)
class Person:
    """Somebody whom the API server knows: a person, or a service account."""

    name: str
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """E.g. the pod that a token is bound to (`authentication.kubernetes.io/pod-uid`)."""


class Access:
    """Threads may share it."""

    def __init__(
        self,
        kube: Kube,
        *,
        yes: float = 10.0,
        no: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`yes`, `no`: seconds for which such an answer holds: a right that was taken away ends so late.

        The API server itself remembers a good token for 10 s more.
        """
        assert no <= yes, "a denial is remembered for less long: whoever was just given a right is waiting"
        self._kube, self._clock = kube, clock
        self._secret = secrets.token_bytes(32)  # tokens are kept as digests that are worth nothing elsewhere
        # apart, so that a flood of bad tokens pushes no good one out
        self._people: Remembered[Person] = Remembered(yes, _KEPT, clock)
        self._strangers: Remembered[str] = Remembered(no, _KEPT, clock)
        self._allowed: Remembered[bool] = Remembered(yes, _KEPT, clock)
        self._denied: Remembered[str] = Remembered(no, _KEPT, clock)

    def who(self, token: str, audience: str) -> Person:
        """Whose token that is, made for this audience. Unauthorized if it does not count; Unavailable: none can say."""
        if not token or len(token) > _LONGEST_TOKEN or not token.isascii() or not token.isprintable():
            raise Unauthorized("the token is empty, too long or no token: take it from the kubeconfig or mint one")
        digest = hmac.new(self._secret, token.encode(), hashlib.sha256).digest()
        key, asked_at = (digest, audience), self._clock()
        if (known := self._people.get(key)) is not None:
            return known
        if (words := self._strangers.get(key)) is not None:
            raise Unauthorized(words)
        status = self._review(TOKEN_REVIEWS, {"token": token, "audiences": [audience]})
        person = _person(status, audience)
        if person is None:
            words = (
                f"the API server does not take this token for {audience!r}: it has ended, is of another cluster, or "
                f"was made for somebody else; `kubectl create token NAME --audience={audience}` mints one"
            )
            self._strangers.put(key, words, asked_at)
            raise Unauthorized(words)
        self._people.put(key, person, asked_at)
        return person

    def require(self, person: Person, verb: str, target: Target) -> None:
        """That they may do this. Forbidden if not, Unavailable if none can say."""
        key, asked_at = (person, verb, target), self._clock()
        if self._allowed.get(key):
            return
        if (words := self._denied.get(key)) is not None:
            raise Forbidden(words)
        status = self._review(ACCESS_REVIEWS, _question(person, verb, target))
        if status.get("allowed") is True and not status.get("denied"):
            self._allowed.put(key, True, asked_at)
            return
        why = status.get("reason") or status.get("evaluationError") or "no role allows it"
        words = f"{person.name} may not {verb} {target}: {why}; ask who runs the cluster for a role"
        self._denied.put(key, words, asked_at)
        raise Forbidden(words)

    def _review(self, target: Target, spec: Json) -> Json:
        body = {"apiVersion": target.api_version, "kind": target.kind, "spec": spec}
        try:
            status = self._kube.create(target, body).get("status")
        except FathomError as error:  # whatever it is, it is about us and not about them
            raise Unavailable(
                f"the API server cannot be asked for a {target.kind}, nobody was refused: {error}"
            ) from error
        if not isinstance(status, dict):
            raise Unavailable(f"the API server answered a {target.kind} without a status, nobody was refused")
        return status


def _person(status: Json, audience: str) -> Person | None:
    """None: not a plain yes. A token that names no audience of ours is one for the API server, not for us."""
    user = status.get("user")
    if status.get("authenticated") is not True or not isinstance(user, dict) or not user.get("username"):
        return None
    if audience not in (status.get("audiences") or []):
        return None
    extra = user.get("extra") or {}
    return Person(
        name=str(user["username"]),
        uid=str(user.get("uid") or ""),
        groups=tuple(user.get("groups") or ()),
        extra=tuple(sorted((key, tuple(values)) for key, values in extra.items())),
    )


def _question(person: Person, verb: str, target: Target) -> Json:
    attributes = {
        "verb": verb,
        "group": target.group,
        "version": target.version,
        "resource": target.plural,
        "subresource": target.subresource,
        "namespace": target.namespace,
        "name": target.name,
    }
    return {
        "user": person.name,
        "uid": person.uid,
        "groups": list(person.groups),
        "extra": {key: list(values) for key, values in person.extra},
        "resourceAttributes": {key: value for key, value in attributes.items() if value},
    }

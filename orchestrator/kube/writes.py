"""Writes such that twice is the same as once, and that a stale read never wins.

Each asks the Lease first. Nothing is ever created under a second name: a create whose answer was lost is found by its
name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

from orchestrator.errors import Conflict, InvalidJob, NotFound, Unavailable
from orchestrator.kube.again import Holder, Patience, again
from orchestrator.kube.client import Kube, Timeouts
from orchestrator.kube.merge import merge_patch
from orchestrator.kube.resources import Json, Target, key_of

MANAGER = "fathom-controller"
HASH_LABEL = "fathom.dev/content-hash"
T = TypeVar("T")
Propagation = Literal["Background", "Foreground", "Orphan"]


class Writer:
    """Of one process. Threads may share it."""

    def __init__(
        self,
        kube: Kube,
        holder: Holder,
        *,
        manager: str = MANAGER,
        patience: Patience = Patience(),  # noqa: B008 - frozen
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """`manager`: whose fields ours are. `wait`: between two attempts; an Event's, so that an end is noticed."""
        self._kube, self._holder, self._manager = kube, holder, manager
        self._patience, self._wait = patience, wait

    def create_if_absent(self, target: Target, body: Json) -> Json:
        """-> the object of that name, which is ours: of the same owner and the same content as `body`.

        `body` names its owner and holds the label `fathom.dev/content-hash`. Conflict if another has that name. What
        is ours may be on its way out: look at its `deletionTimestamp`.
        """
        owner, content = _owner(body), _hash(body)
        assert all((owner, content)), f"{key_of(body)} names no owner or no {HASH_LABEL}"

        def send(limits: Timeouts) -> Json:
            try:
                return self._kube.create(target, body, query=self._query, timeouts=limits)
            except Conflict:
                pass
            try:
                found = self._kube.get(target, timeouts=limits)
            except NotFound as gone:  # it ended between the two, or the conflict was about a quota
                raise Unavailable(f"create {target}: it was there and is gone: try again") from gone
            _require_ours(target, found, owner, content)
            return found

        return self._again(send)

    def create(self, target: Target, body: Json) -> Json:
        """A new object; -> as the server has it. Conflict if another has that name.

        The annotations of `body` are such that no other ever had them: by them it is known again where it was made and
        the answer was lost.
        """
        marks = body["metadata"]["annotations"]
        unsure = _Unsure()

        def send(limits: Timeouts) -> Json:
            try:
                with unsure:
                    return self._kube.create(target, body, query=self._query, timeouts=limits)
            except Conflict:
                found = self._there(target, limits) if unsure.unsure else None
                if found is not None and _holds(found["metadata"].get("annotations") or {}, marks):
                    return found
                raise

        return self._again(send)

    def change(self, target: Target, found: Json, patch: Json) -> Json:
        """`found` with a merge patch, of anything but its status; -> the object then.

        Conflict if it is no longer as it was read: read it again and decide anew. It is none where an answer was lost
        and all that the patch wants is there now.
        """
        read = found["metadata"]
        body = patch | {"metadata": patch.get("metadata", {}) | {"resourceVersion": read["resourceVersion"]}}
        unsure = _Unsure()

        def send(limits: Timeouts) -> Json:
            try:
                with unsure:
                    return self._kube.patch(target, body, "merge", query=self._query, timeouts=limits)
            except Conflict:
                now = self._there(target, limits) if unsure.unsure else None
                if now is not None and now["metadata"]["uid"] == read["uid"] and _holds(now, patch):
                    return now
                raise

        return self._again(send)

    def apply(self, target: Target, body: Json, *, force: bool = False) -> Json:
        """Server-side apply: our fields are as in `body` afterwards, those of others stay; made if it is not there.

        Conflict names whose field it is. `force` takes it away from them: only for fields that nobody but us may
        write. With `metadata.uid` in `body` another object of that name is a Conflict instead of being overwritten.
        """
        query = [*self._query, ("force", str(force).lower())]

        def send(limits: Timeouts) -> Json:
            try:
                return self._kube.patch(target, body, "apply", query=query, timeouts=limits)
            except InvalidJob as error:  # how the server says that this is another object
                if "uid" in body["metadata"] and any(one.path == "metadata.uid" for one in error.problems):
                    raise Conflict(
                        f"apply {target}: another has that name now, not {body['metadata']['uid']}: read it again"
                    ) from error
                raise

        return self._again(send)

    def set_status(self, target: Target, found: Json, status: Json) -> Json:
        """`status` instead of that of `found`; -> the object then. Nothing is sent if they are equal.

        `status` is whole, with what the definition would fill in: a default that is left out is asked for each time.
        Conflict if the object is no longer as it was read: read it again and decide anew. Versions are the cluster's:
        another object of that name has another one.
        """
        patch = merge_patch(found.get("status") or {}, status)
        if not patch:
            return found
        body = {"metadata": {"resourceVersion": found["metadata"]["resourceVersion"]}, "status": patch}
        return self._again(
            lambda limits: self._kube.patch(target.status, body, "merge", query=self._query, timeouts=limits)
        )

    def annotate(self, target: Target, uid: str, annotations: Mapping[str, str | None]) -> bool:
        """These annotations on the object of this uid, None: not there; all others stay. -> False if it is gone, or
        another has its name now."""
        body = {"metadata": {"uid": uid, "annotations": dict(annotations)}}

        def send(limits: Timeouts) -> bool:
            try:
                self._kube.patch(target, body, "merge", query=self._query, timeouts=limits)
            except NotFound:
                return False
            except (Conflict, InvalidJob):  # how servers say that this is another object
                if self._is_there(target, uid, limits):
                    raise
                return False
            return True

        return self._again(send)

    def delete(self, target: Target, uid: str, *, propagation: Propagation = "Background") -> bool:
        """The object of this uid; -> False if it is gone already, or another has its name now. Both are fine."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": propagation}

        def send(limits: Timeouts) -> bool:
            try:
                self._kube.delete(target, options, timeouts=limits)
            except NotFound:
                return False
            except Conflict:
                if self._is_there(target, uid, limits):
                    raise
                return False
            return True

        return self._again(send)

    # ------------------------------------------------------------------ how
    @property
    def _query(self) -> list[tuple[str, str]]:
        return [("fieldManager", self._manager)]

    def _again(self, send: Callable[[Timeouts], T]) -> T:
        def within(seconds: float) -> T:
            return send(self._kube.timeouts.within(seconds))

        return again(within, self._holder, self._patience, self._wait)

    def _is_there(self, target: Target, uid: str, limits: Timeouts) -> bool:
        found = self._there(target, limits)
        return found is not None and bool(found["metadata"]["uid"] == uid)

    def _there(self, target: Target, limits: Timeouts) -> Json | None:
        try:
            return self._kube.get(target, timeouts=limits)
        except NotFound:
            return None


class _Unsure:
    """Whether an earlier attempt got no answer, so that the server may have done it."""

    def __init__(self) -> None:
        self.unsure = False

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.unsure = self.unsure or isinstance(error, Unavailable)


def _holds(found: Json, patch: Json) -> bool:
    """Whether a merge patch would change nothing."""
    for key, value in patch.items():
        there = found.get(key)
        if isinstance(value, dict):
            if not isinstance(there, dict | None) or not _holds(there or {}, value):
                return False
        elif there != value:
            return False
    return True


def _require_ours(target: Target, found: Json, owner: str, content: str) -> None:
    theirs = _owner(found)
    leaving = " and is being deleted" if found["metadata"].get("deletionTimestamp") else ""
    if theirs != owner:
        raise Conflict(
            f"{target} is there, of owner {theirs or 'nobody'}{leaving}; ours is {owner}: "
            "delete it, or wait until it is gone"
        )
    if _hash(found) != content:
        raise Conflict(
            f"{target} is there with content {_hash(found) or 'unknown'}{leaving}; ours is {content}: "
            "it was made by another version or with other settings, delete it to have it made anew"
        )


def _owner(found: Json) -> str:
    """The uid of the controller it belongs to; empty: of none."""
    owners = found["metadata"].get("ownerReferences") or []
    return next((str(one["uid"]) for one in owners if one.get("controller")), "")


def _hash(found: Json) -> str:
    return str((found["metadata"].get("labels") or {}).get(HASH_LABEL, ""))

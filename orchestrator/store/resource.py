"""A TrainingJob as Kubernetes has it, and a `StoredJob`: one made of the other. Pure.

What is wished beside the spec stands in annotations, since the API server lets the whole spec be fixed once a job is
accepted; a deletion is that of Kubernetes, held up by our finalizer until nothing of the job runs.

`StoredJob.generation` is `metadata.generation`, which counts changes of the spec and the deletion, plus the wishes in
annotations, each of which only ever grows (`count`): a pure function of the object, so that a person with
kubectl may write them, too. In the status both parts are kept apart: `observedGeneration` is Kubernetes' own, which
`kubectl wait` and kstatus compare with `metadata.generation`, and `observedWishes` stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import Unavailable
from orchestrator.kube.merge import merge_patch
from orchestrator.kube.resources import TRAINING_JOBS, Json, Target
from orchestrator.spec import TrainingJob
from orchestrator.status import Condition, ConditionType, JobStatus, Reason
from orchestrator.store.base import StoredJob, Wish
from orchestrator.store.document import Document, assembled, timestamp

FINALIZER = "fathom.dev/controller"
CANCELLED_AT = "fathom.dev/cancelled-at"
KEEP_FILES = "fathom.dev/keep-files"
FORCE = "fathom.dev/force"
GRANTED_AFTER = "fathom.dev/granted-after"
RESUMED = "fathom.dev/resumed"
CREATED_BY = "fathom.dev/created-by"
CREATED_AT = "fathom.dev/created-at"
"""When the API made it, to the microsecond: Kubernetes knows seconds, and many jobs may come in one."""
_KUBECTL = "kubectl"
"""Who made a job that does not say so."""
_SKEW = timedelta(seconds=1)
_MOST = 10**9
_LONGEST = 1000
_NO = ("", "false")
_MEND = "mend it, or use the version of Fathom that wrote it"


# ------------------------------------------------------------------ wishes
@dataclass(frozen=True)
class Wishes:
    """What the annotations say. People write them, too: what cannot be read is the harmless thing."""

    cancelled_at: datetime | None
    keep_files: bool
    force: bool
    granted_after: int
    resumed: int

    @classmethod
    def of(cls, found: Json) -> Wishes:
        said: Mapping[str, str] = found["metadata"].get("annotations") or {}
        return cls(
            cancelled_at=_cancelled(said.get(CANCELLED_AT, ""), found),
            keep_files=said.get(KEEP_FILES) == "true",
            force=said.get(FORCE) == "true",
            granted_after=_number(said.get(GRANTED_AFTER, "")),
            resumed=_number(said.get(RESUMED, "")),
        )


def count(said: Wishes | Wish) -> int:
    """Grows with each of them, since none is ever taken back."""
    flags = (said.cancelled_at is not None, said.keep_files, said.force)
    return sum(flags) + said.granted_after + said.resumed


def _cancelled(said: str, found: Json) -> datetime | None:
    """Who writes anything there wants an end; a time that cannot be read is that of the job."""
    if said in _NO:
        return None
    return _moment(said) or _made(found)


def _number(said: str) -> int:
    return min(int(said), _MOST) if said.isascii() and said.isdecimal() and len(said) < 20 else 0


def _moment(said: object) -> datetime | None:
    """In UTC, where nothing else is said. None for what is no time, and for one before or after all that UTC has."""
    try:
        found = datetime.fromisoformat(str(said))
        return found.astimezone(UTC) if found.tzinfo is not None else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None


# ------------------------------------------------------------------ what is read
def is_leaving(found: Json) -> bool:
    """Deleted, and nothing of ours holds it up: there is no such job any more."""
    return found["metadata"].get("deletionTimestamp") is not None and not is_claimed(found)


def is_claimed(found: Json) -> bool:
    """Whether it cannot go without us."""
    return FINALIZER in (found["metadata"].get("finalizers") or ())


def is_begun(found: Json) -> bool:
    """Whether an attempt was ever made."""
    return bool((found.get("status") or {}).get("attemptCount"))


def target_of(found: Json) -> Target:
    """Its address."""
    return TRAINING_JOBS.at(found["metadata"]["namespace"], found["metadata"]["name"])


def generation_of(found: Json) -> int:
    """Of the whole wish."""
    return int(found["metadata"]["generation"]) + count(Wishes.of(found))


def created_at(found: Json) -> datetime:
    """By the server's clock; within a second of that as the API says it."""
    made, said = _made(found), _moment((found["metadata"].get("annotations") or {}).get(CREATED_AT))
    return made if said is None else min(max(said, made - _SKEW), made + _SKEW)


def _made(found: Json) -> datetime:
    return datetime.fromisoformat(found["metadata"]["creationTimestamp"])


def folder_of(found: Json) -> str:
    """Names hold no dot: unique, also when a name comes again."""
    metadata = found["metadata"]
    return f"{metadata['namespace']}.{metadata['name']}.{metadata['uid'][:8]}"


def _created_by(found: Json) -> str:
    return str((found["metadata"].get("annotations") or {}).get(CREATED_BY) or _KUBECTL)


def stored_of(found: Json, before: StoredJob | None = None) -> StoredJob:
    """Unavailable where our models refuse it. `before`: the same job as it was read last; most change by
    their status only."""
    metadata, said = found["metadata"], Wishes.of(found)
    deleted = metadata.get("deletionTimestamp")
    try:
        if before is not None and before.generation - count(before.wish) == metadata["generation"]:
            job = before.wish.job
        else:
            job = TrainingJob.model_validate(_job(found), by_alias=True, by_name=False)
        status = JobStatus.model_validate(status_document(found))
    except ValidationError as error:
        raise Unavailable(
            f"TrainingJob {metadata['namespace']}/{metadata['name']} cannot be read by this version of Fathom: "
            f"{_words(error)}; {_MEND}"
        ) from error
    wish = Wish(
        job=job,
        cancelled_at=said.cancelled_at,
        deleted_at=None if deleted is None else datetime.fromisoformat(deleted),
        keep_files=said.keep_files,
        force=said.force,
        granted_after=said.granted_after,
        resumed=said.resumed,
    )
    return StoredJob(
        uid=metadata["uid"],
        wish=wish,
        status=status,
        generation=generation_of(found),
        version=int(metadata["resourceVersion"]),
        created_at=created_at(found),
        created_by=_created_by(found),
        folder=folder_of(found),
    )


def document_of(found: Json) -> Document:
    """As `store.document.document`, without reading it by our models."""
    metadata, said = found["metadata"], Wishes.of(found)
    deleted = metadata.get("deletionTimestamp")
    facts = {
        "uid": metadata["uid"],
        "generation": generation_of(found),
        "version": int(metadata["resourceVersion"]),
        "createdAt": timestamp(created_at(found)),
        "createdBy": _created_by(found),
        "folder": folder_of(found),
        "cancelledAt": None if said.cancelled_at is None else timestamp(said.cancelled_at),
        "deletedAt": None if deleted is None else timestamp(datetime.fromisoformat(deleted)),
    }
    return assembled(_job(found), status_document(found), facts)


def _job(found: Json) -> Document:
    metadata = {key: found["metadata"][key] for key in ("name", "namespace")}
    kind = {"apiVersion": TRAINING_JOBS.api_version, "kind": TRAINING_JOBS.kind}
    return kind | {"metadata": metadata, "spec": found.get("spec")}


def _words(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


# ------------------------------------------------------------------ the status
def observed(status: Json) -> int:
    """The generation of the whole wish that a status is about."""
    return int(status.get("observedGeneration", 0)) + int(status.get("observedWishes", 0))


def status_document(found: Json) -> Document:
    """As the controller wrote it; conditions that are about the generation of the status are about all of it."""
    status = found.get("status")
    if not status:
        return JobStatus().document()
    own, whole = status.get("observedGeneration", 0), observed(status)
    conditions = [
        one | {"observedGeneration": whole} if one.get("observedGeneration", 0) == own else one
        for one in status.get("conditions", ())
    ]
    kept = {key: value for key, value in status.items() if key != "observedWishes"}
    return kept | {"observedGeneration": whole, "conditions": conditions}


def status_body(status: JobStatus, found: Json) -> Json:
    """The whole status, as the resource has it."""
    body, whole = status.document(), status.observed_generation
    own, wishes = _parts(whole, found)
    for one in body["conditions"]:
        said = one["observedGeneration"]
        one["observedGeneration"] = own if said == whole else min(said, own)
    return body | {"observedGeneration": own} | ({"observedWishes": wishes} if wishes else {})


def _parts(whole: int, found: Json) -> tuple[int, int]:
    """A generation that was read from this object, now or earlier, as (that of Kubernetes, wishes). The first is never
    greater than it was then."""
    generation, wishes = int(found["metadata"]["generation"]), count(Wishes.of(found))
    if whole >= generation + wishes:
        return generation, wishes
    status = found.get("status") or {}
    if whole == observed(status):
        return int(status.get("observedGeneration", 0)), int(status.get("observedWishes", 0))
    return whole - min(wishes, whole), min(wishes, whole)


def same_status(body: Json, found: Json) -> bool:
    """Whether it is there already; a job without one is as one of which nothing was said yet."""
    return not merge_patch(found.get("status") or JobStatus().document(), body)


def refused(found: Json, why: str, now: datetime) -> Json:
    """The whole status of a job that our models refuse. One that was never accepted can be mended as it is."""
    before = found.get("status") or JobStatus().document()
    kept = {one["type"]: one for one in before.get("conditions", ())}
    accepted = kept.get(ConditionType.ACCEPTED, {}).get("status") == "True"
    own = int(found["metadata"]["generation"])
    said = Condition(
        type=ConditionType.RUNNING if accepted else ConditionType.ACCEPTED,
        status="Unknown" if accepted else "False",
        reason=Reason.CONTROLLER_ERROR if accepted else Reason.INVALID,
        message=why[:_LONGEST],
        last_transition_time=now,
        observed_generation=own,
    ).document()
    last = kept.get(said["type"], {})
    if last.get("status") == said["status"]:
        said["lastTransitionTime"] = last["lastTransitionTime"]
    body = before | {"conditions": [*(one for one in kept.values() if one["type"] != said["type"]), said]}
    if accepted:
        return body
    wishes = count(Wishes.of(found))
    body = {key: value for key, value in body.items() if key != "observedWishes"}
    return body | {"observedGeneration": own} | ({"observedWishes": wishes} if wishes else {})


# ------------------------------------------------------------------ what is written
def new_resource(job: TrainingJob, by: str, now: datetime) -> Json:
    """Held up by us from the beginning."""
    document = job.document()
    document.pop("status", None)
    annotations = {CREATED_BY: by, CREATED_AT: timestamp(now)}
    metadata = document["metadata"] | {"annotations": annotations, "finalizers": [FINALIZER]}
    return document | {"metadata": metadata}


def wish_patch(found: Json, before: Wish, after: Wish) -> Json:
    """The merge patch that makes one wish of the other, but for a deletion, for which it is held up by us."""
    patch: Json = {}
    if spec := merge_patch(before.job.document()["spec"], after.job.document()["spec"]):
        patch["spec"] = spec
    metadata: Json = {}
    if annotations := merge_patch(_annotations(before), _annotations(after)):
        metadata["annotations"] = annotations
    if after.deleted_at is not None and before.deleted_at is None and not is_claimed(found):
        metadata |= claim(found)["metadata"]
    return patch | ({"metadata": metadata} if metadata else {})


def _annotations(wish: Wish) -> Json:
    said: dict[str, Any] = {
        CANCELLED_AT: None if wish.cancelled_at is None else timestamp(wish.cancelled_at),
        KEEP_FILES: "true" if wish.keep_files else None,
        FORCE: "true" if wish.force else None,
        GRANTED_AFTER: str(wish.granted_after) if wish.granted_after else None,
        RESUMED: str(wish.resumed) if wish.resumed else None,
    }
    return {key: value for key, value in said.items() if value is not None}


def claim(found: Json) -> Json:
    """The merge patch by which it cannot go without us."""
    return {"metadata": {"finalizers": [*(found["metadata"].get("finalizers") or ()), FINALIZER]}}


def release(found: Json) -> Json:
    """The merge patch by which it can."""
    others = [one for one in found["metadata"].get("finalizers") or () if one != FINALIZER]
    return {"metadata": {"finalizers": others or None}}

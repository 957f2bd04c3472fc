"""`/v1/deliveries`, in a cluster: what the pods of attempts post, each with its own token.

Invariant: nothing is stored for a token that is not bound to the very pod (namespace, name and uid) which carries the
labels of the job, attempt and incarnation that the delivery names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import GetJsonSchemaHandler, RootModel, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from orchestrator.api.answers import problems
from orchestrator.api.desk import AtDesk
from orchestrator.api.limits import Limits
from orchestrator.api.problems import MAX_ERRORS, Fault, Refusal, pointer, printable
from orchestrator.api.prometheus import Metrics
from orchestrator.api.rights import Door
from orchestrator.errors import Fenced, Forbidden
from orchestrator.kube.access import Access, Person
from orchestrator.launch.base import RunFolder
from orchestrator.launch.delivery import MOST_BODY_BYTES, PATH, Delivery, Receipt
from orchestrator.launch.rayjob.agreed import ATTEMPT, JOB_UID
from orchestrator.store.access import Role

router = APIRouter(tags=["service"])
RAY_CLUSTER = "ray.io/cluster"
"""Label of KubeRay's pods."""
LIMITS = Limits(body_bytes=MOST_BODY_BYTES, rate=20.0, burst=300, values=250_000)
"""Of one pod: its driver delivers once a second, and without a pause when it has much to catch up on (300 are 75 MiB of
log). 500 events with 200 metrics each have 210,000 values."""
_ACCOUNT = "system:serviceaccount:"
_POD_NAME, _POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"


class Pods(Protocol):
    """The pods of a cluster, as an informer or the API server has them now."""

    def pod_of(self, namespace: str, name: str) -> Mapping[str, Any] | None:
        """None where there is none (any more). Unavailable if nobody can say."""


@dataclass(frozen=True)
class PodCaller:
    """A pod that delivers; its token is of no use elsewhere."""

    namespace: str
    pod: str
    uid: str
    groups: tuple[str, ...] = ()
    team: None = None

    @property
    def name(self) -> str:
        return f"pod {self.namespace}/{self.pod}"

    def why_not(self, role: Role, namespace: str | None) -> str:
        return f"the token of {self.name} is for deliveries only"

    def why_never(self, role: Role) -> str:
        return self.why_not(role, None)

    def about(self) -> dict[str, str]:
        return {"name": self.name}


class PodAccess:
    """Tokens that Kubernetes gives to pods for this audience."""

    def __init__(self, access: Access, audience: str) -> None:
        self._access, self._audience = access, audience

    def authenticate(self, secret: str) -> PodCaller:
        """Forbidden for a token that is bound to no pod."""
        return caller_of(self._access.who(secret, self._audience))


def caller_of(person: Person) -> PodCaller:
    """Forbidden unless it is the service account of a pod. Pure."""
    extra = dict(person.extra)
    names, uids = extra.get(_POD_NAME, ()), extra.get(_POD_UID, ())
    if not person.name.startswith(_ACCOUNT) or len(names) != 1 or len(uids) != 1:
        raise Forbidden(f"the token of {person.name} is bound to no pod: deliveries take the projected token of a pod")
    return PodCaller(person.name.removeprefix(_ACCOUNT).partition(":")[0], names[0], uids[0])


def pods_door(access: Access, audience: str) -> Door:
    """How pods say who they are."""
    return Door(PodAccess(access, audience), "it is the pod's projected token")


def require_pod(caller: PodCaller, pod: Mapping[str, Any] | None, delivery: Delivery) -> Mapping[str, Any]:
    """The pod; Forbidden unless it is the caller's, and one of that attempt. Pure."""
    if pod is None or pod["metadata"].get("uid") != caller.uid:
        raise Forbidden(f"there is no {caller.name} of uid {caller.uid} (any more)")
    labels = pod["metadata"].get("labels") or {}
    wanted = {JOB_UID: delivery.job, ATTEMPT: str(delivery.attempt), RAY_CLUSTER: delivery.incarnation}
    for label, value in wanted.items():
        if labels.get(label) != value:
            found = printable(str(labels.get(label)), 80)
            raise Forbidden(f"{caller.name} has {label}={found}, but delivers for {value}: each pod speaks for itself")
    if delivery.namespace != caller.namespace:
        raise Forbidden(f"{caller.name} delivers for a job of {delivery.namespace}: each pod speaks for itself")
    return pod


class DeliveryBody(RootModel[dict[str, Any]]):
    """As it was sent; it may be large, and is looked at in a thread of its own."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(Delivery.__pydantic_core_schema__)


@router.post(
    PATH,
    operation_id="deliver",
    summary="What is new of an attempt, from its own pod",
    response_model=Receipt,
    responses=problems("fenced", "invalid-json", "too-large", "unsupported-media"),
)
def deliver(body: DeliveryBody, request: Request, desk: AtDesk) -> JSONResponse:
    """Whatever comes twice is stored once. The receipt says what is stored: go on from there. `fenced`: end."""
    delivery = _read(body.root)
    caller, cluster = request.state.caller, request.app.state.cluster
    pod = require_pod(caller, cluster.pods.pod_of(caller.namespace, caller.pod), delivery)
    stored = desk.store.by_uid(delivery.job)
    if stored is None or (stored.namespace, stored.name) != (delivery.namespace, delivery.name):
        raise Fenced(f"there is no job {delivery.namespace}/{delivery.name} of uid {delivery.job} (any more)")
    leaving = bool(pod["metadata"].get("deletionTimestamp"))
    kept = desk.inboxes.of(RunFolder(desk.settings.home / stored.folder)).store(delivery, leaving=leaving)
    if kept.events:
        desk.wake()
    metrics: Metrics = request.app.state.metrics
    metrics.delivered(kept.events, kept.log_bytes)
    return JSONResponse(kept.receipt.model_dump(mode="json", by_alias=True))


def _read(body: dict[str, Any]) -> Delivery:
    try:
        return Delivery.model_validate(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
        faults = [
            Fault(pointer=pointer(".".join(str(part) for part in one["loc"])), detail=printable(str(one["msg"])))
            for one in found
        ]
        detail = "; ".join(f"{fault.pointer or 'body'}: {fault.detail}" for fault in faults[:5])
        raise Refusal("invalid-request", printable(detail, 2000), errors=faults) from None

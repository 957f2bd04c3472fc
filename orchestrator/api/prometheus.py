"""`/metrics` for Prometheus: jobs, slots, money, requests and the controller, in a registry of the app's own.

Every set of labels is bounded: routes by their template, methods and phases by their lists, teams by `MAX_TEAMS`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.answers import problems
from orchestrator.api.auth import needs
from orchestrator.api.capacity import Capacity
from orchestrator.api.desk import Caller
from orchestrator.api.rights import seen_by
from orchestrator.api.streams import Streams
from orchestrator.controller.health import Health
from orchestrator.status import Phase
from orchestrator.store.access import Role
from orchestrator.store.tally import TeamTally

router = APIRouter(tags=["service"])
MAX_TEAMS = 100
OTHERS = "_others"
"""Stands for the teams beyond those; no namespace has that name."""
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"})
_WAITING = (Phase.PENDING, Phase.PLANNED, Phase.QUEUED)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Of one app."""

    def __init__(
        self,
        tally: Callable[[str | None], Sequence[TeamTally]],
        capacity: Callable[[], Capacity],
        streams: Streams,
        health: Health | None,
    ) -> None:
        """`tally`: of one team, or of all."""
        self._tally, self._capacity, self._streams, self._health = tally, capacity, streams, health
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "fathom_http_request_duration_seconds",
            "Until an answer begins, by route and status.",
            ("method", "route", "status"),
            registry=self.registry,
            buckets=_SECONDS,
        )
        self._delivered = Counter(
            "fathom_delivered",
            "What pods of attempts have delivered and was not known: events, and bytes of logs.",
            ("what",),
            registry=self.registry,
        )

    def delivered(self, events: int, log_bytes: int) -> None:
        """By one delivery."""
        self._delivered.labels("events").inc(events)
        self._delivered.labels("log-bytes").inc(log_bytes)

    def text(self, team: str | None = None) -> bytes:
        """In Prometheus' text format; jobs and money of one team only, or of all."""
        present = CollectorRegistry(auto_describe=False)
        present.register(_Now(list(self._now(team))))
        return generate_latest(present) + generate_latest(self.registry)

    def _now(self, team: str | None) -> Iterator[Metric]:
        found = self._tally(team)
        yield from _jobs(found)
        yield from _money(found)
        yield from _slots(self._capacity())
        yield _gauge("fathom_streams_open", "Server-sent event streams.", [((), self._streams.count)])
        if self._health is not None:
            yield from _controller(self._health)
        labels = (version("fathom-train"), platform.python_version())
        yield _gauge("fathom_build_info", "Always 1.", [(labels, 1)], ("version", "python"))


class Metered:
    """ASGI middleware, the outermost: measures requests."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float] = time.perf_counter) -> None:
        self._app, self._metrics, self._clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = self._clock()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(method, _template(scope), str(message["status"])).observe(
                    self._clock() - began
                )
            await send(message)

        await self._app(scope, receive, measured)


def _template(scope: Scope) -> str:
    """Of the route that was taken; never the path itself, of which there is no end."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"


class _Now(Collector):
    """What was found for one scrape."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _gauge(name: str, text: str, samples: Iterable[tuple[Iterable[str], float]], labels: Iterable[str] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for values, number in samples:
        family.add_metric(list(values), number)
    return family


def _jobs(found: Iterable[TeamTally]) -> Iterator[Metric]:
    phases = dict.fromkeys(Phase, 0)
    for one in found:
        for phase, number in one.phases.items():
            phases[phase] += number
    yield _gauge(
        "fathom_jobs", "Jobs by phase.", [((phase.value,), number) for phase, number in phases.items()], ("phase",)
    )
    waiting = sum(phases[phase] for phase in _WAITING)
    yield _gauge("fathom_queue_length", "Jobs that wait to start.", [((), waiting)])


def _money(found: Iterable[TeamTally]) -> Iterator[Metric]:
    """The teams that have spent most by themselves, the others together."""
    ranked = sorted(found, key=lambda one: (-sum(money.spent for money in one.money.values()), one.team))
    sums: dict[tuple[str, str], list[Decimal]] = {}
    for rank, one in enumerate(ranked):
        for currency, money in one.money.items():
            team = one.team if rank < MAX_TEAMS else OTHERS
            before = sums.setdefault((team, currency), [Decimal(0)] * 3)
            for index, amount in enumerate((money.spent, money.wasted, money.burn)):
                before[index] += amount
    names = {
        "fathom_spent": "Money of the jobs that there are, in units of its currency; less when one is forgotten.",
        "fathom_wasted": "The part of it that trained nothing.",
        "fathom_burn_per_hour": "What an hour costs now.",
    }
    for index, (name, text) in enumerate(names.items()):
        yield _gauge(name, text, [(key, float(amounts[index])) for key, amounts in sums.items()], ("team", "currency"))


def _slots(capacity: Capacity) -> Iterator[Metric]:
    samples: list[tuple[tuple[str, str], float]] = []
    for state, slots in (("total", capacity.total), ("used", capacity.used)):
        if slots is not None:
            samples += [(("cpu", state), slots.cpus), (("gpu", state), slots.gpus)]
    yield _gauge("fathom_slots", "What the machine lends to jobs.", samples, ("kind", "state"))


def _controller(health: Health) -> Iterator[Metric]:
    turns = CounterMetricFamily("fathom_controller_turns", "Looks at all jobs, by how they ended.", labels=["outcome"])
    turns.add_metric(["ok"], health.turns - health.failures)
    turns.add_metric(["failed"], health.failures)
    yield turns
    yield CounterMetricFamily("fathom_controller_turn_seconds", "Time of all turns.", value=health.seconds)
    if health.last_seconds is not None:
        yield _gauge("fathom_controller_last_turn_seconds", "Time of the last turn.", [((), health.last_seconds)])
    if (age := health.age) is not None:
        yield _gauge("fathom_controller_last_turn_age_seconds", "Since a turn ended well.", [((), age)])


@router.get(
    "/metrics",
    operation_id="readServiceMetrics",
    summary="The service's own numbers, for Prometheus",
    response_class=Response,
    dependencies=[needs(Role.READER)],
    responses={
        **problems(),
        200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}},
    },
)
def read_service_metrics(request: Request, caller: Caller) -> Response:
    """Jobs and money of your team only, with the token of a team; in a cluster it takes the right to read all jobs."""
    metrics: Metrics = request.app.state.metrics
    return Response(metrics.text(seen_by(caller, None)), media_type=CONTENT_TYPE_PLAIN_0_0_4)

"""The controller of a cluster under load: finished and live TrainingJobs on a real Kubernetes API server. No Ray.

    python benchmarks/controller.py [--finished 20000] [--live 500] [--json FILE]

Needs etcd, kube-apiserver (KUBEBUILDER_ASSETS) and KubeRay's definitions (FATHOM_TEST_CRDS), as the tests do.
Measured on a real `fathom controller` over loopback: seconds from its start until /readyz says so, wall seconds from
the answer to a job's creation until a watch shows its RayJob, at several jobs a second; writes per job by the API
server's own count; memory (PSS) and CPU while all live jobs are followed; and from the death of the leader until
another replica is ready. No operator runs: a live job's RayJob stays as it was made, so that nothing is delivered.
MLflow is a file of the home. The peer is the API server itself: from the answer to a RayJob's creation until the same
watch shows it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import httpx2  # noqa: E402
import psutil  # noqa: E402
from support import envtest, operators  # noqa: E402
from support.apiserver import ApiServer  # noqa: E402
from support.controller_process import ControllerProcess  # noqa: E402

from orchestrator.crd.definition import definition  # noqa: E402

Json = dict[str, Any]
RATES = (1, 5, 20, 50)
RATE_SECONDS, MOST_OF_A_RATE = 10, 150
FOLLOW_SECONDS, PATIENCE = 20.0, 300.0
JOBS, RAY_JOBS = "/apis/fathom.dev/v1alpha1/namespaces/{}/trainingjobs", "/apis/ray.io/v1/namespaces/{}/rayjobs"
IMAGE = "registry.example.com/train@sha256:" + "a" * 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=20_000)
    parser.add_argument("--live", type=int, default=500)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    assets, found = envtest.find_assets(), operators.definitions()
    if assets is None or found is None:
        sys.exit(envtest.NOT_RUN if assets is None else operators.NOT_RUN)
    with tempfile.TemporaryDirectory() as place:
        server = ApiServer(Path(place) / "server", assets)
        try:
            server.start()
            server.install(definition())
            server.install_all([one for one in found if one["spec"]["group"] == "ray.io"])
            measured = measure(server, Path(place), given.finished, given.live)
        finally:
            server.stop()
    print("\n".join(f"{name:<58}{value}" for name, value in measured.items()))
    if given.json is not None:
        given.json.write_text(json.dumps(measured, indent=1))


def measure(server: ApiServer, place: Path, finished: int, live: int) -> Json:
    namespace, found = server.namespace(), dict[str, Any]()
    fill(server, namespace, finished)
    found["peer: RayJob by hand until watched, s (p50, p99)"] = in_words(by_hand(server, namespace))
    first = ControllerProcess(server, place / "one", namespace)
    others: list[ControllerProcess] = []
    try:
        found[f"ready with {finished} finished jobs, s"] = round(until_ready(first), 2)
        made = 0
        for rate in RATES:
            count = min(rate * RATE_SECONDS, MOST_OF_A_RATE, live - made)
            if count > 0:
                delays, writes = created(server, namespace, rate, count, made)
                found[f"job until RayJob at {rate} a second, s (p50, p99)"] = in_words(delays)
                found[f"writes for each of them at {rate} a second"] = round(writes, 1)
                made += count
        if made < live:
            delays, _ = created(server, namespace, RATES[-1], live - made, made)
            made = live
        found |= at_work(first, made)
        others.append(ControllerProcess(server, place / "one", namespace, name="two"))
        began = time.monotonic()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        until_ready(others[0])
        found["leader killed, until another replica is ready, s"] = round(time.monotonic() - began, 2)
    finally:
        for one in (first, *others):
            one.kill()
    return found


# ------------------------------------------------------------------ jobs


def job(namespace: str, name: str) -> Json:
    return {
        "apiVersion": "fathom.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"preset": "mini"},
            "data": {"source": "pvc://data/web"},
            "training": {"tokens": 450_000},
            "compute": {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 1, "image": IMAGE},
            "checkpoint": {"uri": f"pvc://data/runs/{name}"},
        },
    }


def fill(server: ApiServer, namespace: str, count: int) -> None:
    """Jobs that have succeeded, as the controller leaves them."""
    client, path = server.client(), JOBS.format(namespace)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def condition(kind: str, status: str, reason: str) -> Json:
        return {"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": now,
                "observedGeneration": 1}  # fmt: skip

    status = {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "attemptCount": 1,
        "attempts": [{"number": 1, "startedAt": now, "endedAt": now, "outcome": "succeeded", "cost": "1.250000"}],
        "cost": {"spent": "1.250000", "burnPerHour": "0.000000", "wasted": "0.100000", "currency": "USD"},
        "mlflow": {
            "experimentId": "1",
            "runId": "0123456789abcdef" * 2,
            "url": "http://mlflow.example/#/experiments/1",
        },
        "conditions": [
            condition("Accepted", "True", "Valid"),
            condition("Running", "False", "Ended"),
            condition("Complete", "True", "Succeeded"),
        ],
    }

    def one(number: int) -> None:
        document = job(namespace, f"done-{number}")
        document["metadata"]["finalizers"] = ["fathom.dev/controller"]
        posted(client, path, document)
        headers = {"Content-Type": "application/merge-patch+json"}
        answer = client.patch(f"{path}/done-{number}/status", json={"status": status}, headers=headers)
        assert answer.status_code == 200, answer.text

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(count)))


def posted(client: httpx2.Client, path: str, document: Json) -> Json:
    answer = client.post(path, json=document)
    assert answer.status_code == 201, answer.text
    found: Json = answer.json()
    return found


def created(server: ApiServer, namespace: str, rate: float, count: int, first: int) -> tuple[list[float], float]:
    """-> seconds until each had its RayJob, and the API server's count of writes for each, the creation included."""
    names = [f"live-{first + number}" for number in range(count)]
    client, before = server.client(), writes(server)
    answered: dict[str, float] = {}
    with Watch(server, namespace) as watch:
        begun = time.monotonic()
        for number, name in enumerate(names):
            time.sleep(max(0.0, begun + number / rate - time.monotonic()))
            posted(client, JOBS.format(namespace), job(namespace, name))
            answered[f"{name}-a1"] = time.monotonic()
        watch.wait(answered)
        delays = [max(0.0, watch.seen[name] - at) for name, at in answered.items()]
    time.sleep(5)  # what is written right after the RayJob belongs to it
    return delays, (writes(server) - before) / count


def by_hand(server: ApiServer, namespace: str, count: int = 50) -> list[float]:
    """As fast as it can be: nobody decides anything."""
    client, path, answered = server.client(), RAY_JOBS.format(namespace), dict[str, float]()
    with Watch(server, namespace) as watch:
        for number in range(count):
            body = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": f"hand-{number}"},
                    "spec": {"entrypoint": "true"}}  # fmt: skip
            posted(client, path, body)
            answered[f"hand-{number}"] = time.monotonic()
        watch.wait(answered)
        return [max(0.0, watch.seen[name] - at) for name, at in answered.items()]


class Watch:
    """When RayJobs of a namespace were seen first."""

    def __init__(self, server: ApiServer, namespace: str) -> None:
        self.seen: dict[str, float] = {}
        self._client, self._path = server.client(), RAY_JOBS.format(namespace)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._open = threading.Event()

    def __enter__(self) -> Watch:
        self._thread.start()
        assert self._open.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        """The thread ends with its connection, which the server closes in a while."""

    def _follow(self) -> None:
        with (
            suppress(httpx2.TransportError),  # the server ends before the watch does
            self._client.stream("GET", self._path, params={"watch": "1"}, timeout=None) as stream,
        ):
            self._open.set()
            for line in stream.iter_lines():
                found = json.loads(line)
                if found["type"] == "ADDED":
                    self.seen.setdefault(found["object"]["metadata"]["name"], time.monotonic())

    def wait(self, names: Sequence[str] | dict[str, float]) -> None:
        end = time.monotonic() + PATIENCE
        while missing := [name for name in names if name not in self.seen]:
            assert time.monotonic() < end, f"{len(missing)} have no RayJob, e.g. {missing[0]}"
            time.sleep(0.02)


def writes(server: ApiServer) -> float:
    """By the API server, without Leases and Events."""
    lines = server.client().get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("apiserver_request_total{") and _is_write(line)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted)


def _is_write(line: str) -> bool:
    others = ("leases", "events", "tokenreviews", "subjectaccessreviews")
    verbs = ("POST", "PUT", "PATCH", "DELETE", "APPLY")
    return any(f'verb="{one}"' in line for one in verbs) and not any(f'resource="{one}"' in line for one in others)


# ------------------------------------------------------------------ the controller


def until_ready(of: ControllerProcess) -> float:
    """Seconds of wall clock since its process began."""
    end = time.monotonic() + PATIENCE
    while True:
        assert of.process.poll() is None, of.log()
        try:
            if of.ask("GET", "/readyz").status_code == 200:
                return time.time() - psutil.Process(of.process.pid).create_time()
        except httpx2.TransportError:
            pass
        assert time.monotonic() < end, of.log()
        time.sleep(0.05)


def at_work(of: ControllerProcess, live: int) -> Json:
    """While it follows all of them and nothing is wished."""
    family = [psutil.Process(of.process.pid), *psutil.Process(of.process.pid).children(recursive=True)]
    before, began = sum(_cpu(family)), time.monotonic()
    time.sleep(FOLLOW_SECONDS)
    used = (sum(_cpu(family)) - before) / (time.monotonic() - began)
    memory = sum(one.memory_full_info().pss for one in family) / 2**20
    return {f"cores used to follow {live} jobs": round(used, 2), "memory with all jobs, MiB (PSS)": round(memory)}


def _cpu(family: Sequence[psutil.Process]) -> Iterator[float]:
    for one in family:
        times = one.cpu_times()
        yield times.user + times.system


def in_words(delays: Sequence[float]) -> str:
    if len(delays) < 2:
        return ", ".join(f"{delay:.3f}" for delay in delays)
    return f"{statistics.median(delays):.3f}, {statistics.quantiles(delays, n=100, method='inclusive')[98]:.3f}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()

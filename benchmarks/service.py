"""The service under load: 10,000 finished jobs in its store and 200 that run. No GPU, no torch, no Ray.

    python benchmarks/service.py [--finished 10000] [--live 200] [--requests 500] [--json FILE]

Measured on a real `fathom serve` over loopback: CPU seconds from the start of the process until /readyz says so, wall
milliseconds of `GET /v1/jobs` (a page of 100) as one client sees them, which server and network both are in, CPU of the
service in the meantime, and its memory (PSS, as the kernel shares it out; RSS is beside it). The running jobs are real
processes, started and followed by the service, that hold their lock and report a step each second, and train nothing.
The peer is the same page read from a copy of the store by SQLite and json alone: what no server could be faster than.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import httpx2  # noqa: E402
import psutil  # noqa: E402

from orchestrator.spec import TrainingJob  # noqa: E402
from orchestrator.status import Attempt, Choice, Cost, JobStatus, Phase, Plan, Progress  # noqa: E402

PAGE, WARM = 100, 50
PERIOD = 0.025
"""Seconds between two requests: a token may make 50 in a second."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--live", type=int, default=200)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        return drive(Path(given.drive[0]), int(given.drive[1]), int(given.drive[2]))
    if given.serve:
        return serve()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), given.finished, given.live, given.requests)
    print("\n".join(f"{name:<42}{value}" for name, value in found.items()))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))


def measure(home: Path, finished: int, live: int, requests: int) -> dict[str, Any]:
    data = prepare(home)
    os.environ |= {"FATHOM_HOME": str(home), "FATHOM_CPUS": str(2 * live + 2)}
    fill(home, finished, data)
    with service(home) as (process, client):
        for number in range(live):
            client.post("/v1/jobs", json={"job": job(f"live-{number:03}", data).document()}).raise_for_status()
        wait_until(client, live)
    with service(home) as (process, client):  # once more: it finds 200 trainings that go on without it
        ready = process_cpu(process)
        wait_until(client, live)
        for _ in range(WARM):
            ask(client)
        before, began = process_cpu(process), time.perf_counter()
        walls = [ask(client) for _ in range(requests)]
        cpu, span = process_cpu(process) - before, time.perf_counter() - began
        idle_from, idle_began = process_cpu(process), time.perf_counter()
        time.sleep(10)
        idle = (process_cpu(process) - idle_from) / (time.perf_counter() - idle_began)
        memory = process.memory_full_info()
        loaded = (Path("/proc") / str(process.pid) / "maps").read_text()
        peer = by_sqlite(home, requests)
        for number in range(live):
            client.delete(f"/v1/jobs/default/live-{number:03}").raise_for_status()
        wait_until(client, 0)
    quantile = statistics.quantiles(walls, n=100)
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "jobs in the store, finished and live": f"{finished} + {live}",
        "CPU s from start to ready": round(ready, 2),
        "list of 100, wall ms: median": round(quantile[49], 1),
        "list of 100, wall ms: p99": round(quantile[98], 1),
        "same page by sqlite3 and json, ms: median": round(statistics.median(peer), 1),
        "ratio of the medians": round(quantile[49] / statistics.median(peer), 1),
        "CPU ms a request, controller included": round(1000 * cpu / requests, 1),
        f"share of a core, {1 / PERIOD:.0f} requests/s": round(cpu / span, 2),
        "share of a core, 200 followed, not asked": round(idle, 2),
        "PSS of the service, MiB": round(memory.pss / 2**20),
        "RSS of the service, MiB": round(memory.rss / 2**20),
        "torch, ray, mlflow or matplotlib loaded": any(
            f"/{name}/" in loaded for name in ("torch", "ray", "mlflow", "matplotlib")
        ),
    }


def ask(client: httpx2.Client) -> float:
    """Wall milliseconds of a page; no more of them than a token may ask for in a second."""
    start = time.perf_counter()
    client.get("/v1/jobs", params={"limit": PAGE}).raise_for_status()
    took = time.perf_counter() - start
    time.sleep(max(0.0, PERIOD - took))
    return 1000 * took


def prepare(home: Path) -> Path:
    """A small dataset, so that jobs are accepted as any others are."""
    text, data = home / "text", home / "data"
    text.mkdir()
    for file in sorted((ROOT / "docs").glob("*.md")):
        (text / f"{file.stem}.txt").write_text(file.read_text())
    command = [sys.executable, "-m", "orchestrator.cli", "data", "prepare", str(text), str(data), "--vocab-size", "512"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return data


def job(name: str, data: Path) -> TrainingJob:
    sizes = {
        "vocabSize": 512, "hiddenSize": 32, "layers": 2, "heads": 2, "queryRank": 16, "kvRank": 16, "nopeHeadDim": 8,
        "ropeHeadDim": 8, "valueHeadDim": 8, "denseHiddenSize": 64, "expertHiddenSize": 16, "experts": 4,
        "expertsPerToken": 2, "groups": 2, "groupsPerToken": 1, "maxPositions": 64,
    }  # fmt: skip
    spec = {
        "model": {"preset": "mini", "overrides": sizes},
        "data": {"source": str(data), "sequenceLength": 32},
        "training": {"tokens": 5_120_000, "globalBatchTokens": 256},
        "compute": {"accelerator": "cpu", "workers": 2},
        "budget": {"limit": "1000.00"},
        "retry": {"stallMinutes": 60.0},
    }
    return TrainingJob.model_validate({"metadata": {"name": name}, "spec": spec})


def fill(home: Path, number: int, data: Path) -> None:
    """Finished jobs, with a status as a real one has it."""
    from orchestrator.store.sqlite import SqliteStore

    store, now = SqliteStore(home / "fathom.db"), datetime.now(UTC)
    choices = [
        Choice(path=f"spec.field{i}", value=str(i), reason="chosen because it was left open: " * 2) for i in range(12)
    ]
    attempt = Attempt(
        number=1, started_at=now, ended_at=now, outcome="succeeded", gpu_hours="12.5", cost="30.10", to_step=20_000
    )
    for index in range(number):
        stored = store.create(job(f"done-{index:05}", data), by="benchmark")
        status = JobStatus(
            observed_generation=1,
            phase=Phase.SUCCEEDED,
            plan=Plan(choices=choices, price_per_hour="0.10", currency="USD"),
            progress=Progress(step=20_000, steps=20_000, tokens=5_120_000, loss="2.718282", observed_at=now),
            cost=Cost(spent="30.10", burn_per_hour="0", wasted="1.20", currency="USD"),
            attempts=[attempt, attempt.model_copy(update={"number": 2})],
            attempt_count=2,
        )
        store.set_status(stored.uid, status)


@contextmanager
def service(home: Path) -> Iterator[tuple[psutil.Process, httpx2.Client]]:
    log = (home / "serve.log").open("ab")
    child = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    process = psutil.Process(child.pid)
    try:
        url = ready(home, child)
        token = (home / "admin.token").read_text().strip()
        with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client:
            yield process, client
    finally:
        child.terminate()
        child.wait(60)
        log.close()


def ready(home: Path, child: subprocess.Popen[bytes]) -> str:
    while True:
        if child.poll() is not None:
            sys.exit((home / "serve.log").read_text()[-4000:])
        try:
            url = json.loads((home / "service.json").read_text())["url"]
            if httpx2.get(f"{url}/readyz").status_code == 200:
                return str(url)
        except (OSError, ValueError, httpx2.HTTPError):
            pass
        time.sleep(0.02)


def wait_until(client: httpx2.Client, running: int) -> None:
    while True:
        found = client.get("/v1/jobs", params={"limit": 1000, "name": "live-"}).json()["items"]
        if running == 0 and not found:
            return
        if running and sum(item["status"].get("phase") == "Running" for item in found) == running:
            return
        time.sleep(0.5)


def process_cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def by_sqlite(home: Path, requests: int) -> list[float]:
    """The floor: the same rows, and the same bytes of JSON, without a server."""
    walls = []
    with sqlite3.connect(f"file:{home / 'fathom.db'}?mode=ro", uri=True) as database:
        for _ in range(requests):
            start = time.perf_counter()
            rows = database.execute(f"select job, status from jobs order by seq desc limit {PAGE}").fetchall()
            json.dumps([{**json.loads(one), "status": json.loads(status)} for one, status in rows])
            walls.append(1000 * (time.perf_counter() - start))
    return walls


def serve() -> None:
    """`fathom serve` whose drivers train nothing."""
    from orchestrator.cli import serve as command
    from orchestrator.launch import local

    local.LocalLauncher.__init__.__defaults__ = ((sys.executable, str(Path(__file__).absolute()), "--drive"),)
    command.serve_command(host="127.0.0.1", port=0, allowed_host=None)


def drive(root: Path, attempt: int, lock: int) -> None:
    """A driver: takes the lock over, says who it is, reports a step each second, and stops when it is told to."""
    fcntl.flock(lock, fcntl.LOCK_EX)
    own = psutil.Process()
    who = {"pid": own.pid, "started": own.create_time(), "boot": psutil.boot_time(), "attempt": attempt}
    (root / "driver.lock").write_text(json.dumps(who))
    resolved = json.loads((root / f"resolved-{attempt}.json").read_text())
    events, step = root / "events" / "events.jsonl", 0
    events.parent.mkdir(exist_ok=True)

    def say(kind: str, seq: int, **fields: object) -> None:
        line = {"kind": kind, "job": resolved["job"]["uid"], "attempt": attempt, "incarnation": resolved["incarnation"]}
        with events.open("a") as file:
            file.write(json.dumps(line | {"seq": seq, "time": time.time(), "version": 1} | fields) + "\n")

    say("started", 1, step=0, tokens=0, worldSize=2)
    while True:
        step += 1
        metrics = {"train/loss": 3.0 + 1 / step, "train/tokens_per_second": 256.0}
        say("progress", step + 1, step=step, tokens=256 * step, metrics=metrics)
        control = root / "control.json"
        if control.exists() and "checkpoint-and-stop" in control.read_text():
            say("checkpoint-committed", step + 2, step=step, uri=str(root), sizeBytes=1, seconds=0.0)
            say("ended", step + 3, outcome="stopped", failureClass="interrupted", message="told", step=step)
            return
        time.sleep(1.0)


if __name__ == "__main__":
    main()

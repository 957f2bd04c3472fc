"""A cluster as its user has it: kubectl and helm, by the KUBECONFIG of whoever calls."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Json = dict[str, Any]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def kubectl(*words: str, given: str | None = None) -> str:
    """What it prints; SystemExit with its complaint."""
    return _run("kubectl", *words, given=given)


def helm(*words: str) -> str:
    return _run("helm", *words)


def _run(*words: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def read(kind: str, name: str, namespace: str) -> Json:
    found: Json = json.loads(kubectl("get", kind, name, "-n", namespace, "-o", "json"))
    return found


def listed(kind: str, namespace: str, labels: str = "") -> list[Json]:
    found: list[Json] = json.loads(kubectl("get", kind, "-n", namespace, "-l", labels, "-o", "json"))["items"]
    return found


def apply(*documents: Json) -> None:
    kubectl("apply", "-f", "-", given=json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))


def wait(what: str, seconds: float, happened: Callable[[], object]) -> None:
    """Look every second until it is true; SystemExit after so long."""
    until = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > until:
            raise SystemExit(f"{what}: not within {seconds:.0f} s")
        time.sleep(1)
    say(what)


@contextmanager
def forwarded(service: str, port: int, namespace: str) -> Iterator[str]:
    """-> http://127.0.0.1:PORT, which leads to the service."""
    command = ["kubectl", "port-forward", "-n", namespace, f"service/{service}", f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()  # Forwarding from 127.0.0.1:43211 -> 8080
            if "->" not in first:
                raise SystemExit(f"{' '.join(command)} did not forward: {first}")
            yield f"http://{first.split()[2]}"
        finally:
            process.terminate()

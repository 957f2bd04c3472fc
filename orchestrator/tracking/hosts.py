"""Which addresses the local MLflow page may be asked by, and whether its port is free. Used by `tracking.server`."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence

from orchestrator.errors import UsageError

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_NAME = re.compile(r"([A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|\[[0-9A-Fa-f:.]+\])(?P<port>:\d+)?")
_PORTS_TRIED = 50


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_headers(host: str, port: int, allowed: Sequence[str]) -> list[str]:
    """What a Host header may say, the best address first. UsageError unless all of it was named."""
    for name in allowed:
        if "*" in name:
            raise UsageError(
                f"--allowed-host {name} would let any web page reach this server through somebody's browser: "
                "name the hosts that people type, e.g. --allowed-host mlflow.example.org"
            )
        if not _NAME.fullmatch(name):
            raise UsageError(f"--allowed-host {name} is not the name of a host: leave out http:// and any path")
    if not is_loopback(host) and not allowed:
        raise UsageError(
            f"--host {host} can be reached from other machines: name what people type to get here, "
            "e.g. --allowed-host mlflow.example.org, or leave out --host"
        )
    found: list[str] = []
    for name in [*([f"[{host}]" if ":" in host else host, *_LOOPBACK] if is_loopback(host) else ()), *allowed]:
        match = _NAME.fullmatch(name)
        found += [name] if match is not None and match["port"] else [f"{name}:{port}", name]
    return list(dict.fromkeys(found))


def require_free(host: str, port: int) -> None:
    """UsageError if nobody could listen there, with a port where somebody could."""
    problem = _problem(host, port)
    if problem is None:
        return
    ports = range(port + 1, min(port + _PORTS_TRIED, 2**16))
    free = next((one for one in ports if _problem(host, one) is None), None)
    advice = "give another --host" if free is None else f"try --port {free}"
    raise UsageError(f"port {port} of {host} cannot be used ({problem}): {advice}")


def _problem(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just closed is free
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None

"""Posts a note to an address that a job's author has chosen, without letting him reach what only this machine reaches.

Invariants: the name is resolved once, and what is connected to is an address that was looked at; unless the operator
has named the host, it is a public one and speaks TLS; no redirect is followed and no proxy of the environment is asked;
whatever the other side does, it takes `seconds` at most after the name is resolved.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

SECONDS = 10.0
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Undelivered(Exception):
    """Why a note did not arrive; says nothing of the address but its host."""


@dataclass(frozen=True)
class Reach:
    """Which hosts may be called."""

    hosts: tuple[str, ...] = ()
    """`name` or `name:port`: only these, wherever they are. Empty: every public one."""
    trusted: bool = False
    """The address is the operator's own."""


def post(url: str, body: bytes, headers: Mapping[str, str], reach: Reach, *, seconds: float = SECONDS) -> None:
    """Undelivered unless it is answered with 2xx."""
    parts, port = _parts(url)
    host = parts.hostname or ""
    named = reach.trusted or _is_listed(host, port, reach.hosts)
    if reach.hosts and not named:
        raise Undelivered(f"{host} is none of the hosts that FATHOM_WEBHOOK_HOSTS names")
    if not named and parts.scheme != "https":
        raise Undelivered(f"{host} is to be called by http: use https, or name the host in FATHOM_WEBHOOK_HOSTS")
    addresses = _resolve(host, port)
    if not named and (inside := [one for one in addresses if not is_public(one)]):
        raise Undelivered(
            f"{host} is at {inside[0]}, which is no public address: name the host in FATHOM_WEBHOOK_HOSTS to allow it"
        )
    try:
        status = _exchange(parts, port, addresses, body, headers, seconds)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise Undelivered(f"{host}: {error or type(error).__name__}") from None
    if 300 <= status < 400:
        raise Undelivered(f"{host} answered {status}: redirects are not followed, give the address it leads to")
    if not 200 <= status < 300:
        raise Undelivered(f"{host} answered {status}")


def is_public(address: str) -> bool:
    """Whether it is one that anybody on the internet reaches; those that carry another inside are looked into."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(ip.packed[-4:])
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def _parts(url: str) -> tuple[SplitResult, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise Undelivered("the address is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Undelivered("the address must be http:// or https://, a host and a path, without a user")
    return parts, port


def _is_listed(host: str, port: int, hosts: Sequence[str]) -> bool:
    return host.lower() in hosts or f"{host.lower()}:{port}" in hosts


def _resolve(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Undelivered(f"{host} cannot be resolved: {error}") from None
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _exchange(
    parts: SplitResult, port: int, addresses: Sequence[str], body: bytes, headers: Mapping[str, str], seconds: float
) -> int:
    host, secure = parts.hostname or "", parts.scheme == "https"
    with _connect(addresses, port, seconds) as raw, raw.dup() as handle:
        late = threading.Timer(seconds, _hang_up, [handle])
        late.daemon = True
        late.start()
        try:
            with _context().wrap_socket(raw, server_hostname=host) if secure else raw as stream:
                connection = http.client.HTTPConnection(host, port)
                connection.sock = stream
                target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                connection.request("POST", target, body, {"Host": parts.netloc, **headers, "Connection": "close"})
                with connection.getresponse() as answer:
                    return answer.status
        finally:
            late.cancel()


def _connect(addresses: Sequence[str], port: int, seconds: float) -> socket.socket:
    failed: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout=seconds / len(addresses))
        except OSError as error:
            failed = error
    raise failed


def _hang_up(handle: socket.socket) -> None:
    """Through a number of its own: ends whatever another thread is waiting for, also inside of TLS."""
    with suppress(OSError):
        handle.shutdown(socket.SHUT_RDWR)


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()

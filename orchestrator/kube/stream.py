"""The lines of a watch, and its end from another thread."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import urllib3

from orchestrator.errors import Unavailable

_LONGEST_LINE = 32 << 20


class Stream:
    """One answer that goes on. One thread reads, any thread may `abort`."""

    def __init__(self, response: urllib3.HTTPResponse, doing: str, silence: float) -> None:
        """`silence`: seconds between two pieces of the answer that has begun."""
        self._response, self._doing = response, doing
        reading = getattr(response.connection, "sock", None)
        if reading is not None:  # else the limit of the request stands, which is shorter
            reading.settimeout(silence)
        self._lock = threading.Lock()
        # A descriptor of our own, taken before anybody reads: shutting it down wakes the reader under TLS, too, and
        # cannot hit another connection that got the number of a closed one.
        self._socket: socket.socket | None = socket.socket(fileno=os.dup(response.fileno()))

    def lines(self) -> Iterator[bytes]:
        """Whole lines until the server ends; what comes after the last newline is dropped. Unavailable if it is cut."""
        held = bytearray()
        try:
            for piece in self._response.stream(amt=None, decode_content=True):
                held += piece
                *whole, rest = held.split(b"\n")
                held = bytearray(rest)
                yield from (bytes(line) for line in whole if line.strip())
                if len(held) > _LONGEST_LINE:
                    raise Unavailable(
                        f"{self._doing}: a line of more than {_LONGEST_LINE} bytes: is this an API server?"
                    )
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise Unavailable(f"{self._doing}: the connection was cut ({error}): it is made anew") from error

    def abort(self) -> None:
        """Ends `lines` within moments, whoever reads."""
        with self._lock:
            if self._socket is not None:
                with suppress(OSError):  # the other side has hung up already
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """By the thread that reads. The connection is not used again."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        self._response.close()

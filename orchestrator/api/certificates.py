"""Certificate and key of a server, in files that may be replaced while it runs: connections from then on get the new.

Whoever renews them (cert-manager, a mounted Secret) may replace one file after the other: what does not fit together is
not taken, and looked at again.
"""

from __future__ import annotations

import logging
import ssl
import threading
from pathlib import Path

from orchestrator.controller.files import WatchedFile
from orchestrator.errors import UsageError

LOOK_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


class Certificates:
    """Of one server."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """UsageError if they cannot be used."""
        self._certificate, self._key = certificate, key
        self._files = (WatchedFile(certificate), WatchedFile(key))
        self._look()
        try:
            self.context = self._loaded()
        except (OSError, ValueError) as error:
            raise UsageError(f"{certificate} and {key} are no certificate and its key: {error}") from None

    def refresh(self) -> bool:
        """Take what is new; -> whether there was something, and it can be used."""
        if not self._look():
            return False
        try:
            self._loaded()  # apart: what does not fit must not be half in the one in use
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:
            _LOG.error("%s and %s cannot be used, the ones before stay: %s", self._certificate, self._key, error)
            for file in self._files:
                file.again()
            return False
        _LOG.info("%s is taken", self._certificate)
        return True

    def keep_fresh(self, stop: threading.Event) -> None:
        """Until `stop`; for a thread."""
        while not stop.wait(LOOK_SECONDS):
            self.refresh()

    def _look(self) -> bool:
        certificate, key = self._files
        changed = certificate.changed()
        return key.changed() or changed

    def _loaded(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.load_cert_chain(self._certificate, self._key)
        return made

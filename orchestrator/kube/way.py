"""From a person's machine to a Service of the cluster, through the API server's own proxy, by the person's kubeconfig.

The API server takes `Authorization` for itself and away from what it passes on, so that whoever is behind it needs
another header for a token of its own.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.errors import UsageError
from orchestrator.kube.client import Kube, read_kubeconfig

_SERVICE = re.compile(r"[a-z0-9][-a-z0-9]*/(https?:)?[a-z0-9][-a-z0-9]*(:[a-z0-9][-a-z0-9]*)?")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
TOKEN_SECONDS = 3600


@dataclass(frozen=True)
class Way:
    """How to send a request there."""

    url: str
    """Of the service, without a slash at the end."""
    headers: Mapping[str, str] = field(repr=False)
    """By which the API server knows who asks; empty where it is a client certificate."""
    tls: ssl.SSLContext = field(compare=False, repr=False)


def way_to(context: str, service: str) -> Way:
    """`service`: NAMESPACE/SCHEME:NAME:PORT, as the API server's proxy wants it. UsageError if the kubeconfig says
    nothing usable, or what this cannot do."""
    if not _SERVICE.fullmatch(service):
        raise UsageError(f"{service!r} is no service: write NAMESPACE/SCHEME:NAME:PORT")
    found = read_kubeconfig(context=context)
    if not found.host.startswith("https://") or not found.verify_ssl:
        raise UsageError(f"context {context} does not verify that {found.host} is its server: no token is sent there")
    if found.proxy or found.tls_server_name:
        raise UsageError(f"context {context} has a proxy-url or a tls-server-name, which Fathom's client does not know")
    try:
        tls = ssl.create_default_context(cafile=found.ssl_ca_cert or None)
        if found.cert_file:
            tls.load_cert_chain(found.cert_file, found.key_file or None)
    except (OSError, ValueError) as error:
        raise UsageError(f"the certificates of context {context} cannot be used: {error}") from None
    token = found.get_api_key_with_prefix("BearerToken", alias="authorization")
    namespace, name = service.split("/")
    url = f"{found.host.rstrip('/')}/api/v1/namespaces/{namespace}/services/{name}/proxy"
    return Way(url, {"Authorization": token} if token else {}, tls)


def account_token(context: str, account: str, audience: str) -> str:
    """A token of a service account (NAMESPACE/NAME), for an hour, by the right to create `serviceaccounts/token`."""
    namespace, _, name = account.partition("/")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
        raise UsageError(f"{account!r} is no service account: write NAMESPACE/NAME")
    kube = Kube.from_kubeconfig(context=context)
    try:
        return kube.mint(namespace, name, audience, TOKEN_SECONDS)
    finally:
        kube.close()

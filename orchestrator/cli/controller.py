"""`fathom controller`: the service of a cluster, over TrainingJobs of the Kubernetes API, with attempts as RayJobs."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.serve import allow_files, listen, make_home, say, server_of, turning
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.api.certificates import Certificates
    from orchestrator.kube.client import Kube, Timeouts
    from orchestrator.launch.rayjob import ClusterSettings

PORT = 8080
AUDIENCE = "fathom"
_MOST_FILES = 1 << 16


def controller_command(
    cluster_settings: Annotated[
        Path, typer.Option(help="What the platform team says of the cluster, YAML or JSON; the chart writes it.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port to listen at; 0: a free one.", min=0, max=65_535)] = PORT,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate (PEM); may be replaced while it runs.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="A namespace to look after; repeatable; by default all.")
    ] = None,
    lease_namespace: Annotated[
        str | None, typer.Option(help="Of the Lease that says which replica leads.", envvar="POD_NAMESPACE")
    ] = None,
    lease_name: Annotated[str, typer.Option(help="Its name.")] = "fathom-controller",
    audience: Annotated[str, typer.Option(help="Whom the tokens of people must be made for.")] = AUDIENCE,
) -> None:
    """Run the controller of a cluster: it makes RayJobs of TrainingJobs, takes what pods deliver, and answers the API.

    It needs a Kubernetes API server (as the service account of its pod, or as KUBECONFIG says) and a home of its own
    (FATHOM_HOME). Of several replicas one leads; the others stand by.
    """
    from orchestrator.api.standby import Standby
    from orchestrator.cli.leading import Leading, Place
    from orchestrator.kube.client import Timeouts
    from orchestrator.kube.deadman import deadman
    from orchestrator.kube.lease import LeaderLease
    from orchestrator.settings import Settings

    settings, cluster = Settings.load(), _read(cluster_settings)
    if audience == cluster.controller.token_audience:
        raise UsageError(
            f"--audience is {audience}, and so is controller.tokenAudience of {cluster_settings}: pods' tokens must be "
            "of no use to people, give another"
        )
    if lease_namespace is None:
        raise UsageError("the namespace of the Lease is not known: give --lease-namespace, or set POD_NAMESPACE")
    certificates = _certificates(tls_cert, tls_key)
    allow_files(_MOST_FILES)
    make_home(settings.home)
    kube, asking = _kube(Timeouts()), _kube(Timeouts(connect=2.0, read=5.0))
    replica = os.environ.get("POD_NAME") or socket.gethostname()
    lease = LeaderLease(kube, lease_namespace, lease_name, replica, die_at=deadman())
    standby = Standby()
    place = Place(settings, cluster, audience, tuple(namespace or ()))
    leading = Leading(place, kube, asking, lease, standby, say)
    with listen(host, port) as listener, _fresh(certificates):
        server = server_of(standby, certificates)
        with turning(leading, server):
            say(f"fathom answers at {host} port {listener.getsockname()[1]}, with home {settings.home}")
            server.run(sockets=[listener])
    say("the controller has ended; trainings go on, and the next one finds them again")


def _read(path: Path) -> ClusterSettings:
    """UsageError for what cannot be read, or says what it must not."""
    import yaml
    from pydantic import ValidationError

    from orchestrator.launch.files import in_short
    from orchestrator.launch.rayjob import ClusterSettings

    try:
        return ClusterSettings.model_validate(yaml.safe_load(path.read_text()) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        why = error.strerror if isinstance(error, OSError) else in_short(error)
        raise UsageError(f"{path} cannot be used as cluster settings: {why}") from None


def _kube(timeouts: Timeouts) -> Kube:
    """The API server: as KUBECONFIG says, else as the pod that this is."""
    from orchestrator.kube.client import Kube

    if os.environ.get("KUBECONFIG"):
        return Kube.from_kubeconfig(timeouts=timeouts)
    return Kube.in_cluster(timeouts=timeouts)


def _certificates(certificate: Path | None, key: Path | None) -> Certificates | None:
    from orchestrator.api.certificates import Certificates

    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise UsageError("--tls-cert and --tls-key belong together: give both, or none")
    return Certificates(certificate, key)


@contextmanager
def _fresh(certificates: Certificates | None) -> Iterator[None]:
    stop = threading.Event()
    if certificates is not None:
        threading.Thread(target=certificates.keep_fresh, args=(stop,), name="certificates", daemon=True).start()
    try:
        yield
    finally:
        stop.set()

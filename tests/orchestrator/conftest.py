from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apiserver import ApiServer
from support.kube_objects import PATIENT
from support.kube_proxy import KubeProxy

from orchestrator.kube.client import Kube


@pytest.fixture
def kube(api_server: ApiServer) -> Iterator[Kube]:
    """The real API server, as its admin."""
    made = Kube.from_kubeconfig(api_server.kubeconfig(), timeouts=PATIENT)
    yield made
    made.close()


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """Of the test's own."""
    return api_server.namespace()


@pytest.fixture
def proxy(api_server: ApiServer) -> Iterator[KubeProxy]:
    """Between a client and the real API server."""
    with KubeProxy(api_server).serving() as made:
        yield made


@pytest.fixture
def through(api_server: ApiServer, proxy: KubeProxy, tmp_path: Path) -> Iterator[Kube]:
    """The real API server, through the proxy."""
    made = Kube.from_kubeconfig(proxy.kubeconfig(api_server, tmp_path), timeouts=PATIENT)
    yield made
    made.close()

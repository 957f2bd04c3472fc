from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.apiserver import ApiServer

    from orchestrator.kube.client import Kube


@pytest.fixture
def teams_kube(api_server: ApiServer, trainingjobs: dict[str, Any]) -> Iterator[Kube]:
    """The real API server with our resource, as its admin."""
    from orchestrator.kube.client import Kube

    made = Kube.from_kubeconfig(api_server.kubeconfig())
    yield made
    made.close()

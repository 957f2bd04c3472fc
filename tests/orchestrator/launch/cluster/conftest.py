from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apiserver import ApiServer
from support.kube_objects import PATIENT
from support.kube_proxy import KubeProxy
from support.kube_stage import KubeStage
from support.kuberay_player import Player

from orchestrator.kube.client import Kube


@pytest.fixture
def player(operated: ApiServer) -> Iterator[Player]:
    with Player(operated.client(), operated.namespace()).playing() as made:
        yield made


@pytest.fixture
def stage(operated: ApiServer, player: Player, tmp_path: Path) -> Iterator[KubeStage]:
    """Against the real API server."""
    kube = Kube.from_kubeconfig(operated.kubeconfig(), timeouts=PATIENT)
    yield KubeStage(tmp_path, kube, player)
    kube.close()


@pytest.fixture
def proxy(operated: ApiServer) -> Iterator[KubeProxy]:
    with KubeProxy(operated).serving() as made:
        yield made


@pytest.fixture
def between(operated: ApiServer, proxy: KubeProxy, player: Player, tmp_path: Path) -> Iterator[KubeStage]:
    """The same, through the proxy."""
    kube = Kube.from_kubeconfig(proxy.kubeconfig(operated, tmp_path), timeouts=PATIENT)
    yield KubeStage(tmp_path / "home", kube, player)
    kube.close()

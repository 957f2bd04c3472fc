from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.apiserver import ApiServer
from support.kube_mortal import MortalKube
from support.kube_objects import PATIENT
from support.kube_proxy import KubeProxy
from support.kube_stage import KubeStage
from support.kube_store import serving
from support.kube_whole import WholeStage, leave_a_table
from support.kuberay_player import Player
from support.mirrored import close_databases
from support.mlflow_tables import copied

from orchestrator.controller import pictures
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


@pytest.fixture
def whole(
    operated: ApiServer,
    trainingjobs: dict[str, Any],
    proxy: KubeProxy,
    mlflow: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[WholeStage]:
    """With a real job store and a real MLflow, and controllers that are behind the proxy. A run leaves its table, and
    no pictures: to draw them takes longer than all else that a run does here."""
    assert trainingjobs
    monkeypatch.setattr(pictures, "write_artifacts", leave_a_table)
    kubeconfig = proxy.kubeconfig(operated, tmp_path)
    player = Player(operated.client(), operated.namespace())  # does nothing by itself: the stories have it clean up

    def way() -> MortalKube:
        return MortalKube.from_kubeconfig(kubeconfig, timeouts=PATIENT)

    direct = Kube.from_kubeconfig(operated.kubeconfig(), timeouts=PATIENT)
    with serving(direct, [player.namespace]) as store:
        yield WholeStage(tmp_path / "home", direct, store, player, way, mlflow)
    direct.close()


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> Iterator[str]:
    """URI of one for all tests."""
    yield f"sqlite:///{copied(mlflow_tables, tmp_path_factory.mktemp('mlflow') / 'mlflow.db')}"
    close_databases()

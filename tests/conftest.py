from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from support import order, second_go

if TYPE_CHECKING:
    from support.api import Service
    from support.apiserver import ApiServer
    from support.helm import Helm
    from support.kube_jobs import KubeJobs

    from orchestrator.store.sqlite import SqliteStore

# Machines are shared: an example that takes long says nothing of the code.
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    second_go.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("second_go")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(second_go.SecondGo(config, file))


def pytest_itemcollected(item: pytest.Item) -> None:
    second_go.mark(item)
    order.require_findable(item, item.path)


def pytest_collection() -> None:
    """What is imported now stays: looking through it again and again for what may go takes seconds per process."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order.waiting_first(items)  # type: ignore[arg-type]  # a list is a list of what it holds only


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """An empty job store in the file `fathom.db` of the test's own folder."""
    from orchestrator.store.sqlite import SqliteStore

    made = SqliteStore(tmp_path / "fathom.db")
    yield made
    made.database.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The real REST API in process, over an empty home."""
    from support.api import Service

    made = Service(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run, to be copied: `support.mlflow_tables.copied`."""
    from support.mlflow_tables import made

    own = tmp_path_factory.getbasetemp()
    return made(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real Kubernetes API server, one for the whole run: make a namespace for each test."""
    from support.apiserver import ApiServer
    from support.envtest import NOT_RUN, find_assets

    assets = find_assets()
    if assets is None:
        pytest.skip(NOT_RUN)
    made = ApiServer(tmp_path_factory.mktemp("kube"), assets)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def trainingjobs(api_server: ApiServer) -> dict[str, Any]:
    """Our custom resource definition, as that server has it."""
    from orchestrator.crd.definition import definition

    return api_server.install(definition())


@pytest.fixture(scope="session")
def operated(request: pytest.FixtureRequest) -> ApiServer:
    """The same server, with the definitions of KubeRay and Kueue."""
    from support import operators

    found = operators.definitions()
    if found is None:
        pytest.skip(operators.NOT_RUN)
    api_server: ApiServer = request.getfixturevalue("api_server")
    api_server.install_all(found)
    return api_server


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The program, without a cluster."""
    from support.helm import NOT_RUN, Helm, find_helm

    program = find_helm()
    if program is None:
        pytest.skip(NOT_RUN)
    return Helm(program, tmp_path_factory.mktemp("helm"))


@pytest.fixture
def kube_jobs(api_server: ApiServer, trainingjobs: dict[str, Any]) -> KubeJobs:
    """TrainingJobs in a namespace of the test's own."""
    from support.kube_jobs import KubeJobs

    return KubeJobs(api_server.client(), api_server.namespace())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that say nothing of Kubernetes must not look as if they had."""
    from support import envtest, helm, operators

    reasons = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for warning in (envtest.not_run(reasons), operators.not_run(reasons), helm.not_run(reasons)):
        if warning:
            terminalreporter.section(warning, sep="!", red=True, bold=True)

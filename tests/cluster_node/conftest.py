from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import operators
from support.helm import Helm
from support.installed import AsPods, AsProcess, Fathom
from support.kube_home import KubeHome, NoCluster, lacking

NODES, GPUS = 257, 8
"""One more than the largest job of the tests takes, for one on which its earlier attempts have failed."""


def _up(cluster: KubeHome, *options: str) -> None:
    """Or the run ends, with a status of its own: that no cluster is to be had says nothing of Fathom."""
    try:
        cluster.up(*options)
    except NoCluster as error:
        pytest.exit(str(error), NoCluster.status)


def _ready(cluster: KubeHome) -> KubeHome:
    """With KubeRay's definitions, if not with KubeRay."""
    found = operators.definitions()
    if found is None:
        pytest.fail(operators.NOT_RUN)
    for one in found:
        if one["spec"]["group"] == "ray.io":
            cluster.install(one)
    return cluster


def _helm(cluster: KubeHome, folder: Path) -> Helm:
    return Helm(cluster.assets() / "helm", folder, cluster.kubeconfig())


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHome]:
    """Scheduler and controllers of Kubernetes, and pretended nodes with GPUs; no pod runs in truth."""
    if missing := lacking(node=False):
        pytest.fail("; ".join(missing))
    made = KubeHome(tmp_path_factory.mktemp("plane"))
    try:
        _up(made, "--control-plane")
        made.nodes(NODES, GPUS)
        yield _ready(made)
    finally:
        made.down()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KubeHome]:
    """A cluster with real pods: that of FATHOM_TEST_KUBECONFIG, or one that begins and ends here."""
    given = os.environ.get("FATHOM_TEST_KUBECONFIG")
    if given is None and (missing := lacking(node=True)):
        pytest.fail("; ".join(missing))
    made = KubeHome(tmp_path_factory.mktemp("node"), None if given is None else Path(given))
    try:
        if given is None:
            _up(made)
        yield _ready(made)
    finally:
        made.down()


@pytest.fixture(scope="session")
def on_plane(plane: KubeHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fathom]:
    """The chart, and what it says of its controller as a process beside the control plane."""
    folder = tmp_path_factory.mktemp("process")
    made = AsProcess(plane, _helm(plane, folder), folder / "pod")
    try:
        made.wait_ready()
        yield made
    finally:
        made.process.end()


@pytest.fixture(scope="session")
def on_node(node: KubeHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AsPods]:
    """The chart, with pods of the controller's image, asked through its service."""
    from support.controller_image import controller_image

    folder = tmp_path_factory.mktemp("release")
    image = os.environ.get("FATHOM_TEST_CONTROLLER_IMAGE") or controller_image(node, folder / "root")
    made = AsPods(node, _helm(node, folder), image, folder / "home")
    try:
        made.install()
        made.wait_ready()
        yield made
    finally:
        made.leave_nothing()


@pytest.fixture(scope="session", params=["on_plane", pytest.param("on_node", marks=pytest.mark.node)])
def fathom(request: pytest.FixtureRequest) -> Fathom:
    """Either."""
    found: Fathom = request.getfixturevalue(request.param)
    return found

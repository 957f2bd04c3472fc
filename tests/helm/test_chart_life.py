"""A release from its first day to its last, on an API server of its own: what comes, what changes, what stays."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.apiserver import ApiServer
from support.discovery import Kinds
from support.envtest import NOT_RUN, find_assets
from support.helm import CHART, IMAGES, Helm, Object, find_helm, merged
from support.helm import NOT_RUN as NO_HELM
from support.kube_jobs import KubeJobs
from support.kube_objects import PATIENT, until
from support.store import small_document

from orchestrator.crd.definition import definition
from orchestrator.kube.client import Kube
from orchestrator.kube.lease import LeaderLease
from orchestrator.kube.lease_record import Terms

pytestmark = pytest.mark.kube
HOME = "fathom-system"
KEPT = {
    ("CustomResourceDefinition", "trainingjobs.fathom.dev"),
    ("PersistentVolumeClaim", "fathom-home"),
    ("PersistentVolumeClaim", "fathom-mlflow-data"),
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """Without our definition: the chart brings it."""
    assets = find_assets()
    if assets is None:
        pytest.skip(NOT_RUN)
    made = ApiServer(tmp_path / "kube", assets)
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Release:
    """`fathom` in namespace `fathom-system`."""

    def __init__(self, server: ApiServer, home: Path) -> None:
        program = find_helm()
        if program is None:
            pytest.skip(NO_HELM)
        self._helm = Helm(program, home, server.kubeconfig())
        self._server = server

    def install(self, values: dict[str, Any], *options: str, chart: Path = CHART) -> None:
        """As the documentation says it, each time."""
        done = self.tried(values, *options, chart=chart)
        assert done.returncode == 0, done.stderr

    def tried(self, values: dict[str, Any], *options: str, chart: Path = CHART) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        return self._helm.run(
            *("upgrade", "--install", "fathom", "{}", "--namespace", HOME, "--create-namespace", *options),
            values=merged(IMAGES, values),
            chart=chart,
        )

    def uninstall(self) -> None:
        self._helm.done("uninstall", "fathom", "--namespace", HOME)

    def objects(self) -> dict[tuple[str, str], Object]:
        """All that bears its label, or is Helm's own record of it."""
        found = {}
        for one in Kinds(self._server.client()).everything():
            labels = one["metadata"].get("labels") or {}
            if labels.get("app.kubernetes.io/instance") == "fathom" or labels.get("owner") == "helm":
                found[one["kind"], one["metadata"]["name"]] = one
        return found

    def definition(self) -> Object:
        """Of TrainingJobs, as it is served."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trainingjobs.fathom.dev"
        found: Object = self._server.client().get(path).json()
        return found


def _job(server: ApiServer, name: str) -> KubeJobs:
    """In a namespace of its own."""
    until(lambda: server.client().get("/apis/fathom.dev/v1alpha1/trainingjobs").status_code == 200)
    jobs = KubeJobs(server.client(), server.namespace())
    jobs.create(small_document(name))
    return jobs


def _leader(server: ApiServer) -> LeaderLease:
    """A replica that leads, as the chart says by which Lease."""
    kube = Kube.from_kubeconfig(server.kubeconfig(), timeouts=PATIENT)
    terms = Terms(duration=900.0, deadline=600.0, period=2.0)  # an upgrade on a busy machine takes its time
    lease = LeaderLease(kube, HOME, "fathom-controller", "one", terms=terms)
    assert lease.acquire(threading.Event())
    return lease


def _older(folder: Path) -> Path:
    """A chart of yesterday, whose jobs had no column for money."""
    chart = folder / "yesterday"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text()) | {"version": "0.0.9", "appVersion": "0.0.9"}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about))
    file = chart / "templates" / "crd.yaml"
    text = file.read_text()
    start = text.index("    - name: Spent\n")
    end = text.index("    - name: ", start + 1)
    file.write_text(text[:start] + text[end:])
    return chart


def test_a_release_leaves_what_people_would_miss_and_nothing_else(server: ApiServer, tmp_path: Path) -> None:
    release = Release(server, tmp_path / "helm")
    release.install({"watchNamespaces": ["default"]}, chart=_older(tmp_path))
    columns = [one["name"] for one in release.definition()["spec"]["versions"][0]["additionalPrinterColumns"]]
    assert "Spent" not in columns
    assert ("Role", "fathom-system-fathom-controller") in release.objects()
    jobs = _job(server, "early")
    leader = _leader(server)

    release.install({"cluster": {"startSeconds": 600}, "prices": []})
    ours = definition()["spec"]["versions"][0]
    served = release.definition()["spec"]["versions"][0]
    assert served["additionalPrinterColumns"] == ours["additionalPrinterColumns"], "the definition is upgraded, too"
    objects = release.objects()
    assert ("Role", "fathom-system-fathom-controller") not in objects, "what is not wanted any more goes"
    assert "startSeconds: 600" in objects["ConfigMap", "fathom-settings"]["data"]["cluster.yaml"]
    assert objects["Deployment", "fathom-controller"]["metadata"]["generation"] == 2
    before = jobs.get("early")
    assert objects["Lease", "fathom-controller"]["spec"]["holderIdentity"] == leader.identity
    leader.require()
    leader.release()

    release.uninstall()
    assert set(release.objects()) == KEPT
    assert jobs.get("early") == before

    release.install({})
    assert set(release.objects()) > KEPT, "a release of the same name takes them over"
    assert jobs.get("early")["metadata"]["uid"] == before["metadata"]["uid"]
    jobs.create(small_document("late"))


def test_with_keep_switched_off_everything_goes(server: ApiServer, tmp_path: Path) -> None:
    release = Release(server, tmp_path / "helm")
    gone = {"crds": {"keep": False}, "persistence": {"keep": False}, "mlflow": {"volume": {"keep": False}}}
    release.install(gone)
    assert set(release.objects()) > KEPT
    _job(server, "lost")
    release.uninstall()
    left = release.objects()
    # claims wait for a controller of Kubernetes that is not here
    assert all(one["metadata"].get("deletionTimestamp") for one in left.values())
    assert {kind for kind, _ in left} <= {"PersistentVolumeClaim", "CustomResourceDefinition"}


def test_a_definition_that_was_applied_by_hand_is_taken_over_if_one_says_so(server: ApiServer, tmp_path: Path) -> None:
    server.install(definition())
    jobs = _job(server, "mine")
    release = Release(server, tmp_path / "helm")
    refused = release.tried({})
    assert refused.returncode != 0
    assert "trainingjobs.fathom.dev" in refused.stderr
    release.install({}, "--take-ownership")
    assert ("CustomResourceDefinition", "trainingjobs.fathom.dev") in release.objects()
    assert jobs.get("mine")["metadata"]["generation"] == 1

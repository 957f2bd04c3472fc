"""The controller as the chart starts it, under the chart's account, on a real API server: it is forbidden nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import operators
from support.apiserver import ApiServer
from support.chart_process import ChartProcess
from support.helm import IMAGES, Helm, find_helm, merged
from support.kuberay_player import RAY_JOBS, SUPPORTING
from support.shooting import wait_until
from support.store import small_document

pytestmark = pytest.mark.kube
TRAIN = {"images": {"train": "registry.example.com/fathom-train@sha256:" + "5f" * 32}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """With the definitions of the operators; the chart brings ours."""
    from support.envtest import NOT_RUN, find_assets

    assets, definitions = find_assets(), operators.definitions()
    if assets is None or definitions is None:
        pytest.skip(NOT_RUN if assets is None else operators.NOT_RUN)
    made = ApiServer(tmp_path / "kube", assets)
    try:
        made.start()
        made.install_all(definitions)
        yield made
    finally:
        made.stop()


@pytest.mark.parametrize("scope", ["cluster", "namespaces"])
def test_a_job_comes_and_goes(server: ApiServer, helm: Helm, tmp_path: Path, scope: str) -> None:
    program = find_helm()
    assert program is not None
    home, team, client = server.namespace(), server.namespace(), server.client()
    values = merged(merged(IMAGES, TRAIN), {"watchNamespaces": [team]} if scope == "namespaces" else {})
    started = ChartProcess(
        server, tmp_path / "pod", Helm(program, tmp_path / "helm", server.kubeconfig()), home, values
    )
    try:
        wait_until(started.ready, started.log)
        data = {"source": "pvc://data/corpus", "sequenceLength": 32}
        queue, storage = {"name": "team-a"}, {"uri": "pvc://runs/one"}
        document = small_document("one", team, data=data, checkpoint=storage, queue=queue)
        jobs = f"/apis/fathom.dev/v1alpha1/namespaces/{team}/trainingjobs"
        body = {"apiVersion": "fathom.dev/v1alpha1", "kind": "TrainingJob", **document}
        assert client.post(jobs, json=body).status_code == 201

        def gated() -> bool | None:
            found = client.get(f"{RAY_JOBS.format(team)}/one-a1")
            if found.status_code != 200:
                return None
            return "kueue.x-k8s.io/admission-gated-by" in found.json()["metadata"].get("annotations", {})

        wait_until(lambda: gated() is False, lambda: client.get(f"{jobs}/one").text + started.log())
        made = [path for path in SUPPORTING if client.get(f"{path.format(team)}/one-a1").status_code == 200]
        assert made == list(SUPPORTING)

        assert client.delete(f"{jobs}/one").status_code == 200
        wait_until(lambda: client.get(f"{jobs}/one").status_code == 404, started.log)
        left = [
            path for path in (RAY_JOBS, *SUPPORTING) if client.get(f"{path.format(team)}/one-a1").status_code == 200
        ]
        assert left == []
    finally:
        started.end()
    assert not re.search(r"(?i)forbidden|may not|403", started.log()), started.log()
    lease = client.get(f"/apis/coordination.k8s.io/v1/namespaces/{home}/leases/fathom-controller").json()
    given_back = lease["spec"]["holderIdentity"] == ""
    assert given_back or "is not released, it runs out" in started.log(), "a server that is too busy is not waited for"

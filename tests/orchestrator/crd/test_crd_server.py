"""The custom resource in a real API server: what it admits, refuses, fills in, fixes and shows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.apiserver import ApiServer
from support.bad_documents import COMBINATIONS, NAMES, NEEDS_MORE, NOT_JSON, TAG_NAMES, VALUES, WHOLE, Bad
from support.kube_jobs import NOW, KubeJobs, faults, job_of
from support.store import small_document

from orchestrator.errors import InvalidJob
from orchestrator.explain import EXAMPLES
from orchestrator.jobfile import load_job, make_job
from orchestrator.spec import TrainingJob

pytestmark = pytest.mark.kube
SAMPLES = sorted((Path(__file__).parents[3] / "k8s" / "samples").glob("*.yaml"))


def test_the_definition_is_served_as_it_is_written(trainingjobs: dict[str, Any]) -> None:
    conditions = {one["type"]: one["status"] for one in trainingjobs["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}
    assert trainingjobs["status"]["acceptedNames"]["shortNames"] == ["tj"]


# ------------------------------------------------------------------ good jobs


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples_are_admitted_and_mean_the_same(kube_jobs: KubeJobs, path: Path) -> None:
    job = load_job(path)
    found = kube_jobs.create(yaml.safe_load(path.read_text()))
    assert job_of(found).spec == job.spec
    assert found["spec"] == job.document()["spec"], "every default is written down"


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_kubectl_reads_the_samples_as_we_do(
    api_server: ApiServer, kube_jobs: KubeJobs, path: Path, tmp_path: Path
) -> None:
    """2_000 too, which YAML 1.2 would call text."""
    text = re.sub(r"\n  namespace: .*", "", path.read_text())
    (tmp_path / path.name).write_text(text)
    done = api_server.kubectl("apply", "-n", kube_jobs.namespace, "-f", str(tmp_path / path.name))
    assert done.returncode == 0, done.stderr
    job = load_job(path)
    assert job_of(kube_jobs.get(job.metadata.name)).spec == job.spec


@pytest.mark.parametrize("document", EXAMPLES, ids=lambda document: document["metadata"]["name"])
def test_examples_of_every_field_are_admitted(kube_jobs: KubeJobs, document: dict[str, Any]) -> None:
    found = kube_jobs.create(document)
    assert job_of(found).spec == TrainingJob.model_validate(document).spec


def test_null_is_absent(kube_jobs: KubeJobs) -> None:
    document = small_document(budget=None, suspend=None, retry=None)
    document["spec"]["compute"]["image"] = None
    assert job_of(kube_jobs.create(document)) == TrainingJob.model_validate(kube_jobs.mine(small_document()))


def test_an_empty_group_brings_its_defaults(kube_jobs: KubeJobs) -> None:
    training = {"tokens": 10, "batchRamp": {}, "optimizer": {"beta1": 0.8}}
    found = kube_jobs.create(small_document(training=training, budget={"limit": "5.00"}))["spec"]
    assert found["training"]["batchRamp"] == {"share": 0.0317}
    assert found["training"]["optimizer"]["beta1"] == 0.8
    assert found["training"]["optimizer"]["momentsPrecision"] == "fp32"
    assert found["budget"] == {"limit": "5.00", "currency": "USD", "warnAt": [0.5, 0.8, 0.95]}


# ------------------------------------------------------------------ bad jobs


@pytest.mark.parametrize("bad", VALUES, ids=lambda bad: bad.path)
def test_bad_values_are_refused_at_their_field(kube_jobs: KubeJobs, bad: Bad) -> None:
    if bad.kind == NOT_JSON:
        with pytest.raises(ValueError, match="not JSON compliant"):
            kube_jobs.post(bad.document)
        return
    answer = kube_jobs.post(bad.document)
    if bad.kind == WHOLE:  # means the same there, and comes back as a whole number
        assert answer.json()["spec"]["training"]["tokens"] == 1000
        job_of(answer.json())
        return
    if answer.status_code == 400:
        assert f'unknown field "{bad.path}"' in answer.json()["message"]
        return
    assert _there(bad.path) in faults(answer)


def _there(path: str) -> str:
    """A path as Kubernetes writes it: spec.budget.warnAt[0]."""
    return re.sub(r"\.(\d+)$", r"[\1]", path)


@pytest.mark.parametrize("bad", COMBINATIONS, ids=lambda bad: bad.path)
def test_contradictions_are_refused_in_the_words_of_the_api(kube_jobs: KubeJobs, bad: Bad) -> None:
    with pytest.raises(InvalidJob) as caught:
        make_job(bad.document)
    [problem] = caught.value.problems
    found = faults(kube_jobs.post(bad.document))
    at = "spec.tracking.tags" if ".tags." in problem.path else problem.path
    assert any(problem.message in message for message in found.get(at, [])), found


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_are_refused(kube_jobs: KubeJobs, name: str) -> None:
    document = small_document(name)
    found = faults(kube_jobs.post(document))
    said = " ".join(found["metadata.name"])
    with pytest.raises(InvalidJob) as caught:
        make_job(document)
    [problem] = caught.value.problems
    by_kubernetes = "RFC 1123" in said or "name or generateName is required" in said
    assert by_kubernetes or problem.message in said


@pytest.mark.parametrize("name", TAG_NAMES)
def test_bad_names_of_tags_are_refused(kube_jobs: KubeJobs, name: str) -> None:
    found = faults(kube_jobs.post(small_document(tracking={"tags": {name: "x"}})))
    assert TAG_NAMES[name] in " ".join(found["spec.tracking.tags"])


@pytest.mark.parametrize("what", NEEDS_MORE)
def test_what_needs_more_than_the_document_is_admitted(kube_jobs: KubeJobs, what: str) -> None:
    """The controller says Accepted=False."""
    assert kube_jobs.post(small_document(**NEEDS_MORE[what])).status_code == 201


def test_a_generated_name_is_held_to_the_same(kube_jobs: KubeJobs) -> None:
    document = small_document()
    document["metadata"] = {"generateName": "mini-"}
    assert kube_jobs.create(document)["metadata"]["name"].startswith("mini-")
    document["metadata"] = {"generateName": "m" * 39 + "-"}
    assert "at most 40 are allowed" in " ".join(faults(kube_jobs.post(document))["metadata.name"])


def test_a_status_cannot_be_submitted(kube_jobs: KubeJobs) -> None:
    """REST refuses it; Kubernetes leaves it out of every object with a status of its own."""
    assert "status" not in kube_jobs.create(small_document() | {"status": {"phase": "Succeeded"}})


# ------------------------------------------------------------------ the status


def test_reasons_belong_to_their_conditions(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    condition = {"type": "Accepted", "status": "True", "reason": "Stalled", "lastTransitionTime": NOW}
    found = faults(kube_jobs.set_status("mini", {"conditions": [condition]}))
    said = " ".join(found["status.conditions[0].reason"])
    assert "reason Stalled does not belong to condition Accepted, one of: DataMissing, Invalid, Valid" in said


def test_one_answer_per_question(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    condition = {"type": "Accepted", "status": "True", "reason": "Valid", "lastTransitionTime": NOW}
    assert "Duplicate value" in str(faults(kube_jobs.set_status("mini", {"conditions": [condition, condition]})))


def test_success_is_final(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    kube_jobs.accept("mini", phase="Succeeded", attemptCount=2)
    found = faults(kube_jobs.set_status("mini", {"phase": "Running"}))
    assert "is Succeeded, which is final: it cannot become Running" in str(found["status.phase"])
    found = faults(kube_jobs.set_status("mini", {"attemptCount": 1}))
    assert "1 attempts are fewer than the 2" in str(found["status.attemptCount"])
    assert kube_jobs.set_status("mini", {"attemptCount": 3}).status_code == 200


# ------------------------------------------------------------------ the server that tests ask


def test_a_token_is_asked_for_and_what_it_may(api_server: ApiServer, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    path = f"/apis/fathom.dev/v1alpha1/namespaces/{kube_jobs.namespace}/trainingjobs/mini"
    assert api_server.client().get(path).status_code == 200
    assert api_server.client("stranger").get(path).status_code == 403
    assert api_server.client().get(path, headers={"Authorization": "Bearer nobody"}).status_code == 401


def test_the_kubernetes_package_reaches_it(api_server: ApiServer, kube_jobs: KubeJobs) -> None:
    from kubernetes import client, config

    kube_jobs.create(small_document())
    with config.new_client_from_config(str(api_server.kubeconfig())) as made:
        api = client.CustomObjectsApi(made)
        found = api.get_namespaced_custom_object(
            "fathom.dev", "v1alpha1", kube_jobs.namespace, "trainingjobs", "mini", _request_timeout=120
        )
    assert job_of(found).metadata.name == "mini"


# ------------------------------------------------------------------ what people see


def test_kubectl_explains_fields_in_our_words(api_server: ApiServer, trainingjobs: dict[str, Any]) -> None:
    done = api_server.kubectl("explain", "tj.spec.compute")
    assert done.returncode == 0, done.stderr
    assert "Kind of device; on a GPU each worker has one." in done.stdout
    assert "H100" in done.stdout
    deep = api_server.kubectl("explain", "tj.spec.training.optimizer.momentsPrecision").stdout
    assert "bf16 halves their memory" in " ".join(deep.split())


def test_a_table_shows_where_a_job_stands(kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document(budget={"limit": "5000.00"}))
    progress = {"step": 10, "steps": 100, "tokens": 1000, "loss": "2.31", "etaSeconds": 90, "observedAt": NOW}
    cost = {"spent": "1.50", "burnPerHour": "23.6", "wasted": "0.1", "currency": "USD"}
    mlflow = {"experimentId": "1", "runId": "abc"}
    kube_jobs.accept("mini", phase="Running", progress=progress, cost=cost, attemptCount=2, mlflow=mlflow)
    table = kube_jobs.get("mini", Accept="application/json;as=Table;v=v1;g=meta.k8s.io")
    [row] = table["rows"]
    columns = table["columnDefinitions"]
    shown = {one["name"]: cell for one, cell in zip(columns, row["cells"], strict=True)}
    short = [one["name"] for one in columns if one["priority"] == 0]
    assert short == ["Name", "Phase", "Step", "Loss", "Spent", "Limit", "ETA(s)", "Age"]
    age = shown.pop("Age")
    assert re.fullmatch(r"\d+s", age)
    assert shown == {
        "Name": "mini", "Phase": "Running", "Step": 10, "Loss": "2.31", "Spent": "1.50", "Limit": "5000.00",
        "ETA(s)": 90, "Device": "cpu", "GPUs": None, "Steps": 100, "Attempts": 2, "Accepted": "Valid",
        "Admitted": None, "Running": None, "MLflow": "abc",
    }  # fmt: skip


def test_kubectl_lists_by_short_name_and_category(api_server: ApiServer, kube_jobs: KubeJobs) -> None:
    kube_jobs.create(small_document())
    for word in ("tj", "fathom", "all"):
        done = api_server.kubectl("get", word, "-n", kube_jobs.namespace, "-o", "name")
        assert "trainingjob.fathom.dev/mini" in done.stdout, done.stderr

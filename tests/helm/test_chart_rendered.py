"""What the chart makes of values."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.chart_cases import AUTHORITY, CASES
from support.helm import IMAGES, Helm, Object, merged, pod_specs, the
from support.wire import Reply, wire

from orchestrator.cost.teams import read_teams
from orchestrator.crd.definition import definition
from orchestrator.launch.rayjob import ClusterSettings
from orchestrator.launch.rayjob.placement import Toleration
from orchestrator.plan.hardware import accelerator
from orchestrator.plan.prices import PriceBook


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, helm: Helm) -> tuple[dict[str, Any], list[Object]]:
    """Values, and what became of them."""
    return CASES[request.param], helm.rendered(CASES[request.param])


@pytest.mark.parametrize("name", CASES)
def test_helm_finds_nothing_to_complain_of(helm: Helm, name: str) -> None:
    said = helm.done("lint", "--strict", "{}", values=merged(IMAGES, CASES[name]))
    assert "1 chart(s) linted, 0 chart(s) failed" in said
    assert "WARNING" not in said


def _full_name(objects: list[Object]) -> str:
    [name] = [one["metadata"]["name"] for one in objects if one["metadata"]["name"].endswith("-settings")]
    return str(name.removesuffix("-settings"))


def test_the_settings_that_the_controller_reads_are_those_that_were_given(
    case: tuple[dict[str, Any], list[Object]],
) -> None:
    values, objects = case
    name = _full_name(objects)
    data = the(objects, "ConfigMap", f"{name}-settings")["data"]
    port = values.get("service", {}).get("port", 8080)
    scheme = "https" if "tls" in values else "http"
    known = {
        "namespace": "fathom-system",
        "podLabels": {
            "app.kubernetes.io/name": "fathom",
            "app.kubernetes.io/instance": "fathom",
            "app.kubernetes.io/component": "controller",
        },
        "port": port,
        "url": f"{scheme}://{name}-controller.fathom-system.svc:{port}",
    }
    expected = merged(values.get("cluster", {}), {"images": values.get("images", {}), "controller": known})
    assert ClusterSettings.model_validate(yaml.safe_load(data["cluster.yaml"])) == ClusterSettings.model_validate(
        expected
    )
    assert data.get("ca.crt") == expected["controller"].get("certificateAuthority")


def test_all_settings_come_through(helm: Helm) -> None:
    """Every default, said aloud."""
    given = ClusterSettings().document()
    given["controller"] = {"tokenAudience": "somebody", "url": "https://fathom.example.com"}
    images = given.pop("images")
    objects = helm.rendered({"cluster": given, "images": images})
    found = ClusterSettings.model_validate(
        yaml.safe_load(the(objects, "ConfigMap", "fathom-settings")["data"]["cluster.yaml"])
    )
    controller = found.controller
    assert (controller.token_audience, controller.url) == ("somebody", "https://fathom.example.com")
    assert found == ClusterSettings(controller=controller)


def test_tables_are_files_that_the_controller_reads(helm: Helm, tmp_path: Path) -> None:
    objects = helm.rendered(CASES["machines"])
    files = the(objects, "ConfigMap", "fathom-tables")["data"] | the(objects, "ConfigMap", "fathom-settings")["data"]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    price = PriceBook.load(tmp_path / "prices.yaml").price("H100", "on-demand")
    assert (str(price.amount), price.currency, price.source) == ("2.10", "EUR", "our contract")
    limits = read_teams(tmp_path / "budgets.yaml")
    assert {team: str(one.limit) for team, one in limits.items()} == {"team-a": "125000.50", "team-b": "1000000"}
    assert accelerator("H100", tmp_path / "hardware.yaml").source == "measured here"


def test_tables_that_say_nothing_are_read_too(helm: Helm, tmp_path: Path) -> None:
    data = the(helm.rendered(), "ConfigMap", "fathom-tables")["data"]
    for name, text in data.items():
        (tmp_path / name).write_text(text)
    PriceBook.load(tmp_path / "prices.yaml").price("H100", "on-demand")
    assert read_teams(tmp_path / "budgets.yaml") == {}


def test_the_definition_is_ours_and_stays(helm: Helm) -> None:
    found = the(helm.rendered(), "CustomResourceDefinition", "trainingjobs.fathom.dev")
    assert {key: found[key] for key in found if key != "metadata"} == {
        key: value for key, value in definition().items() if key != "metadata"
    }
    assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    gone = the(helm.rendered({"crds": {"keep": False}}), "CustomResourceDefinition", "trainingjobs.fathom.dev")
    assert "annotations" not in gone["metadata"]
    assert not [one for one in helm.rendered({"crds": {"install": False}}) if one["kind"] == gone["kind"]]


def test_every_object_is_of_this_release(case: tuple[dict[str, Any], list[Object]]) -> None:
    values, objects = case
    for one in objects:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "fathom", one["metadata"]["name"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        cluster_wide = one["kind"].startswith(("ClusterRole", "CustomResource"))
        own = one["metadata"].get("namespace")
        assert own is None if cluster_wide else own in ("fathom-system", *values.get("watchNamespaces", ()))
        assert len(one["metadata"]["name"]) <= 63


def test_names_stay_short_however_the_release_is_called(helm: Helm) -> None:
    text = helm.done("template", "r" * 53, "{}", "--namespace", "n" * 63, values=IMAGES)
    names = re.findall(r"^  name: (.*)$", text, re.MULTILINE)
    assert len(names) > 10
    assert max(map(len, names)) <= 63


def test_services_and_policies_choose_the_pods_that_they_mean(case: tuple[dict[str, Any], list[Object]]) -> None:
    _, objects = case
    deployments = [one for one in objects if one["kind"] == "Deployment"]
    for one in objects:
        if one["kind"] not in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            continue
        spec = one["spec"]
        chosen = spec["selector"] if one["kind"] == "Service" else spec.get("podSelector", spec.get("selector"))
        wanted = chosen.get("matchLabels", chosen)
        meant = [
            deployment["metadata"]["name"]
            for deployment in deployments
            if wanted.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        ]
        assert meant == [one["metadata"]["name"]]


def test_pods_run_what_was_asked_for_and_write_nowhere_else(case: tuple[dict[str, Any], list[Object]]) -> None:
    values, objects = case
    specs = pod_specs(objects)
    assert len(specs) == 2 + ("trackingUri" not in values.get("mlflow", {}))
    for name, spec in specs.items():
        [container] = spec["containers"]
        assert "@sha256:" in container["image"], name
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        mounted = {one["name"] for one in container["volumeMounts"]}
        assert mounted == {one["name"] for one in spec["volumes"]}
        assert {"memory"} <= set(container["resources"]["limits"])
        controls = name.endswith("-controller")
        assert (spec.get("automountServiceAccountToken") is not False) == controls, "nobody else has a token"


def test_a_toleration_means_what_it_means_for_jobs(helm: Helm) -> None:
    """Without an operator it is for any value; for Kubernetes it would be for none."""
    for spec in pod_specs(helm.rendered(CASES["machines"])).values():
        assert spec["tolerations"] == [
            Toleration.model_validate(one).document() for one in CASES["machines"]["place"]["tolerations"]
        ]


def test_the_controller_is_started_as_it_was_agreed(helm: Helm) -> None:
    objects = helm.rendered(CASES["secured"] | {"watchNamespaces": ["team-a", "team-b"]})
    [container] = pod_specs(objects)["trainer-controller"]["containers"]
    assert container["command"] == [
        *("python3", "-m", "orchestrator.cli", "controller", "--cluster-settings=/etc/fathom/settings/cluster.yaml"),
        *("--host=0.0.0.0", "--port=8443", "--tls-cert=/etc/fathom/tls/tls.crt", "--tls-key=/etc/fathom/tls/tls.key"),
        *("--namespace=team-a", "--namespace=team-b"),
        *("--lease-namespace=fathom-system", "--lease-name=trainer-controller"),
    ]
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com"
    assert env["FATHOM_WEBHOOK_HOSTS"] == "hooks.example.com,chat.example.com"
    assert env["HTTPS_PROXY"] == "http://proxy.example.com:3128"
    files = [value for name, value in env.items() if name in ("FATHOM_SIGNING_KEY_FILE", "FATHOM_WEBHOOKS")]
    mounts = [one["mountPath"] for one in container["volumeMounts"]]
    assert len(files) == 2
    assert all(any(str(file).startswith(f"{mount}/") for mount in mounts) for file in files)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["scheme"], asked["httpHeaders"]) == ("HTTPS", [{"name": "Host", "value": "localhost"}])
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"


def test_other_settings_start_the_controller_again_and_other_prices_do_not(helm: Helm) -> None:
    def template(values: dict[str, Any]) -> Object:
        found: Object = the(helm.rendered(values), "Deployment", "fathom-controller")["spec"]["template"]
        return found

    before = template({})
    assert template({"cluster": {"startSeconds": 600}}) != before
    assert template({"hardware": CASES["machines"]["hardware"]}) != before
    assert template({"prices": CASES["machines"]["prices"], "budgets": CASES["machines"]["budgets"]}) == before


def test_replicas_share_a_home_and_take_turns(helm: Helm) -> None:
    objects = helm.rendered(CASES["replicas"])
    spec = the(objects, "Deployment", "fathom-controller")["spec"]
    assert spec["replicas"] == 3
    # the only one that is ready is the one that has to go: an update that waits for readiness never ends
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "100%", "maxUnavailable": "100%"}
    claim = the(objects, "PersistentVolumeClaim", "fathom-home")["spec"]
    assert (claim["accessModes"], claim["storageClassName"]) == (["ReadWriteMany"], "nfs")
    assert spec["template"]["spec"]["shareProcessNamespace"], "the first process of a container outlives its timer"
    assert the(objects, "PodDisruptionBudget", "fathom-controller")["spec"]["maxUnavailable"] == "100%"
    alone = helm.rendered()
    assert the(alone, "Deployment", "fathom-controller")["spec"]["strategy"] == {"type": "Recreate"}
    assert not [one for one in alone if one["kind"] == "PodDisruptionBudget"]


def test_volumes_stay_unless_they_shall_not(helm: Helm) -> None:
    kept = {"helm.sh/resource-policy": "keep"}
    claims = [one for one in helm.rendered() if one["kind"] == "PersistentVolumeClaim"]
    assert {one["metadata"]["name"]: one["metadata"]["annotations"] for one in claims} == {
        "fathom-home": kept,
        "fathom-mlflow-data": kept,
    }
    values = {"persistence": {"keep": False}, "mlflow": {"volume": {"existingClaim": "ours"}}}
    [claim] = [one for one in helm.rendered(values) if one["kind"] == "PersistentVolumeClaim"]
    assert "annotations" not in claim["metadata"]
    [volume] = [one for one in pod_specs(helm.rendered(values))["fathom-mlflow"]["volumes"] if one["name"] == "data"]
    assert volume["persistentVolumeClaim"] == {"claimName": "ours"}


def test_who_may_call_whom(helm: Helm) -> None:
    objects = helm.rendered(CASES["secured"])
    spec = the(objects, "NetworkPolicy", "trainer-controller")["spec"]
    [rule] = spec["ingress"]
    jobs = {"matchExpressions": [{"key": "fathom.dev/job-uid", "operator": "Exists"}]}
    assert {"namespaceSelector": {}, "podSelector": jobs} in rule["from"]
    guests = [one["namespaceSelector"]["matchLabels"] for one in rule["from"] if one.get("namespaceSelector")]
    assert {"kubernetes.io/metadata.name": "monitoring"} in guests
    assert {"ipBlock": {"cidr": "10.0.0.0/28"}} in rule["from"]
    assert [one["ports"] for one in spec["egress"]][1:] == [[{"port": 6443}], [{"port": 443}]]
    assert not [one for one in objects if one["metadata"]["name"] == "trainer-mlflow"]
    shown = the(helm.rendered(), "NetworkPolicy", "fathom-mlflow")["spec"]
    assert shown["egress"] == []
    [only] = shown["ingress"][0]["from"]
    assert only["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controller"
    assert not [one for one in helm.rendered({"networkPolicy": {"enabled": False}}) if one["kind"] == "NetworkPolicy"]


def test_the_monitor_asks_with_a_token_and_checks_the_certificate(helm: Helm) -> None:
    metrics = {"serviceMonitor": {"enabled": True, "tokenSecret": "metrics-token", "labels": {"release": "prom"}}}
    objects = helm.rendered(CASES["secured"] | {"metrics": metrics})
    monitor = the(objects, "ServiceMonitor", "trainer-controller")
    assert monitor["metadata"]["labels"]["release"] == "prom"
    [endpoint] = monitor["spec"]["endpoints"]
    [port] = the(objects, "Service", "trainer-controller")["spec"]["ports"]
    assert (endpoint["port"], endpoint["scheme"], endpoint["path"]) == (port["name"], "https", "/metrics")
    assert endpoint["authorization"]["credentials"] == {"name": "metrics-token", "key": "token"}
    assert endpoint["tlsConfig"]["ca"]["configMap"] == {"name": "trainer-settings", "key": "ca.crt"}
    assert the(objects, "ConfigMap", "trainer-settings")["data"]["ca.crt"] == AUTHORITY


def test_the_test_of_the_release_asks_and_makes_nothing(helm: Helm) -> None:
    pod = the(helm.rendered(CASES["secured"]), "Pod", "trainer-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["automountServiceAccountToken"] is False
    [container] = pod["spec"]["containers"]
    url, authority = container["command"][-2:]
    assert url == "https://trainer-controller.fathom-system.svc:8443/readyz"
    assert authority == "/etc/fathom/settings/ca.crt"


@pytest.mark.parametrize(
    ("status", "body", "code", "said"), [(200, b"ok\n", 0, "200"), (503, b"standby\n", 1, "503: standby")]
)
def test_what_the_test_of_the_release_says(helm: Helm, status: int, body: bytes, code: int, said: str) -> None:
    [container] = pod_specs(helm.rendered())["fathom-test"]["containers"]
    python, *arguments = container["command"]
    assert python == "python3"
    with wire() as controller:
        controller.replies(Reply(status, body))
        arguments[-2] = f"{controller.url}/readyz"
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    assert [(one.method, one.path) for one in controller.asked] == [("GET", "/readyz")]


def test_roles_hold_no_wildcard(case: tuple[dict[str, Any], list[Object]]) -> None:
    _, objects = case
    roles = [one for one in objects if one["kind"] in ("Role", "ClusterRole")]
    assert len(roles) >= 5
    for role in roles:
        for rule in role["rules"]:
            assert not [word for words in rule.values() for word in words if "*" in word]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            if "secrets" in rule.get("resources", ()):
                assert not {"list", "watch"} & set(rule["verbs"])


def test_notes_tell_the_next_commands_and_what_stays(helm: Helm) -> None:
    # `template` shows no notes; a trial installation without a cluster does
    said = helm.done("install", "fathom", "{}", "--namespace", "sys", "--dry-run=client", values=IMAGES)
    notes = said[said.index("NOTES:") :]
    for words in (
        # with several replicas, too, of which one is ready
        "kubectl -n sys wait --for=jsonpath='{.status.readyReplicas}'=1 --timeout=5m deployment/fathom-controller && ",
        "&& helm -n sys test fathom",
        "kubectl -n TEAM apply -f k8s/samples/cluster-first.yaml",
        "kubectl -n sys port-forward service/fathom-mlflow 5000",
        "crds.keep",
        "claim fathom-home",
        "claim fathom-mlflow-data",
        "KubeRay is not in this cluster yet",
        "tls.secretName",
        "images.train is not set",
    ):
        assert words in notes

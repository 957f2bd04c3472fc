"""What stands in the objects of an attempt, and which jobs a cluster refuses."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from support.rendered_cases import BLOCK, CASES
from support.rendering import (
    IMAGE,
    KEY,
    SETTINGS,
    UID,
    commands,
    container,
    environment,
    find,
    job,
    rendered,
    resolved,
    restricted,
    templates,
)

from orchestrator.launch.rayjob import ClusterSettings, Rendered, agreed, render
from orchestrator.launch.rayjob.hooks import head_hook, worker_hook
from orchestrator.launch.resolve import Resolved
from orchestrator.spec import TrainingJob

GPU: dict[str, Any] = {"accelerator": "H100", "gpus": 16, "gpusPerNode": 8}
QUEUE = {"name": "team-a", "priorityClass": "normal"}


def settings(**changes: Any) -> ClusterSettings:  # noqa: ANN401 - parts of the document
    return ClusterSettings.model_validate({"images": {"train": IMAGE}} | changes)


# Modes and limits: reference figures of KubeRay's own behaviour are in docs/kubernetes.md


@pytest.mark.parametrize("name", CASES)
def test_kuberay_tries_once_and_cleans_up(name: str) -> None:
    made = CASES[name]()
    spec = made.ray_job["spec"]
    assert made.ray_job["apiVersion"] == "ray.io/v1"
    assert (spec["submissionMode"], spec["backoffLimit"], spec["submitterConfig"]) == (
        "K8sJobMode",
        0,
        {"backoffLimit": 0},
    )
    assert made.ray_job["metadata"]["annotations"]["ray.io/disable-provisioned-head-restart"] == "true"
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 30)
    assert spec["preRunningDeadlineSeconds"] == 1800
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}, "without the mode there is no authentication"
    unwanted = {"suspend", "activeDeadlineSeconds", "jobId", "runtimeEnvYAML", "metadata", "entrypointResources"}
    unwanted |= {"entrypointNumCpus", "entrypointNumGpus", "deletionStrategy", "clusterSelector", "managedBy"}
    assert not unwanted & set(spec)


@pytest.mark.parametrize("name", CASES)
def test_what_kuberay_and_kueue_check_beyond_their_schemas_holds(name: str) -> None:
    """validation.go of KubeRay 1.7, rayjob_webhook.go of Kueue 0.19."""
    made = CASES[name]()
    spec, cluster = made.ray_job["spec"], made.ray_job["spec"]["rayClusterSpec"]
    assert len(made.name) <= 47
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    groups = cluster["workerGroupSpecs"]
    assert 1 <= len(groups) <= 17, "and a podset each for head and submitter make 19 of Kueue's 20"
    assert [group["groupName"] for group in groups] == ["workers"], "head is taken"
    for group in groups:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"] >= 1
        assert not {"resources", "labels", "suspend", "numOfHosts"} & set(group)
    for group in (cluster["headGroupSpec"], *groups):
        assert not {"labels", "redis-username", "redis-password"} & set(group["rayStartParams"])
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    unwanted = {"enableInTreeAutoscaling", "gcsFaultToleranceOptions", "networkPolicy", "tlsOptions", "upgradeStrategy"}
    assert not unwanted & set(cluster), "behind gates, or refused in a RayJob"
    forbidden = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}
    assert not forbidden & {key for template in templates(made).values() for key in environment(template)}
    assert spec["ttlSecondsAfterFinished"] >= 0
    assert spec["shutdownAfterJobFinishes"]
    assert "command" not in container(spec["submitterPodTemplate"]), "KubeRay writes it"


# Names


def test_the_names_of_job_and_attempt_make_the_name_of_everything() -> None:
    made = rendered(job("a" * 40), attempt=999)
    assert made.name == "a" * 40 + "-a999"
    assert {one["metadata"]["name"] for one in made.objects} == {made.name}
    assert {one["metadata"]["namespace"] for one in made.objects} == {"team-a"}
    assert [one["kind"] for one in made.objects] == ["ServiceAccount", "NetworkPolicy", "Secret", "ConfigMap", "RayJob"]


def test_labels_and_owner_say_whose_it_is() -> None:
    made = rendered(job(), settings(labels={"example.com/cost-centre": "4711"}), attempt=2)
    for one in made.objects:
        found = one["metadata"]["labels"]
        assert (
            found
            | {
                "example.com/cost-centre": "4711",
                "fathom.dev/job": "mini",
                "fathom.dev/job-uid": UID,
                "fathom.dev/attempt": "2",
                "fathom.dev/team": "team-a",
                "fathom.dev/accelerator": "cpu",
                "fathom.dev/price-class": "on-demand",
                "fathom.dev/content-hash": made.content_hash,
            }
            == found
        )
        [owner] = one["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["name"], owner["uid"], owner["controller"]) == ("TrainingJob", "mini", UID, True)
        assert owner["apiVersion"] == "fathom.dev/v1alpha1"
    assert "fathom.dev/content-hash" not in templates(made)["head"]["metadata"]["labels"]


# Where the driver and the workers run

ON_CPUS = {"accelerator": "cpu", "workers": 2, "cpuPerWorker": 3}


def test_the_head_takes_no_worker_and_runs_the_driver() -> None:
    made = rendered(job(compute=GPU))
    head = made.ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert (head["rayStartParams"]["num-cpus"], head["rayStartParams"]["num-gpus"]) == ("0", "0")
    resources = container(head["template"])["resources"]
    assert not [name for name in resources["limits"] if "gpu" in name]
    assert resources["limits"]["memory"] == "4128Mi", "4 GiB and 16 MiB for each of two pods"
    # Ray runs an entrypoint that asks for nothing on the head; one that asked for a CPU would find none there
    assert "entrypointNumCpus" not in made.ray_job["spec"]


def test_a_worker_pod_is_a_machine() -> None:
    made = rendered(job(compute=GPU))
    [group] = made.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    assert (group["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-gpus"]) == ("8", "8")
    template = group["template"]
    assert container(template)["resources"] == {
        "limits": {"memory": f"{(8 * 160 + 32) * 1024}Mi", "nvidia.com/gpu": "8", "rdma/hca_shared_devices_a": "1"},
        "requests": {
            "cpu": "96",
            "memory": f"{(8 * 160 + 32) * 1024}Mi",
            "nvidia.com/gpu": "8",
            "rdma/hca_shared_devices_a": "1",
        },
    }
    assert template["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert {volume["name"]: volume for volume in template["spec"]["volumes"]}["shared-memory"] == {
        "name": "shared-memory",
        "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"},
    }
    assert environment(template)["NCCL_IB_HCA"] == "mlx5"


def test_pods_of_a_small_cluster_share_cores() -> None:
    made = rendered(job(compute=ON_CPUS), SETTINGS.model_copy(update={"cpu_share": 0.1}))
    [group] = made.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    asked = {kind: container(template)["resources"]["requests"]["cpu"] for kind, template in templates(made).items()}
    assert asked == {"head": "200m", "workers": "300m", "submitter": "100m"}
    assert group["rayStartParams"]["num-cpus"] == "3", "Ray counts what the workers take all the same"


def test_pods_without_a_gpu_see_none_on_a_node_that_has_some() -> None:
    for kind, void in (("head", True), ("workers", False), ("submitter", True)):
        assert (
            environment(templates(rendered(job(compute=GPU)))[kind]).get("NVIDIA_VISIBLE_DEVICES") == "void"
        ) is void
    assert environment(templates(rendered(job()))["workers"])["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_a_job_says_itself_what_workers_need() -> None:
    made = rendered(job(compute=GPU | {"cpuPerWorker": 4, "memoryPerWorker": "10Gi"}))
    requests = container(templates(made)["workers"])["resources"]["requests"]
    assert (requests["cpu"], requests["memory"]) == ("32", f"{(80 + 32) * 1024}Mi")
    [group] = made.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["rayStartParams"]["num-cpus"] == "32", "which the workers take, four each"


def test_workers_on_cpus_are_pods_of_their_own() -> None:
    made = rendered(job(compute={"accelerator": "cpu", "workers": 3, "cpuPerWorker": 2, "memoryPerWorker": "1500M"}))
    [group] = made.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-gpus"]) == (
        3,
        "2",
        "0",
    )
    assert container(group["template"])["resources"] == {
        "limits": {"memory": str(1_500_000_000 + 2**30)},
        "requests": {"cpu": "2", "memory": str(1_500_000_000 + 2**30)},
    }


def test_one_machine_needs_no_network_and_part_of_one_takes_part_of_its_devices() -> None:
    alone = rendered(job(compute=GPU | {"gpus": 8}))
    assert "rdma/hca_shared_devices_a" not in container(templates(alone)["workers"])["resources"]["limits"]
    assert not [key for key in environment(templates(alone)["workers"]) if key.startswith("NCCL")]
    efa = {"H100": {"network": "efa", "memoryPerWorker": "1Gi"}}
    halves = rendered(job(compute=GPU | {"gpus": 8, "gpusPerNode": 4}), settings(accelerators=efa))
    [group] = halves.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == 2
    limits = container(group["template"])["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits["vpc.amazonaws.com/efa"]) == ("4", "16")


@pytest.mark.parametrize(("network", "variable"), [("tcp", "NCCL_IB_DISABLE"), ("roce", "NCCL_IB_HCA")])
def test_networks_are_settings(network: str, variable: str) -> None:
    made = rendered(job(compute=GPU), settings(accelerators={"H100": {"network": network}}))
    assert variable in environment(templates(made)["workers"])
    assert variable not in environment(templates(made)["head"])


def test_a_network_of_their_own_brings_environment_devices_and_annotations() -> None:
    multus = {"k8s.v1.cni.cncf.io/networks": "rail-0,rail-1"}
    own = {"env": {"NCCL_IB_TC": "106"}, "resources": {"nvidia.com/rail": 2}, "annotations": multus}
    tables = {"networks": {"rails": own}, "accelerators": {"H100": {"network": "rails", "runtimeClass": "nvidia"}}}
    template = templates(rendered(job(compute=GPU), settings(**tables)))["workers"]
    assert environment(template)["NCCL_IB_TC"] == "106"
    assert container(template)["resources"]["limits"]["nvidia.com/rail"] == "2"
    assert template["metadata"]["annotations"] | multus == template["metadata"]["annotations"]
    assert template["spec"]["runtimeClassName"] == "nvidia"


def test_every_pod_goes_elsewhere_than_to_nodes_that_failed_if_it_can() -> None:
    for template in templates(rendered(job(), suspects=("node-a", "node-b"))).values():
        [only] = template["spec"]["affinity"]["nodeAffinity"].items()
        fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("node-a", "node-b")]
        preferred = [{"weight": 100, "preference": {"matchFields": fields}}]
        assert only == ("preferredDuringSchedulingIgnoredDuringExecution", preferred)
    assert "affinity" not in templates(rendered(job()))["head"]["spec"]


# Kueue


def test_a_queue_holds_the_job_until_plan_and_budget_agree() -> None:
    made = rendered(job(queue=QUEUE), settings(topology={"level": BLOCK}))
    metadata = made.ray_job["metadata"]
    assert metadata["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert metadata["labels"]["kueue.x-k8s.io/priority-class"] == "normal"
    assert metadata["annotations"]["kueue.x-k8s.io/admission-gated-by"] == "fathom.dev/plan-and-budget"
    where = {"kueue.x-k8s.io/podset-preferred-topology": BLOCK}
    annotations = {name: template["metadata"]["annotations"] for name, template in templates(made).items()}
    assert annotations["workers"] | where == annotations["workers"]
    assert not [key for name in ("head", "submitter") for key in annotations[name] if "topology" in key]


def test_topology_may_be_required() -> None:
    made = rendered(job(queue=QUEUE), settings(topology={"level": BLOCK, "required": True}))
    assert templates(made)["workers"]["metadata"]["annotations"]["kueue.x-k8s.io/podset-required-topology"] == BLOCK


def test_without_a_queue_nothing_is_kueues() -> None:
    made = rendered(job(), settings(topology={"level": BLOCK}))
    assert "kueue" not in json.dumps(made.objects)


# What pods get to know


def test_the_configuration_is_a_file_that_reads_back() -> None:
    of = job(tracking={"tags": {"quote": 'it\'s "$(id)" `id`; \\ \n'}})
    data = find(rendered(of), "ConfigMap")["data"]
    assert list(data) == ["job.json", "resolved.json"]
    assert TrainingJob.model_validate_json(data["job.json"]) == of
    assert Resolved.model_validate_json(data["resolved.json"]) == resolved(of)
    assert find(rendered(of), "ConfigMap")["immutable"] is True


def test_the_key_is_in_a_secret_of_its_own() -> None:
    secret = find(rendered(job()), "Secret")
    assert base64.b64decode(secret["data"]["signing.key"]) == KEY
    assert (secret["immutable"], secret["type"]) == (True, "Opaque")
    assert base64.b64encode(KEY).decode() not in json.dumps(find(rendered(job()), "ConfigMap"))


def test_pods_find_what_was_agreed() -> None:
    made = rendered(job(), settings(controller={"certificateAuthority": "-----BEGIN", "url": "https://here:8443"}))
    assert find(made, "ConfigMap")["data"]["ca.crt"] == "-----BEGIN"
    for name in ("head", "workers"):
        template = templates(made)[name]
        env, mounts = environment(template), container(template)["volumeMounts"]
        assert env["FATHOM_CONTROLLER_URL"] == "https://here:8443"
        assert env["FATHOM_CONTROLLER_CA"] == "/etc/fathom/ca.crt"
        assert env["FATHOM_TOKEN_FILE"] == "/var/run/fathom/token"
        assert env["FATHOM_SIGNING_KEY_FILE"] == "/etc/fathom/signing.key"
        assert (env["HOME"], env["RAY_memory_monitor_refresh_ms"]) == ("/tmp", "0")
        assert {one["mountPath"]: one.get("readOnly", False) for one in mounts} == {
            "/etc/fathom": True,
            "/dev/shm": False,
            "/tmp": False,
            "/var/run/fathom": True,
        }
        volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert set(volumes) == {mount["name"] for mount in mounts}
        assert volumes["token"]["projected"]["sources"] == [
            {"serviceAccountToken": {"audience": "fathom-controller", "expirationSeconds": 3600, "path": "token"}}
        ]
        assert [
            one["valueFrom"]["fieldRef"]["fieldPath"] for one in container(template)["env"] if "valueFrom" in one
        ] == [
            "metadata.labels['ray.io/cluster']",
            "spec.nodeName",
            "metadata.name",
        ]


def test_the_submitter_gets_neither_configuration_nor_token_nor_credentials() -> None:
    submitter = templates(rendered(job(storage={"secretRef": "s3"})))["submitter"]
    assert [volume["name"] for volume in submitter["spec"]["volumes"]] == ["tmp"]
    assert "envFrom" not in container(submitter)
    assert submitter["metadata"]["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    assert container(submitter)["resources"]["requests"] == {"cpu": "100m", "memory": "512Mi"}


def test_credentials_of_an_object_store_are_the_environment_of_head_and_workers() -> None:
    made = rendered(job(storage={"secretRef": "s3"}))
    for name in ("head", "workers"):
        assert container(templates(made)[name])["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert "envFrom" not in container(templates(rendered(job()))["head"])


def test_claims_are_mounted_where_the_configuration_says() -> None:
    of = job(
        data={"source": "pvc://corpus/web/en"},
        storage={"claim": "team-a-data"},
        checkpoint={"uri": "pvc://team-a-data/runs/mini/"},
    )
    made = rendered(of)
    inside = Resolved.model_validate_json(find(made, "ConfigMap")["data"]["resolved.json"])
    assert inside.recipe.data == "/mnt/claims/corpus/web/en"
    assert inside.storage_uri == inside.recipe.checkpoint.uri == "/mnt/claims/team-a-data/runs/mini"
    for name in ("head", "workers"):
        template = templates(made)[name]
        claims = [one for one in template["spec"]["volumes"] if "persistentVolumeClaim" in one]
        assert claims == [
            {"name": "claim-0", "persistentVolumeClaim": {"claimName": "corpus"}},
            {"name": "claim-1", "persistentVolumeClaim": {"claimName": "team-a-data"}},
        ]
        mounts = {one["name"]: one["mountPath"] for one in container(template)["volumeMounts"]}
        assert (mounts["claim-0"], mounts["claim-1"]) == ("/mnt/claims/corpus", "/mnt/claims/team-a-data")


def test_a_service_account_of_the_attempt_unless_the_job_names_one() -> None:
    made = rendered(job(), attempt=4)
    assert find(made, "ServiceAccount")["automountServiceAccountToken"] is False
    assert {template["spec"]["serviceAccountName"] for template in templates(made).values()} == {"mini-a4"}
    theirs = rendered(job(compute={"accelerator": "cpu", "workers": 2, "serviceAccountName": "trainer"}))
    assert "ServiceAccount" not in [one["kind"] for one in theirs.objects]
    assert {template["spec"]["serviceAccountName"] for template in templates(theirs).values()} == {"trainer"}


def test_pull_secrets_and_priority_class_are_for_all_pods() -> None:
    images = {"train": IMAGE, "pullSecrets": ["registry"], "pullPolicy": "Always"}
    made = rendered(job(), settings(images=images, priorityClass="training"))
    for template in templates(made).values():
        assert template["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert template["spec"]["priorityClassName"] == "training"
        assert container(template)["imagePullPolicy"] == "Always"


@pytest.mark.parametrize("name", CASES)
def test_every_pod_is_restricted_and_has_no_token_for_the_api(name: str) -> None:
    for template in templates(CASES[name]()).values():
        spec = template["spec"]
        assert restricted(spec) == []
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False)
        assert spec["restartPolicy"] == "Never"
        assert container(template)["securityContext"]["readOnlyRootFilesystem"] is True
        assert "/tmp" in [mount["mountPath"] for mount in container(template)["volumeMounts"]]


# Stopping


def test_only_constants_are_executed() -> None:
    made = rendered(job(tracking={"tags": {"a": "$(touch /tmp/x)"}}))
    start = {"num-cpus": "0", "num-gpus": "0", "object-store-memory": "100000000"}
    assert list(commands(made.objects)) == [
        agreed.ENTRYPOINT,
        start | {"dashboard-host": "0.0.0.0"},
        head_hook(60),
        start | {"num-cpus": "1"},
        worker_hook(60),
    ]
    assert agreed.ENTRYPOINT == "exec python -m orchestrator.launch.entry --cluster /etc/fathom"


@pytest.mark.parametrize("name", ["mini-cpu", "v3-infiniband"])
def test_pods_are_killed_only_after_their_hooks(name: str) -> None:
    made = CASES[name]()
    seconds = 60 if name == "mini-cpu" else 20 + 240 + 15
    for which, hook in (("head", head_hook(seconds)), ("workers", worker_hook(seconds))):
        template = templates(made)[which]
        assert container(template)["lifecycle"]["preStop"]["exec"]["command"] == hook
        assert template["spec"]["terminationGracePeriodSeconds"] == seconds + 30
        assert environment(template)["FATHOM_STOP_SECONDS"] == str(seconds)


# Network policy


def test_pods_call_and_are_called_by_few() -> None:
    made = rendered(job(), settings(isolation={"dnsCidrs": ["169.254.20.10/32"]}))
    spec = find(made, "NetworkPolicy")["spec"]
    own = {"podSelector": {"matchLabels": {"fathom.dev/job-uid": UID, "fathom.dev/attempt": "1"}}}
    assert spec["podSelector"] == own["podSelector"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    for template in templates(made).values():
        assert own["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    peers, operator = spec["ingress"]
    assert peers == {"from": [own]}
    assert operator["ports"] == [{"port": 8265, "protocol": "TCP"}]
    peers, names, controller, outside = spec["egress"]
    assert peers == {"to": [own]}
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in names["to"]
    assert controller["ports"] == [{"port": 8080, "protocol": "TCP"}]
    assert outside["to"][0]["ipBlock"]["cidr"] == "0.0.0.0/0"
    assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"], "the cloud's metadata service"


def test_a_cluster_may_do_without_the_policy() -> None:
    made = rendered(job(), settings(isolation={"enabled": False}))
    assert "NetworkPolicy" not in [one["kind"] for one in made.objects]


def test_an_attempt_is_rendered_from_its_job() -> None:
    made = render(job(), resolved(job()), SETTINGS, signing_key=KEY)
    assert isinstance(made, Rendered)
    assert made.objects[-1] is made.ray_job
    assert made.supporting == made.objects[:-1]

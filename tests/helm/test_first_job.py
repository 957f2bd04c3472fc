"""docs/first-job.md: its commands are ones that there are, and what they name is there. No GPU is asked for."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.cli import command
from support.helm import DIGEST, Helm, Object, the
from support.rendering import KEY, container, resolved, templates

from orchestrator.cli.main import app
from orchestrator.jobfile import load_job
from orchestrator.launch.rayjob import ClusterSettings, render

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "first-job.md").read_text()
COMMANDS = [line[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
[VALUES] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
SAMPLE = "k8s/samples/cluster-gpu-first.yaml"
ENVIRONMENT = {"REGISTRY": "registry.example.com"} | {
    name: DIGEST.removeprefix("@") for name in ("CONTROLLER", "TRACKING", "TRAIN")
}


def of(program: str) -> list[list[str]]:
    """Commands of one program, in words, with the variables that the page speaks of."""
    words = [shlex.split(re.sub(r"\$([A-Z]+)", lambda found: ENVIRONMENT[found[1]], line)) for line in COMMANDS]
    return [rest for first, *rest in words if first == program]


@pytest.fixture(scope="module")
def made(helm: Helm, tmp_path_factory: pytest.TempPathFactory) -> list[Object]:
    """What the page's own `helm upgrade --install` makes, with its own file of values."""
    file = tmp_path_factory.mktemp("values") / "one-node.yaml"
    file.write_text(VALUES)
    [install] = [words for words in of("helm") if words[:3] == ["upgrade", "--install", "fathom"]]
    assert install[3] == "helm/fathom"
    given = [str(file) if one == "one-node.yaml" else one for one in install[4:]]
    known = [one for one in given if one not in ("--create-namespace", "--wait")]
    assert len(given) - len(known) == 2, "those two are of an installation"
    return list(yaml.safe_load_all(helm.done("template", "fathom", "{}", *known)))


@pytest.fixture(scope="module")
def settings(made: list[Object]) -> ClusterSettings:
    document = the(made, "ConfigMap", "fathom-settings")["data"]["cluster.yaml"]
    return ClusterSettings.model_validate(yaml.safe_load(document))


def test_all_of_it_is_commands() -> None:
    assert {line.split()[0] for line in COMMANDS} == {"kubectl", "docker", "helm", "fathom", "sed", "export"}
    assert len(COMMANDS) > 20
    assert "Nobody has run this page\non a GPU yet" in PAGE


def test_helm_is_called_as_it_wants(made: list[Object]) -> None:
    calls = of("helm")
    assert {words[0] for words in calls} == {"repo", "install", "upgrade", "test", "uninstall"}
    assert any(words[:5] == ["install", "kuberay-operator", "kuberay/kuberay-operator", "--version", "1.7.0"]
               for words in calls)  # fmt: skip
    assert all("fathom-system" in words for words in calls if words[0] in ("upgrade", "test", "uninstall"))
    assert the(made, "Service", "fathom-mlflow")["spec"]["ports"][0]["port"] == 5000
    assert "port-forward service/fathom-mlflow 5000" in PAGE


def test_the_job_gets_the_one_gpu_of_the_one_node(settings: ClusterSettings) -> None:
    job = load_job(ROOT / SAMPLE)
    pods = render(job, resolved(job), settings, signing_key=KEY)
    [group] = pods.ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    worker = templates(pods)["workers"]["spec"]
    assert group["replicas"] == 1
    assert container({"spec": worker})["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (worker["runtimeClassName"], worker.get("nodeSelector", {})) == ("nvidia", {})
    assert [one["key"] for one in worker["tolerations"]] == ["nvidia.com/gpu"]
    assert "nvidia.com/gpu" not in container(templates(pods)["head"])["resources"]["limits"]


def test_files_are_there_or_made_by_the_page(tmp_path: Path) -> None:
    [line] = [line for line in COMMANDS if line.startswith("sed ")]
    script, target = line.rsplit(" > ", 1)
    done = subprocess.run(
        ["/bin/sh", "-c", script], cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, check=True
    )
    claim, job = yaml.safe_load_all(done.stdout)
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    [pod] = job["spec"]["template"]["spec"]["containers"]
    assert pod["image"] == f"registry.example.com/fathom-train{DIGEST}"
    named = [words[words.index("-f") + 1] for words in of("kubectl") if "-f" in words]
    assert named == ["k8s/rbac/team.yaml", target, SAMPLE]
    assert all((ROOT / name).is_file() for name in named if name != target)
    found = load_job(ROOT / SAMPLE)
    assert [line for line in COMMANDS if "tj" in line and found.metadata.name not in line] == []
    assert f"job/{job['metadata']['name']}" in " ".join(COMMANDS)
    assert (found.spec.storage.claim, found.spec.data.source) == (claim["metadata"]["name"], "pvc://first/data")
    for name in re.findall(r"`(k8s/samples/[^`]+)`", PAGE):
        assert (ROOT / name).is_file(), name


def test_images_are_built_from_files_that_there_are() -> None:
    for words in of("docker"):
        file = (ROOT / words[words.index("-f") + 1]).read_text()
        asked = {one.partition("=")[0] for flag, one in itertools.pairwise(words) if flag == "--build-arg"}
        assert asked == set(re.findall(r"^ARG (\w+)$", file.split("AS engine")[0], re.MULTILINE)) - {"VERSION"}
        target = words[words.index("--target") + 1] if "--target" in words else None
        assert target is None or f"AS {target}\n" in file


@pytest.mark.parametrize("words", of("fathom"), ids=" ".join)
def test_fathom_knows_its_commands(words: list[str]) -> None:
    name, *arguments = words
    group: Any = typer.main.get_command(app)
    with group.commands[name].make_context(name, list(arguments)) as context:
        assert context.params


def test_the_plan_is_made_without_anybody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ["plan", SAMPLE] in of("fathom")
    code, out, err = command("plan", monkeypatch, capsys)(ROOT / SAMPLE)
    assert (code, "1 A100, bf16" in out) == (0, True), err
    limit = load_job(ROOT / SAMPLE).spec.budget
    assert limit is not None
    assert f"{limit.amount.normalize()} {limit.currency}" in re.sub(r"\s+", " ", PAGE)


@pytest.mark.kube
def test_kubectl_takes_what_needs_no_object(api_server: Any) -> None:  # noqa: ANN401
    for words in (words for words in of("kubectl") if "create" in words):
        done = api_server.kubectl(*words, "--dry-run=client", "-o", "yaml")
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["metadata"]["namespace"] == "team-a"

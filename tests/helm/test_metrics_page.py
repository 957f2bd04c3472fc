"""How a platform team has metrics scraped, as docs/kubernetes.md says it: the chart and kubectl take the commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.helm import Helm, the

PAGE = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text()
PART = PAGE[PAGE.index("\n## Metrics\n") + 1 :].split("\n## ")[0]
COMMANDS = [shlex.split(re.sub(r"\$\(.*\)", "TOKEN", line[2:])) for line in PART.splitlines() if line.startswith("$ ")]


def test_the_monitor_reads_the_secret_that_was_made(helm: Helm) -> None:
    [words] = [words[1:] for words in COMMANDS if words[0] == "helm"]
    assert words[:3] == ["upgrade", "fathom", "helm/fathom"]
    given = [one for one in words[3:] if one != "--reuse-values"]
    [secret] = [one[one.index("generic") + 1] for one in COMMANDS if "generic" in one]
    images = {"images": {"controller": f"c@sha256:{'0' * 64}", "tracking": f"t@sha256:{'0' * 64}"}}
    made = [one for one in yaml.safe_load_all(helm.done("template", "fathom", "{}", *given, values=images)) if one]
    [endpoint] = the(made, "ServiceMonitor", "fathom-controller")["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"] == {"name": secret, "key": "token"}
    assert "monitoring" in str(the(made, "NetworkPolicy", "fathom-controller"))
    roles = [one["metadata"]["name"] for one in made if one["kind"] == "ClusterRole"]
    [role] = [word.partition("=")[2] for words in COMMANDS for word in words if word.startswith("--clusterrole=")]
    assert role in roles


@pytest.mark.kube
def test_kubectl_takes_the_rest(api_server: Any) -> None:  # noqa: ANN401
    calls = [words[1:] for words in COMMANDS if words[0] == "kubectl"]
    assert len(calls) == 3
    for words in calls:
        done = api_server.kubectl(*words, "--dry-run=client", "-o", "yaml")
        assert done.returncode == 0, done.stderr
    account = calls[0][calls[0].index("serviceaccount") + 1]
    assert f"create token {account} --audience=fathom" in PART
    assert f"--serviceaccount=fathom-system:{account}" in PART

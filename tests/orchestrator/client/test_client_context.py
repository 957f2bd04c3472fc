"""The way to a cluster's controller, as a kubeconfig says it; what would send a token astray is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from support.certificates import certificate

from orchestrator.client import calls
from orchestrator.client.find import elsewhere, find
from orchestrator.client.transport import options, request_of
from orchestrator.errors import UsageError

SERVER = "https://203.0.113.7:6443"


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:  # noqa: ANN401
    """Writes one with these parts."""
    authority, key = certificate(tmp_path, "server")

    def write(user: dict[str, Any] | None = None, **cluster: Any) -> None:  # noqa: ANN401
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "c", "cluster": {"server": SERVER, "certificate-authority": str(authority)} | cluster}
            ],
            "users": [{"name": "u", "user": {"token": "of-the-cluster"} if user is None else user}],
            "contexts": [{"name": "lab", "context": {"cluster": "c", "user": "u"}}],
        }
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))

    write.pair = {"client-certificate": str(authority), "client-key": str(key)}  # type: ignore[attr-defined]
    return write


LAB = {"FATHOM_CONTEXT": "lab", "FATHOM_TOKEN": "of-fathom"}


def test_two_tokens_go_in_two_headers(kubeconfig: Any) -> None:  # noqa: ANN401
    kubeconfig()
    found = find(LAB)
    assert found.url == f"{SERVER}/api/v1/namespaces/fathom-system/services/http:fathom-controller:8080/proxy"
    assert not found.local
    sent = request_of(found, calls.me())
    assert sent["url"] == found.url + "/v1/me"
    assert sent["headers"]["X-Fathom-Authorization"] == "Bearer of-fathom"
    assert sent["headers"]["Authorization"] == "Bearer of-the-cluster"
    assert "of-fathom" not in repr(found)
    assert "of-the-cluster" not in repr(found)
    assert options(found, 1.0)["verify"] is found.tls


def test_a_client_certificate_needs_no_header(kubeconfig: Any) -> None:  # noqa: ANN401
    kubeconfig(kubeconfig.pair)
    sent = request_of(find(LAB | {"FATHOM_SERVICE": "ns/https:name:http"}), calls.me())
    assert "Authorization" not in sent["headers"]
    assert sent["url"] == f"{SERVER}/api/v1/namespaces/ns/services/https:name:http/proxy/v1/me"


@pytest.mark.parametrize(
    ("env", "cluster", "words"),
    [
        ({"FATHOM_TOKEN": ""}, {}, "FATHOM_ACCOUNT=NAMESPACE/NAME"),
        ({"FATHOM_URL": "https://elsewhere"}, {}, "leave one out"),
        ({"FATHOM_CONTEXT": "none"}, {}, "context 'none' cannot be used"),
        ({"FATHOM_SERVICE": "ns"}, {}, "no service"),
        ({"FATHOM_SERVICE": "ns/../../x"}, {}, "no service"),
        ({"FATHOM_TOKEN": "", "FATHOM_ACCOUNT": "runner"}, {}, "no service account"),
        ({}, {"insecure-skip-tls-verify": True}, "does not verify"),
        ({}, {"server": "http://203.0.113.7"}, "does not verify"),
        ({}, {"proxy-url": "http://127.0.0.1:1"}, "proxy-url"),
        ({}, {"tls-server-name": "other"}, "tls-server-name"),
        ({}, {"certificate-authority": __file__}, "cannot be used"),
    ],
)
def test_what_would_go_astray_is_refused(kubeconfig: Any, env: Any, cluster: Any, words: str) -> None:  # noqa: ANN401
    kubeconfig(**cluster)
    with pytest.raises(UsageError, match=words):
        find(LAB | env)


def test_tokens_of_one_context_are_not_for_another() -> None:
    env = {"FATHOM_CONTEXT": "lab", "FATHOM_TOKEN": "a", "FATHOM_TOKEN_FILE": "b", "FATHOM_ACCOUNT": "c", "HOME": "d"}
    assert elsewhere(env, "lab") == env
    assert elsewhere(env, "other") == {"FATHOM_CONTEXT": "other", "HOME": "d"}
    without = {name: value for name, value in env.items() if name != "FATHOM_CONTEXT"}
    assert elsewhere(without, "lab") == env, "what names none is for whichever is chosen"

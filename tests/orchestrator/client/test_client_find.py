"""Where the client finds its service, and where it never sends a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.client.core import finder
from orchestrator.client.find import Service, checked, find, loopback
from orchestrator.errors import FathomError, Unavailable, UsageError

URL = "http://127.0.0.1:8470"


def record(home: Path, **changes: Any) -> None:  # noqa: ANN401 - any field
    own = psutil.Process()
    found = {"url": URL, "pid": own.pid, "started": own.create_time(), "boot": psutil.boot_time()}
    home.mkdir(exist_ok=True)
    (home / "service.json").write_text(json.dumps(found | changes))
    (home / "admin.token").write_text("fathom-admin\n")


def at(home: Path, **more: str) -> dict[str, str]:
    return {"FATHOM_HOME": str(home)} | more


def test_the_service_of_this_home_and_its_token(tmp_path: Path) -> None:
    record(tmp_path)
    assert find(at(tmp_path)) == Service(URL, "fathom-admin")
    assert "fathom-admin" not in repr(find(at(tmp_path)))
    assert find(at(tmp_path, FATHOM_TOKEN="mine")).token == "mine"


def test_none_was_started(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"no service has been started in .*: start one with `fathom serve`"):
        find(at(tmp_path))


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": 5.0}, {"boot": 5.0}])
def test_one_that_is_gone_is_not_asked(tmp_path: Path, change: dict[str, float]) -> None:
    record(tmp_path, **change)
    with pytest.raises(Unavailable, match="is gone: start it again with `fathom serve`"):
        find(at(tmp_path))


def test_the_environment_names_another(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("from-a-file\n")
    url = "https://fathom.example/api/"
    assert find(at(tmp_path, FATHOM_URL=url, FATHOM_TOKEN_FILE=str(secret))) == Service(url[:-1], "from-a-file")


def test_the_admin_token_is_for_its_own_service_only(tmp_path: Path) -> None:
    record(tmp_path)
    assert find(at(tmp_path, FATHOM_URL=f"{URL}/")).token == "fathom-admin"
    with pytest.raises(UsageError, match="there is no token for it: set FATHOM_TOKEN"):
        find(at(tmp_path, FATHOM_URL="https://elsewhere.example"))


def test_a_token_of_the_environment_is_for_its_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_URL", "https://one.example")
    monkeypatch.setenv("FATHOM_TOKEN", "of-one")
    assert finder("https://one.example", None, False)().token == "of-one"
    assert finder("https://two.example", "of-two", False)().token == "of-two"
    with pytest.raises(UsageError, match="there is no token for it"):
        finder("https://two.example", None, False)()


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "holds no token"), ("two words", "holds no token"), (None, "cannot be read: No such file")],
)
def test_a_token_that_cannot_be_sent(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        find(at(tmp_path, FATHOM_URL=URL, FATHOM_TOKEN_FILE=str(path)))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://fathom.example", "in plain text over the network"),
        ("http://127.0.0.1.example", "in plain text over the network"),
        ("127.0.0.1:8470", "is no address of a service"),
        ("ftp://localhost", "is no address of a service"),
        ("https://user:secret@fathom.example", "a token goes into FATHOM_TOKEN"),
        ("https://fathom.example?token=x", "a token goes into FATHOM_TOKEN"),
    ],
)
def test_where_a_token_is_never_sent(url: str, words: str) -> None:
    with pytest.raises(FathomError, match=words) as raised:
        checked(url, {})
    assert "secret" not in str(raised.value)


def test_plain_text_is_allowed_by_name() -> None:
    assert checked("http://fathom.example/", {"FATHOM_ALLOW_HTTP": "1"}) == "http://fathom.example"


@pytest.mark.parametrize(
    ("url", "near"),
    [("http://localhost:1", True), ("http://[::1]:1", True), ("http://127.8.0.1", True), ("http://10.0.0.1", False)],
)
def test_which_addresses_are_this_machine(url: str, near: bool) -> None:
    assert loopback(url) is near

from __future__ import annotations

import pytest

from orchestrator.tracking import names
from orchestrator.tracking.client import batches, complaint
from orchestrator.tracking.reached import without_credentials


def test_batches_keep_order_and_limits() -> None:
    assert list(batches(range(5), 2, lambda _: 1)) == [[0, 1], [2, 3], [4]]
    assert list(batches([400_000, 400_000, 400_000], 100, lambda size: size)) == [[400_000, 400_000], [400_000]]
    assert list(batches([], 2, lambda _: 1)) == []
    assert list(batches([10**7], 2, lambda size: size)) == [[10**7]]


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:secret@host/mlflow",
        "https://user:se@secret@host/mlflow",
        "postgresql://user:secret@host:5432/db",
        "https://secret@host",
    ],
)
def test_credentials_are_never_shown(uri: str) -> None:
    assert "secret" not in complaint(uri, ConnectionError(f"cannot reach {uri}/api"))
    assert "host" in complaint(uri, ConnectionError(f"cannot reach {uri}/api"))
    assert "secret" not in without_credentials(uri)


def test_what_has_no_credentials_stays() -> None:
    assert without_credentials("http://host/a@b and me@there") == "http://host/a@b and me@there"


@pytest.mark.parametrize("name", ["", "/a", "../a", "a//b", "a(b)", "a/../b", ".", "x" * 251])
def test_names_that_mlflow_refuses(name: str) -> None:
    assert not names.is_metric_name(name)


def test_tags_that_pretend_to_be_ours_are_left_out() -> None:
    found = names.user_tags({"who": "me", "mlflow.parentRunId": "x", "fathom.uid": "y", "a(b)": "z"})
    assert found == {"who": "me"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/mlflow", "https://host/mlflow"),
        ("postgresql://user:se/cr@et@db/x", "postgresql://db/x"),
        ("https://host/path@2", "https://host/path@2"),
        ("cannot reach http://a:b@c:5000 today", "cannot reach http://c:5000 today"),
    ],
)
def test_credentials_are_taken_out(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


def test_long_credentials_are_not_cut_into_plain_sight() -> None:
    token = "s3cr3t" * 80
    told = complaint(f"https://user:{token}@host", ConnectionError(f"cannot reach https://user:{token}@host/x"))
    assert "s3cr3t" not in told
    assert "cannot reach https://host/x" in told

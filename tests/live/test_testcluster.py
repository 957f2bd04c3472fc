"""What `make test-cluster` says where it cannot run, and what of its parts it makes its exit status of."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support import kube_home

from live import testcluster


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Exit status of each part, by name; nothing is missing."""
    status = dict.fromkeys(testcluster.PARTS, 0)
    monkeypatch.setattr(testcluster, "lacking", lambda *, node: [])
    monkeypatch.setenv("FATHOM_TEST_CRDS", "/somewhere")
    monkeypatch.setattr(testcluster, "_run", lambda name, which: status[name])
    return status


def exit_status(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["testcluster", *options])
    return testcluster.main()


def test_what_is_missing_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(kube_home.NAMED_BY, "/nowhere/cluster")
    monkeypatch.delenv("FATHOM_TEST_CRDS", raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    assert exit_status(monkeypatch) == 1
    said = capsys.readouterr().err
    assert "did NOT run" in said
    assert kube_home.NAMED_BY in said
    assert "FATHOM_TEST_CRDS" in said
    assert "root: this is user 1000" in said
    assert "apt-get install" in said
    assert exit_status(monkeypatch, "--if-possible") == 0
    assert "did NOT run" in capsys.readouterr().err


def test_definitions_beside_the_program_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cluster").touch()
    monkeypatch.setenv(kube_home.NAMED_BY, str(tmp_path / "cluster"))
    monkeypatch.delenv("FATHOM_TEST_CRDS", raising=False)
    assert [one for one in kube_home.lacking(node=False) if "definitions" in one]
    (tmp_path / "crds").mkdir()
    assert kube_home.lacking(node=False) == []
    assert kube_home.definitions_beside() == str(tmp_path / "crds")


def test_pretended_nodes_need_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", "")
    assert [one for one in kube_home.lacking(node=False) if "root" in one or "apt-get" in one] == []


@pytest.mark.parametrize("part", list(testcluster.PARTS))
def test_a_part_that_fails_fails_all(monkeypatch: pytest.MonkeyPatch, ran: dict[str, int], part: str) -> None:
    assert exit_status(monkeypatch) == 0
    ran[part] = 1
    assert exit_status(monkeypatch) == 1
    assert exit_status(monkeypatch, "--if-possible") == 1


def test_a_cluster_that_does_not_come_up_is_no_failure_where_one_says_so(
    monkeypatch: pytest.MonkeyPatch, ran: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    ran["pretended nodes"] = kube_home.NoCluster.status
    assert exit_status(monkeypatch, "--if-possible") == 0
    assert "a cluster with pretended nodes" in capsys.readouterr().err
    assert exit_status(monkeypatch) == 1


def test_without_a_node_only_pretended_ones_are_tried(monkeypatch: pytest.MonkeyPatch, ran: dict[str, int]) -> None:
    ran["a real node"] = 1
    assert exit_status(monkeypatch, "--without-node") == 0

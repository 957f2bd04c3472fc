"""Whole jobs in a cluster: the real controller and launcher against a real API server, on which KubeRay and Kueue are
played."""

from __future__ import annotations

import time

import pytest
from support.kube_stage import KubeStage

from orchestrator.launch.resolve import read_resolved
from orchestrator.status import ConditionType, Reason

pytestmark = pytest.mark.kube

ADMITTED, RUNNING = ConditionType.ADMITTED, ConditionType.RUNNING


def test_a_whole_job(stage: KubeStage) -> None:
    stage.submit()
    with stage.service():
        stage.until(lambda: stage.names == ["mini-a1"], "made")
        assert stage.condition(ConditionType.ACCEPTED).reason is Reason.VALID
        assert stage.status.phase.value == "Starting"
        began = time.time()
        cluster = stage.player.runs("mini-a1")
        stage.until(lambda: read_resolved(stage.folder.resolved(1)).incarnation == cluster, "its cluster is known")
        stage.starts()
        stage.saves()
        stage.until_phase("Running")
        stage.ends()
        stage.player.ends("mini-a1", "SUCCEEDED")
        stage.until_phase("Succeeded")
        stage.until(lambda: not stage.names and not stage.player.pods() and not stage.player.supporting(), "cleaned")
    [attempt] = stage.status.attempts
    assert attempt.ended_at is not None
    held = (attempt.ended_at - attempt.started_at).total_seconds()
    assert began - 1 <= attempt.started_at.timestamp() <= time.time()  # whole seconds, by the API server
    assert 0 <= held <= time.time() - began + 1

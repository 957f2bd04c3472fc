"""A controller that dies at any of its writes for a job with one attempt."""

from __future__ import annotations

import pytest
from support.kube_deaths import OF_ONE_ATTEMPT, die_at_every_write
from support.kube_proxy import KubeProxy
from support.kube_whole import WholeStage

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("story", OF_ONE_ATTEMPT)
def test_crash_in_one_attempt(whole: WholeStage, proxy: KubeProxy, story: str) -> None:
    die_at_every_write(whole, proxy, story)

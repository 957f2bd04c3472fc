"""A controller that dies at any of its writes for a job with two attempts."""

from __future__ import annotations

import pytest
from support.kube_deaths import OF_TWO_ATTEMPTS, die_at_every_write
from support.kube_proxy import KubeProxy
from support.kube_whole import WholeStage

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("story", OF_TWO_ATTEMPTS)
def test_crash_in_two_attempts(whole: WholeStage, proxy: KubeProxy, story: str) -> None:
    die_at_every_write(whole, proxy, story)

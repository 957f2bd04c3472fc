"""A controller that dies at any of its writes, when the server has done it, before the answer comes."""

from __future__ import annotations

import pytest
from support.kube_deaths import STORIES, die_at_every_write
from support.kube_proxy import KubeProxy
from support.kube_whole import WholeStage

pytestmark = [pytest.mark.kube, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("story", "least"), STORIES)
def test_crash_after_every_write(whole: WholeStage, proxy: KubeProxy, story: str, least: int) -> None:
    die_at_every_write(whole, proxy, story, least, "cut after")

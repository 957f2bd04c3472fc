from __future__ import annotations

from typing import Any

import pytest
from support.apiserver import ApiServer
from support.discovery import Kinds


@pytest.fixture(scope="module")
def operated(operated: ApiServer, trainingjobs: dict[str, Any]) -> ApiServer:
    """With our definition, too."""
    return operated


@pytest.fixture(scope="module")
def kinds(operated: ApiServer) -> Kinds:
    """What that server serves."""
    return Kinds(operated.client())


@pytest.fixture
def restricted(operated: ApiServer) -> str:
    """A namespace of the test's own, where only restricted pods are let in."""
    return operated.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})

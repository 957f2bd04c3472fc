from __future__ import annotations

import pytest
from support import operators
from support.apiserver import ApiServer
from support.discovery import Kinds


@pytest.fixture(scope="module")
def operated(request: pytest.FixtureRequest) -> ApiServer:
    """The server of all tests, with our definition and those of both operators."""
    found = operators.definitions()
    if found is None:
        pytest.skip(operators.NOT_RUN)
    request.getfixturevalue("trainingjobs")
    api_server: ApiServer = request.getfixturevalue("api_server")
    operators.installed(api_server, found)
    return api_server


@pytest.fixture(scope="module")
def kinds(operated: ApiServer) -> Kinds:
    """What that server serves."""
    return Kinds(operated.client())


@pytest.fixture
def restricted(operated: ApiServer) -> str:
    """A namespace of the test's own, where only restricted pods are let in."""
    return operated.namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})

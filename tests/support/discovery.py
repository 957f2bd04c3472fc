"""Any object at a real API server, found by what the server says of its kinds."""

from __future__ import annotations

from typing import Any

import httpx2

from support.kube_objects import until

Object = dict[str, Any]


class Kinds:
    """What the server serves."""

    def __init__(self, client: httpx2.Client) -> None:
        self._client = client
        self._known: dict[tuple[str, str], Object] = {}

    def path(self, made: Object, namespace: str) -> str:
        """Of an object; `namespace` for one that names none."""
        version, metadata = made["apiVersion"], made["metadata"]
        found = self._resource(version, made["kind"])
        start = f"/apis/{version}" if "/" in version else f"/api/{version}"
        where = f"/namespaces/{metadata.get('namespace', namespace)}" if found["namespaced"] else ""
        return f"{start}{where}/{found['name']}/{metadata['name']}"

    def try_out(self, made: Object, namespace: str) -> httpx2.Response:
        """What the server would say of it, were it applied: nothing is made. Unknown fields are errors."""
        query = {"dryRun": "All", "fieldManager": "test", "force": "true", "fieldValidation": "Strict"}
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return self._client.patch(self.path(made, namespace), json=made, params=query, headers=headers)

    def everything(self) -> list[Object]:
        """All objects of all kinds that can be listed."""
        versions = [f"api/{one}" for one in self._get("/api")["versions"]]
        groups = self._get("/apis")["groups"]
        versions += [f"apis/{one['preferredVersion']['groupVersion']}" for one in groups]
        found: list[Object] = []
        for version in versions:
            if self._client.get(f"/{version}").status_code == 404:  # its definition goes at this moment
                continue
            for kind in self._get(f"/{version}")["resources"]:
                if "list" in kind["verbs"] and "/" not in kind["name"]:
                    items = self._get(f"/{version}/{kind['name']}")["items"]
                    found += [{"kind": kind["kind"]} | one for one in items]
        return found

    def _resource(self, version: str, kind: str) -> Object:
        if (version, kind) not in self._known:
            path = f"/apis/{version}" if "/" in version else f"/api/{version}"
            served = [one for one in self._get(path)["resources"] if one["kind"] == kind and "/" not in one["name"]]
            assert len(served) == 1, f"{version} {kind}: {served}"
            self._known[version, kind] = served[0]
        return self._known[version, kind]

    def _get(self, path: str) -> Object:
        answer: httpx2.Response = until(lambda: self._unless_busy(path))
        assert answer.status_code == 200, answer.text
        found: Object = answer.json()
        return found

    def _unless_busy(self, path: str) -> httpx2.Response | None:
        """A kind that was just defined is not served at once."""
        answer = self._client.get(path)
        return None if answer.status_code == 429 else answer

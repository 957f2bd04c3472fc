"""People of a real API server: service accounts with roles on TrainingJobs, their tokens, and pods with theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from support.apiserver import ApiServer

Json = dict[str, Any]
READS, RUNS = ("get", "list", "watch"), ("get", "list", "watch", "create", "update", "patch", "delete")
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


class KubePeople:
    """Of one server."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server

    def account(self, namespace: str, name: str, verbs: Sequence[str] = (), *, everywhere: bool = False) -> str:
        """A service account that may do this to TrainingJobs in its namespace, or in all; -> its user name."""
        self._post(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
        rules = [{"apiGroups": ["fathom.dev"], "resources": ["trainingjobs"], "verbs": list(verbs)}]
        if verbs:
            self.allow(namespace, name, rules, everywhere=everywhere)
        return f"system:serviceaccount:{namespace}:{name}"

    def allow(self, namespace: str, name: str, rules: Sequence[Json], *, everywhere: bool = False) -> None:
        """One more role of an account."""
        kind, place = ("ClusterRole", "") if everywhere else ("Role", f"/namespaces/{namespace}")
        role = f"{namespace}-{name}" if everywhere else name
        self._post(f"{_RBAC}{place}/{kind.lower()}s", {"metadata": {"name": role}, "rules": list(rules)})
        body = {
            "metadata": {"name": role},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        }
        self._post(f"{_RBAC}{place}/{kind.lower()}bindings", body)

    def forbid(self, namespace: str, name: str) -> None:
        """What it was allowed in its namespace is taken away."""
        answer = self._server.client().delete(f"{_RBAC}/namespaces/{namespace}/rolebindings/{name}")
        assert answer.status_code == 200, answer.text

    def token(self, namespace: str, name: str, audience: str, *, pod: Json | None = None) -> str:
        """Of an account; bound to a pod."""
        spec: Json = {"audiences": [audience]}
        if pod is not None:
            found = pod["metadata"]
            spec["boundObjectRef"] = {"kind": "Pod", "apiVersion": "v1", "name": found["name"], "uid": found["uid"]}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        token: str = self._post(path, {"spec": spec})["status"]["token"]
        return token

    def pod(self, namespace: str, name: str, account: str, **labels: str) -> Json:
        """That nobody runs."""
        spec = {"serviceAccountName": account, "containers": [{"name": "main", "image": "none"}]}
        body = {"metadata": {"name": name, "labels": labels}, "spec": spec}
        return self._post(f"/api/v1/namespaces/{namespace}/pods", body)

    def service(self, namespace: str, name: str, port: int, address: str, target: int) -> None:
        """In front of one process, as if that were a pod: the API server leads to pods only."""
        pod = self.pod(namespace, name, "default")["metadata"]["name"]
        status = {"status": {"podIP": address, "podIPs": [{"ip": address}], "phase": "Running"}}
        headers = {"Content-Type": "application/merge-patch+json"}
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/status"
        answer = self._server.client().patch(path, json=status, headers=headers)
        assert answer.status_code == 200, answer.text
        ports = {"name": "http", "port": port, "targetPort": target}
        self._post(f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": name}, "spec": {"ports": [ports]}})
        reference = {"kind": "Pod", "namespace": namespace, "name": pod}
        addresses = [{"ip": address, "targetRef": reference}]
        subsets = [{"addresses": addresses, "ports": [{"name": "http", "port": target}]}]
        self._post(f"/api/v1/namespaces/{namespace}/endpoints", {"metadata": {"name": name}, "subsets": subsets})

    def _post(self, path: str, body: Json) -> Json:
        answer = self._server.client().post(path, json=body)
        assert answer.status_code == 201, answer.text
        found: Json = answer.json()
        return found

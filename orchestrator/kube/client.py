"""Requests to an API server: plain dictionaries in and out, a time limit on each, errors of ours.

The generated classes of the package are not used: they cannot hold custom resources, and reading every pod into them
costs more than anything else here. Nothing is repeated at this level (urllib3 would, and would follow redirects with
our token): what may be sent twice is known in `again`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import urllib3
import yaml
from kubernetes.client import ApiClient, Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, load_kube_config
from kubernetes.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader

from orchestrator.errors import Unauthorized, Unavailable, UsageError
from orchestrator.kube.problems import refusal
from orchestrator.kube.resources import ACCOUNTS, Json, Target
from orchestrator.kube.stream import Stream

Query = Iterable[tuple[str, str]]
_AGENT = "fathom"
_POOL = 32
_PATCHES = {"merge": "application/merge-patch+json", "apply": "application/apply-patch+yaml"}


@dataclass(frozen=True)
class Timeouts:
    """Seconds of one request: to connect, and between two pieces of the answer."""

    connect: float = 3.0
    read: float = 15.0

    def within(self, seconds: float) -> Timeouts:
        """The same, but over within so many seconds if the answer comes in one piece."""
        connect = min(self.connect, seconds / 3)
        return Timeouts(connect, min(self.read, seconds - connect))


class Kube:
    """One API server, as one user. Threads may share it."""

    def __init__(
        self,
        configuration: Any,  # noqa: ANN401 - the package's Configuration, which mypy does not see
        *,
        timeouts: Timeouts = Timeouts(),
        reload: Callable[[], None] | None = None,
    ) -> None:
        """`reload`: reads the credentials again when the server no longer takes them."""
        configuration.retries = False
        configuration.keep_alive = True
        configuration.connection_pool_maxsize = _POOL
        self.timeouts = timeouts
        self._reload = reload
        self._api = ApiClient(configuration)
        self._api.user_agent = _AGENT

    # ------------------------------------------------------------------ ways to one
    @classmethod
    def in_cluster(
        cls,
        *,
        token: Path = Path(SERVICE_TOKEN_FILENAME),
        certificate: Path = Path(SERVICE_CERT_FILENAME),
        environ: Mapping[str, str] | None = None,
        timeouts: Timeouts = Timeouts(),
    ) -> Kube:
        """As the service account of this pod; its token may change while we run. UsageError outside of a pod."""
        configuration = Configuration()
        variables = os.environ if environ is None else environ
        loader = InClusterConfigLoader(token_filename=token, cert_filename=certificate, environ=variables)

        def load() -> None:
            loader.load_and_set(configuration)

        try:
            load()
        except (ConfigException, OSError) as error:
            raise UsageError(f"this is not a pod with a service account: {error}; give a kubeconfig") from error
        # the package reads the token again by the wall clock, which may have been set back meanwhile
        return cls(configuration, timeouts=timeouts, reload=load)

    @classmethod
    def from_kubeconfig(
        cls,
        path: Path | None = None,
        context: str | None = None,
        *,
        timeouts: Timeouts = Timeouts(),
    ) -> Kube:
        """As a kubeconfig says; without a path as kubectl finds it. UsageError if it says nothing usable."""
        return cls(read_kubeconfig(path, context), timeouts=timeouts)

    def close(self) -> None:
        """Of no use afterwards."""
        self._api.close()

    # ------------------------------------------------------------------ verbs
    def get(self, target: Target, *, query: Query = (), timeouts: Timeouts | None = None) -> Json:
        """One object, or one page of a list."""
        return self._ask("GET", "get" if target.name else "list", target, target, query, timeouts=timeouts)

    def create(self, target: Target, body: Json, *, query: Query = (), timeouts: Timeouts | None = None) -> Json:
        """Once, under its name; -> as the server has it."""
        return self._ask("POST", "create", target, target.collection, query, body, timeouts=timeouts)

    def mint(self, namespace: str, account: str, audience: str, seconds: int) -> str:
        """A token of a service account, for this audience (TokenRequest). The server may give it less time."""
        target = replace(ACCOUNTS.at(namespace, account), subresource="token")
        body = {"spec": {"audiences": [audience], "expirationSeconds": seconds}}
        status = self._ask("POST", "create", target, target, (), body).get("status")
        token = status.get("token") if isinstance(status, dict) else None
        if not isinstance(token, str) or not token:
            raise Unavailable(f"create {target}: the answer holds no token: is this an API server?")
        return token

    def replace(self, target: Target, body: Json, *, timeouts: Timeouts | None = None) -> Json:
        """Conflict if it is no longer at the resourceVersion of `body`."""
        return self._ask("PUT", "update", target, target, (), body, timeouts=timeouts)

    def patch(
        self,
        target: Target,
        body: Json,
        form: Literal["merge", "apply"],
        *,
        query: Query = (),
        timeouts: Timeouts | None = None,
    ) -> Json:
        """A merge patch, or a server-side apply."""
        verb = "patch" if form == "merge" else "apply"
        return self._ask("PATCH", verb, target, target, query, body, _PATCHES[form], timeouts)

    def delete(self, target: Target, options: Json, *, timeouts: Timeouts | None = None) -> Json:
        """With DeleteOptions."""
        return self._ask("DELETE", "delete", target, target, (), options, timeouts=timeouts)

    def watch(self, target: Target, *, query: Query, silence: float) -> Stream:
        """What happens from now on; the server ends it by `timeoutSeconds` of the query.

        It begins to answer within the usual time; after that nothing for `silence` seconds is a broken connection.
        """
        response = self._send("GET", "watch", target, target, [*query, ("watch", "true")], None, None, self.timeouts)
        return Stream(response.response, f"watch {target}", silence)

    # ------------------------------------------------------------------ one request
    def _ask(
        self,
        method: str,
        verb: str,
        named: Target,
        target: Target,
        query: Query,
        body: Json | None = None,
        content: str = "application/json",
        timeouts: Timeouts | None = None,
    ) -> Json:
        response = self._send(method, verb, named, target, query, body, content, timeouts or self.timeouts)
        doing = f"{verb} {named}"
        try:
            found: Any = json.loads(_read(response))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _unanswered(doing, error) from error
        except ValueError as error:
            raise Unavailable(f"{doing}: the answer is no JSON ({error}): is this an API server?") from error
        if not isinstance(found, dict):
            raise Unavailable(f"{doing}: the answer is a {type(found).__name__}, not an object: is this an API server?")
        return found

    def _send(
        self,
        method: str,
        verb: str,
        named: Target,
        target: Target,
        query: Query,
        body: Json | None,
        content: str | None,
        timeouts: Timeouts,
    ) -> Any:  # noqa: ANN401 - the package's RESTResponse
        """-> an answer of success, its body not yet read."""
        doing = f"{verb} {named}"
        headers = {"Accept": "application/json"} | ({"Content-Type": content} if body is not None and content else {})
        limits = (timeouts.connect, timeouts.read)
        try:
            request = self._api.param_serialize(
                method, target.path, None, list(query), headers, body, auth_settings=["BearerToken"]
            )
            response = self._api.call_api(*request, _request_timeout=limits)
            status = int(response.status)
            if 200 <= status < 300:
                return response
            words = _read(response).decode(errors="replace")
        except (urllib3.exceptions.HTTPError, ApiException, ConfigException, OSError) as error:
            raise _unanswered(doing, error) from error
        self._refuse(doing, status, response.headers, words)

    def _refuse(self, doing: str, status: int, headers: Mapping[str, str], words: str) -> NoReturn:
        error = refusal(doing, status, headers, words)
        if isinstance(error, Unauthorized) and self._reload is not None:
            try:
                self._reload()
            except (ConfigException, OSError) as missing:
                raise Unauthorized(f"{error} (its token cannot be read: {missing})") from missing
        raise error


def read_kubeconfig(path: Path | None = None, context: str | None = None) -> Any:  # noqa: ANN401 - the package's
    """A Configuration; without a path as kubectl finds it. UsageError if it says nothing usable."""
    configuration = Configuration()
    try:
        # the package looks at KUBECONFIG once, when it is imported
        load_kube_config(str(path) if path else os.environ.get("KUBECONFIG") or None, context, configuration)
    except (ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        where = str(path) if path else "the default place (KUBECONFIG, ~/.kube/config)"
        chosen = f", context {context!r}" if context else ""
        raise UsageError(f"the kubeconfig in {where}{chosen} cannot be used: {error}") from error
    return configuration


def _read(response: Any) -> bytes:  # noqa: ANN401 - the package's RESTResponse
    """All of it; the connection goes back to the pool."""
    content: bytes = response.read()
    return content


def _unanswered(doing: str, error: Exception) -> Unavailable:
    """Nobody knows whether the server did it."""
    words = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
    return Unavailable(f"{doing}: no answer from the API server ({words}): see whether it can be reached")

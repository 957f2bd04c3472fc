"""A real Kubernetes API server on loopback: etcd and kube-apiserver, with RBAC and tokens, without controllers.

Nothing reconciles there: no pods run, nothing is garbage-collected, deleted namespaces stay Terminating, and a
namespace has no service account of its own. Give each test a namespace.
"""

from __future__ import annotations

import csv
import datetime
import ipaddress
import json
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from support.ports import free_ports

Json = dict[str, Any]
_PATIENCE = 600.0
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
USERS = {"admin": "system:masters", "stranger": ""}
"""Whom tokens are made for, and their group; `Impersonate-User` of the admin is anybody else."""


class ApiServer:
    """Started in a folder of its own; everything it has is in memory or there."""

    def __init__(self, folder: Path, assets: Path) -> None:
        self.folder, self._assets = folder, assets
        self._ports = free_ports(3)
        self.url = f"https://127.0.0.1:{self._ports[0]}"
        self.ca = folder / "ca.crt"
        self.tokens = {user: secrets.token_hex(16) for user in USERS}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._clients: dict[str, httpx2.Client] = {}
        self._namespaces = 0

    # ------------------------------------------------------------------ life
    def start(self) -> None:
        """Until it answers that it is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_keys(self.folder)
        with (self.folder / "tokens.csv").open("w", newline="") as file:
            csv.writer(file).writerows([token, user, user, USERS[user]] for user, token in self.tokens.items())
        self._run("etcd", _etcd(self.folder, *self._ports[1:]))
        self._run("kube-apiserver", _server(self.folder, self._ports[0], self._ports[1]))
        self._wait()

    def stop(self) -> None:
        """At once; nothing of it is kept."""
        for client in self._clients.values():
            client.close()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()

    @contextmanager
    def paused(self, name: str) -> Iterator[None]:
        """`etcd` or `kube-apiserver` does nothing meanwhile; connections stay open."""
        process = self._processes[("etcd", "kube-apiserver").index(name)]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def _run(self, name: str, arguments: Sequence[str]) -> None:
        # a test run that is killed takes its servers along, where util-linux can arrange it
        leash = [setpriv, "--pdeathsig", "KILL"] if (setpriv := shutil.which("setpriv")) else []
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [*leash, str(self._assets / name), *arguments]
            # More room for garbage, and no second thread that looks for work: a sixth less CPU than with 200 and two
            # cores, for 0.6 GB more.
            environment = {**os.environ, "GOGC": "400", "GOMAXPROCS": "1"}
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
            )

    def _wait(self) -> None:
        end = time.monotonic() + _PATIENCE
        client = self.client()
        while time.monotonic() < end:
            for process, name in zip(self._processes, ("etcd", "kube-apiserver"), strict=True):
                assert process.poll() is None, f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}"
            try:
                if client.get("/readyz").status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"no API server in {_PATIENCE} s")

    # ------------------------------------------------------------------ ways in
    def client(self, user: str = "admin") -> httpx2.Client:
        """Plain HTTP as one of the users."""
        if user in self._clients:
            return self._clients[user]
        context = ssl.create_default_context(cafile=str(self.ca))
        headers = {"Authorization": f"Bearer {self.tokens[user]}"}
        made = httpx2.Client(base_url=self.url, headers=headers, verify=context, timeout=120, trust_env=False)
        self._clients[user] = made
        return made

    def kubeconfig(self, user: str = "admin") -> Path:
        """For kubectl, helm and the `kubernetes` package."""
        path = self.folder / f"{user}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        }
        path.write_text(json.dumps(config))
        return path

    def kubectl(self, *arguments: str, stdin: str = "", user: str = "admin") -> subprocess.CompletedProcess[str]:
        """The real one; its cache of what the server has is thrown away with the server."""
        return subprocess.run(
            [str(self._assets / "kubectl"), *arguments],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig(user)), "KUBECACHEDIR": str(self.folder / "cache")},
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    # ------------------------------------------------------------------ what tests begin with
    def namespace(self, **labels: str) -> str:
        """A new one; -> its name."""
        self._namespaces += 1
        name = f"test-{self._namespaces}"
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        answer = self.client().post("/api/v1/namespaces", json=body)
        assert answer.status_code == 201, answer.text
        return name

    def install(self, definition: Json) -> Json:
        """A custom resource definition, until its resources are served; -> as the server has it then."""
        [found] = self.install_all([definition])
        return found

    def install_all(self, definitions: Sequence[Json]) -> list[Json]:
        """All of them before any is waited for. What kubectl reads comes last, and is asked for once it may be there:
        the server makes it anew for whoever asks after each of them."""
        for one in definitions:
            answer = self.client().post(_DEFINITIONS, json=one)
            assert answer.status_code in (201, 409), answer.text
        found = [self._established(one["metadata"]["name"]) for one in definitions]
        versions = [f"apis/{one['spec']['group']}/{one['spec']['versions'][0]['name']}" for one in found]
        for version, one in zip(versions, found, strict=True):
            self._served(f"/{version}/{one['spec']['names']['plural']}")
        for version in dict.fromkeys(versions):
            self._served(f"/openapi/v3/{version}")
        return found

    def _established(self, name: str) -> Json:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            found: Json = self.client().get(f"{_DEFINITIONS}/{name}").json()
            conditions = found["status"].get("conditions") or []
            if "Established" in [one["type"] for one in conditions if one["status"] == "True"]:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{name} is not served after {_PATIENCE} s: {found['status']}")

    def _served(self, path: str) -> None:
        end = time.monotonic() + _PATIENCE
        while self.client().get(path).status_code != 200:
            assert time.monotonic() < end, f"{path} is not served after {_PATIENCE} s"
            time.sleep(0.05)


def _etcd(folder: Path, port: int, peer: int) -> list[str]:
    url, peers = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return [
        *(f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync", "--log-level=warn"),
        *(f"--listen-client-urls={url}", f"--advertise-client-urls={url}"),
        *(f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}"),
        f"--initial-cluster=default={peers}",
    ]


def _server(folder: Path, port: int, etcd: int) -> list[str]:
    return [
        *(f"--etcd-servers=http://127.0.0.1:{etcd}", f"--secure-port={port}", "--bind-address=127.0.0.1"),
        *(
            "--advertise-address=127.0.0.1",
            "--endpoint-reconciler-type=none",
            "--service-cluster-ip-range=10.96.0.0/16",
        ),
        *("--authorization-mode=RBAC", f"--token-auth-file={folder / 'tokens.csv'}", "--anonymous-auth=false"),
        *(f"--tls-cert-file={folder / 'api.crt'}", f"--tls-private-key-file={folder / 'api.key'}"),
        "--enable-priority-and-fairness=false",  # a twelfth of the CPU, for who asks too much: nobody does
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        *("--disable-admission-plugins=ServiceAccount", "--profiling=false", "--allow-privileged=true"),
    ]


def _write_keys(folder: Path) -> None:
    """ca.crt; api.crt and api.key signed by it; sa.key, which signs tokens of service accounts."""
    authority, server, accounts = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
    root = _certificate(issuer, issuer, authority.public_key(), authority.public_key())
    root = root.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    usage = {"digital_signature": True, "key_cert_sign": True, "crl_sign": True}
    off = (
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    root = root.add_extension(x509.KeyUsage(**usage, **dict.fromkeys(off, False)), critical=True)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kube-apiserver")])
    leaf = _certificate(subject, issuer, server.public_key(), authority.public_key()).add_extension(
        x509.SubjectAlternativeName(
            [
                x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                x509.DNSName("localhost"),
                x509.DNSName("kubernetes.default.svc"),
            ]
        ),
        critical=False,
    )
    (folder / "ca.crt").write_bytes(root.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "api.crt").write_bytes(leaf.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    for name, key in (("api", server), ("sa", accounts)):
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        (folder / f"{name}.key").write_bytes(pem)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, signer: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    """Of today and yesterday, with the names of keys that strict clients look for."""
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )

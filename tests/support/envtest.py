"""Where etcd, kube-apiserver and kubectl are, for an API server of Kubernetes: as the envtest of controller-runtime."""

from __future__ import annotations

import hashlib
import http.client
import os
import platform
import shutil
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path

PROGRAMS = ("etcd", "kube-apiserver", "kubectl")
NOT_RUN = "needs a Kubernetes API server: set KUBEBUILDER_ASSETS"
"""Why a test was skipped; tests/conftest.py counts these at the end."""
VERSION = "1.34.1"
RELEASES = "https://github.com/kubernetes-sigs/controller-tools/releases/download"
SHA512 = {
    "linux-amd64": "c5e7c237ae18a8c65d0df1214b864ecd19aa9ff4f1383dbd477c202546d778c0"
    "f74efe15750ec38f57d8de26ba17cd62f404446cdd3c975399a5d4589de35cdd",
    "linux-arm64": "bf13d2456183e66d084e28e1c9eed6a408fb77a06d8d1fd0461a7d9bc0c90b63"
    "d29ea67870b28f80d1f992acb026007d6f43987753c859c81d6a78bc1ca2c903",
    "darwin-arm64": "43d7c10b74100d20044df7c73be03e26f8243a9cb7c1d3035e581ee7bb0c7ffc"
    "af759b9e182186b5bb2f47d1608835414ca443181a02d9ecb6c9cf04b43e3809",
}
"""Of the archives, from envtest-releases.yaml of kubernetes-sigs/controller-tools at 434758187ddd."""
CUSTOMARY = Path("/usr/local/kubebuilder/bin")
_SECONDS = 20


def find_assets(env: Mapping[str, str] = os.environ, releases: str = RELEASES) -> Path | None:
    """The folder with the programs: named by the environment, in a customary place, or downloaded; None if nowhere."""
    if named := env.get("KUBEBUILDER_ASSETS"):
        missing = [name for name in PROGRAMS if not (Path(named) / name).exists()]
        assert not missing, f"KUBEBUILDER_ASSETS is {named}, which lacks {', '.join(missing)}"
        return Path(named)
    home = Path(env.get("HOME", "/nonexistent"))
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / f"envtest-{VERSION}"
    found = [CUSTOMARY, *_set_up(home), cache]
    on_path = shutil.which("kube-apiserver", path=env.get("PATH", ""))
    if on_path:
        found.append(Path(on_path).parent)
    complete = (folder for folder in found if all((folder / name).exists() for name in PROGRAMS))
    return next(complete, None) or _downloaded(cache, releases)


def not_run(reasons: Iterable[str]) -> str:
    """What is to be said loudly at the end, of the reasons why tests were skipped; "" if nothing."""
    count = sum(NOT_RUN in reason for reason in reasons)
    return f"{count} tests that need a Kubernetes API server did NOT run: set KUBEBUILDER_ASSETS" if count else ""


def kind() -> str:
    """Of machine, as releases are named."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return f"{sys.platform}-{machine}"


def _set_up(home: Path) -> list[Path]:
    """What the tool setup-envtest has fetched, newest first."""
    return sorted((home / ".local/share/kubebuilder-envtest").glob("k8s/*"), reverse=True)


def _downloaded(folder: Path, releases: str) -> Path | None:
    """The pinned archive, unpacked; None where it cannot be had. A wrong checksum fails the tests."""
    machine = kind()
    if machine not in SHA512:
        return None
    url = f"{releases}/envtest-v{VERSION}/envtest-v{VERSION}-{machine}.tar.gz"
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:
            archive = answer.read()
    except (OSError, http.client.HTTPException):
        return None
    digest = hashlib.sha512(archive).hexdigest()
    assert digest == SHA512[machine], f"{url} has the SHA-512 {digest}, expected {SHA512[machine]}"
    return _unpacked(archive, folder)


def _unpacked(archive: bytes, folder: Path) -> Path:
    """The programs alone, all at once: several processes of a test run may do this at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    with tempfile.TemporaryFile() as file:
        file.write(archive)
        file.seek(0)
        with tarfile.open(fileobj=file) as members:
            for member in members:
                name = Path(member.name).name
                if name in PROGRAMS and (content := members.extractfile(member)) is not None:
                    (part / name).write_bytes(content.read())
                    (part / name).chmod(0o755)
    try:
        part.rename(folder)
    except OSError:  # another process was quicker
        shutil.rmtree(part)
    return folder

"""Whether the programs are there: Python, packages, a compiler. Nothing heavy is imported into this process."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec

from orchestrator.doctor.findings import Finding, Place, State

DISTRIBUTION = "fathom-train"
_INSTALL = "run `pip install 'fathom-train[train]'` (or `make venv`)"
_NEEDED = ("torch", "deepspeed", "ray", "mlflow", "tokenizers")
"""Where nobody says what is needed: Fathom runs from a folder."""
_PATIENCE_SECONDS = 120.0
_COMPILERS = ("c++", "g++", "clang++")


def own_version() -> str:
    """Of Fathom."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def python(place: Place) -> Iterator[Finding]:
    """Its version and that of the system; with an older one than we need nothing of this would run."""
    says = f"{platform.python_version()} ({sys.executable}) on {platform.system()} {platform.machine()}"
    yield Finding("python", State.OK, f"{says}, fathom {own_version()}")


def packages(place: Place) -> Iterator[Finding]:
    """What training needs, in the versions that it needs."""
    needed = required()
    missing = [name for name in needed if version_of(name) is None]
    old = [
        f"{name} {found} (needs {least})"
        for name, least in needed.items()
        if (found := version_of(name)) is not None and least and _numbers(found) < _numbers(least)
    ]
    if old:
        yield Finding("packages", State.FAIL, f"too old: {', '.join(old)}", _INSTALL)
    if missing:
        says = f"plans, prices and the client work; training needs {', '.join(missing)}"
        yield Finding("packages", State.WARN, says, _INSTALL)
    if not old and not missing:
        told = ", ".join(f"{name} {version_of(name)}" for name in needed if name in _NEEDED)
        yield Finding("packages", State.OK, f"all {len(needed)} that training needs are there: {told}")


def imports(place: Place) -> Iterator[Finding]:
    """Whether the heavy ones can be imported, each in a process of its own: a broken one may crash or hang."""
    for name, code in (
        ("torch", "import torch; print(torch.__version__, 'with', torch.cuda.device_count(), 'GPUs')"),
        ("ray", "import ray; print(ray.__version__)"),
    ):
        if find_spec(name) is not None:
            yield _imported(name, code)


def _imported(name: str, code: str) -> Finding:
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE_SECONDS,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except subprocess.TimeoutExpired:
        says = f"{name} is not imported after {_PATIENCE_SECONDS:.0f} s"
        return Finding("imports", State.FAIL, says, "look whether the disk of the packages is slow or gone")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return Finding("imports", State.FAIL, f"{name} cannot be imported: {last}", f"reinstall it: {_INSTALL}")
    return Finding("imports", State.OK, f"{name} {done.stdout.strip().splitlines()[-1]}")


def compiler(place: Place) -> Iterator[Finding]:
    """Nothing of ours needs one."""
    found = next((path for name in _COMPILERS if (path := shutil.which(name, path=place.env.get("PATH")))), None)
    if found:
        yield Finding("compiler", State.OK, found)
    else:
        says = "no C++ compiler: Fathom needs none, but torch.compile and DeepSpeed's own kernels would"
        yield Finding("compiler", State.WARN, says, "install g++ if you use them")


def required() -> dict[str, str]:
    """Packages of the extra `train`, with the least version of each."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        lines = []
    found: dict[str, str] = {}
    for line in lines:
        match = re.match(r"([A-Za-z0-9._-]+)[^;]*?(?:>=\s*([0-9.]+))?[^;]*;.*extra\s*==\s*['\"]train['\"]", line)
        if match:
            least = re.search(r">=\s*([0-9.]+)", line.partition(";")[0])
            found[match[1]] = least[1] if least else ""
    return found or dict.fromkeys(_NEEDED, "")


def version_of(name: str) -> str | None:
    """Of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """2.11.0+cpu -> (2, 11, 0)."""
    leading = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()

"""The controller's image, from a root folder of Debian and the script that the image files run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from support.kube_home import KubeHome

ROOT = Path(__file__).parents[2]
NAME = "docker.io/library/fathom-controller:test"
SUITE = "bookworm"
"""Whose Python is 3.11, as that of the image files."""


def controller_image(cluster: KubeHome, folder: Path) -> str:
    """Made there, for the pods of the cluster; -> its name. Takes minutes, and a gigabyte of the folder."""
    _run("debootstrap", "--variant=minbase", "--include=python3,ca-certificates", SUITE, str(folder))
    target = folder / "opt" / "fathom"
    _run("sh", str(ROOT / "k8s" / "images" / "install.sh"), "controller", str(target), _python())
    cluster.image(folder, NAME, env=("PYTHONPATH=/opt/fathom", "PATH=/opt/fathom/bin:/usr/bin:/bin", "HOME=/tmp"))
    shutil.rmtree(folder)
    return NAME


def _python() -> str:
    """The packages are those of the version that the root folder has."""
    assert sys.version_info[:2] == (3, 11), f"{SUITE} has Python 3.11, and these tests run on {sys.version.split()[0]}"
    return sys.executable


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, f"{' '.join(words)}: {(done.stderr or done.stdout).strip()[-2000:]}"

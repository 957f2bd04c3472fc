"""Whether processes of this pod were killed because it had too little memory.

The kernel kills one process, and where it does not take the whole container along (cgroup v1, or a kubelet with
`singleProcessOOMKill`), Kubernetes tells nobody: the container lives on, and Ray begins another worker in
the same pod. The pod's control group counts them.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
_COUNTS = ("memory.events", "memory/memory.oom_control")
"""Of cgroup v2 and v1 (kernel documentation, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst)."""
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def shortage(pod: str, root: Path = ROOT) -> str | None:
    """What to say of it; None if none was killed, or if nobody counts here."""
    killed = max((_count(root / name) for name in _COUNTS), default=0)
    if not killed:
        return None
    limit = next((text for name in _LIMITS if (text := _read(root / name).strip()).isdigit()), None)
    at = "what its node has" if limit is None else f"its limit of {int(limit) / 2**20:.0f} MiB"
    return f"the kernel has killed {killed} of the processes of {pod}, which needed more memory than {at}"


def _count(file: Path) -> int:
    """Of its line `oom_kill N`."""
    words = [line.split() for line in _read(file).splitlines()]
    return sum(int(line[1]) for line in words if len(line) == 2 and line[0] == "oom_kill" and line[1].isdigit())


def _read(file: Path) -> str:
    """ "" where it cannot be read."""
    try:
        return file.read_text()
    except (OSError, ValueError):
        return ""

"""What a pod does between being told to go and being killed. Pure.

Observed: when a RayCluster is suspended the driver hears nothing, and the pre-stop hooks of all its pods start at once,
side by side; the signal to the container's own process, which ends Ray, comes after the hook. So the head's hook warns
the driver and waits for it, a worker's hook waits for its training processes, and nobody loses Ray before the last
checkpoint is written. Both scripts are constants: nothing of a job is in them but the number of seconds.
"""

from __future__ import annotations

import math

from orchestrator.cost.budget import Reserve
from orchestrator.launch.rayjob import agreed
from orchestrator.launch.rayjob.settings import Stopping


def stop_seconds(reserve: Reserve, limits: Stopping) -> int:
    """Time for the last checkpoint: what this job takes by what is known of it, within the cluster's limits."""
    known = math.ceil(reserve.heartbeat + reserve.save + reserve.grace)
    return max(limits.least_seconds, min(known, limits.most_seconds))


def grace_seconds(stop: int, limits: Stopping) -> int:
    """terminationGracePeriodSeconds, which counts from the beginning of the hook."""
    return stop + limits.end_seconds


def head_hook(seconds: int, pid: str = agreed.DRIVER_PID, done: str = agreed.DRIVER_DONE) -> list[str]:
    """Warn the driver, and wait until it has ended, at most so long."""
    return _shell(
        f'[ -e {done} ] && exit 0; p=$(cat {pid} 2>/dev/null) && kill -TERM "$p" 2>/dev/null || exit 0; '
        f'i=0; while [ $i -lt {seconds} ] && [ ! -e {done} ] && kill -0 "$p" 2>/dev/null; do sleep 1; i=$((i+1)); done'
    )


def worker_hook(seconds: int, pids: str = agreed.WORKER_PIDS) -> list[str]:
    """Wait until no training process of this pod lives, at most so long."""
    alive = f'a=; for f in {pids}/*; do kill -0 "${{f##*/}}" 2>/dev/null && a=1; done; [ -n "$a" ]'
    return _shell(f"i=0; while [ $i -lt {seconds} ] && {{ {alive}; }}; do sleep 1; i=$((i+1)); done")


def _shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]

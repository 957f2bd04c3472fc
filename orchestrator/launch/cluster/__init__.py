"""Attempts as RayJobs of a cluster: the `Launcher` of the controller there. docs/kubernetes.md says what it sees.

`sight` (pure) says what is seen of an attempt, by `pods`, `queued` and `ended`, and by what was seen before (`memory`);
`writing` makes and takes away its objects, `launcher` joins the two.
"""

from orchestrator.launch.cluster.launcher import KubeLauncher

__all__ = ["KubeLauncher"]

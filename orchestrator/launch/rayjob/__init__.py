"""An attempt as objects of a cluster: a KubeRay RayJob and what it needs; docs/kubernetes.md says why they are so."""

from orchestrator.launch.rayjob.render import Rendered, render
from orchestrator.launch.rayjob.settings import ClusterSettings

__all__ = ["ClusterSettings", "Rendered", "render"]

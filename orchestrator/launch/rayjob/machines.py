"""Machines and networks as they are usually found; a cluster's own go into its settings.

Nothing here adds a capability to a container. RDMA pins memory, for which pods are often given IPC_LOCK; but that is
outside Pod Security `restricted`, and of no effect for a user other than root (measured in
github.com/NVIDIA/nvidia-container-toolkit/issues/2037). What helps is the runtime's own limit: LimitMEMLOCK=infinity of
containerd.service on the nodes (as in github.com/kubernetes-sigs/kubespray/pull/9269); see docs/kubernetes.md.
"""

from __future__ import annotations

from orchestrator.launch.rayjob.placement import AcceleratorClass, Network, Place, Toleration

_GPU_TAINT = Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule")


def _gpu(product: str) -> AcceleratorClass:
    """A node of eight, found by the label of NVIDIA's GPU feature discovery (nvidia.com/gpu.product)."""
    return AcceleratorClass(
        place=Place(node_selector={"nvidia.com/gpu.product": product}, tolerations=(_GPU_TAINT,)),
        cpus_per_worker=12,  # of 112 cores (DGX H100) to 192 (p5.48xlarge) for eight
        memory_per_worker="160Gi",  # of 2 TB for eight
        shared_memory="32Gi",
        network="infiniband",
    )


ACCELERATORS = {
    "cpu": AcceleratorClass(per_node=1),
    "A100": _gpu("NVIDIA-A100-SXM4-80GB"),
    "H100": _gpu("NVIDIA-H100-80GB-HBM3"),
    "H800": _gpu("NVIDIA-H800"),
    "H200": _gpu("NVIDIA-H200"),
    "B200": _gpu("NVIDIA-B200"),
}
"""By the name that jobs use."""

_BOOTSTRAP = {"NCCL_SOCKET_IFNAME": "eth0"}
"""A pod's first interface: over it NCCL finds its peers, whatever carries the data
(docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html)."""
_RDMA = {"NCCL_IB_HCA": "mlx5"}
"""Every adapter whose name begins so. Which GID serves RoCE version 2 NCCL finds itself (NCCL_IB_GID_INDEX -1)."""
_SHARED_HCA = {"rdma/hca_shared_devices_a": 1}
"""As in the samples of github.com/Mellanox/k8s-rdma-shared-dev-plugin: one means access to all adapters of the node."""

NETWORKS = {
    "tcp": Network(env=_BOOTSTRAP | {"NCCL_IB_DISABLE": "1"}),
    "infiniband": Network(env=_BOOTSTRAP | _RDMA, resources=_SHARED_HCA),
    # The switches decide the traffic class (NCCL_IB_TC): it has no usual value.
    "roce": Network(env=_BOOTSTRAP | _RDMA, resources=_SHARED_HCA),
    # 32 interfaces of a p5.48xlarge (docs.aws.amazon.com/AWSEC2/latest/UserGuide/efa-acc-inst-types.html). Huge pages
    # off, because Ray's processes fork; more is not needed with libfabric 1.18 and aws-ofi-nccl 1.7 or newer
    # (github.com/aws-samples/awsome-distributed-training, 1.architectures/efa-cheatsheet.md).
    "efa": Network(env=_BOOTSTRAP | {"FI_EFA_USE_HUGE_PAGE": "0"}, resources={"vpc.amazonaws.com/efa": 32}),
}
"""By the name that accelerator classes use."""

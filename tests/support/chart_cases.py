"""Values of several clusters, for tests of the chart."""

from __future__ import annotations

from typing import Any

AUTHORITY = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

CASES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "replicas": {
        "replicas": 3,
        "persistence": {"accessMode": "ReadWriteMany", "storageClass": "nfs", "size": "100Gi"},
        "watchNamespaces": ["team-a", "team-b"],
        "metrics": {"dashboard": {"enabled": True}},
    },
    "secured": {
        "fullnameOverride": "trainer",
        "tls": {"secretName": "controller-tls"},
        "signingKeySecret": "signing-key",
        "webhooksSecret": "webhooks",
        "webhookHosts": ["hooks.example.com", "chat.example.com"],
        "mlflow": {"trackingUri": "https://mlflow.example.com", "credentialsSecret": "mlflow-login"},
        "priorityClass": "system-cluster-critical",
        "service": {"port": 8443, "annotations": {"example.com/a": "b"}},
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/fathom"}},
        "networkPolicy": {
            "namespaces": ["ingress-nginx", "monitoring"],
            "cidrs": ["10.0.0.0/28"],
            "egress": [{"cidr": "10.0.0.1/32", "ports": [6443]}, {"cidr": "0.0.0.0/0", "apartFrom": ["10.0.0.0/8"]}],
        },
        "env": {"HTTPS_PROXY": "http://proxy.example.com:3128", "NO_PROXY": ".svc"},
        "cluster": {"controller": {"certificateAuthority": AUTHORITY, "tokenSeconds": 600}},
        "crds": {"install": False},
    },
    "machines": {
        "images": {
            "train": "registry.example.com/ml/fathom-train@sha256:" + "5f" * 32,
            "allowed": ["registry.example.com/ml"],
            "pullSecrets": ["registry"],
            "pullPolicy": "Always",
        },
        "place": {
            "nodeSelector": {"node-role.kubernetes.io/infra": ""},
            "tolerations": [
                {"key": "infra", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
                {"key": "nvidia.com/gpu"},
            ],
        },
        "resources": {"limits": {"cpu": "2", "memory": "2Gi"}},
        "prices": [
            {
                "accelerator": "H100",
                "priceClass": "on-demand",
                "amount": "2.10",
                "currency": "EUR",
                "unit": "gpu-hour",
                "source": "our contract",
                "date": "2026-07-01",
            }
        ],
        "budgets": [
            {"team": "team-a", "limit": "125000.50", "currency": "EUR"},
            {"team": "team-b", "limit": 1000000, "currency": "EUR"},
        ],
        "hardware": [
            {
                "name": "H100",
                "bf16Teraflops": 989.4,
                "fp8Teraflops": 1978.9,
                "memoryGigabytes": 80,
                "memoryTerabytesPerSecond": 3.35,
                "nvlinkGigabytesPerSecond": 160,
                "networkGigabytesPerSecond": 50,
                "tdpWatts": 700,
                "source": "measured here",
                "date": "2026-07-01",
            }
        ],
        "cluster": {
            "rayVersion": "2.61.0",
            "startSeconds": 86400,
            "temporaryStorage": "1Ti",
            "labels": {"example.com/cost-center": "research"},
            "accelerators": {
                "H100": {
                    "place": {
                        "nodeSelector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
                        "tolerations": [{"key": "nvidia.com/gpu"}],
                    },
                    "cpusPerWorker": 22,
                    "memoryPerWorker": "230Gi",
                    "network": "own",
                }
            },
            "networks": {"own": {"env": {"NCCL_IB_TC": "106"}, "resources": {"vpc.amazonaws.com/efa": 32}}},
            "priceClasses": {"spot": {"nodeSelector": {"karpenter.sh/capacity-type": "spot"}}},
            "isolation": {"dnsCidrs": ["169.254.20.10/32"], "egress": [{"cidr": "52.0.0.0/8", "ports": [443, 80]}]},
            "topology": {"level": "cloud.provider.com/topology-block", "required": True},
        },
    },
}
"""Each has something that the others have not."""

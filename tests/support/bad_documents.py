"""Jobs that are wrong, each once: for the models, the REST API and the custom resource alike."""

from __future__ import annotations

from typing import Any, NamedTuple

from support.store import small_document

Json = dict[str, Any]
CPU: Json = {"accelerator": "cpu", "workers": 4}
NOT_JSON = "a number that JSON cannot say"
WHOLE = "a whole number with a point"


class Bad(NamedTuple):
    """`spec` replaces parts of a good job's spec; `path` is the field that is to blame."""

    spec: Json
    path: str
    words: tuple[str, ...] = ()
    """What must be said, where fields contradict each other."""
    kind: str = ""
    """Named where one edge cannot see it."""

    @property
    def document(self) -> Json:
        return small_document(**({"compute": CPU, "training": {"tokens": 1000}} | self.spec))


VALUES = [
    Bad({"training": {"tokens": "1000"}}, "spec.training.tokens"),
    Bad({"training": {"tokens": "2M"}}, "spec.training.tokens"),
    Bad({"training": {"tokens": True}}, "spec.training.tokens"),
    Bad({"training": {"tokens": 1000.0}}, "spec.training.tokens", kind=WHOLE),
    Bad({"training": {"tokens": 1000.5}}, "spec.training.tokens"),
    Bad({"training": {"tokens": 0}}, "spec.training.tokens"),
    Bad({"training": {"tokens": 10**16}}, "spec.training.tokens"),
    Bad({"training": {"tokens": 10**300}}, "spec.training.tokens"),
    Bad({"training": None}, "spec.training"),
    Bad({"training": {}}, "spec.training.tokens"),
    Bad({"training": {"tokens": 1, "precision": "fp4"}}, "spec.training.precision"),
    Bad({"training": {"tokens": 1, "mtp": {"weight": float("nan")}}}, "spec.training.mtp.weight", kind=NOT_JSON),
    Bad({"training": {"tokens": 1, "optimizer": {"gradientClipping": 0}}}, "spec.training.optimizer.gradientClipping"),
    Bad({"training": {"tokens": 1, "schedule": {"learningRate": "fast"}}}, "spec.training.schedule.learningRate"),
    Bad({"training": {"tokens": 1, "schedule": {"learningRate": 2}}}, "spec.training.schedule.learningRate"),
    Bad({"notify": {"url": "ftp://x.test/"}}, "spec.notify.url"),
    Bad({"notify": {"url": "https://user:secret@x.test/"}}, "spec.notify.url"),
    Bad({"notify": {"url": "https://x.test/a b"}}, "spec.notify.url"),
    Bad({"notify": {"url": "https://x.test/", "when": []}}, "spec.notify.when"),
    Bad({"notify": {"url": "https://x.test/", "when": ["started"]}}, "spec.notify.when.0"),
    Bad({"budget": {"limit": 5.0}}, "spec.budget.limit"),
    Bad({"budget": {"limit": "-5"}}, "spec.budget.limit"),
    Bad({"budget": {"limit": "5", "warnAt": [0.0]}}, "spec.budget.warnAt.0"),
    Bad({"budget": {"limit": "5", "warnAt": [1.0]}}, "spec.budget.warnAt.0"),
    Bad({"budget": {"limit": "5", "warnAt": ["0.5"]}}, "spec.budget.warnAt.0"),
    Bad({"budget": {"limit": "5", "warnAt": [0.01 * n for n in range(1, 12)]}}, "spec.budget.warnAt"),
    Bad({"budget": {"limit": "1e5"}}, "spec.budget.limit"),
    Bad({"budget": {"limit": "5", "currency": "usd"}}, "spec.budget.currency"),
    Bad({"data": {"source": "a\nb"}}, "spec.data.source"),
    Bad({"data": {"source": ""}}, "spec.data.source"),
    Bad({"data": {"source": "x" * 2000}}, "spec.data.source"),
    Bad({"data": {}}, "spec.data.source"),
    Bad({"data": {"source": "https://ann:pw@x.test/d"}}, "spec.data.source", ("password", "secretRef")),
    Bad({"data": {"source": "d", "tokenizer": "simplecache::http://token@x.test/t"}}, "spec.data.tokenizer"),
    Bad({"model": {"initFrom": "s3://key:secret@bucket/w"}}, "spec.model.initFrom", ("password",)),
    Bad({"checkpoint": {"uri": "ftp://ann@x.test/"}}, "spec.checkpoint.uri", ("password",)),
    Bad({"model": "mini"}, "spec.model"),
    Bad({"model": {"preset": 3}}, "spec.model.preset"),
    Bad({"model": {"preset": "../x"}}, "spec.model.preset"),
    Bad({"model": {"preset": "mini", "overrides": {"size": 1}}}, "spec.model.overrides.size"),
    Bad({"compute": CPU | {"workers": 0}}, "spec.compute.workers"),
    Bad({"compute": CPU | {"workers": "2"}}, "spec.compute.workers"),
    Bad({"compute": {"accelerator": "h100", "gpus": 8}}, "spec.compute.accelerator"),
    Bad({"compute": {"accelerator": "TPU", "gpus": 8}}, "spec.compute.accelerator"),
    Bad({"compute": CPU | {"memoryPerWorker": "2GB"}}, "spec.compute.memoryPerWorker"),
    Bad({"compute": CPU | {"image": "a b; rm -rf /"}}, "spec.compute.image"),
    Bad({"parallelism": {"zeroStage": 4}}, "spec.parallelism.zeroStage"),
    Bad({"parallelism": {"pipeline": 0}}, "spec.parallelism.pipeline"),
    Bad({"retry": {"stallMinutes": 0.04}}, "spec.retry.stallMinutes"),
    Bad({"retry": {"stallMinutes": 1441}}, "spec.retry.stallMinutes"),
    Bad({"training": {"tokens": 1, "anomalies": {"action": "ignore"}}}, "spec.training.anomalies.action"),
    Bad({"training": {"tokens": 1, "anomalies": {"window": 3}}}, "spec.training.anomalies.window"),
    Bad({"tracking": {"tags": {f"t{n}": "x" for n in range(33)}}}, "spec.tracking.tags"),
    Bad({"tracking": {"tags": {"a": 1}}}, "spec.tracking.tags.a"),
    Bad({"suspend": "yes"}, "spec.suspend"),
    Bad({"initFrom": "x"}, "spec.initFrom"),
    Bad({"nonsense": 1}, "spec.nonsense"),
    Bad({"training": {"tokens": 9, "global_batch_tokens": 2}}, "spec.training.global_batch_tokens"),
]
"""Values that a field of its own does not have."""

NAMES = ["a" * 41, "", "1a", "a_b", "A", "a-", "a\n", "a.b"]
"""Of jobs."""

TAG_NAMES = {"a\nb": "does not have the form", "é": "does not have the form", "x" * 101: "characters"}
"""And what is said of them."""

COMBINATIONS = [
    Bad({"compute": {"accelerator": "cpu"}}, "spec.compute.workers", ("required",)),
    Bad({"compute": CPU | {"gpus": 8}}, "spec.compute.gpus", ("8", "cpu")),
    Bad({"compute": CPU | {"gpusPerNode": 8}}, "spec.compute.gpusPerNode", ("8", "cpu")),
    Bad({"compute": {"accelerator": "H100"}}, "spec.compute.gpus", ("required", "H100")),
    Bad({"compute": {"accelerator": "H100", "gpus": 8, "workers": 2}}, "spec.compute.workers", ("2", "H100")),
    Bad({"compute": {"accelerator": "H100", "gpus": 12, "gpusPerNode": 8}}, "spec.compute.gpus", ("12", "8", "16")),
    Bad({"parallelism": {"expert": 3}}, "spec.parallelism.expert", ("3", "4", "1, 2, 4")),
    Bad(
        {"parallelism": {"expert": 4}, "model": {"preset": "mini", "overrides": {"experts": 6}}},
        "spec.parallelism.expert",
        ("4", "6"),
    ),
    Bad({"training": {"tokens": 100, "globalBatchTokens": 200}}, "spec.training.tokens", ("100", "200")),
    Bad({"storage": {"secretRef": "a", "claim": "b"}}, "spec.storage.claim", ("'a'", "'b'")),
    Bad({"budget": {"limit": "0.00"}}, "spec.budget.limit", ("0.00",)),
    Bad({"budget": {"limit": "5", "warnAt": [0.5, 0.4]}}, "spec.budget.warnAt", ("0.4", "0.5", "rising order")),
    Bad({"budget": {"limit": "5", "warnAt": [0.5, 0.5]}}, "spec.budget.warnAt", ("0.5", "once")),
    Bad({"budget": {"limit": "5", "warnAt": [0.1, 0.2, 0.9, 0.25]}}, "spec.budget.warnAt", ("0.25", "0.9")),
    Bad({"tracking": {"tags": {"mlflow.user": "x"}}}, "spec.tracking.tags.mlflow.user", ("reserved",)),
    Bad({"tracking": {"tags": {"fathom.cost": "x"}}}, "spec.tracking.tags.fathom.cost", ("reserved",)),
    Bad(
        {"training": {"tokens": 1, "schedule": {"constantShare": 0.7, "decayShare": 0.5}}},
        "spec.training.schedule.decayShare",
        ("0.5", "0.7", "1.2"),
    ),
    Bad(
        {"training": {"tokens": 1, "schedule": {"constantShare": 1.0, "decayShare": 1}}},
        "spec.training.schedule.decayShare",
        ("1 and constantShare 1 are 2",),
    ),
    Bad(
        {"training": {"tokens": 1, "schedule": {"learningRate": 0.1, "finalLearningRate": 0.2}}},
        "spec.training.schedule.finalLearningRate",
        ("0.2", "0.1"),
    ),
    Bad(
        {"training": {"tokens": 1, "schedule": {"learningRate": 1e-5, "finalLearningRate": 3e-5}}},
        "spec.training.schedule.finalLearningRate",
        ("3e-05", "1e-05"),
    ),
    Bad(
        {"training": {"tokens": 1, "optimizer": {"momentsPrecision": "bf16", "beta2": 0.999}}},
        "spec.training.optimizer.beta2",
        ("0.999", "0.99"),
    ),
    Bad(
        {"training": {"tokens": 1, "optimizer": {"momentsPrecision": "bf16", "beta1": 0.995}}},
        "spec.training.optimizer.beta1",
        ("0.995", "0.99"),
    ),
    Bad({"notify": {"url": "https://x.test/", "when": ["ended", "ended"]}}, "spec.notify.when", ("2", "1 differ")),
    Bad({"model": {}}, "spec.model.preset", ("required", "initFrom")),
    Bad({"training": {"tokens": 1, "extension": {}}}, "spec.training.extension", ("extend-context", "pretrain")),
    Bad({"task": "extend-context", "data": {"source": "d", "sequenceLength": 9}}, "spec.model.initFrom", ("required",)),
    Bad({"task": "extend-context", "model": {"initFrom": "w"}}, "spec.data.sequenceLength", ("required",)),
    Bad(
        {
            "task": "extend-context",
            "model": {"initFrom": "w", "overrides": {"maxPositions": 64}},
            "data": {"source": "d", "sequenceLength": 32},
        },
        "spec.model.overrides.maxPositions",
        ("64", "32"),
    ),
]
"""Fields that contradict each other; the document alone shows it."""

NEEDS_MORE: dict[str, Json] = {
    "a dataset that is not there": {"data": {"source": "/nowhere"}},
    "a source that workers cannot read": {"data": {"source": "s3://bucket/data"}},
    "storage of no known kind": {"checkpoint": {"uri": "nosuch://bucket"}},
    "a price class without a price": {"compute": {"accelerator": "cpu", "workers": 2, "priceClass": "stolen"}},
    "a budget that pays for nothing": {"budget": {"limit": "0.000001"}},
    "GPUs that are not there": {"compute": {"accelerator": "H100", "gpus": 1}, "training": {"tokens": 10**6}},
    "a preset that nobody knows": {"model": {"preset": "nosuch"}},
    "experts that do not divide the preset's": {
        "parallelism": {"expert": 7},
        "compute": {"accelerator": "cpu", "workers": 7},
    },
    "pipelines": {"parallelism": {"pipeline": 2}},
}
"""Wrong by presets, prices, cluster or data: REST refuses them; a resource is admitted, and Accepted=False follows."""

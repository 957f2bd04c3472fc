"""The two jobs that the demo compares: equal in all but the shape of the feed-forward, and in active parameters."""

from pathlib import Path

from model.config import ModelConfig
from model.flops import count, flops_per_token
from orchestrator.jobfile import load_job
from orchestrator.launch.architecture import choose_architecture
from orchestrator.launch.choices import Choices
from orchestrator.spec import TrainingJob

SAMPLES = Path(__file__).parents[2] / "k8s" / "samples"


def sample(name: str) -> tuple[TrainingJob, ModelConfig]:
    job = load_job(SAMPLES / f"{name}.yaml")
    return job, choose_architecture(job, Choices()).config


def test_both_halves_use_as_much_for_each_token() -> None:
    (_, sparse), (_, dense) = sample("demo-sparse"), sample("demo-dense")
    assert count(sparse).active == count(dense).active == count(dense).total
    assert count(sparse).total > 1.4 * count(sparse).active
    assert flops_per_token(sparse, 256) == flops_per_token(dense, 256)


def test_they_differ_in_nothing_else() -> None:
    (sparse, one), (dense, other) = sample("demo-sparse"), sample("demo-dense")
    assert sparse.spec.parallelism.expert == 2, "two workers share the experts"
    same = {"model", "parallelism"}
    assert sparse.spec.model_dump(exclude=same) == dense.spec.model_dump(exclude=same)
    ours, theirs = one.model_dump(), other.model_dump()
    assert {key for key in ours if ours[key] != theirs[key]} == {"first_k_dense_replace", "intermediate_size"}

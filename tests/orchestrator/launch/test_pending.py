"""What the controller leaves open because only pods can read it, and how the driver decides it there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.recipes import TINY
from support.runs import dataset
from support.tokens import write_tokens

from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.errors import InvalidJob
from orchestrator.launch.pending import complete
from orchestrator.launch.resolve import Resolved, resolve
from orchestrator.settings import Settings
from orchestrator.spec import TrainingJob

Patch = dict[str, Any]


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    """What is mounted in the pods; "pvc://text/..." leads there."""
    (tmp_path / "claim").mkdir()
    dataset(tmp_path / "claim" / "plain")
    sides = {"code": (list(range(1, 200)) * 50, [1, 2] * 200), "web": (list(range(1, 100)) * 50, [1, 2] * 200)}
    mixed = write_tokens(
        tmp_path / "claim" / "mixed", sides, shard_tokens=100_000, weights={"code": 0.7, "web": 0.3}, end_of_text=7
    )
    (tmp_path / "claim" / "mixed" / "manifest.json").write_text(mixed.model_dump_json())
    task = {"question": "1+1?", "choices": ["1", "2"], "answer": 1}
    (tmp_path / "claim" / "sums.jsonl").write_text(json.dumps(task) + "\n")
    (tmp_path / "claim" / "broken.jsonl").write_text("{")
    (tmp_path / "claim" / "other.json").write_text("{}")
    return tmp_path / "claim"


def mounted(claim: Path) -> Callable[[str], str]:
    return lambda uri: str(claim / uri.removeprefix("pvc://text/")) if uri.startswith("pvc://") else uri


def job(text: str, name: str, **patch: Patch) -> TrainingJob:
    """`text`: where the dataset and all other files are, a folder or a claim."""
    spec: Patch = {
        "model": {"preset": "mini"} | patch.get("model", {}),
        "data": {"source": f"{text}/{name}", "sequenceLength": 32} | patch.get("data", {}),
        "training": {"tokens": 640_000, "globalBatchTokens": 3200} | patch.get("training", {}),
        "parallelism": {"microBatch": 5} | patch.get("parallelism", {}),
        "compute": {"accelerator": "cpu", "workers": 2} | patch.get("compute", {}),
    }
    return TrainingJob.model_validate(
        json.loads(json.dumps({"metadata": {"name": "mini"}, "spec": spec}).replace("TEXT", text))
    )


def run(of: TrainingJob, earlier: Resolved | None = None, **more: Any) -> Resolved:  # noqa: ANN401
    return resolve(
        of,
        uid="u",
        attempt=1 if earlier is None else 2,
        incarnation="i",
        settings=Settings.load({"FATHOM_HOME": "/nowhere"}),
        storage_uri="/nowhere/run",
        earlier=earlier,
        **more,
    )


def in_pod(resolved: Resolved, claim: Path) -> Resolved:
    """As the renderer writes it for pods."""
    where, recipe = mounted(claim), resolved.recipe
    tasks = tuple(map(where, recipe.eval_tasks))
    return resolved.model_copy(
        update={"recipe": recipe.model_copy(update={"data": where(recipe.data), "eval_tasks": tasks})}
    )


def both(claim: Path, name: str, earlier: bool = False, **patch: Patch) -> tuple[Resolved, Resolved]:
    """-> decided with the dataset at hand, and completed in the pod."""
    near, far = job(str(claim), name, **patch), job("pvc://text", name, **patch)
    at_hand, pending = run(near), run(far)
    if earlier:
        at_hand, pending = run(near, at_hand), run(far, pending)
    assert (at_hand.data_pending, pending.data_pending) == (False, True)
    return at_hand, complete(far, in_pod(pending, claim), mounted(claim))


MIXED = {"mixture": [{"source": "web", "weight": 2.0}, {"source": "code", "weight": 1.0}]}
JOBS: dict[str, Patch] = {
    "plain": {},
    "evaluation": {"training": {"evaluation": {"tokens": 640, "everySteps": 3}}},
    "tasks": {"training": {"evaluation": {"tasks": ["TEXT/sums.jsonl"]}}},
    "isolated": {"data": {"isolateDocuments": True}},
    "ramp": {"training": {"batchRamp": {}}},
    "open": {"data": {"sequenceLength": None}, "training": {"globalBatchTokens": None}},
}


@pytest.mark.parametrize("earlier", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", JOBS)
def test_the_recipe_is_the_one_that_the_dataset_at_hand_would_have_given(claim: Path, name: str, earlier: bool) -> None:
    for data in ("plain", "mixed") if name != "open" else ("plain",):
        at_hand, completed = both(claim, data, earlier, **JOBS[name])
        assert completed.recipe == at_hand.recipe
        assert sorted(completed.chosen, key=str) == sorted(at_hand.chosen, key=str)
        assert not completed.data_pending
        if data == "mixed":
            assert completed.recipe.end_of_text == 7
            assert [one.weight for one in completed.recipe.mixture] == [0.7, 0.3]


def test_the_jobs_own_mixture(claim: Path) -> None:
    at_hand, completed = both(claim, "mixed", data=MIXED)
    assert completed.recipe == at_hand.recipe
    assert [one.weight for one in completed.recipe.mixture] == [1.0, 2.0]


def test_until_then_nothing_is_read_and_the_rest_is_decided(claim: Path) -> None:
    pending = run(job("pvc://nobody/has", "it", training={"evaluation": {"tasks": ["pvc://nobody/sums.jsonl"]}}))
    assert pending.data_pending
    assert pending.recipe.data == "pvc://nobody/has/it"
    assert pending.recipe.steps == 200
    assert Resolved.model_validate_json(pending.model_dump_json()) == pending
    assert run(job("s3://bucket", "it"), read_data=False).data_pending
    later = run(job("pvc://nobody/has", "it", compute={"workers": 1}), pending)
    assert (later.data_pending, later.workers) == (True, 1)


def test_what_lacks_nothing_stays_as_it_is(claim: Path) -> None:
    of = job(str(claim), "plain")
    resolved = run(of)
    assert complete(of, resolved) is resolved


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("none", {}),
        ("plain", {"model": {"overrides": {"vocabSize": 300}}}),
        ("plain", {"data": {"tokenizer": "TEXT/other.json"}}),
        ("plain", {"data": {"tokenizer": "TEXT/none.json"}}),
        ("mixed", {"data": {"sequenceLength": 512}, "training": {"globalBatchTokens": 5120}}),
        ("mixed", {"data": {"mixture": [{"source": "web", "weight": 2.0}]}}),
        ("plain", {"training": {"evaluation": {"tasks": ["TEXT/broken.jsonl"]}}}),
        ("plain", {"training": {"evaluation": {"tasks": ["TEXT/none.jsonl"]}}}),
    ],
)
def test_what_does_not_fit_is_refused_in_the_same_words(claim: Path, name: str, patch: Patch) -> None:
    def refused(text: str) -> str:
        of = job(text, name, **patch)
        with pytest.raises(InvalidJob) as caught:
            complete(of, in_pod(run(of), claim), mounted(claim))
        return str(caught.value).replace(text, "TEXT").replace(str(claim), "TEXT")

    assert refused("pvc://text") == refused(str(claim))


def test_weights_in_a_claim_are_refused(claim: Path) -> None:
    with pytest.raises(InvalidJob, match=r"model.initFrom: is pvc://text/weights, a volume claim of Kubernetes"):
        run(job(str(claim), "plain", model={"preset": None, "initFrom": "pvc://text/weights"}))


@pytest.mark.parametrize("same", [True, False])
def test_weights_must_have_been_trained_with_the_datasets_tokenizer(claim: Path, tmp_path: Path, same: bool) -> None:
    weights, tokenizer = tmp_path / "weights", '{"model": {"vocab": {"a": 0}}, "version": "1.0"}'
    config = TINY.replace(vocab_size=4096, max_position_embeddings=64)
    model = CausalLM(config)
    model.initialise(1)
    write_weights(str(weights), config, model.state_dict().items(), tokenizer, write=True)
    sha256 = hashlib.sha256(tokenizer.encode()).hexdigest()
    dataset(claim / "fitting", sha256=sha256 if same else "3" * 64)
    of = job("pvc://text", "fitting", model={"preset": None, "initFrom": str(weights)})
    pending = in_pod(run(of), claim)
    if same:
        assert (
            complete(of, pending, mounted(claim)).recipe
            == run(job(str(claim), "fitting", model={"preset": None, "initFrom": str(weights)})).recipe
        )
    else:
        with pytest.raises(InvalidJob, match=r"data.source: pvc://text/fitting was made with another tokenizer"):
            complete(of, pending, mounted(claim))


@pytest.mark.parametrize(
    "weights",
    [
        "pvc://text/weights",
        "/etc/fathom",
        "weights",
        "file:///etc/fathom",
        "http://169.254.169.254/latest",
        "s3::http://169.254.169.254/latest",
        "simplecache::s3://bucket/weights",
    ],
)
def test_a_controller_opens_no_file_and_no_page_of_its_own_for_a_job(weights: str) -> None:
    """Whether it is there would be an answer, too."""
    of = job("pvc://text", "plain", model={"preset": None, "initFrom": weights})
    with pytest.raises(InvalidJob, match=r"model.initFrom: is .*, which .*: copy the weights to an object store"):
        run(of, read_data=False)

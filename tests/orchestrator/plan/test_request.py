import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from model.presets import PRESETS, preset
from model.released import to_released
from orchestrator.errors import FathomError, InvalidJob, UsageError
from orchestrator.plan.request import FLAGS, Request, make_request

V3 = {"preset": "v3-671b", "accelerator": "H800", "gpus": "2048", "tokens": "14.8T", "precision": "fp8"}


def job(path: Path, **spec: Any) -> Path:  # noqa: ANN401 - JSON
    document = {
        "metadata": {"name": "mini"},
        "spec": {
            "model": {"preset": "mini"},
            "data": {"source": "nowhere/at/all"},
            "training": {"tokens": 2_000_000},
            "compute": {"accelerator": "H100", "gpus": 8},
        }
        | spec,
    }
    file = path / "job.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


def assumed(request: Request) -> dict[str, str]:
    return {one.field: one.value for one in request.assumed}


def refusal(changes: dict[str, str], *assignments: str, file: Path | None = None) -> str:
    with pytest.raises(FathomError) as caught:
        make_request(file, changes if file else V3 | changes, assignments)
    return str(caught.value)


def test_deepseek_v3_by_flags() -> None:
    request = make_request(None, V3)
    assert request.config == preset("v3-671b")
    assert (request.gpus, request.gpus_per_node, request.tokens) == (2048, 8, 14_800_000_000_000)
    assert (request.precision, request.price_class, request.sequence_length) == ("fp8", "on-demand", 4096)
    assert request.batch_tokens == 16_384 * 4096, "the published 15,360 sequences, so that 2048 GPUs share them evenly"
    assert set(assumed(request)) == {"compute.gpusPerNode", "data.sequenceLength", "training.globalBatchTokens"}


def test_a_job_file_needs_no_dataset_and_flags_win(tmp_path: Path) -> None:
    file = job(tmp_path, parallelism={"expert": 4, "microBatch": 2})
    request = make_request(file, {})
    assert (request.name, request.gpus, request.precision, request.wish.expert) == ("mini", 8, "bf16", 4)
    assert assumed(request)["training.precision"] == "bf16"
    other = make_request(file, {"gpus": "16", "tokens": "1B"}, ["parallelism.expert=8", "model.overrides.layers=6"])
    assert (other.gpus, other.tokens, other.wish.expert, other.wish.micro_batch) == (16, 10**9, 8, 2)
    assert other.config.num_hidden_layers == 6


def test_the_architecture_of_weights(tmp_path: Path) -> None:
    weights = tmp_path / "run" / "weights"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text(json.dumps(to_released(preset("mini"))))
    file = job(tmp_path, model={"initFrom": str(tmp_path / "run")})
    assert make_request(file, {}).config == preset("mini")
    (weights / "config.json").write_bytes(b"\x00\xff")
    assert "spec.model.initFrom" in refusal({}, file=file)
    (weights / "config.json").unlink()
    assert "no config.json in" in refusal({}, file=file)


@pytest.mark.parametrize(
    ("changes", "assignments", "words"),
    [
        ({"accelerator": "h8OO"}, [], ["'h8OO'", "H800", "did you mean"]),
        ({"preset": "v3-671"}, [], ["--preset", "did you mean v3-671b"]),
        ({"gpus": "0"}, [], ["--gpus", "at least 1", "got 0"]),
        ({"gpus": "-8"}, [], ["--gpus", "at least 1", "got -8"]),
        ({"gpus": "nan"}, [], ["--gpus", "whole number", "'nan'"]),
        ({"gpus": "1000000"}, [], ["--gpus", "at most 100000", "1000000"]),
        ({"gpus": "12"}, [], ["--gpus", "12", "8 or 16"]),
        ({"tokens": "inf"}, [], ["--tokens", "whole number", "'inf'"]),
        ({"tokens": "1e99"}, [], ["--tokens", "at most 1000000000000000"]),
        ({"tokens": "1000"}, [], ["--tokens", "1000", "8388608"]),
        ({"tokens": " "}, [], ["--tokens is empty"]),
        ({"batch-tokens": "5000"}, [], ["--batch-tokens", "5000", "4096 or 8192"]),
        ({"sequence-length": "1M"}, [], ["--sequence-length", "1000000", "163840"]),
        ({"precision": "int4"}, [], ["--precision", "'fp8'", "'int4'"]),
        ({"accelerator": "A100"}, [], ["--precision", "fp8", "A100", "bf16"]),
        ({"accelerator": "cpu"}, [], ["--gpus", "2048", "cpu"]),
        ({}, ["parallelism.expert=48"], ["48", "2048", "64"]),
        ({"gpus": "24"}, ["parallelism.expert=24"], ["24", "256 routed experts", "use 8"]),
        ({}, ["model.overrides.experts=100"], ["groups (8)", "experts (100)"]),
        ({}, ["nonsense"], ["--set nonsense", "path=value"]),
    ],
)
def test_the_impossible_is_refused_with_its_numbers(
    changes: dict[str, str], assignments: list[str], words: list[str]
) -> None:
    message = refusal(changes, *assignments)
    assert all(word in message for word in words), message


def test_what_is_missing_is_named_as_an_option() -> None:
    with pytest.raises(InvalidJob, match=r"--tokens: is required.*"):
        make_request(None, {name: text for name, text in V3.items() if name != "tokens"})
    with pytest.raises(UsageError, match=r"job file, or --preset"):
        make_request(None, {})


@pytest.mark.parametrize("content", [b"", b"\x00\x01\xff", b"- 1\n", b"{", b"spec: 5\n", b"&a [*a]"])
def test_a_file_that_is_no_job(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(InvalidJob):
        make_request(file, {})


WRITTEN = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["14.8T", "2M", "1e9", "null", "true", "[1]", "{a: 1}", "H100", "fp8", "bf16", "cpu", "mini", "~"]),
    st.sampled_from(sorted(PRESETS)),
    st.text(max_size=12),
)


@given(st.dictionaries(st.sampled_from(sorted(FLAGS)), WRITTEN), st.lists(st.text(max_size=30), max_size=2))
@settings(max_examples=150, deadline=None)
def test_whatever_is_asked_gives_a_request_or_an_error_for_people(
    flags: dict[str, str], assignments: list[str]
) -> None:
    try:
        request = make_request(None, V3 | flags, assignments)
    except FathomError:
        return
    assert request.gpus >= 1
    assert request.batch_tokens % request.sequence_length == 0
    assert request.batch_tokens <= request.tokens
    assert request.workload.steps >= 1


def test_without_a_file_fields_are_named_as_options_take_them(tmp_path: Path) -> None:
    without = {name: text for name, text in V3.items() if name != "preset"}
    with pytest.raises(InvalidJob, match="--preset: is required"):
        make_request(None, without)
    with pytest.raises(InvalidJob, match=r"--set compute\.workers: is required with accelerator cpu"):
        make_request(None, {"preset": "mini", "accelerator": "cpu", "tokens": "1M"})
    assert "--set parallelism.expert: 7 does not divide" in refusal({"gpus": "64"}, "parallelism.expert=7")
    with_file = refusal({}, "parallelism.expert=7", file=job(tmp_path))
    assert "spec.parallelism.expert: 7 does not divide" in with_file


def test_the_reason_for_a_batch_is_the_reason() -> None:
    long = make_request(None, V3 | {"preset": "v2-lite-16b", "sequence-length": "16384", "gpus": "512", "tokens": "1B"})
    batch = next(one for one in long.assumed if one.field == "training.globalBatchTokens")
    assert (batch.value, batch.reason) == (str(512 * 16_384), "the least: one micro-batch on every worker")
    short = make_request(None, V3 | {"preset": "v2-lite-16b", "gpus": "8", "tokens": "10B"})
    batch = next(one for one in short.assumed if one.field == "training.globalBatchTokens")
    assert (batch.value, batch.reason) == (
        "1048576",
        "10000000000 tokens in 2000 steps or more, at most 1048576 tokens a step",
    )

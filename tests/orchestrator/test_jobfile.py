from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import InvalidJob, Problem
from orchestrator.jobfile import load_job, load_jobs

JOB = """\
apiVersion: fathom.dev/v1alpha1
kind: TrainingJob
metadata: {name: mini}
spec:
  model: {preset: mini}
  data: {source: runs/data}
  training: {tokens: 1_000_000, schedule: {learningRate: 1e-3}}
  compute: {accelerator: cpu, workers: 2}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


def problems(path: Path, *assignments: str) -> list[Problem]:
    with pytest.raises(InvalidJob) as caught:
        load_job(path, assignments)
    return caught.value.problems


def only(path: Path, *assignments: str) -> Problem:
    [problem] = problems(path, *assignments)
    return problem


def rewritten(path: Path, old: str, new: str) -> Path:
    assert old in JOB
    path.write_text(JOB.replace(old, new))
    return path


def test_a_good_file(job: Path) -> None:
    spec = load_job(job).spec
    assert spec.training.tokens == 1_000_000
    assert spec.training.schedule.learning_rate == 0.001


@pytest.mark.parametrize("name", ["mini.yaml", "small-h100.yaml", "extend-1.yaml", "extend-2.yaml"])
def test_samples_load(name: str) -> None:
    assert load_job(Path(__file__).parents[2] / "k8s" / "samples" / name).metadata.name == name.removesuffix(".yaml")


# Files that are no job


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert only(tmp_path / "none.yaml") == Problem(
        str(tmp_path / "none.yaml"), "cannot be read: No such file or directory"
    )
    assert "is a folder, not a file" in only(tmp_path).message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "must be a mapping with apiVersion, kind, metadata and spec, found nothing"),
        (b"just text", "found 'just text'"),
        (b"[1, 2]", "found a list of 2"),
        (b"a: [", "is not a readable YAML file"),
        (b"a: b: c", "line 1, column 5"),
        (b"\xff\xfe\xff", "is not UTF-8 text (byte 0)"),
        (b"a: \x07", "is not YAML"),
        (b"a: 1\n---\nb: 2\n", "several documents"),
        (b"a: 1\nb: {c: 1, c: 2}\n", "field 'c' is given twice (line 2, column 11)"),
        (b"a: &x [1]\nb: *x\n", "aliases (*name) are not supported"),
        (b"a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (b"1: a", "a field name must be text"),
        (b"? [a]\n: b", "a field name must be text"),
        (b"a: " + b"[" * 500, "more than 20 levels"),
        (b"a: " + b"[" * 100_000, "more than 20 levels"),
        (b"a:\n" + b" - 1\n" * 20_000, "more than 10000 values"),
        (b"a: " + b"9" * 5000, "holds a value that cannot be read"),
        (b"#" * (1 << 20) + b"\na: 1", "is larger than 1048576 bytes"),
    ],
)
def test_what_is_no_job_file_is_said_in_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    began = time.process_time()
    problem = only(path)
    assert time.process_time() - began < 20
    assert problem.path == str(path)
    assert words in problem.message
    assert "\n" not in problem.message
    assert len(problem.message) < 300


# Problems of fields


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("1_000_000", "2M", "spec.training.tokens", "got '2M': write 2000000"),
        ("1_000_000", "1e9", "spec.training.tokens", "got 1000000000.0: write 1000000000"),
        ("1_000_000", "1.5", "spec.training.tokens", "must be a whole number, got 1.5"),
        ("1_000_000", "0", "spec.training.tokens", "must be at least 1, got 0"),
        ("1_000_000", "yes", "spec.training.tokens", "must be a whole number, got true"),
        ("1_000_000", ".inf", "spec.training.tokens", "must be a whole number, got '.inf'"),
        ("1_000_000", "[1]", "spec.training.tokens", "must be a whole number, got a list of 1"),
        ("tokens: 1_000_000", "tokens: 1, sed: 1", "spec.training.sed", "field: did you mean 'seed'?"),
        ("1e-3", "fast", "spec.training.schedule.learningRate", "must be a number, got 'fast'"),
        ("1e-3", "2", "spec.training.schedule.learningRate", "must be at most 1, got 2"),
        ("{preset: mini}", "mini", "spec.model", "must be a group of fields, got 'mini'"),
        ("preset: mini", "preset: 3", "spec.model.preset", 'must be text, got 3: write it in quotes, "3"'),
        ("preset: mini", "preset: mini, depth: 3", "spec.model.depth", "known: preset, overrides"),
        ("accelerator: cpu", "accelerator: h100", "spec.compute.accelerator", "'H200' or 'B200', got 'h100'"),
        ("workers: 2", "workers: 2, gpus: 8", "spec.compute.gpus", "is 8, but accelerator is cpu: remove it"),
        ("name: mini", "name: Mini_1", "metadata.name", "'Mini_1' does not have the form"),
        ("name: mini", "name: " + "m" * 41, "metadata.name", "has 41 characters, at most 40 are allowed"),
        ("kind: TrainingJob", "kind: RayJob", "kind", "must be 'TrainingJob', got 'RayJob'"),
        ("  data: {source: runs/data}\n", "", "spec.data", "is required. The text to train on."),
        ("kind: TrainingJob", "status: {phase: Running}", "status", "is written by Fathom"),
    ],
)  # fmt: skip
def test_problems_name_field_value_and_remedy(job: Path, old: str, new: str, path: str, message: str) -> None:
    problem = only(rewritten(job, old, new))
    assert problem.path == path
    assert message in problem.message


def test_snake_case_is_not_a_job_files_form(job: Path) -> None:
    problem = only(rewritten(job, "tokens: 1_000_000", "tokens: 9, global_batch_tokens: 2"))
    assert problem.path == "spec.training.global_batch_tokens"
    assert "did you mean 'globalBatchTokens'?" in problem.message


def test_money_without_quotes(job: Path) -> None:
    problem = only(rewritten(job, "  model:", "  budget: {limit: 5.50}\n  model:"))
    assert problem.path == "spec.budget.limit"
    assert "write it in quotes" in problem.message


def test_dates_stay_text(job: Path) -> None:
    rewritten(job, "  model:", "  tracking: {tags: {since: 2026-05-01}}\n  model:")
    assert load_job(job).spec.tracking.tags == {"since": "2026-05-01"}


@pytest.mark.parametrize("text", ["1:30:00", "0b101", "0x64", "01000000"])
def test_numbers_are_decimal(job: Path, text: str) -> None:
    """YAML 1.1 reads the first as 5400, the last as octal."""
    problem = only(rewritten(job, "tokens: 1_000_000", f"tokens: {text}"))
    assert problem.path == "spec.training.tokens"
    assert f"must be a whole number, got '{text}'" in problem.message


def test_tag_names_are_checked(job: Path) -> None:
    problem = only(rewritten(job, "  model:", '  tracking: {tags: {"a\\nb": x}}\n  model:'))
    assert problem.path.startswith("spec.tracking.tags")


def test_all_problems_come_at_once(job: Path) -> None:
    rewritten(job, "tokens: 1_000_000", "tokens: 0, seed: -1, colour: red")
    found = problems(job, "model.prest=x", "compute.workers=0")
    assert [problem.path for problem in found] == [
        "--set model.prest=x",
        "spec.training.tokens",
        "spec.training.seed",
        "spec.training.colour",
        "spec.compute.workers",
    ]


def test_twenty_are_shown(job: Path) -> None:
    tags = ", ".join(f"t{number}: {number}" for number in range(30))
    rewritten(job, "  model:", f"  tracking: {{tags: {{{tags}}}}}\n  model:")
    with pytest.raises(InvalidJob) as caught:
        load_job(job)
    assert len(caught.value.problems) == 30
    assert str(caught.value).splitlines()[-1] == "... and 10 more"


# Assignments


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("2M", 2_000_000), ("1.5B", 1_500_000_000), ("1.5G", 1_500_000_000), ("3k", 3000), ("2T", 2 * 10**12),
        ("2_000", 2000), ("2000", 2000), ("1e6", 1_000_000), (" 7 ", 7), ("0.001M", 1000),
    ],
)  # fmt: skip
def test_whole_numbers_may_have_suffixes(job: Path, text: str, tokens: int) -> None:
    assert load_job(job, [f"training.tokens={text}"]).spec.training.tokens == tokens


@pytest.mark.parametrize("text", ["1.0001k", "2X", "M", "-1M", "1e99", "2MM", "[1]", "9" * 30])
def test_other_suffixes_are_refused(job: Path, text: str) -> None:
    assert only(job, f"training.tokens={text}").path == "spec.training.tokens"


def test_assignments_reach_every_kind_of_field(job: Path) -> None:
    made = load_job(
        job,
        [
            "metadata.name=other",
            "spec.suspend=true",
            "budget.limit=1.00",
            "training.schedule.learningRate=2e-3",
            "model.overrides.layers=8",
            "tracking.tags.team=2M",
            'data.provenance="a: b"',
            "checkpoint.uri=s3://bucket/x=y",
        ],
    )
    assert made.metadata.name == "other"
    assert made.spec.suspend is True
    assert made.spec.budget is not None
    assert made.spec.budget.limit == "1.00"
    assert made.spec.training.schedule.learning_rate == 2e-3
    assert made.spec.model.overrides.layers == 8
    assert made.spec.tracking.tags == {"team": "2M"}
    assert made.spec.data.provenance == "a: b"
    assert made.spec.checkpoint.uri == "s3://bucket/x=y"


def test_null_removes_a_field(job: Path) -> None:
    assert load_job(job, ["training.schedule.learningRate=null"]).spec.training.schedule.learning_rate is None


def test_the_last_assignment_wins(job: Path) -> None:
    assert load_job(job, ["training.tokens=5", "training.tokens=6"]).spec.training.tokens == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.tokns=2M", "spec.training has no field 'tokns': did you mean 'tokens'?"),
        ("trainng.tokens=2M", "spec has no field 'trainng': did you mean 'training'?"),
        ("training.global_batch_tokens=2", "did you mean 'globalBatchTokens'?"),
        ("training.tokens.x=2", "spec.training.tokens has no field 'x'"),
        ("training=2", "spec.training is a group of fields; set one of: tokens,"),
        ("training.tokens", "write it as path=value"),
        ("training.tokens=", "write it as path=value"),
        ("=2", "spec has no field ''"),
        ("status.phase=x", "spec has no field 'status'"),
        ("__class__.x=1", "spec has no field '__class__'"),
    ],
)
def test_bad_assignments_say_what_was_meant(job: Path, text: str, words: str) -> None:
    problem = only(job, text)
    assert problem.path == f"--set {text}"
    assert words in problem.message


def test_an_assignment_into_something_that_is_no_group(job: Path) -> None:
    rewritten(job, "{preset: mini}", "mini")
    assert any("the file has 'mini' at spec.model" in problem.message for problem in problems(job, "model.preset=x"))


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_a_pipe_is_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "job.yaml")
    with pytest.raises(InvalidJob, match=r"job\.yaml: is a device or pipe, not a file"):
        load_job(tmp_path / "job.yaml")


def test_accelerators_of_ones_own_are_for_plans(tmp_path: Path) -> None:
    for name in ("MYGPU", "GB200"):
        (tmp_path / "job.yaml").write_text(f"spec: {{compute: {{accelerator: {name}, gpus: 8}}}}")
        with pytest.raises(InvalidJob, match=f"'B200', got '{name}'; to plan .*fathom plan FILE --accelerator NAME.*"):
            load_job(tmp_path / "job.yaml")


# Several documents


def test_a_file_may_hold_several_jobs(job: Path) -> None:
    job.write_text(f"---\n{JOB}---\n{JOB.replace('name: mini', 'name: other')}---\n")
    found = load_jobs(job, ["training.tokens=2M"])
    assert [(one.metadata.name, one.spec.training.tokens) for one in found] == [
        ("mini", 2 * 10**6),
        ("other", 2 * 10**6),
    ]
    assert "holds several documents" in only(job).message


def test_problems_say_in_which_document(job: Path) -> None:
    job.write_text(f"{JOB}---\n{JOB.replace('workers: 2', 'workers: 0')}")
    with pytest.raises(InvalidJob, match=r"job\.yaml, document 2: spec\.compute\.workers: must be at least 1"):
        load_jobs(job)


@pytest.mark.parametrize(
    ("text", "words"), [("---\n---\n", "found nothing"), ("a: 1\n---\n[1]", "found a list"), ("a: [", "YAML")]
)
def test_what_is_no_jobs(job: Path, text: str, words: str) -> None:
    job.write_text(text)
    with pytest.raises(InvalidJob, match=words):
        load_jobs(job)

"""The YAML of an lm-eval task: its keys, its templates, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from model.tasks.task import Task, load_tasks

BASE: dict[str, Any] = {
    "task": "rivers",
    "dataset_path": "json",
    "dataset_name": None,
    "dataset_kwargs": {"data_files": {"test": "docs/t.jsonl", "train": "docs/train.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}?\n",
    "doc_to_choice": "{{[a, b]}}",
    "doc_to_target": "{{right}}",
    "tag": ["x"],
    "metadata": {"version": 1.0},
}
DOCS = [{"q": "deep", "a": "yes", "b": 'it\'s "not"', "right": 1}, {"q": "dry", "a": "no", "b": "yes", "right": 0}]
TRAIN = [{"q": f"q{i}", "a": "left", "b": "right", "right": i % 2} for i in range(5)]


@pytest.fixture(autouse=True)
def docs(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, rows in (("t", DOCS), ("train", TRAIN)):
        (tmp_path / "docs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(folder: Path, **changes: Any) -> Task:  # noqa: ANN401 - YAML values; None leaves the key out
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in (BASE | changes).items() if value is not None}))
    [task] = load_tasks([str(path)])
    return task


def test_multiple_choice(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert (task.name, task.kind, task.metrics, task.few_shot) == ("rivers", "multiple_choice", ("acc", "acc_norm"), 0)
    first, second = task.examples
    assert first.contexts == ("deep?\n",) * 2
    assert first.continuations == (" yes", ' it\'s "not"')
    assert (first.gold, second.gold) == (1, 0)
    assert first.where == f"{tmp_path}/docs/t.jsonl:1"


def test_fields_lists_numbers_and_delimiters(tmp_path: Path) -> None:
    task = load(
        tmp_path, doc_to_text="q", doc_to_choice=["no", "yes"], doc_to_target="right", target_delimiter="\n",
        description="About {{q}}. ", metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    [first, _] = task.examples
    assert (first.contexts[0], first.continuations, first.description) == ("deep", ("\nno", "\nyes"), "About deep. ")
    assert task.metrics == ("acc",)
    assert load(tmp_path, doc_to_target=1).examples[1].gold == 1
    assert load(tmp_path, doc_to_target="{{ b }}").examples[0].gold == 1, "the text of a choice"
    assert load(tmp_path, doc_to_text="{{q | regex_replace('e+', 'E')}}").examples[0].contexts[0] == "dEp"


def test_choices_as_contexts(tmp_path: Path) -> None:
    task = load(tmp_path, doc_to_text="{{right}}", doc_to_target="{{q}}!")
    first = task.examples[0]
    assert (first.contexts, first.continuations, first.gold) == (("yes", 'it\'s "not"'), (" deep!", " deep!"), 1)
    assert first.solved == 'it\'s "not" deep!\n\n'


def test_a_target_of_digits_after_contexts_stays_as_it_is(tmp_path: Path) -> None:
    task = load(tmp_path, doc_to_text="{{right}}", doc_to_target="007")
    assert task.examples[0].continuations == (" 007", " 007")


def test_a_negative_number_is_no_choice(tmp_path: Path) -> None:
    (tmp_path / "docs" / "t.jsonl").write_text(json.dumps(DOCS[0] | {"right": -1}) + "\n")
    with pytest.raises(ValueError, match="the label is '-1'"):
        load(tmp_path, doc_to_target="right")


def test_completion_gets_no_delimiter(tmp_path: Path) -> None:
    task = load(tmp_path, output_type="loglikelihood", doc_to_choice=None, doc_to_target="{{a}}")
    assert (task.kind, task.metrics) == ("completion", ("perplexity", "acc"))
    assert (task.examples[0].contexts, task.examples[0].continuations) == (("deep?\n",), ("yes",))


def test_a_single_file_is_the_split_train(tmp_path: Path) -> None:
    kwargs = {"data_files": str(tmp_path / "docs" / "t.jsonl")}
    assert len(load(tmp_path, dataset_kwargs=kwargs, test_split=None, validation_split="train").examples) == 2
    with pytest.raises(ValueError, match=r"task\.yaml: split test is none of data_files, which has train"):
        load(tmp_path, dataset_kwargs=kwargs)


def test_a_url_beside_another(tmp_path: Path) -> None:
    assert load(tmp_path).examples[0].where == f"{tmp_path}/docs/t.jsonl:1"
    [task] = load_tasks([f"file://{tmp_path}/task.yaml"])
    assert len(task.examples) == 2


def test_a_field_that_only_other_lines_have_is_null(tmp_path: Path) -> None:
    (tmp_path / "docs" / "t.jsonl").write_text(json.dumps(DOCS[0] | {"hint": "H"}) + "\n" + json.dumps(DOCS[1]) + "\n")
    task = load(tmp_path, doc_to_text="{{hint or 'none'}}")
    assert [example.contexts[0] for example in task.examples] == ["H", "none"]


REFUSED = [
    ({"output_type": "generate_until"}, r"task\.yaml: output_type: .*text would have to be generated"),
    ({"output_type": "loglikelihood_rolling"}, r"held-out bits per byte"),
    ({"output_type": "x"}, r"unknown; can be had: multiple_choice, loglikelihood, found 'x'"),
    ({"dataset_path": "allenai/ai2_arc"}, r"task\.yaml: dataset_path: .*'json', found 'allenai/ai2_arc'"),
    ({"dataset_kwargs": {}}, r"dataset_kwargs\.data_files: Field required"),
    ({"dataset_kwargs": {"data_files": "x", "field": "y"}}, r"key dataset_kwargs\.field is not supported"),
    ({"process_docs": "x"}, r"key process_docs is not supported"),
    ({"filter_list": []}, r"key filter_list is not supported"),
    ({"doc_to_choice": None}, r"doc_to_choice is missing"),
    ({"doc_to_text": None}, r"doc_to_text: Field required"),
    ({"test_split": None}, r"test_split or validation_split is missing"),
    ({"metric_list": [{"metric": "f1"}]}, r"metric_list\.0\.metric: .*found 'f1'"),
    ({"metric_list": [{"metric": "perplexity"}]}, r"perplexity is not one of multiple_choice: acc, acc_norm"),
    ({"metric_list": [{"metric": "acc", "aggregation": "median"}]}, r"aggregated by mean only, not by median"),
    ({"num_fewshot": -1}, r"num_fewshot: .*found -1"),
    ({"num_fewshot": 6, "fewshot_split": "train"}, r"num_fewshot is 6, but .*train\.jsonl has only 5 others"),
    ({"num_fewshot": 2, "fewshot_split": "test"}, r"num_fewshot is 2, but .*t\.jsonl has only 1 others"),
    ({"fewshot_config": {"sampler": "mine"}}, r"fewshot_config\.sampler: "),
    ({"doc_to_text": "{{q"}, r"task\.yaml: doc_to_text is not a Jinja2 template"),
    ({"doc_to_text": "{{missing}}"}, r"t\.jsonl:1: doc_to_text cannot be made: 'missing' is undefined; .*: a, b, q"),
    ({"doc_to_text": "{{ ''.__class__.__mro__ }}"}, r"doc_to_text cannot be made: .*unsafe"),
    ({"doc_to_choice": "{{q}}"}, r"t\.jsonl:1: doc_to_choice gives 'deep', wanted a list"),
    ({"doc_to_choice": "right"}, r"t\.jsonl:1: doc_to_choice gives a number, wanted a list"),
    ({"doc_to_choice": "{{[1, 2]}}"}, r"t\.jsonl:1: the choices hold a number"),
    ({"doc_to_target": "{{[0, 1]}}"}, r"the label is '\[0, 1\]'"),
    ({"doc_to_target": "5"}, r"the label is '5' \(doc_to_target\), wanted a number from 0 to 1"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda one: "")
def test_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !function utils.x\n", r"task\.yaml:1: .*!function.*refused"),
        ("- 1\n", r"found a list, wanted the keys"),
        ("a: [\n", r"is not YAML"),
        ("include: other.yaml\n", r"key include is not supported|Field required"),
    ],
)
def test_what_is_no_task(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_tasks([str(tmp_path / "task.yaml")])

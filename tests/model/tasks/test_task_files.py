"""Task files: what each known shape and an lm-eval YAML become, and what is refused with which words."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from model.tasks import reading
from model.tasks.task import Task, load_tasks

Row = dict[str, Any]
ARC: Row = {
    "id": "x", "question": "Which is hot?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"
}  # fmt: skip
HELLASWAG: Row = {
    "ind": 1, "activity_label": "Baking", "ctx_a": " She stirs.", "ctx_b": "then SHE", "label": "2",
    "endings": ["eats [title] Now", "goes  home", "a [x] b", "stops"],
}  # fmt: skip
PIQA: Row = {"goal": "To dry it", "sol1": "wet it", "sol2": "hang it", "label": 1}
WINOGRANDE: Row = {"sentence": "He saw _ and ran.", "option1": "Ann", "option2": "Bob", "answer": "2"}
BOOLQ: Row = {"passage": "Snow is white.", "question": "is snow white", "answer": True}
GENERIC: Row = {"question": "2 + 2 =", "choices": ["3", "4", "5"], "answer": 1}
LAMBADA: Row = {"text": "He opened the old door "}
COMPLETION: Row = {"context": "1, 2,", "target": " 3"}

# file's row -> (context, continuation) of each request, gold, metrics
RENDERED: list[tuple[Row, list[tuple[str, str]], int | None, tuple[str, ...]]] = [
    (ARC, [("Question: Which is hot?\nAnswer:", " ice"), ("Question: Which is hot?\nAnswer:", " fire")], 1,
     ("acc", "acc_norm")),
    (HELLASWAG, [("Baking: She stirs. Then she", f" {end}")
                 for end in ("eats. Now", "goes home", "a b", "stops")], 2, ("acc", "acc_norm")),
    (PIQA, [("Question: To dry it\nAnswer:", " wet it"), ("Question: To dry it\nAnswer:", " hang it")], 1,
     ("acc", "acc_norm")),
    (WINOGRANDE, [("He saw Ann", " and ran."), ("He saw Bob", " and ran.")], 1, ("acc",)),
    (BOOLQ, [("Snow is white.\nQuestion: is snow white?\nAnswer:", f" {word}") for word in ("no", "yes")], 1, ("acc",)),
    (GENERIC, [("2 + 2 =", " 3"), ("2 + 2 =", " 4"), ("2 + 2 =", " 5")], 1, ("acc", "acc_norm")),
    (LAMBADA, [("He opened the old", " door")], None, ("perplexity", "acc")),
    (COMPLETION, [("1, 2,", " 3")], None, ("perplexity", "acc")),
]  # fmt: skip


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(path: Path, *rows: object) -> Task:
    [task] = load_tasks([write(path, *rows)])
    return task


@pytest.mark.parametrize(("row", "requests", "gold", "metrics"), RENDERED, ids=lambda one: "")
def test_known_rows(
    tmp_path: Path, row: Row, requests: list[tuple[str, str]], gold: int | None, metrics: tuple[str, ...]
) -> None:
    task = load(tmp_path / "some task.jsonl", row)
    [example] = task.examples
    assert list(zip(example.contexts, example.continuations, strict=True)) == requests
    assert (example.gold, task.metrics, task.name) == (gold, metrics, "some_task")
    assert task.kind == ("completion" if gold is None else "multiple_choice")
    assert example.where == f"{tmp_path}/some task.jsonl:1"


@pytest.mark.parametrize(
    ("name", "value", "gold"),
    [("gold", 2, 2), ("label", "2", 2), ("answer", "A", 0), ("label", "c", 2), ("answer", "deep", 1), ("gold", "0", 0)],
)
def test_labels_of_a_choice(tmp_path: Path, name: str, value: object, gold: int) -> None:
    for question in ("query", "question", "context"):
        row = {question: "the sea is", "choices": ["dry", "deep", "red"], name: value}
        assert load(tmp_path / "t.jsonl", row).examples[0].gold == gold


def test_digits_as_a_question_are_text(tmp_path: Path) -> None:
    [example] = load(tmp_path / "t.jsonl", {"query": "1", "choices": ["a", "b"], "gold": 0}).examples
    assert (example.contexts, example.continuations) == (("1", "1"), (" a", " b"))


def test_blank_lines_are_no_documents_but_count(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f"\n{json.dumps(LAMBADA)}\n \n{json.dumps(LAMBADA)}")
    [task] = load_tasks([f"file://{path}"])
    assert [example.where.rsplit(":", 1)[1] for example in task.examples] == ["2", "4"]


def without(row: Row, name: str) -> Row:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (without(GENERIC, "answer"), r"t\.jsonl:2: has fields choices, question, wanted gold or label or answer"),
        (GENERIC | {"question": 3}, r"t\.jsonl:2: field question is a number, wanted text"),
        (GENERIC | {"choices": "abc"}, r"t\.jsonl:2: field choices is text, wanted a list of texts"),
        (GENERIC | {"choices": ["a", 1]}, r"t\.jsonl:2: field choices is a list, wanted a list of texts"),
        (GENERIC | {"choices": ["a"]}, r"t\.jsonl:2: choices are \['a'\], wanted at least two"),
        (GENERIC | {"choices": ["a", ""]}, r"t\.jsonl:2: choices are .* none of them empty"),
        (GENERIC | {"answer": 3}, r"t\.jsonl:2: the label is '3' .* wanted a number from 0 to 2"),
        (GENERIC | {"answer": -1}, r"t\.jsonl:2: the label is '-1'"),
        (GENERIC | {"answer": "D"}, r"t\.jsonl:2: the label is '3'"),
        (GENERIC | {"answer": "none of them"}, r"t\.jsonl:2: the label is 'none of them'"),
        (GENERIC | {"answer": True}, r"t\.jsonl:2: field answer is true or false, wanted a number or text"),
        (GENERIC | {"question": "\ud800"}, r"t\.jsonl:2: half of a surrogate pair"),
        ([1], r"t\.jsonl:2: found a list, wanted a JSON object"),
    ],
)
def test_bad_rows_name_file_line_found_and_wanted(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "t.jsonl", GENERIC, row)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ARC | {"answerKey": "E"}, r"t\.jsonl:1: doc_to_target cannot be made"),
        (ARC | {"choices": {"text": ["a"]}}, r"field choices is an object, wanted an object of lists `text` and"),
        (WINOGRANDE | {"answer": "3"}, r"t\.jsonl:1: the label is '3'"),
        (WINOGRANDE | {"answer": ""}, r"t\.jsonl:1: the label is ''"),
        (WINOGRANDE | {"sentence": "no blank"}, r"t\.jsonl:1: doc_to_target cannot be made"),
        (BOOLQ | {"answer": "yes"}, r"field answer is text, wanted true, false or a number"),
        (BOOLQ | {"answer": 2}, r"the label is '2'"),
        (PIQA | {"label": -1}, r"the label is '-1'"),
        (COMPLETION | {"target": ""}, r"doc_to_target is empty"),
        ({"quest": "x"}, r"t\.jsonl:1: has fields quest, wanted those of a known task \(ARC: question, choices"),
        ({}, r"t\.jsonl:1: has fields none"),
    ],
)
def test_bad_rows_of_known_tasks(tmp_path: Path, row: Row, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(tmp_path / "t.jsonl", row)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"t\.jsonl is empty"),
        (b"\n \n", r"t\.jsonl is empty"),
        (b"{", r"t\.jsonl:1: not JSON"),
        (b'{"text": "\xff"}', r"t\.jsonl:1: not UTF-8: byte 0xff at position 10"),
        (b"[" * 100_000, r"t\.jsonl:1: not JSON"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_tasks([str(tmp_path / "t.jsonl")])


class Endless(io.BytesIO):
    """A line without an end."""

    def readline(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert 0 < size < 1000
        return b"x" * size


def test_a_long_line_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reading.MAX_LINE_BYTES == 16 * 2**20
    monkeypatch.setattr(reading, "MAX_LINE_BYTES", 50)
    line = json.dumps({"text": "x" * 37}) + "\n"
    assert len(line) == 50
    with pytest.raises(ValueError, match="longer than 50 bytes"):
        next(reading._lines(Endless(), "t"))
    (tmp_path / "t.jsonl").write_text(line + line.replace("x", "xx", 1))
    with pytest.raises(ValueError, match=r"t\.jsonl:2: the line is longer than 50 bytes"):
        load_tasks([str(tmp_path / "t.jsonl")])


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no task file .*none\.jsonl"):
        load_tasks([str(tmp_path / "none.jsonl")])
    with pytest.raises(ValueError, match=r"is no task: wanted a \.jsonl"):
        load_tasks([str(tmp_path)])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        load_tasks([str(tmp_path / "folder.jsonl")])


def test_two_tasks_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    uris = [write(tmp_path / "t.jsonl", LAMBADA), write(tmp_path / "a" / "t.jsonl", LAMBADA)]
    with pytest.raises(ValueError, match="another task is named t"):
        load_tasks(uris)

"""The YAML of an lm-eval task on local JSONL. What it may say and this code cannot do is refused, never ignored."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from model.files import local_path
from model.tasks.example import METRICS, Kind, Templates
from model.tasks.reading import kind_of, read_yaml_text
from model.tasks.templates import check_template

_KINDS: Mapping[str, Kind] = {"multiple_choice": "multiple_choice", "loglikelihood": "completion"}
_REFUSED = {
    "generate_until": "text would have to be generated, here only likelihoods are measured",
    "loglikelihood_rolling": "whole documents are measured by the held-out bits per byte instead",
}
_AGGREGATIONS = {"acc": "mean", "acc_norm": "mean", "perplexity": "perplexity"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _DatasetKwargs(_Strict):
    data_files: str | dict[str, str]


class _Fewshot(_Strict):
    sampler: Literal["default", "first_n"] = "default"


class _Metric(_Strict):
    metric: Literal["acc", "acc_norm", "perplexity"]
    aggregation: str | None = None
    higher_is_better: bool | None = None


class Definition(_Strict):
    """A task as its YAML has it; the documents are not read yet."""

    task: Annotated[str, Field(min_length=1)]
    dataset_path: Literal["json"]
    dataset_kwargs: _DatasetKwargs
    training_split: str | None = None
    validation_split: str | None = None
    test_split: str | None = None
    fewshot_split: str | None = None
    fewshot_config: _Fewshot = _Fewshot()
    num_fewshot: Annotated[int, Field(ge=0)] = 0
    output_type: str
    doc_to_text: str
    doc_to_target: str | int
    doc_to_choice: str | list[str] | None = None
    description: str = ""
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    metric_list: list[_Metric] | None = None
    # without effect on the numbers
    dataset_name: Any = None
    tag: Any = None
    task_alias: Any = None
    metadata: Any = None
    should_decontaminate: Any = None
    doc_to_decontamination_query: Any = None

    @field_validator("output_type")
    @classmethod
    def _measurable(cls, value: str) -> str:
        if value not in _KINDS:
            raise ValueError(f"{_REFUSED.get(value, 'unknown')}; can be had: {', '.join(_KINDS)}")
        return value

    def templates(self) -> Templates:
        """How its documents become examples. ValueError for metrics that do not fit the kind of task."""
        kind = _KINDS[self.output_type]
        if kind == "multiple_choice" and self.doc_to_choice is None:
            raise ValueError("doc_to_choice is missing: multiple_choice needs it")
        for metric in self.metric_list or ():
            if metric.metric not in METRICS[kind]:
                raise ValueError(f"metric {metric.metric} is not one of {self.output_type}: {', '.join(METRICS[kind])}")
            if metric.aggregation not in (None, wanted := _AGGREGATIONS[metric.metric]):
                raise ValueError(f"{metric.metric} is aggregated by {wanted} only, not by {metric.aggregation}")
        for name in ("doc_to_text", "doc_to_target", "doc_to_choice", "description"):
            if isinstance(template := getattr(self, name), str):
                check_template(name, template)
        return Templates(
            name=self.task,
            kind=kind,
            text=self.doc_to_text,
            target=self.doc_to_target,
            choices=self.doc_to_choice if kind == "multiple_choice" else None,
            metrics=tuple(m.metric for m in self.metric_list) if self.metric_list else METRICS[kind],
            description=self.description,
            target_delimiter=self.target_delimiter,
            fewshot_delimiter=self.fewshot_delimiter,
        )

    def file(self, uri: str, *splits: str) -> str:
        """The JSONL of the first of those splits that is named; relative ones lie beside the YAML at `uri`."""
        named = next((value for split in splits if (value := getattr(self, split)) is not None), None)
        if named is None:
            raise ValueError(f"{' or '.join(splits)} is missing: it says which of data_files is evaluated")
        files = self.dataset_kwargs.data_files
        by_split = {"train": files} if isinstance(files, str) else files  # a single file is the split `train`
        if named not in by_split:
            raise ValueError(f"split {named} is none of data_files, which has {', '.join(sorted(by_split))}")
        return beside(uri, by_split[named])


def read_definition(uri: str) -> Definition:
    """Read a task's YAML; ValueError names the file, the key, what was found and what can be had."""
    try:
        content = yaml.safe_load(read_yaml_text(uri))
    except yaml.constructor.ConstructorError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"{uri}:{line}: {error.problem}: tags such as !function run code and are refused") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{uri} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{uri}: found {kind_of(content)}, wanted the keys of an lm-eval task")
    try:
        return Definition.model_validate({str(k): v for k, v in content.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, found = ".".join(map(str, first["loc"])), reprlib.repr(first["input"])
        if first["type"] == "extra_forbidden":
            raise ValueError(f"{uri}: key {key} is not supported: its effect would be missing") from None
        raise ValueError(
            f"{uri}: {key}: {first['msg']}" + ("" if first["type"] == "missing" else f", found {found}")
        ) from None


def beside(uri: str, name: str) -> str:
    """A file named in the file `uri`."""
    if "://" in name or name.startswith("/"):
        return name
    path = local_path(uri)
    return f"{uri.rsplit('/', 1)[0]}/{name}" if path is None else str(path.parent / name)

"""Reads a job file and `--set` assignments into a TrainingJob. Called by the command line.

Invariant: whatever the file holds, the outcome is a valid TrainingJob or one InvalidJob that lists every
problem by the path the user wrote, with the value found and the value wanted, in less than two seconds.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model.files import read_file
from orchestrator.errors import InvalidJob, Problem
from orchestrator.spec import TrainingJob
from orchestrator.spec_words import FORM, TOO_LONG

_MAX_BYTES = 1 << 20
_MAX_NODES = 10_000
_MAX_DEPTH = 20
_SUFFIXES = {"k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}

Document = dict[str, Any]


def load_job(path: Path, assignments: Sequence[str] = ()) -> TrainingJob:
    """The job in `path` with `assignments` ("training.tokens=2M") applied; InvalidJob lists all problems."""
    return make_job(read_document(path), assignments)


def read_document(path: Path) -> Document:
    """The mapping in a job file; InvalidJob where there is none. Its fields are not looked at."""
    return _parse(_read(path), str(path))


def load_jobs(path: Path, assignments: Sequence[str] = ()) -> list[TrainingJob]:
    """Every job of a file of one or more documents; InvalidJob lists all problems of all of them."""
    documents = _parse_all(_read(path), str(path))
    jobs, problems = [], []
    for number, document in enumerate(documents, start=1):
        try:
            jobs.append(make_job(document, assignments))
        except InvalidJob as error:
            where = f"{path}, document {number}: " if len(documents) > 1 else ""
            problems += [Problem(f"{where}{one.path}", one.message) for one in error.problems]
    if problems:
        raise InvalidJob(problems)
    return jobs


def make_job(document: Document, assignments: Sequence[str] = ()) -> TrainingJob:
    """The job of a document, which `assignments` change in place; InvalidJob lists all problems."""
    problems = [problem for text in assignments if (problem := _assign(document, text))]
    if "status" in document:
        problems.append(Problem("status", "is written by Fathom: remove it from the job file"))
        del document["status"]
    try:
        job = TrainingJob.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        problems += [_problem(detail) for detail in error.errors(include_url=False)]
    if problems:
        raise InvalidJob(problems)
    return job


def _read(path: Path) -> str:
    """The file's text, of bounded size."""
    try:
        return read_file(path, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except ValueError as error:
        problem = str(error).removeprefix(f"{path} ")
    except OSError as error:
        problem = f"cannot be read: {error.strerror or 'No such file or directory'}"
    raise InvalidJob([Problem(str(path), problem)])


class _Refused(yaml.MarkedYAMLError):
    """YAML that is well formed, and not for us."""

    def __init__(self, problem: str, node: Any) -> None:  # noqa: ANN401 - a node or an event: has start_mark
        super().__init__(problem=problem, problem_mark=node.start_mark)


class _Loader(yaml.SafeLoader):
    """Safe, bounded YAML: no duplicate keys, no aliases; dates stay text, 1e-3 is a number (YAML 1.2)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401 - PyYAML's
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused("aliases (*name) are not supported", event)
        self._depth += 1
        self._nodes += 1
        if self._depth > _MAX_DEPTH:
            raise _Refused(f"more than {_MAX_DEPTH} levels of nesting", event)
        if self._nodes > _MAX_NODES:
            raise _Refused(f"more than {_MAX_NODES} values", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise _Refused("a field name must be text", key)
            if key.value in seen:
                raise _Refused(f"field {key.value!r} is given twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)\Z"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)\Z")
"""Decimal only: YAML 1.1 would read 1:30:00 as 5400 and 0100 as 64."""
_LEFT_OUT = {f"tag:yaml.org,2002:{name}" for name in ("timestamp", "float", "int", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _LEFT_OUT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))


def _parse(text: str, name: str) -> Document:
    """The one YAML mapping in `text`."""
    with _readable(name):
        return _mapping(yaml.load(text, _Loader), name)


def _parse_all(text: str, name: str) -> list[Document]:
    """The mappings of all its documents, at least one; what is empty between two `---` is none."""
    with _readable(name):
        found = [document for document in yaml.load_all(text, _Loader) if document is not None]
    return [_mapping(document, name) for document in found or [None]]


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What PyYAML refuses, as InvalidJob."""
    try:
        yield
    except yaml.YAMLError as error:
        raise InvalidJob([Problem(name, _yaml_message(error))]) from None
    except (ValueError, OverflowError) as error:  # numbers that Python refuses, e.g. of 5000 digits
        raise InvalidJob([Problem(name, f"holds a value that cannot be read: {error}")]) from None


def _mapping(document: object, name: str) -> Document:
    if not isinstance(document, dict):
        found = "nothing" if document is None else _show(document)
        raise InvalidJob([Problem(name, f"must be a mapping with apiVersion, kind, metadata and spec, found {found}")])
    return document


def _yaml_message(error: yaml.YAMLError) -> str:
    """What is wrong with the YAML, and where."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return f"is not YAML: {' '.join(str(error).split())[:200]}"
    mark = error.problem_mark
    where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    if error.context and "single document" in error.context:
        return f"holds several documents: keep one job per file{where}"
    return f"is not a readable YAML file: {error.problem}{where}"


# Assignments


def _assign(document: Document, text: str) -> Problem | None:
    """Apply one `path=value` to the document; the problem, if it cannot be done."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if keys[0] not in ("metadata", "spec"):
        keys.insert(0, "spec")
    if not equals or not value.strip():
        return Problem(f"--set {text[:200]}", "write it as path=value, e.g. training.tokens=2M")
    annotation: Any = TrainingJob
    for position, key in enumerate(keys):
        child = _child(annotation, key)
        if child is None:
            known = _fields(annotation)
            parent = ".".join(keys[:position])
            return Problem(f"--set {text[:200]}", f"{parent} has no field {key!r}{_suggest(key, known)}")
        annotation = child
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = ", ".join(_fields(annotation))
        return Problem(f"--set {text[:200]}", f"{'.'.join(keys)} is a group of fields; set one of: {fields}")
    return _store(document, keys, _value(value.strip(), annotation), text)


def _store(document: Document, keys: list[str], value: object, text: str) -> Problem | None:
    """Put `value` at `keys`; null removes the field, so that it is chosen."""
    node = document
    for position, key in enumerate(keys[:-1]):
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            parent = ".".join(keys[: position + 1])
            return Problem(f"--set {text[:200]}", f"the file has {_show(child)} at {parent}, not fields")
        node = child
    if value is None:
        node.pop(keys[-1], None)
    else:
        node[keys[-1]] = value
    return None


def _value(text: str, annotation: object) -> object:
    """An assignment's value: text where the field is text, else a YAML scalar; 2M means 2000000."""
    try:
        parsed = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OverflowError):
        parsed = text
    if annotation is str:
        return parsed if isinstance(parsed, str) or parsed is None else text
    number = _expand(text) if annotation is int else None
    return parsed if number is None else number


def _expand(text: str) -> int | None:
    """2M -> 2000000, 1.5B -> 1500000000, 1e9 -> 1000000000; None where the text is no whole number."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,12})?)(?:e\+?([0-9]{1,2}))?([kMGBT]?)", text.replace("_", ""))
    if match is None:
        return None
    whole, _, fraction = match[1].partition(".")
    scaled = int(whole + fraction) * 10 ** int(match[2] or 0) * _SUFFIXES.get(match[3], 1)
    number, rest = divmod(scaled, 10 ** len(fraction))
    return None if rest else number


# The form of a TrainingJob


def _plain(annotation: Any) -> Any:  # noqa: ANN401 - annotations have no common type
    """The type behind `X | None` and `Annotated[X, ...]`."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) is dict or not options or get_origin(annotation) is None:
        return annotation
    return _plain(options[0]) if hasattr(annotation, "__metadata__") or len(options) == 1 else annotation


def _members(annotation: object) -> dict[str, Any]:
    """Fields of a part, by the names that users write."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return {}
    return {info.alias or name: info for name, info in annotation.model_fields.items() if name != "status"}


def _fields(annotation: object) -> list[str]:
    return list(_members(annotation))


def _child(annotation: object, key: str) -> Any:  # noqa: ANN401 - annotations have no common type
    """The type of the field `key`, None where there is none."""
    if get_origin(annotation) is dict:
        return _plain(get_args(annotation)[1])
    info = _members(annotation).get(key)
    return None if info is None else _plain(info.annotation)


def _suggest(key: str, known: Sequence[str]) -> str:
    """What the user may have meant."""
    lowered = {name.lower(): name for name in known}
    plain = key.replace("_", "").replace("-", "").lower()
    close = difflib.get_close_matches(plain, list(lowered), n=1, cutoff=0.6)
    if close:
        return f": did you mean {lowered[close[0]]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


# Problems


def _problem(detail: ErrorDetails) -> Problem:
    """One of pydantic's findings in the user's words."""
    location = [str(part) for part in detail["loc"] if part != "[key]"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if detail["type"] == "combination":
        return Problem(".".join([*location, context["field"]]), context["message"])
    if detail["type"] == "extra_forbidden":
        parent: Any = TrainingJob
        for key in location[:-1]:
            parent = _child(parent, key)
        return Problem(".".join(location), f"there is no such field{_suggest(location[-1], _fields(parent))}")
    message = _message(detail, context, _description(location))
    if location == ["spec", "compute", "accelerator"] and detail["type"] == "literal_error":
        message += f"; {_OTHER_DEVICES}"
    return Problem(".".join(location), message)


_OTHER_DEVICES = (
    "to plan for another one, use `fathom plan FILE --accelerator NAME`, which FATHOM_HARDWARE and FATHOM_PRICES may "
    "describe; for a variant of one of these, write its name here and a row of that name in FATHOM_HARDWARE's file"
)


def _description(location: Sequence[str]) -> str:
    """The documentation of a field."""
    parent: Any = TrainingJob
    for key in location[:-1]:
        parent = _child(parent, key)
    info = _members(parent).get(location[-1]) if location else None
    return str(info.description) if info is not None and info.description else ""


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "more than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def _message(detail: ErrorDetails, context: Mapping[str, Any], description: str) -> str:
    """What was found, what is wanted, and how to write it."""
    kind, found = detail["type"], detail["input"]
    if kind == "password":
        return str(context["message"])  # and not what was found
    if kind == "missing":
        return f"is required. {description}".rstrip()
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = context[key]
        bound = int(bound) if bound == int(bound) else bound
        return f"must be {words} {bound}, got {_show(found)}"
    if kind == "literal_error":
        return f"must be {context['expected']}, got {_show(found)}"
    if kind.startswith("int_") and kind != "int_parsing_size":
        return f"must be a whole number, got {_show(found)}{_int_hint(found)}"
    if kind in ("float_type", "bool_type", "finite_number"):
        wanted = "true or false" if kind == "bool_type" else "a number"
        return f"must be {wanted}, got {_show(found)}"
    if kind == "string_type":
        quotes = f': write it in quotes, "{found}"' if isinstance(found, int | float) else ""
        return f"must be text, got {_show(found)}{quotes}"
    if kind == "string_pattern_mismatch":
        return FORM.format(value=_show(found), pattern=context["pattern"], description=description).rstrip()
    if kind == "string_too_long":
        return TOO_LONG.format(length=len(found), longest=context["max_length"])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a group of fields, got {_show(found)}"
    return f"{detail['msg']}, got {_show(found)}"


def _int_hint(found: object) -> str:
    """How to write a number that was meant to be whole."""
    if isinstance(found, float) and math.isfinite(found) and found == int(found):
        return f": write {int(found)}"
    number = _expand(found) if isinstance(found, str) else None
    return f": write {number} (2M and the like are understood by --set only)" if number is not None else ""


def _show(value: object) -> str:
    """A value for a message, bounded."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."

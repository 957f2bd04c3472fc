from __future__ import annotations

import re
from pathlib import Path

import pytest
from starlette.types import Scope

from orchestrator.api.problems import CODES, error_response, pointer, problem_response
from orchestrator.errors import FathomError, Interrupted, InvalidJob, Problem, RateLimited, RunFailed

DOCS = Path(__file__).parents[3] / "docs" / "problems.md"
SCOPE: Scope = {"type": "http", "path": "/v1/jobs", "state": {"request_id": "r"}}
NEVER_RAISED_HERE = (RunFailed, Interrupted)


def kinds(kind: type[FathomError] = FathomError) -> list[type[FathomError]]:
    return [one for below in kind.__subclasses__() for one in (below, *kinds(below))]


def test_the_document_explains_every_code() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([0-9]{3}) \| \S.* \| \S.* \|$", DOCS.read_text(), re.MULTILINE)
    assert sorted((code, int(status)) for code, status in rows) == sorted(
        (code, status) for code, (status, _) in CODES.items()
    )


def test_every_error_of_the_tree_has_its_code_and_status() -> None:
    for kind in kinds():
        if kind not in NEVER_RAISED_HERE and kind.__module__ == "orchestrator.errors":
            assert CODES[kind.code][0] == kind.http_status, kind


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("", ""),
        ("spec.training.tokens", "/spec/training/tokens"),
        ("spec.a/b~c", "/spec/a~1b~0c"),
        ("--set training.tokens=2M", ""),
    ],
)
def test_pointers(path: str, wanted: str) -> None:
    assert pointer(path) == wanted


def test_problems_without_a_field_keep_their_words() -> None:
    body = error_response(SCOPE, InvalidJob([Problem("some file", "is bad")])).body
    assert b'{"pointer":"","detail":"some file: is bad"}' in bytes(body)


def test_when_to_come_again() -> None:
    answer = error_response(SCOPE, RateLimited("too many", retry_after=1.2))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")


def test_half_a_character_breaks_no_answer() -> None:
    answer = problem_response({**SCOPE, "path": "/\ud800"}, "not-found", "nothing")
    assert b'"instance":"/?"' in bytes(answer.body)


def test_an_error_that_is_no_business_of_the_api_is_ours() -> None:
    assert error_response(SCOPE, RunFailed("a run")).status_code == 500

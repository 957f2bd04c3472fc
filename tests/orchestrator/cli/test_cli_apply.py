"""`fathom apply`: price, question, limit of the cost, and what happens to a job that is there already."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.answered import forecast, planned, progress, stored, submitted
from support.cli import Cli, commands
from support.wire import Wire, as_json, problem, wire

from orchestrator.cli.offers import parse_amount
from orchestrator.cli.output import Column, table
from orchestrator.cli.spark import sparkline
from orchestrator.errors import UsageError

ME = as_json({"name": "admin", "role": "admin"})
NONE = problem(404, "not-found", "there is no such job")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Wire]:
    with wire() as running:
        monkeypatch.setenv("FATHOM_URL", running.url)
        monkeypatch.setenv("FATHOM_TOKEN", "secret")
        monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
        monkeypatch.setattr("sys.stdin", io.StringIO())
        yield running


@pytest.fixture
def fathom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return commands(monkeypatch, capsys)


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def write(path: Path, *documents: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump_all(documents))
    return path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write(tmp_path / "job.yaml", submitted())


def fresh(server: Wire, **more: Any) -> None:  # noqa: ANN401 - of `planned`
    """A service without this job."""
    server.routes(
        GET_me=ME,
        POST_plans=as_json(planned(**more)),
        POST_jobs=as_json(stored(phase="Pending", **more_spec(more)), 201),
    )


def more_spec(more: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in more.items() if key not in ("plan", "name")}


# ------------------------------------------------------------------ a new job


def test_the_price_comes_first_and_somebody_must_agree(
    monkeypatch: pytest.MonkeyPatch, server: Wire, fathom: Cli, job: Path
) -> None:
    fresh(server, plan=forecast(10, 12, 20), budget={"limit": "25"})
    code, out, err = fathom("apply", job)
    assert (code, out) == (2, "")
    assert "give -y" in err
    head, line, remark = err.splitlines()[:3]
    assert head.split() == ["JOB", "DEVICES", "TIME", "COST", "FROM", "TO", "PER", "HOUR", "LIMIT"]
    assert line.split()[-5:] == ["$12", "$10", "$20", "$0.0800", "$25"]
    assert remark == "· price: a list (2026-06-01)"
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    code, out, err = fathom("apply", job)
    assert (code, out) == (130, "")
    assert err.endswith("submit default/tiny? [y/N]: nothing was done\n")
    assert [asked.method for asked in server.asked if asked.path == "/v1/jobs"] == []
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    assert fathom("apply", job)[:2] == (0, "default/tiny  submitted\n")
    assert server.asked[-1].json()["plan"] == "plan-tiny"


def test_yes_asks_nobody(server: Wire, fathom: Cli, job: Path) -> None:
    fresh(server)
    code, out, err = fathom("apply", job, "-y")
    assert (code, out) == (0, "default/tiny  submitted\n")
    assert "unknown" in err
    assert "· default/tiny: no forecast for this machine yet" in err
    assert "fathom logs default/tiny -f" in err
    assert fathom("apply", job, "-y", "-o", "name")[1] == "default/tiny\n"
    assert json.loads(fathom("apply", job, "-y", "-o", "json")[1])["metadata"]["uid"] == "u-tiny"


def test_a_dry_run_submits_nothing(server: Wire, fathom: Cli, job: Path) -> None:
    fresh(server)
    assert fathom("apply", job, "--dry-run")[:2] == (0, "default/tiny  would be submitted\n")
    assert server.lines[-1] == "POST /v1/jobs?dryRun=true"
    assert "POST /v1/jobs" not in server.lines


def test_set_changes_what_is_sent(server: Wire, fathom: Cli, job: Path) -> None:
    fresh(server)
    assert fathom("apply", job, "-y", "--set", "training.tokens=2M")[0] == 0
    assert server.asked[-1].json()["job"] == planned()["job"]
    sent = next(asked for asked in server.asked if asked.path == "/v1/plans").json()
    assert sent["job"]["spec"]["training"]["tokens"] == 2_000_000


# ------------------------------------------------------------------ --max-cost


@pytest.mark.parametrize(
    ("changes", "maximum", "code", "words"),
    [
        ({"plan": (10, 12, 20)}, "20", 0, ""),
        ({"plan": (10, 12, 20)}, "19.99", 5, "up to $20 exceeds --max-cost 19.99"),
        ({"plan": (10, 12, 20), "budget": {"limit": "5"}}, "19.99", 5, "high end of the forecast $20"),
        ({"budget": {"limit": "5"}}, "5", 0, ""),
        ({"budget": {"limit": "5"}}, "4", 5, "no forecast, budget.limit 5 USD"),
        ({}, "4", 5, "--set budget.limit=4"),
        ({}, "-1", 2, "write an amount"),
        ({}, "many", 2, "write an amount"),
        ({}, "nan", 2, "write an amount"),
    ],
)
def test_what_may_cost_more_is_not_submitted(
    server: Wire, fathom: Cli, job: Path, changes: dict[str, Any], maximum: str, code: int, words: str
) -> None:
    figures = changes.get("plan")
    fresh(server, **{**changes, "plan": forecast(*figures) if figures else None})
    done, _, err = fathom("apply", job, "-y", f"--max-cost={maximum}")
    assert (done, words in err) == (code, True)
    assert ("POST /v1/jobs" in server.lines) is (code == 0)


def test_several_jobs_together_must_keep_to_it(server: Wire, fathom: Cli, tmp_path: Path) -> None:
    both = write(tmp_path / "both.yaml", submitted("one"), submitted("two"))
    plan = forecast(10, 12, 20)
    plans = [as_json(planned(name, plan=plan)) for name in ("one", "two")] * 2
    server.routes(GET_me=ME, POST_plans=plans, POST_jobs=[as_json(stored("one"), 201), as_json(stored("two"), 201)])
    code, _, err = fathom("apply", both, "-y", "--max-cost", "39")
    assert (code, "up to $40 exceeds --max-cost 39" in err) == (5, True)
    code, out, err = fathom("apply", both, "-y", "--max-cost", "40")
    assert (code, out) == (0, "default/one  submitted\ndefault/two  submitted\n")
    assert [line.split()[0] for line in err.splitlines()[1:4]] == ["default/one", "default/two", "together"]


def test_an_amount_is_a_number() -> None:
    assert str(parse_amount("12.50")) == "12.50"
    with pytest.raises(UsageError, match="write an amount"):
        parse_amount("Infinity")


# ------------------------------------------------------------------ a job that is there


def test_an_unchanged_job_is_left_alone(server: Wire, fathom: Cli, job: Path) -> None:
    server.routes(GET_me=ME, GET_jobs_default_tiny=as_json(stored()))
    assert fathom("apply", job) == (0, "default/tiny  unchanged, Running\n", "")
    assert server.lines == ["GET /v1/jobs/default/tiny"] * 2
    server.routes(GET_me=ME, GET_jobs_default_tiny=as_json(stored(phase="Failed")))
    assert "to go on: fathom resume default/tiny" in fathom("apply", job)[1]


def test_what_may_change_is_shown_and_patched(server: Wire, fathom: Cli, tmp_path: Path) -> None:
    job = write(tmp_path / "job.yaml", submitted(budget={"limit": "9"}))
    live = stored(budget={"limit": "5"})
    server.routes(GET_me=ME, GET_jobs_default_tiny=as_json(live), PATCH_jobs_default_tiny=as_json(live))
    code, out, err = fathom("apply", job, "--dry-run")
    assert (code, out) == (0, "default/tiny  would be changed: budget.limit: 5 -> 9\n")
    assert err == "default/tiny (Running) changes:\n  budget.limit: 5 -> 9\n"
    assert not any(asked.method == "PATCH" for asked in server.asked)
    assert fathom("apply", job, "-y", "--max-cost", "8")[0] == 5
    assert fathom("apply", job, "-y")[:2] == (0, "default/tiny  changed: budget.limit: 5 -> 9\n")
    assert server.asked[-1].json() == {"spec": {"budget": {"limit": "9"}}}


def test_what_is_fixed_is_a_conflict(server: Wire, fathom: Cli, job: Path) -> None:
    server.routes(GET_me=ME, GET_jobs_default_tiny=as_json(stored()))
    code, out, err = fathom("apply", job, "-y", "--set", "training.tokens=2M")
    assert (code, out) == (4, "")
    assert "training.tokens: 100000 -> 2000000" in err
    assert "fathom delete default/tiny" in err


# ------------------------------------------------------------------ files


def test_every_problem_of_every_document_is_said_before_anything_is_sent(
    server: Wire, fathom: Cli, tmp_path: Path
) -> None:
    bad = write(tmp_path / "bad.yaml", submitted("one"), submitted("two", training={"tokens": "many"}))
    code, out, err = fathom("apply", bad, tmp_path / "none.yaml")
    assert (code, out) == (2, "")
    assert "bad.yaml, document 2: spec.training.tokens: must be a whole number" in err
    assert "none.yaml: cannot be read" in err
    assert server.asked == []


def test_the_same_job_twice_is_refused(server: Wire, fathom: Cli, job: Path) -> None:
    fresh(server)
    code, _, err = fathom("apply", job, job, "-y")
    assert (code, "default/tiny is given twice" in err) == (2, True)
    assert fathom("apply", job, job, "--follow", "-y")[0] == 2


def test_what_was_done_before_an_error_is_said(server: Wire, fathom: Cli, tmp_path: Path) -> None:
    both = write(tmp_path / "both.yaml", submitted("one"), submitted("two"))
    server.routes(
        GET_me=ME,
        POST_plans=[as_json(planned("one")), as_json(planned("two"))],
        POST_jobs=[as_json(stored("one"), 201), problem(409, "stale-plan", "prices changed")],
    )
    code, out, err = fathom("apply", both, "-y")
    assert (code, out) == (4, "")
    assert err.endswith("done before this: default/one\nerror: prices changed\n")


# ------------------------------------------------------------------ --follow


@pytest.mark.parametrize(("end", "expected"), [("Succeeded", 0), ("Failed", 1), ("Cancelled", 130)])
def test_following_ends_with_the_job(
    monkeypatch: pytest.MonkeyPatch, server: Wire, fathom: Cli, job: Path, end: str, expected: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    running = {"progress": progress(4, 10, loss="3.2", tokensPerSecond="100", etaSeconds=9)}
    server.routes(
        GET_me=ME,
        POST_plans=as_json(planned()),
        POST_jobs=as_json(stored(phase="Pending"), 201),
        GET_jobs_default_tiny=[
            NONE,
            NONE,
            *(as_json(stored(phase=phase, status=running)) for phase in ("Running", "Running", end)),
        ],
    )
    code, out, err = fathom("apply", job, "-y", "--follow")
    assert (code, out) == (expected, "default/tiny  submitted\n")
    lines = [line for line in err.splitlines() if line.startswith("default/tiny phase=")]
    assert lines[0] == "default/tiny phase=Running step=4/10 tokens=1024 loss=3.2 tokens_per_second=100 seconds_left=9"
    assert [line.split()[1] for line in lines] == ["phase=Running", f"phase={end}"]


# ------------------------------------------------------------------ tables


def test_a_table_is_filled_by_name_and_never_steers_the_terminal() -> None:
    columns = (Column("A"), Column("B", right=True))
    rows = [{"B": "1", "A": "x\x1b[31m\ny"}, {"C": "lost", "A": "漢"}]
    assert table(columns, rows) == "A        B\nx[31m y  1\n漢       -\n"


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([1.0], "▁"), ([5, 5, 5], "▁▁▁"), ([1, 2, 3, 4], "▁▃▆█"),
     ([1, 3, 9, 11], "▁█"), ([1, float("nan"), 2], "▁█")],
)  # fmt: skip
def test_small_lines(values: list[float], line: str) -> None:
    assert sparkline(values, 2 if len(values) == 4 and values[1] == 3 else 4) == line

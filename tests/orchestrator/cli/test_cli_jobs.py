"""The commands that read jobs of the service, against a server that answers as it would."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.answered import progress, stored
from support.cli import Cli, commands
from support.wire import Reply, Wire, as_json, problem, sse, wire

from orchestrator.cli.job_rows import devices
from orchestrator.spec import Compute

ROOT = Path(__file__).parents[3]
ME = as_json({"name": "admin", "role": "admin"})
STATUS: dict[str, Any] = {
    "progress": progress(5, 10, loss="3.21", tokensPerSecond="1234.5", etaSeconds=65),
    "cost": {
        "spent": "0.5", "burnPerHour": "2", "wasted": "0.1", "currency": "USD", "forecastLow": "1", "forecastHigh": "2",
    },
    "attemptCount": 1,
    "attempts": [{"number": 1, "startedAt": "2026-06-01T12:00:00Z", "fromStep": 0}],
    "conditions": [
        {"type": "Running", "status": "True", "reason": "MakingProgress", "message": "step 5 of 10",
         "lastTransitionTime": "2026-06-01T12:00:00Z"},
    ],
}  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Wire]:
    with wire() as running:
        monkeypatch.setenv("FATHOM_URL", running.url)
        monkeypatch.setenv("FATHOM_TOKEN", "secret")
        monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
        yield running


@pytest.fixture
def fathom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return commands(monkeypatch, capsys)


def listed(*jobs: dict[str, Any]) -> Reply:
    return as_json({"items": list(jobs), "next": ""})


# ------------------------------------------------------------------ list


def test_jobs_are_listed(server: Wire, fathom: Cli) -> None:
    first, second = stored("tiny", status=STATUS, budget={"limit": "5"}), stored("other", "Queued")
    server.routes(GET_jobs=listed(first, second))
    code, out, err = fathom("list", "--phase", "running", "--phase", "Queued")
    assert (code, err) == (0, "")
    head, one, two = out.splitlines()
    assert head.split() == ["NAME", "PHASE", "STEP", "LOSS", "TOK/S", "SPENT", "LIMIT", "BURN/H", "ETA", "AGE"]
    assert one.split()[:11] == [
        "tiny",
        "Running",
        "5/10",
        "3.210",
        "1,234",
        "$0.5000",
        "$5.00",
        "$2.00",
        *["1", "m", "05"],
    ]
    assert two.split()[:9] == ["other", "Queued", *["-"] * 7]
    assert server.lines == ["GET /v1/jobs?phase=Running&phase=Queued&limit=100"]


def test_every_form_of_a_list(server: Wire, fathom: Cli) -> None:
    server.routes(GET_jobs=listed(stored("tiny", status=STATUS), stored("tiny", team="vision")))
    assert fathom("list", "-o", "name")[1] == "default/tiny\nvision/tiny\n"
    assert [job["metadata"]["namespace"] for job in json.loads(fathom("list", "-o", "json")[1])] == [
        "default",
        "vision",
    ]
    assert yaml.safe_load(fathom("list", "-o", "yaml")[1])[0]["status"]["progress"]["step"] == 5
    wide = fathom("list", "-o", "wide")[1]
    assert wide.splitlines()[0].split()[0] == "TEAM"
    assert "step 5 of 10" in wide
    assert "$1.00-$2.00" in wide
    assert fathom("list")[1].splitlines()[2].split()[0] == "vision/tiny"


def test_an_empty_list_is_said_beside_the_data(server: Wire, fathom: Cli) -> None:
    server.routes(GET_jobs=listed())
    assert fathom("list") == (0, "", "no jobs yet: submit one with `fathom apply JOB.yaml`\n")
    assert fathom("list", "--team", "x") == (0, "", "no such jobs\n")
    assert fathom("list", "-o", "json") == (0, "[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--phase", "Runing"], "there is no phase 'Runing': one of Pending"), (["-w"], "-w shows a table on a terminal")],
)
def test_a_list_that_cannot_be(server: Wire, fathom: Cli, arguments: list[str], words: str) -> None:
    code, out, err = fathom("list", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert server.asked == []


# ------------------------------------------------------------------ get


def test_one_job_with_its_reasons(server: Wire, fathom: Cli) -> None:
    server.routes(GET_me=ME, GET_jobs_default_tiny=as_json(stored("tiny", status=STATUS, budget={"limit": "5"})))
    code, out, err = fathom("get", "tiny")
    assert (code, err) == (0, "")
    for words in (
        "default/tiny",
        "Running",
        "why         step 5 of 10",
        "$0.5000 spent, $2.00 per hour, limit $5.00, forecast $1.00-$2.00",
        "1: running, steps 0 to -",
        "Running True (MakingProgress): step 5 of 10",
        "1,234 tokens/s, 1 m 05 s left",
        "2026-06-01 12:00:00 UTC by admin",
    ):
        assert words in out
    assert json.loads(fathom("get", "tiny", "-o", "json")[1])["metadata"]["uid"] == "u-tiny"
    assert fathom("get", "tiny", "-o", "name")[1] == "default/tiny\n"
    assert len(fathom("get", "tiny", "-o", "wide")[1].splitlines()) == 2


def test_what_is_not_there_has_a_code(server: Wire, fathom: Cli) -> None:
    server.routes(GET_me=ME)
    assert fathom("get", "tiny") == (3, "", "error: there is nothing at jobs/default/tiny\n")
    code, _, err = fathom("get", "Tiny!")
    assert (code, "is not the name of a job" in err) == (2, True)


def test_no_service_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fathom: Cli) -> None:
    for name in ("FATHOM_URL", "FATHOM_TOKEN", "FATHOM_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    code, out, err = fathom("list")
    assert (code, out) == (1, "")
    assert "start one with `fathom serve`" in err


# ------------------------------------------------------------------ logs, events, wait


def test_logs(server: Wire, fathom: Cli) -> None:
    text = Reply(200, b"one\ntwo\n", {"Content-Type": "text/plain; charset=utf-8"})
    server.routes(GET_jobs_a_b_logs=[text, sse("id: 1.8\ndata: three", "event: end\ndata: {}")])
    assert fathom("logs", "a/b", "--attempt", 2, "--tail", 5) == (0, "one\ntwo\n", "")
    assert fathom("logs", "a/b", "-f") == (0, "three\n", "")
    server.routes(GET_jobs_a_b_logs=Reply(200, b"", {"Content-Type": "text/plain"}))
    assert fathom("logs", "a/b") == (0, "", "nothing was printed\n")
    assert server.lines[:2] == ["GET /v1/jobs/a/b/logs?attempt=2&tail=5", "GET /v1/jobs/a/b/logs?follow=true"]


def test_ctrl_c_leaves_the_job_and_says_how_to_come_back(
    monkeypatch: pytest.MonkeyPatch, server: Wire, fathom: Cli
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    monkeypatch.setattr("orchestrator.client.Client.logs", interrupted)
    code, out, err = fathom("logs", "a/b", "-f")
    assert (code, out) == (130, "one\n")
    assert err == "\ndetached: the job goes on; come back with `fathom logs a/b -f`\n"


def test_a_real_ctrl_c_too(server: Wire) -> None:
    hold = threading.Event()
    server.routes(GET_jobs_a_b_logs=replace(sse("id: 1.4\ndata: one"), hold=hold))
    code = "from orchestrator.cli.main import main; main()"
    command = [sys.executable, "-c", code, "logs", "a/b", "-f"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "one\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    hold.set()
    assert (process.returncode, out) == (130, "")
    assert err == "\ndetached: the job goes on; come back with `fathom logs a/b -f`\n"


EVENTS = [
    {"kind": "started", "attempt": 1, "seq": 1, "time": "2026-06-01T12:00:00.000000Z", "step": 0, "worldSize": 2},
    {
        "kind": "progress",
        "attempt": 1,
        "seq": 2,
        "time": "2026-06-01T12:00:01.500000Z",
        "step": 1,
        "metrics": {"train/loss": 3.21},
    },
    {"kind": "warning", "attempt": 1, "seq": 3, "time": "2026-06-01T12:00:02.000000Z", "message": "slow disk"},
]


def test_events(server: Wire, fathom: Cli) -> None:
    server.routes(GET_jobs_a_b_events=as_json({"items": EVENTS, "next": ""}))
    lines = fathom("events", "a/b")[1].splitlines()
    assert [line.split()[:4] for line in lines[1:]] == [
        ["2026-06-01", "12:00:00", "1", "started"],
        ["2026-06-01", "12:00:02", "1", "warning"],
    ]
    assert lines[2].endswith('message="slow disk"')
    assert "train/loss=3.21" in fathom("events", "a/b", "-o", "wide")[1]
    assert json.loads(fathom("events", "a/b", "-o", "json")[1]) == EVENTS


def test_events_that_come_are_lines(server: Wire, fathom: Cli) -> None:
    frames = [f"id: {event['seq']}\ndata: {json.dumps(event)}" for event in EVENTS]
    server.routes(GET_jobs_a_b_events=sse("retry: 1000", *frames, "event: end\ndata: {}"))
    assert [json.loads(line) for line in fathom("events", "a/b", "-f", "-o", "json")[1].splitlines()] == EVENTS
    assert [line.split()[3] for line in fathom("events", "a/b", "-f")[1].splitlines()] == ["started", "warning"]


@pytest.mark.parametrize(
    ("phase", "arguments", "code"),
    [("Succeeded", [], 0), ("Failed", [], 1), ("Cancelled", [], 130), ("Failed", ["--until", "running"], 1),
     ("Succeeded", ["--until", "Running"], 4),
     ("Running", ["--until", "Running"], 0), ("Queued", ["--timeout", "0"], 1)],
)  # fmt: skip
def test_waiting_ends_with_a_code(server: Wire, fathom: Cli, phase: str, arguments: list[str], code: int) -> None:
    server.routes(GET_jobs_a_b=as_json(stored("b", phase, team="a")))
    assert fathom("wait", "a/b", *arguments)[0] == code


def test_over_budget_is_5(server: Wire, fathom: Cli) -> None:
    condition = {
        "type": "Complete",
        "status": "False",
        "reason": "LimitReached",
        "lastTransitionTime": "2026-06-01T12:00:00Z",
    }
    server.routes(GET_jobs_a_b=as_json(stored("b", "Suspended", team="a", status={"conditions": [condition]})))
    code, out, err = fathom("wait", "a/b")
    assert (code, out) == (5, "a/b\n")
    assert "does not allow more" in err


# ------------------------------------------------------------------ top


def test_top_off_a_terminal_is_one_table(server: Wire, fathom: Cli) -> None:
    steps = [
        {"step": step, "tokens": step, "time": 1.0, "metrics": {"train/loss": 9.0 - step, "moe/max_violation": 0.25}}
        for step in range(1, 5)
    ]
    server.routes(
        GET_jobs=listed(stored("tiny", status=STATUS)),
        GET_jobs_default_tiny_metrics=[
            as_json({"items": steps[:2], "next": "40", "more": True}),
            as_json({"items": steps[2:], "next": "70", "more": False}),
            as_json({"items": [], "next": "70", "more": False}),
        ],
    )
    code, out, err = fathom("top")
    assert (code, err) == (0, "")
    head, line = out.splitlines()
    assert "BALANCE" in head
    assert "+25%" in line
    assert line.endswith("█▆▃▁")
    [document] = json.loads(fathom("top", "-o", "json")[1])
    assert document["metrics"] == {}
    server.routes(GET_jobs=listed())
    assert fathom("top") == (0, "", "no job runs now; `fathom list` shows all\n")


def on_a_terminal(*arguments: str, until: str, interrupt: bool) -> tuple[int, str]:
    """-> exit code, and everything that was shown; Ctrl-C once `until` was shown."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", *arguments]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "24"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown, stopped = "", False
        with suppress(OSError):  # how Linux says that nobody writes any more
            while piece := os.read(ours, 65536):
                shown += piece.decode()
                if interrupt and not stopped and until in shown:
                    process.send_signal(signal.SIGINT)
                    stopped = True
    os.close(ours)
    return process.returncode, shown


def test_a_live_list_goes_on_until_ctrl_c(server: Wire) -> None:
    server.routes(GET_jobs=listed(stored("tiny", status=STATUS)))
    code, shown = on_a_terminal("list", "-w", until="tiny", interrupt=True)
    assert code == 130
    assert "\x1b[36mRunning\x1b[0m" in shown, "a colour"
    assert shown.rstrip().endswith("detached: the jobs go on")
    assert server.lines[0] == "GET /v1/jobs?limit=22"


def test_a_live_top_ends_with_the_job(server: Wire) -> None:
    server.routes(
        GET_me=ME,
        GET_jobs_default_tiny=as_json(stored("tiny", "Succeeded", status=STATUS)),
        GET_jobs_default_tiny_metrics=as_json({"items": [], "next": "0", "more": False}),
    )
    code, shown = on_a_terminal("top", "tiny", until="", interrupt=False)
    assert code == 0
    assert "default/tiny" in shown


# ------------------------------------------------------------------ changes


@pytest.mark.parametrize("verb", ["cancel", "suspend", "resume"])
def test_wishes(server: Wire, fathom: Cli, verb: str) -> None:
    reply = as_json(stored("b", team="a"))
    server.routes(**{f"POST_jobs_a_b_{verb}": reply})
    code, out, err = fathom(verb, "a/b")
    assert (code, out) == (0, "a/b\n")
    assert err.startswith("a/b: ")
    assert server.lines == [f"POST /v1/jobs/a/b:{verb}"]
    assert fathom(verb, "a/c")[0] == 3


def test_a_wish_may_be_waited_for(server: Wire, fathom: Cli) -> None:
    server.routes(
        POST_jobs_a_b_suspend=as_json(stored("b", team="a")), GET_jobs_a_b=as_json(stored("b", "Suspended", team="a"))
    )
    code, out, _ = fathom("suspend", "a/b", "--wait", "-o", "json")
    assert (code, json.loads(out)["status"]["phase"]) == (0, "Suspended")
    server.routes(
        POST_jobs_a_b_suspend=as_json(stored("b", team="a")), GET_jobs_a_b=as_json(stored("b", "Failed", team="a"))
    )
    assert fathom("suspend", "a/b", "--wait")[0] == 1


def test_deleting_must_be_meant(server: Wire, fathom: Cli) -> None:
    server.routes(GET_jobs_a_b=as_json(stored("b", team="a")), DELETE_jobs_a_b=Reply(202))
    code, out, err = fathom("delete", "a/b")
    assert (code, out) == (2, "")
    assert "this would forget a/b (Running), WITH their checkpoints" in err
    assert server.lines == ["GET /v1/jobs/a/b"]
    server.asked.clear()
    assert fathom("delete", "a/b", "a/c", "-y")[0] == 3
    assert server.lines == ["GET /v1/jobs/a/b", "GET /v1/jobs/a/c"]
    assert fathom("delete", "a/b", "-y", "--keep-files")[:2] == (0, "a/b\n")
    assert server.lines[-1] == "DELETE /v1/jobs/a/b?keepFiles=true"
    assert fathom("delete", "a/b", "-y", "--force")[:2] == (0, "a/b\n")
    assert server.lines[-1] == "DELETE /v1/jobs/a/b?force=true"


def test_a_job_is_cancelled_by_force(server: Wire, fathom: Cli) -> None:
    server.routes(POST_jobs_a_b_cancel=as_json(stored("b", team="a")))
    code, out, err = fathom("cancel", "a/b", "--force")
    assert (code, out, err) == (0, "a/b\n", "a/b: ends at once and for good, without a last checkpoint\n")
    assert server.lines == ["POST /v1/jobs/a/b:cancel?force=true"]


def test_of_a_job_that_has_ended_no_checkpoint_is_promised(server: Wire, fathom: Cli) -> None:
    server.routes(POST_jobs_a_b_cancel=as_json(stored("b", "Succeeded", team="a")))
    assert fathom("cancel", "a/b")[2] == "a/b: has ended already (Succeeded)\n"


# ------------------------------------------------------------------ tokens


def test_tokens(server: Wire, fathom: Cli) -> None:
    token = {"name": "ci", "role": "runner", "team": "vision", "created": "2026-06-01T12:00:00Z"}
    server.routes(
        POST_tokens=as_json(token | {"secret": "fathom-s3cret"}, 201),
        GET_tokens=as_json({"items": [token], "next": ""}),
        DELETE_tokens_ci=Reply(204),
    )
    code, out, err = fathom("token", "create", "ci", "--team", "vision")
    assert (code, out) == (0, "fathom-s3cret\n")
    assert "s3cret" not in err
    lines = fathom("token", "list")[1].splitlines()
    assert lines[1].split() == ["ci", "runner", "vision", "2026-06-01", "12:00", "-", "-"]
    assert fathom("token", "list", "-o", "name")[1] == "ci\n"
    assert fathom("token", "revoke", "ci") == (0, "", "ci: revoked\n")


def test_what_a_token_may_not_is_said(server: Wire, fathom: Cli) -> None:
    server.routes(GET_tokens=problem(403, "forbidden", "a runner's token may not list tokens"))
    code, out, err = fathom("token", "list")
    assert (code, out, err) == (2, "", "error: a runner's token may not list tokens\n")


# ------------------------------------------------------------------ cost


def group(name: str, cost: str) -> dict[str, str]:
    return {"name": name, "seconds": "60", "deviceSeconds": "120", "cost": cost}


COST: dict[str, Any] = {
    "namespace": "default", "name": "tiny", "uid": "u", "currency": "USD", "spent": "2.5", "wasted": "0.5",
    "limit": "10", "left": "7.5", "totals": {}, "rates": [], "flopsConvention": "x",
    "by": {"class": [group("productive", "2"), group("starting", "0.5")], "attempt": [group("attempt 1", "2.5")]},
}  # fmt: skip


def test_the_cost_of_a_job(server: Wire, fathom: Cli) -> None:
    server.routes(
        GET_me=ME, GET_jobs_default_tiny_cost=as_json(COST), GET_jobs_a_b_cost=as_json(COST | {"namespace": "a"})
    )
    code, out, err = fathom("cost", "tiny")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["CLASS", "TIME", "DEVICE-HOURS", "COST", "SHARE"]
    assert lines[1].split() == ["productive", "1", "m", "00", "s", "0.033", "$2.00", "80.0%"]
    assert "default/tiny: $2.50 spent, of $10.00: $7.50 left" in out
    assert "attempt 1" in fathom("cost", "tiny", "--by", "attempt")[1]
    assert json.loads(fathom("cost", "tiny", "-o", "json")[1]) == COST
    assert [line.split()[0] for line in fathom("cost", "tiny", "a/b")[1].splitlines()] == [
        "JOB",
        "default/tiny",
        "a/tiny",
    ]
    assert fathom("cost", "tiny", "-o", "name")[1] == "default/tiny\n"
    assert fathom("cost", "tiny", "-o", "csv")[0] == 2
    assert fathom("cost", "tiny", "--team", "x")[0] == 2
    assert fathom("cost", "none")[0] == 3


def test_the_cost_of_all(server: Wire, fathom: Cli) -> None:
    amount = {"currency": "USD", "spent": "2.5", "wasted": "0.5", "burnPerHour": "1"}
    found = {
        "jobs": [amount | {"namespace": "a", "name": "tiny", "uid": "u", "phase": "Running", "limit": None}],
        "teams": [{"team": "a", "jobs": 1, "amounts": [amount], "trouble": None,
                   "budget": {"currency": "USD", "limit": "100", "spent": "2.5", "reserved": "0", "left": "97.5"}},
                  {"team": "b", "jobs": 0, "amounts": [], "budget": None, "trouble": "a file is missing"}],
        "totals": [amount],
    }  # fmt: skip
    server.routes(GET_costs=as_json(found))
    code, out, err = fathom("cost", "--team", "a")
    assert (code, server.lines) == (0, ["GET /v1/costs?namespace=a"])
    assert [line.split() for line in out.splitlines() if line] == [
        ["JOB", "PHASE", "SPENT", "WASTED", "BURN/H", "LIMIT"],
        ["a/tiny", "Running", "$2.50", "$0.5000", "$1.00", "-"],
        ["TEAM", "JOBS", "SPENT", "WASTED", "BURN/H", "LIMIT", "LEFT"],
        ["a", "1", "$2.50", "$0.5000", "$1.00", "$100.00", "$97.50"],
        ["b", "0", "-", "-", "-", "-", "-"],
    ]
    assert err == "b: its budget cannot be counted: a file is missing\n"
    assert json.loads(fathom("cost", "-o", "json")[1]) == found


def test_the_budget_of_a_job(server: Wire, fathom: Cli) -> None:
    live = stored("b", team="a", status=STATUS, budget={"limit": "9"})
    server.routes(GET_jobs_a_b=as_json(live), PATCH_jobs_a_b=as_json(live))
    assert fathom("budget", "a/b") == (0, "spent     $0.5000\nlimit     $9.00, of which $8.50 are left\n", "")
    found = {"currency": "USD", "limit": "9", "spent": "0.5", "running": True}
    assert json.loads(fathom("budget", "a/b", "--limit", "9", "-o", "json")[1]) == found
    assert server.asked[-1].json() == {"spec": {"budget": {"limit": "9"}}}


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        ({"accelerator": "cpu", "workers": 1}, "1 CPU worker"),
        ({"accelerator": "cpu", "workers": 2}, "2 CPU workers"),
        ({"accelerator": "H100", "gpus": 1}, "1 H100"),
    ],
)
def test_devices_in_words(compute: dict[str, Any], words: str) -> None:
    assert devices(Compute.model_validate(compute)) == words

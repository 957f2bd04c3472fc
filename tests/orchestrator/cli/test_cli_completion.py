"""Completion as it happens: in a real bash, which asks a real `fathom`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.answered import stored
from support.runs import tiny_job
from support.wire import as_json, wire

from orchestrator.cli import completing
from orchestrator.cli.completing import job_names
from orchestrator.controller.record import Record

ROOT = Path(__file__).parents[3]


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FATHOM_", "_FATHOM"))}
    return kept | {"PYTHONPATH": str(ROOT), "FATHOM_HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"} | more


def install(home: Path, program: str = "from orchestrator.cli.main import main; main()") -> None:
    (home / "bin").mkdir(parents=True)
    command = home / "bin" / "fathom"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}' \"$@\"\n")
    command.chmod(0o755)


def completed(home: Path, line: str, **more: str) -> list[str]:
    """What bash offers for the last word of a line; it must not print anything else."""
    words = line.split(" ")
    script = f"""
        eval "$SCRIPT"
        COMP_WORDS=({" ".join(f"'{word}'" for word in words)}); COMP_CWORD={len(words) - 1}
        _fathom_completion fathom "${{COMP_WORDS[COMP_CWORD]}}" >&2
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    source = [sys.executable, "-m", "orchestrator.cli", "completion", "bash"]
    made = subprocess.run(source, capture_output=True, text=True, env=environment(home), check=True).stdout
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        env=environment(home, SCRIPT=made, **more),
        cwd=home,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_commands_options_fields_and_jobs_are_completed(tmp_path: Path) -> None:
    install(tmp_path)
    Record.create(tmp_path, tiny_job(name="tiny-two"))
    assert completed(tmp_path, "fathom wh") == ["why"]
    assert "--output" in completed(tmp_path, "fathom why --")
    assert completed(tmp_path, "fathom explain spec.compute.g") == ["spec.compute.gpus", "spec.compute.gpusPerNode"]
    assert completed(tmp_path, "fathom why ti") == ["tiny-two"]
    assert completed(tmp_path, "fathom why other") == []


@pytest.mark.parametrize(
    "program",
    [
        'import sys; sys.stderr.write("broken"); raise ImportError("no such package")',
        "from orchestrator.settings import Settings; Settings.load = None; "
        "from orchestrator.cli.main import main; main()",
    ],
)
def test_whatever_is_wrong_nothing_is_printed(tmp_path: Path, program: str) -> None:
    install(tmp_path, program.replace("'", '"'))
    assert completed(tmp_path, "fathom why t") == []


def test_trouble_while_completing_ends_quietly(tmp_path: Path) -> None:
    program = "from orchestrator.cli.main import main; main()"
    for asked in ("complete_bash", "nonsense", "complete_nonsense"):
        variables = environment(tmp_path, _FATHOM_COMPLETE=asked, COMP_WORDS="fathom 'unclosed", COMP_CWORD="x")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=variables, check=False)
        assert (done.stdout.strip(), done.stderr) == (b"", b"")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_keeps_errors_away(shell: str, tmp_path: Path) -> None:
    source = [sys.executable, "-m", "orchestrator.cli", "completion", shell]
    done = subprocess.run(source, capture_output=True, text=True, env=environment(tmp_path), check=True)
    assert f"_FATHOM_COMPLETE=complete_{shell}" in done.stdout
    assert "2>/dev/null" in done.stdout


def test_the_service_is_asked_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire() as service:
        monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
        monkeypatch.setenv("FATHOM_URL", service.url)
        monkeypatch.setenv("FATHOM_TOKEN", "secret")
        Record.create(tmp_path, tiny_job())
        jobs = [stored("mini"), stored("mini-2"), stored("other", team="red")]
        service.replies(as_json({"items": jobs, "next": ""}))
        assert job_names("") == ["mini", "mini-2", "red/other"]
        assert job_names("mini-") == ["mini-2"]
        assert len(service.asked) == 1
        assert service.asked[0].headers["authorization"] == "Bearer secret"
        cache = tmp_path / ".completion.json"
        assert "secret" not in cache.read_text()
        kept = json.loads(cache.read_text())
        cache.write_text(json.dumps(kept | {"at": time.time() - completing.KEPT_SECONDS}))
        service.replies(as_json({"items": "nonsense"}))
        assert job_names("") == ["tiny"], "folders, where the service says nothing"
        assert len(service.asked) == 2


def test_a_token_is_not_sent_where_it_could_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("orchestrator.doctor.ask.ask", lambda *given, **_: asked.append(given))
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    monkeypatch.setenv("FATHOM_URL", "http://far.example.org")
    monkeypatch.setenv("FATHOM_TOKEN", "secret")
    assert job_names("") == []
    assert asked == []

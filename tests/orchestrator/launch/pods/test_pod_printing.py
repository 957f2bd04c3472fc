"""Where the driver's output goes, and what its environment says, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.launch.pods.surroundings import Surroundings
from orchestrator.launch.rayjob import agreed

ROOT = Path(__file__).parents[4]
PRINTS = """
import os, subprocess, sys
from pathlib import Path
from orchestrator.launch.pods.printing import Printing

print("before")
printing = Printing(Path(sys.argv[1]))
printing.start()
print("by Python")
print("an error", file=sys.stderr)
os.write(1, b"by a library\\n")
subprocess.run(["/bin/echo", "by a child"], check=True)
printing.show()
os.write(1, b"and the last word\\n")
if sys.argv[2] == "shown":
    printing.show()
os._exit(3)
"""
ENVIRONMENT = {
    "FATHOM_CONTROLLER_URL": "https://controller",
    "FATHOM_INCARNATION": "tiny-a1-abcde",
    "FATHOM_STOP_SECONDS": "90",
    "FATHOM_TOKEN_FILE": "/var/run/fathom/token",
}


@pytest.mark.parametrize("end", ["shown", "killed"])
def test_everything_is_in_the_log_and_goes_where_it_went_before(tmp_path: Path, end: str) -> None:
    log = tmp_path / "logs" / "attempt-1.log"
    log.parent.mkdir()
    log.write_text("of an earlier driver\n")
    done = subprocess.run(
        [sys.executable, "-c", PRINTS, str(log), end],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    said = "by Python\nan error\nby a library\nby a child\n"
    assert log.read_text() == f"of an earlier driver\n{said}and the last word\n"
    assert done.stdout.startswith(f"before\n{said}")
    if end == "shown":
        assert done.stdout == f"before\n{said}and the last word\n"


def test_nobody_who_reads_the_output_is_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.replace('print("before")', ""), str(tmp_path / "log"), "shown"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}, stdout=writing, check=False,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 3
    assert (tmp_path / "log").read_text().endswith("and the last word\n")


def test_what_the_environment_says() -> None:
    found = Surroundings.load(ENVIRONMENT)
    assert (found.run, found.incarnation, found.stop_seconds) == (Path(agreed.RUN), "tiny-a1-abcde", 90.0)
    assert (found.controller, found.authority, found.node) == ("https://controller", None, None)
    more = {"FATHOM_CONTROLLER_CA": "/etc/fathom/ca.crt", "FATHOM_NODE": "node-1", "FATHOM_HOME": "/tmp/x"}
    found = Surroundings.load(ENVIRONMENT | more)
    assert (found.authority, found.node, found.run) == (Path("/etc/fathom/ca.crt"), "node-1", Path("/tmp/x"))


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_what_is_missing_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not set"):
        Surroundings.load({key: value for key, value in ENVIRONMENT.items() if key != name})
    with pytest.raises(UsageError, match=f"{name} is not set"):
        Surroundings.load(ENVIRONMENT | {name: ""})


def test_seconds_are_a_number() -> None:
    with pytest.raises(UsageError, match="FATHOM_STOP_SECONDS is 'soon'"):
        Surroundings.load(ENVIRONMENT | {"FATHOM_STOP_SECONDS": "soon"})

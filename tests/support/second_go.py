"""A second go, alone and at the end, for tests of real processes that failed; each that needed it is named.

What such a test sees depends on how busy the machine is, whatever care it takes. A failure that a quiet one does not
repeat is a flake: to be mended, but no reason to refuse a change. All else has one go: a pure test that fails once has
found something. Fixtures of modules and sessions are made anew, in a process of its own, and nothing runs beside it.
pytest-rerunfailures repeats at once instead, beside the other workers, with the fixtures as they are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

MARKERS = ("processes", "ray", "kube")
"""What a test depends on that may be slow by itself."""
MOST = 5
"""So many causes may be accidents in one run; if there are more, something is broken, and that is to be said soon."""
PASSED = "passed at the second go"
_PROPERTY = ("second go", "may have one")


@dataclass(frozen=True)
class Failure:
    """Of the first go of one test: its body and its teardown may both have failed."""

    nodeid: str
    reports: tuple[pytest.TestReport, ...]

    @property
    def marked(self) -> bool:
        return any(_PROPERTY in map(tuple, report.user_properties) for report in self.reports)

    @property
    def file(self) -> str:
        return self.nodeid.partition("::")[0]

    @property
    def message(self) -> str:
        """In a line."""
        crash = getattr(self.reports[0].longrepr, "reprcrash", None)
        text = str(crash.message if crash else self.reports[0].longrepr)
        return text.strip().partition("\n")[0]


def add_option(parser: pytest.Parser) -> None:
    """`--second-go FILE`."""
    marked = ", ".join(MARKERS)
    text = f"run failed tests that are marked {marked} once more, alone; FILE names those that pass then"
    parser.addoption("--second-go", type=Path, metavar="FILE", help=text)


def mark(item: pytest.Item) -> None:
    """So that its reports tell. Their keywords would not do: a folder may be named as a marker is."""
    if any(item.get_closest_marker(marker) for marker in MARKERS):
        item.user_properties.append(_PROPERTY)


def failures(reports: Sequence[pytest.TestReport]) -> list[Failure]:
    by_test: dict[str, list[pytest.TestReport]] = {}
    for report in reports:
        by_test.setdefault(report.nodeid, []).append(report)
    return [Failure(nodeid, tuple(found)) for nodeid, found in by_test.items()]


def may_have_another(found: Sequence[Failure]) -> bool:
    """Whether it would change anything and could be an accident. A fixture of a file fails all its tests."""
    causes = {(failure.file, failure.message) for failure in found}
    return 0 < len(causes) <= MOST and all(failure.marked for failure in found)


class SecondGo:
    """At the end of a run, in the process that gathers its reports."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config = config
        self._file = file
        self._flakes: list[Failure] = []

    @property
    def _terminal(self) -> pytest.TerminalReporter:
        found: pytest.TerminalReporter = self._config.pluginmanager.get_plugin("terminalreporter")
        return found

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """After the workers have gone, before anything is said of the run."""
        reports = [report for kind in ("failed", "error") for report in self._terminal.stats.get(kind, [])]
        if exitstatus != pytest.ExitCode.TESTS_FAILED or session.shouldfail or session.shouldstop:
            return
        if not all(isinstance(report, pytest.TestReport) for report in reports):  # a file could not be read
            return
        found = failures(reports)
        if not may_have_another(found):
            return
        for file in dict.fromkeys(failure.file for failure in found):
            of_file = [failure for failure in found if failure.file == file]
            if self._pass([failure.nodeid for failure in of_file]):
                self._forgive(of_file)
        if len(self._flakes) == len(found):
            session.exitstatus = pytest.ExitCode.OK

    def _pass(self, tests: list[str]) -> bool:
        """All of them; one that is left out says nothing."""
        self._terminal.write_line("\n".join(["", "once more, alone:", *tests]))
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        command += ["-n", "0"] if self._config.pluginmanager.hasplugin("xdist") else []
        done = subprocess.run(command, cwd=self._config.rootpath, capture_output=True, text=True, check=False)
        passed = done.returncode == 0 and done.stdout.splitlines()[-1].startswith(f"{len(tests)} passed in")
        if not passed:
            self._terminal.write_line(done.stdout + done.stderr)
        return passed

    def _forgive(self, failed: list[Failure]) -> None:
        """Counted as what they are, neither failed nor passed, and named on the terminal and in the file."""
        stats, tests = self._terminal.stats, {failure.nodeid for failure in failed}
        for kind in ("failed", "error"):
            kept = [report for report in stats.pop(kind, []) if report.nodeid not in tests]
            if kept:
                stats[kind] = kept
        stats.setdefault(PASSED, []).extend(failure.reports[0] for failure in failed)
        self._flakes += failed
        with self._file.open("a") as file:
            for failure in failed:
                file.write(f"{PASSED} (a flake to be mended): {failure.nodeid}: {failure.message}\n")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The first failure as a whole: it may not come again soon."""
        for failure in self._flakes:
            terminalreporter.section(f"{PASSED} (a flake to be mended)", sep="!", red=True, bold=True)
            for report in failure.reports:
                terminalreporter.write_line(f"{failure.nodeid} ({report.when})\n{report.longreprtext}")

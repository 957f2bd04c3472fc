"""`fathom doctor`: whether this machine is fit to train, and a bundle for whoever helps with a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.completing import job_names
from orchestrator.cli.output import Output, OutputOption, dump
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.doctor.findings import Finding, Place


def doctor_command(
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="JOB",
            help="Pack what somebody who helps you needs to see of this job: NAME, TEAM/NAME or the folder of a run.",
            autocompletion=job_names,
        ),
    ] = None,
    output_file: Annotated[Path | None, typer.Option(help="The zip to write, with --bundle.")] = None,
    force: Annotated[bool, typer.Option(help="Replace that file.")] = False,
    output: OutputOption = Output.table,
) -> None:
    """Check this machine, the home and its files, the service and what earlier runs have left. Exit code 1 if something
    fails.

    Examples: fathom doctor  |  fathom doctor --bundle v3-mini  |  fathom doctor -o json
    """
    from orchestrator.doctor.findings import Place, State, examine, worst
    from orchestrator.settings import Settings

    if bundle is None and (output_file is not None or force):
        raise UsageError("--output-file and --force are for --bundle: name the job, too")
    place = Place(Settings.load())
    packing = None if bundle is None else _Packing(bundle, output_file, force, place)
    people, findings = output in (Output.table, Output.wide), []
    for finding in examine(place):
        findings.append(finding)
        if people:
            _print(finding, talk=packing is not None)
    packed = None if packing is None else packing.pack(findings)
    if output in (Output.json, Output.yaml):
        content = {"worst": str(worst(findings)), "checks": [one.document() for one in findings]}
        dump(content | ({} if packed is None else {"bundle": packed}), output)
    elif packed is not None:
        print(packed)
    elif output is Output.name:
        print("\n".join(dict.fromkeys(one.check for one in findings if one.state is not State.OK)))
    if worst(findings) is State.FAIL and packed is None:
        raise typer.Exit(1)


def _print(finding: Finding, *, talk: bool) -> None:
    stream = sys.stderr if talk else sys.stdout
    print(f"{finding.state:<5} {finding.check:<12} {finding.says}", file=stream, flush=True)
    if finding.do:
        print(f"{'':<18} -> {finding.do}", file=stream, flush=True)


class _Packing:
    """A bundle, refused before the checks take their time."""

    def __init__(self, job: str, out: Path | None, force: bool, place: Place) -> None:
        from orchestrator.cli.files import require_free
        from orchestrator.cli.runs import find_run

        self._record, self._place = find_run(job, place.settings.home), place
        self._out = out or Path(f"fathom-{self._record.folder.root.name}.zip")
        require_free(self._out, force=force)

    def pack(self, findings: list[Finding]) -> str:
        """-> the name of the file."""
        from orchestrator.cli.files import write_file
        from orchestrator.doctor.bundle import make_bundle

        data, contents = make_bundle(self._record, self._place, findings)
        write_file(self._out, data)
        self._out.chmod(0o600)
        print(contents, file=sys.stderr)
        return str(self._out)

"""The record of a job on this machine: who it is, when it held devices, and its status. Files in the run's folder.

Invariant: every file is replaced whole, so that a crash leaves the old or the new one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from orchestrator.cost.timeline import Held
from orchestrator.errors import Conflict, NotFound, UsageError
from orchestrator.launch.base import RunFolder
from orchestrator.launch.files import in_short, replace_file
from orchestrator.spec import TrainingJob
from orchestrator.status import JobStatus

_HELD: TypeAdapter[list[Held]] = TypeAdapter(list[Held])


@dataclass(frozen=True)
class Record:
    """A submitted job."""

    folder: RunFolder
    uid: str
    job: TrainingJob

    @classmethod
    def create(cls, root: Path, job: TrainingJob) -> Record:
        """A new run of `job` in a folder of its own below `root`."""
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = RunFolder(root / f"{job.metadata.name}-{stamp}")
        try:
            folder.root.mkdir(parents=True)
        except FileExistsError:
            raise Conflict(f"{folder.root} exists already: wait a second, or give the job another name") from None
        except OSError as error:
            raise UsageError(f"cannot make the run's folder {folder.root}: {error.strerror}; set FATHOM_HOME") from None
        record = cls(folder, str(uuid.uuid4()), job)
        record._save_job()
        return record

    @classmethod
    def take(cls, root: Path, uid: str, job: TrainingJob) -> Record:
        """The run of a job of the store: as it is in its folder, or begun there. Conflict if that is another's."""
        folder = RunFolder(root.absolute())
        if folder.job.exists():
            record = cls.open(root)
            if record.uid != uid:
                raise Conflict(f"{root} holds another job (uid {record.uid}, not {uid}): move it away")
            return record
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the run's folder {folder.root}: {error.strerror}; set FATHOM_HOME") from None
        record = cls(folder, uid, job)
        record._save_job()
        return record

    @classmethod
    def open(cls, root: Path) -> Record:
        """An earlier run by its folder; NotFound if there is none."""
        folder = RunFolder(root.absolute())
        try:
            body = json.loads(folder.job.read_text())
        except (FileNotFoundError, NotADirectoryError):
            why = f"it has no {folder.job.name}" if root.exists() else "there is nothing of that name"
            raise NotFound(f"{root} is not the folder of a run: {why}") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder.job} cannot be read: {error}") from None
        try:
            return cls(folder, _uid(body["uid"]), TrainingJob.model_validate(body["job"]))
        except (KeyError, TypeError, ValidationError) as error:
            raise UsageError(f"{folder.job} holds no job of this version of Fathom: {in_short(error)}") from None

    def change(self, job: TrainingJob) -> Record:
        """The record with another job in it; Conflict while a driver lives, which goes by the old one, and if somebody
        has changed the job since it was read."""
        from orchestrator.launch import local  # needs psutil, which reading a record does not

        with local.hold_lock(self.folder.launcher_lock), local.hold_lock(self.folder.job_lock):
            if (driver := local.running(self.folder)) is not None:
                raise Conflict(
                    f"{self.folder.root} is running (process {driver.process.pid}): stop it first, then resume it with "
                    "what shall change"
                )
            if Record.open(self.folder.root).job != self.job:
                raise Conflict(f"{self.folder.job} was changed by another process just now: do it again")
            return self.with_job(job)

    def with_job(self, job: TrainingJob) -> Record:
        """The record with another job in it. Call it with `job.lock` held."""
        changed = replace(self, job=job)
        changed._save_job()
        return changed

    def _save_job(self) -> None:
        body = {"uid": self.uid, "job": self.job.model_dump(mode="json", by_alias=True, exclude_none=True)}
        replace_file(self.folder.job, json.dumps(body, indent=1), durable=True)

    def held(self) -> list[Held]:
        """Intervals in which earlier attempts held their devices; UsageError if that was damaged."""
        path = self.folder.held
        try:
            return _HELD.validate_json(path.read_text())
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} cannot be read: {in_short(error)}; it says for how long devices were held, which is the money "
                "spent: put it back from a backup, or remove it to count from zero"
            ) from None

    def save_held(self, held: Sequence[Held]) -> None:
        """Remember them: without them nobody knows what was spent."""
        replace_file(self.folder.held, json.dumps([asdict(h) for h in held]), durable=True)

    def save_status(self, status: JobStatus) -> None:
        """Publish the status."""
        replace_file(self.folder.status, status.model_dump_json(by_alias=True, exclude_none=True, indent=1))

    def status(self) -> JobStatus | None:
        """The status, if there is one; it is written anew whenever the run goes on, so a damaged one counts as none."""
        try:
            return JobStatus.model_validate_json(self.folder.status.read_text())
        except (FileNotFoundError, ValueError):
            return None


def _uid(found: object) -> str:
    if not isinstance(found, str):
        raise TypeError(f"uid must be text, got {found!r}")
    return found

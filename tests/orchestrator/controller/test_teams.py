"""Money of a team on this machine, with launches that are only locks and files."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import pytest
from support.runs import resolved, tiny_job

from orchestrator.controller import teams
from orchestrator.controller.departed import Departed, remember
from orchestrator.controller.limit import change_limit
from orchestrator.controller.record import Record
from orchestrator.controller.teams import accounts, release, require_leave, reserve
from orchestrator.cost.timeline import Held
from orchestrator.errors import NotFound, OverBudget, UsageError
from orchestrator.launch import local
from orchestrator.launch.resolve import Resolved, read_resolved
from orchestrator.settings import Settings
from orchestrator.spec import Budget, TrainingJob
from orchestrator.status import JobStatus, Phase

TEAM = '- {team: default, limit: "100.00", currency: USD}\n'


class Home:
    """Runs that cost a dollar a second."""

    def __init__(self, root: Path, limits: str = TEAM) -> None:
        self.root = root / "runs"
        file = root / "budgets.yaml"
        file.write_text(limits)
        self.settings = Settings.load({"FATHOM_HOME": str(self.root), "FATHOM_BUDGETS": str(file)})

    def run(self, name: str, limit: str | None, *, spent: int = 0, namespace: str = "default") -> Record:
        record = Record.create(self.root, self.job(name, limit, namespace))
        if spent:
            record.folder.resolved(1).write_text(resolved().model_dump_json())
            record.save_held([Held(1, 1000.0, 1000.0 + spent)])
        return record

    def job(self, name: str, limit: str | None, namespace: str = "default") -> TrainingJob:
        job = tiny_job(name=name, namespace=namespace)
        budget = None if limit is None else Budget(limit=limit)
        return job.model_copy(update={"spec": job.spec.model_copy(update={"budget": budget})})

    @contextmanager
    def launched(self, record: Record) -> Iterator[None]:
        """As `LocalRun.run` holds it."""
        with local.hold_lock(record.folder.launcher_lock):
            reserve(record, self.settings)
            try:
                yield
            finally:
                release(record)

    def free(self) -> Decimal:
        """What another run may still reserve."""
        low, high = 0, 10_000
        while low < high:
            middle = (low + high + 1) // 2
            try:
                require_leave(self.job("probe", f"{middle}.00"), self.settings)
                low = middle
            except OverBudget:
                high = middle - 1
        return Decimal(low)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_money_is_reserved_while_a_run_goes_on_and_what_it_spent_stays(home: Home) -> None:
    first, second = home.run("a", "60.00", spent=5), home.run("b", "50.00")
    with home.launched(first):
        words = r"b-\d+-\d+ asks for 50 USD, but default has 40 of its 100 left: ask for no more"
        with pytest.raises(OverBudget, match=words), home.launched(second):
            pass
        assert not second.folder.reserved.exists()
        assert home.free() == 40
    assert home.free() == 95
    with home.launched(second):
        assert home.free() == 45


def test_a_run_without_a_budget_is_refused_where_its_team_has_one(home: Home) -> None:
    record = home.run("a", None)
    with pytest.raises(OverBudget, match=r"may spend 100 USD, of which 100 are free, .* set budget\.limit"):
        reserve(record, home.settings)
    with pytest.raises(OverBudget, match=r"set budget\.limit"):
        require_leave(record.job, home.settings)


def test_other_teams_and_homes_without_limits_are_free(home: Home, tmp_path: Path) -> None:
    other = home.run("a", "999.00", namespace="team-b")
    with home.launched(other):
        assert home.free() == 100
    without = Settings.load({"FATHOM_HOME": str(home.root)})
    reserve(home.run("b", None), without)
    require_leave(home.job("c", None), without)


def test_a_launcher_that_was_killed_frees_what_is_not_spent(home: Home) -> None:
    record = home.run("a", "60.00", spent=5)
    with local.hold_lock(record.folder.launcher_lock):
        reserve(record, home.settings)
        assert home.free() == 40
    assert record.folder.reserved.exists(), "nobody has removed it"
    assert home.free() == 95
    with local.hold_lock(record.folder.lock):
        assert home.free() == 40, "its driver lives: it may spend all of it"


def test_of_two_launches_at_once_only_one_gets_the_last_dollar(home: Home) -> None:
    records = [home.run(f"run-{letter}", "60.00") for letter in "abcd"]
    granted: list[str] = []
    gate, done = threading.Barrier(len(records)), threading.Barrier(len(records))

    def launch(record: Record) -> None:
        gate.wait()
        try:
            with home.launched(record):
                granted.append(record.job.metadata.name)
                done.wait()
        except OverBudget:
            done.wait()

    threads = [threading.Thread(target=launch, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 1


def test_a_raised_limit_asks_the_team_too(home: Home) -> None:
    first, second = home.run("a", "60.00", spent=5), home.run("b", "30.00")
    with home.launched(first), home.launched(second):
        with pytest.raises(OverBudget, match=r"asks for 71 USD, but default has 70 of its 100"):
            change_limit(first, "71.00", home.settings)
        assert Record.open(first.folder.root) == first
        change_limit(first, "65.00", home.settings)
        assert home.free() == 5
        change_limit(first, "10.00", home.settings)
        assert home.free() == 60
    change_limit(second, "500.00", home.settings)
    with pytest.raises(OverBudget, match=r"asks for 500"), home.launched(second):
        pass


def test_less_is_allowed_though_the_team_has_given_more_than_it_has_now(home: Home) -> None:
    first, second = home.run("a", "60.00", spent=5), home.run("b", "40.00")
    with home.launched(first), home.launched(second):
        assert home.settings.budgets_file is not None
        home.settings.budgets_file.write_text(TEAM.replace("100.00", "50.00"))
        with pytest.raises(OverBudget, match=r"asks for 61 USD, but default has 10 of its 50 left"):
            change_limit(first, "61.00", home.settings)
        changed = change_limit(first, "30.00", home.settings)
        change_limit(second, "12.00", home.settings)
        assert home.free() == 8
        with pytest.raises(OverBudget, match=r"asks for 39 USD, but default has 38"):
            change_limit(changed, "39.00", home.settings)


def test_the_limit_that_is_reserved_is_the_one_in_force(home: Home) -> None:
    """It was changed after the launcher had read the job."""
    stale = home.run("a", "10.00")
    change_limit(stale, "80.00", home.settings)
    with home.launched(stale):
        assert home.free() == 20


def test_money_that_cannot_be_read_is_not_spent_twice(home: Home) -> None:
    record = home.run("a", "60.00", spent=5)
    record.folder.held.write_text("{")
    with pytest.raises(UsageError, match=r"held\.json cannot be read"):
        require_leave(home.job("b", "1.00"), home.settings)


def test_a_folder_of_another_team_or_of_nobody_stands_in_nobodys_way(home: Home) -> None:
    for number, content in enumerate(('{"job": {"metadata": {"namespace": "team-b"}}}', "{", "[]")):
        folder = home.root / f"strange-{number}"
        folder.mkdir(parents=True)
        (folder / "job.json").write_text(content)
    assert list(accounts(home.root, "default")) == []
    (home.root / "strange-0" / "job.json").write_text('{"job": {"metadata": {}}}')
    with pytest.raises(UsageError, match="no job of this version"):
        list(accounts(home.root, "default"))


def test_a_job_that_cannot_be_read_is_of_the_team_that_its_attempts_were_of(home: Home) -> None:
    record = home.run("a", "60.00", spent=5)
    record.folder.job.write_text("{")
    with pytest.raises(UsageError, match=r"a-\d+-\d+/job\.json cannot be read"):
        home.free()
    assert list(accounts(home.root, "team-b")) == []
    record.folder.resolved(1).write_text("{")
    for team in ("default", "team-b"):  # it might be of either
        with pytest.raises(UsageError, match=r"job\.json cannot be read"):
            list(accounts(home.root, team))


def test_what_a_run_without_its_job_has_spent_is_not_nothing(home: Home) -> None:
    record = home.run("a", "60.00", spent=5)
    record.folder.job.unlink()
    with pytest.raises(NotFound, match=r"has no job\.json"):
        home.free()


def test_a_run_that_began_before_its_team_had_a_limit_counts_with_its_own(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = home.run("a", "60.00", spent=5)
    monkeypatch.setattr(teams, "driver_lives", lambda folder: folder.root == first.folder.root)
    assert home.free() == 40
    change_limit(first, "90.00", home.settings)
    assert home.free() == 10


def test_a_run_without_bounds_lets_nobody_start_until_it_has_some(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = home.run("a", None, spent=5)
    monkeypatch.setattr(teams, "driver_lives", lambda folder: folder.root == first.folder.root)
    with pytest.raises(OverBudget, match=r"fathom budget .*/a-\d+-\d+ --limit AMOUNT"):
        require_leave(home.job("b", "1.00"), home.settings)
    change_limit(first, "30.00", home.settings)
    assert home.free() == 70


def test_what_was_spent_unwatched_counts(home: Home) -> None:
    """The launcher died, its driver went on and ended: only the events say until when."""
    from orchestrator.launch.events import EventLog

    record = home.run("a", "60.00", spent=5)
    EventLog(record.folder.events).append(
        "progress", job=record.uid, attempt=1, incarnation="i1", time=1030.0, step=3, tokens=3
    )
    assert home.free() == 70


class Later:
    """A clock that is ahead of that of the files."""

    def time(self) -> float:
        return time.time() + 100


def test_a_run_that_is_over_is_read_once_until_something_of_it_changes(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, others = home.run("over", "60.00", spent=5), home.run("theirs", "60.00", namespace="red")
    over.save_status(JobStatus(phase=Phase.FAILED, attempt_count=1))
    read: list[str] = []

    def opened(root: Path, real: Callable[[Path], Record] = Record.open) -> Record:
        read.append(root.name)
        return real(root)

    monkeypatch.setattr(Record, "open", opened)
    monkeypatch.setattr(teams, "time", Later())

    def spent(team: str = "default") -> list[Decimal]:
        read.clear()
        return [one.spent for one in accounts(home.root, team)]

    assert (spent(), len(read)) == ([Decimal(5)], 2)
    assert (spent(), read) == ([Decimal(5)], [])
    assert (spent("red"), read) == ([Decimal(0)], [others.folder.root.name])
    over.save_held([Held(1, 1000.0, 1007.0)])
    assert (spent(), read) == ([Decimal(7)], [over.folder.root.name])
    with home.launched(over):  # it goes on, and something is kept for it
        assert [one.reserved for one in accounts(home.root, "default")] == [Decimal(60)]
    over.folder.root.rename(home.root / ".removing-over")
    assert spent() == []


@pytest.mark.parametrize("when", ["before", "between", "within", "after"])
def test_a_run_that_is_removed_while_the_account_is_read_counts_once(
    home: Home, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    record = home.run("a", "60.00", spent=5)
    gone = Departed(team="default", name="a", folder=record.folder.root.name, spent=Decimal(5), currency="USD")

    def remove() -> None:
        remember(home.root, record.uid, gone)
        shutil.rmtree(record.folder.root)

    opens = Record.open

    def opened(root: Path) -> Record:
        if when == "before":
            remove()
        found = opens(root)
        if when == "between":
            remove()
        return found

    def resolved_of(path: Path) -> Resolved:
        if when == "within":
            remove()
        return read_resolved(path)

    monkeypatch.setattr(Record, "open", opened)
    monkeypatch.setattr(teams, "read_resolved", resolved_of)
    found = []
    for one in accounts(home.root, "default"):
        found.append(one.spent)
        if when == "after" and len(found) == 1:
            remove()
    assert sum(found) == 5

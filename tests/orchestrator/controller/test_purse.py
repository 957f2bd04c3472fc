"""Limit and prices that change while a run goes on, as its launcher takes them."""

import datetime
import math
from decimal import Decimal
from pathlib import Path

import pytest
from support.runs import dataset, tiny_job

from orchestrator.controller import purse as purse_module
from orchestrator.controller.change import resolve_next
from orchestrator.controller.files import WatchedFile
from orchestrator.controller.history import History
from orchestrator.controller.limit import account, change_limit
from orchestrator.controller.purse import Purse
from orchestrator.controller.record import Record
from orchestrator.controller.spending import Look, Spending
from orchestrator.cost import budget
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held
from orchestrator.errors import InvalidJob, OverBudget, UsageError
from orchestrator.launch import local
from orchestrator.launch.events import BudgetNote, HardDeadline, read, read_control
from orchestrator.launch.resolve import Resolved
from orchestrator.settings import Settings
from orchestrator.spec import Budget

BEGAN = datetime.datetime(2026, 11, 2, 12, tzinfo=datetime.UTC).timestamp()
PRICES = (
    '- {{accelerator: cpu, priceClass: on-demand, amount: "{}", currency: {}, unit: cpu-hour, source: s, date: {}}}\n'
)


class Bench:
    """A run of two virtual CPUs that goes on since BEGAN; an hour of one costs a dollar at first."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None = "2.00") -> None:
        self.file, self.said = root / "prices.yaml", list[str]()
        self.price("1.00")
        self.settings = Settings.load({"FATHOM_HOME": str(root / "runs"), "FATHOM_PRICES": str(self.file)})
        job = tiny_job(str(dataset(root / "data")))
        if limit is not None:
            job = job.model_copy(update={"spec": job.spec.model_copy(update={"budget": Budget(limit=limit)})})
        self.record = Record.create(self.settings.home, job)
        self.resolved: Resolved = resolve_next(self.record, History(self.record), self.settings, 1)
        self.record.folder.resolved(1).write_text(self.resolved.model_dump_json())
        self.record.save_held([Held(1, BEGAN, BEGAN)])
        monkeypatch.setattr(local, "running", lambda folder: object())
        self.take_over()
        self.look(0)

    def take_over(self) -> None:
        """Another launcher."""
        self.history = History(self.record)
        self.purse = Purse(Record.open(self.record.folder.root), self.settings, self.history, self.said.append)

    def price(self, amount: str, currency: str = "USD", date: str = "2026-01-01") -> None:
        self.file.write_text(PRICES.format(amount, currency, date))

    def look(self, seconds: float, looks: int = 2) -> Decimal:
        """So long after the beginning; -> what is spent."""
        for _ in range(looks):
            self.history.read()
            self.history.extend(BEGAN + seconds)
            self.purse.look(self.resolved, BEGAN + seconds)
        self.record.save_held(self.history.held)
        return self.history.charged()

    @property
    def told(self) -> HardDeadline | None:
        return read_control(self.record.folder.control).hard_deadline

    @property
    def limit(self) -> float:
        """When the money is gone, as the job was told last; seconds from the beginning."""
        assert self.told is not None
        return self.told.limit - BEGAN

    def notes(self) -> list[BudgetNote]:
        return [event for event in read(self.record.folder.events)[0] if isinstance(event, BudgetNote)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_while_nothing_changes_the_job_is_told_nothing(bench: Bench) -> None:
    bench.look(1000)
    bench.take_over()
    bench.look(1700)
    assert bench.told is None
    assert bench.said == []


def test_it_is_reckoned_once_a_second_while_all_is_as_it_was(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the stop is close: from there on each look counts."""
    real, at = Spending.look, list[float]()

    def counted(self: Spending, paid: Decimal, tariff: Tariff, began: float, now: float) -> Look:
        at.append(now - BEGAN)
        return real(self, paid, tariff, began, now)

    monkeypatch.setattr(Spending, "look", counted)

    def looks(first: float, last: float) -> list[Look]:
        found, seconds = [], first
        at.clear()
        while seconds < last:
            bench.history.extend(BEGAN + seconds)
            found.append(bench.purse.look(bench.resolved, BEGAN + seconds))
            seconds += 0.25
        return found

    looks(1000, 1010)
    assert at == [float(1000 + n) for n in range(10)]
    stop = next(one.until.stop - BEGAN for one in looks(1010, 1011) if one.until is not None)
    found = looks(math.floor(stop) - 8, math.floor(stop) + 3)
    assert [at[n + 1] - at[n] for n in range(len(at) - 1) if at[n] > stop - 4] == [0.25] * len(
        [one for one in at[:-1] if one > stop - 4]
    ), "near the stop nothing is left out"
    first = next(n for n, one in enumerate(found) if one.stop)
    assert 0 <= math.floor(stop) - 8 + 0.25 * first - stop <= 0.25, "not a look too late"
    bench.take_over()
    looks(2000, 2000.5)
    change_limit(bench.record, "4.00", bench.settings, BEGAN + 2000)
    looks(2000.5, 2000.75)
    assert at == [2000.5], "another limit counts at once"


def test_a_raised_limit_is_taken_within_one_look(bench: Bench) -> None:
    bench.look(600)
    change_limit(bench.record, "4.00", bench.settings, BEGAN + 600)
    bench.look(601, looks=1)
    assert bench.purse.budget is not None
    assert bench.purse.budget.amount == 4
    assert bench.limit == pytest.approx(7200, abs=1e-3)
    assert [(note.about, note.limit, note.message) for note in bench.notes()] == [
        ("limit-changed", "4.00", "the limit of the budget is $4.00 now (it was $2.00)")
    ]
    assert bench.history.ledger(bench.resolved).limit == 4
    assert Record.open(bench.record.folder.root).job.spec.budget == Budget(limit="4.00")


def test_a_lower_limit_holds_with_the_launcher_gone(bench: Bench) -> None:
    bench.look(600)
    change_limit(bench.record, "1.00", bench.settings, BEGAN + 600)
    assert bench.limit == pytest.approx(1800, abs=1e-3), "told by whoever changed it"
    number = bench.told.number if bench.told else 0
    bench.take_over()
    bench.look(700)
    assert bench.told is not None
    assert bench.told.number == number, "and not again"


def test_a_budget_may_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, limit=None)
    assert bench.history.ledger(bench.resolved).limit is None
    change_limit(bench.record, "3", bench.settings, BEGAN + 100)
    bench.look(101, looks=1)
    assert bench.limit == pytest.approx(5400, abs=1e-3)
    assert bench.notes()[0].message == "the limit of the budget is $3.00 now (there was none)"


def test_no_limit_below_what_is_spent_and_reserved(bench: Bench) -> None:
    bench.look(900)
    found = account(bench.record, BEGAN + 900)
    assert (found.spent, found.running) == (Decimal("0.5"), True)
    assert found.reserved == pytest.approx(Decimal(60) * 2 / 3600)
    with pytest.raises(
        UsageError, match=r"0\.53 is below the 0\.500000 USD that are spent and the 0\.033333 .* 0\.533"
    ):
        change_limit(bench.record, "0.53", bench.settings, BEGAN + 900)
    for wrong in ("-1", "much", "0", "NaN"):
        with pytest.raises(InvalidJob):
            change_limit(bench.record, wrong, bench.settings, BEGAN + 900)
    assert (bench.told, bench.notes()) == (None, []), "nothing has changed"
    assert Record.open(bench.record.folder.root) == bench.record
    change_limit(bench.record, "0.54", bench.settings, BEGAN + 900)


def test_the_currency_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch)
    job = bench.record.job
    euros = job.spec.model_copy(update={"budget": Budget(limit="9", currency="EUR")})
    bench.record.with_job(job.model_copy(update={"spec": euros}))
    bench.look(10)
    assert bench.purse.budget == Budget(limit="2.00")
    assert len(bench.said) == 1
    assert "has a budget in EUR; that of before stays in force" in bench.said[0]


def test_a_job_file_that_is_damaged_changes_nothing_and_is_told_once(bench: Bench) -> None:
    bench.record.folder.job.write_text("{")
    bench.look(10, looks=5)
    assert bench.purse.budget == Budget(limit="2.00")
    assert len(bench.said) == 1
    assert "the budget of before stays in force" in bench.said[0]


def test_a_raised_price_counts_after_the_time_of_a_stop(bench: Bench) -> None:
    bench.look(900)
    bench.price("2.00")
    assert bench.look(900) == Decimal("0.5"), "what was held keeps its price"
    assert bench.limit == pytest.approx(960 + (3600 - 960) / 2, abs=1e-3)
    [note] = bench.notes()
    assert note.message == "the price is 4.00 USD per hour from 12:16:00 UTC on, not 2.00 (s)"
    assert bench.look(960) == pytest.approx(Decimal(960) * 2 / 3600)
    spent = bench.look(1000)
    assert spent == pytest.approx(Decimal(960 * 2 + 40 * 4) / 3600)
    ledger = bench.history.ledger(bench.resolved)
    assert ledger.totals.cost == pytest.approx(spent)
    assert [rate.per_hour for rate in ledger.rates] == [2, 4]
    bench.take_over()
    assert bench.history.charged() == spent, "another launcher counts the same"
    assert bench.history.spent_at(BEGAN + 960).amount == pytest.approx(Decimal(960) * 2 / 3600)


def test_a_lower_price_gives_time(bench: Bench) -> None:
    bench.price("0.50")
    bench.look(100)
    assert bench.limit == pytest.approx(160 + (3600 - 160) * 2, abs=1e-3)


def test_a_price_that_is_taken_back_in_time_was_never_valid(bench: Bench) -> None:
    bench.price("9.00")
    bench.look(100)
    bench.price("1.00")
    bench.look(130)
    assert bench.limit == pytest.approx(3600, abs=1e-3)
    assert bench.history.tariff(1).rates == bench.resolved.tariff.rates


def test_a_file_that_is_being_written_is_not_read(bench: Bench) -> None:
    bench.price("2.00")
    bench.look(100, looks=1)
    assert bench.notes() == []
    bench.look(100, looks=1)
    assert len(bench.notes()) == 1


@pytest.mark.parametrize("content", ["- {", "", "[]\n- x", None, PRICES.format("0.70", "EUR", "2026-01-01")])
def test_a_broken_price_file_keeps_the_old_ones_and_is_told_once(bench: Bench, content: str | None) -> None:
    bench.file.unlink()
    if content is not None:
        bench.file.write_text(content)
    bench.look(100, looks=6)
    assert len(bench.said) == 1
    assert "the prices of before stay in force" in bench.said[0]
    assert bench.history.tariff(1) == bench.resolved.tariff
    if content is None or "EUR" not in content:
        prices = bench.purse.prices_now()
        assert prices is not None
        assert prices.price("cpu", "on-demand").amount == 1, "the next attempt begins with them, too"
    bench.price("3.00")
    bench.look(110)
    assert bench.history.tariff(1).rates[-1].per_hour == 6


def test_an_edit_that_changes_no_amount_is_none(bench: Bench) -> None:
    bench.file.write_text("# a remark\n" + PRICES.format("1.000", "USD", "2026-01-01"))
    bench.look(100)
    assert (bench.told, bench.notes(), bench.said) == (None, [], [])


@pytest.mark.parametrize(("price", "given"), [("5.00", True), ("0.10", False)])
def test_a_launcher_that_dies_while_a_price_changes_costs_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, price: str, given: bool
) -> None:
    """Between the two files: the job may know of an earlier end too soon, and never of a later one too soon."""

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    bench.look(100)
    bench.price(price)
    monkeypatch.setattr(bench.history, "reprice", dies)
    with pytest.raises(KeyboardInterrupt):
        bench.look(100)
    assert (bench.told is not None) == given
    bench.take_over()
    assert bench.history.tariff(1) == bench.resolved.tariff
    if bench.told is not None:
        assert bench.told.limit < BEGAN + 3600
    bench.look(110)
    assert bench.history.tariff(1) != bench.resolved.tariff, "the next launcher sees the new price"


def test_what_cannot_be_written_now_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    change_limit(bench.record, "4.00", bench.settings, BEGAN + 10)
    bench.record.folder.control.unlink()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(purse_module.local, "give_deadline", full)
        bench.look(20, looks=3)
    assert bench.told is None
    assert bench.said == ["the newer deadline could not be given to the job: no space left"]
    bench.look(21)
    assert bench.limit == pytest.approx(7200, abs=1e-3)


def test_a_price_that_cannot_be_written_now_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    bench.look(100)
    bench.price("5.00")
    with monkeypatch.context() as patched:
        patched.setattr(bench.history, "reprice", full)
        bench.look(110, looks=4)
    assert bench.said == ["the new price could not be written down, it is tried again: no space left"]
    assert bench.history.tariff(1) == bench.resolved.tariff
    bench.look(120)
    assert bench.history.tariff(1).at(BEGAN + 200).per_hour == 10
    assert bench.limit < 3600


def test_shares_are_events_and_told_once_whoever_follows(bench: Bench) -> None:
    bench.look(1900)
    bench.take_over()
    bench.look(1950)
    [half] = bench.notes()
    assert (half.about, half.share, half.limit, half.spent) == ("share-spent", 0.5, "2.00", "1.055555")
    bench.look(2900)
    assert [note.share for note in bench.notes()] == [0.5, 0.8]


def test_a_run_that_has_stopped_goes_on_after_its_limit_was_raised(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.look(3590)
    monkeypatch.setattr(local, "running", lambda folder: None)
    with pytest.raises(OverBudget):
        resolve_next(bench.record, History(bench.record), bench.settings, 2)
    raised = change_limit(bench.record, "5.00", bench.settings, BEGAN + 9999)
    assert bench.told is None, "nobody runs who could be told"
    second = resolve_next(raised, History(raised), bench.settings, 2)
    assert second.money_left == 5 - budget.spent([Held(1, BEGAN, BEGAN + 3590)], {1: bench.resolved.tariff})


def test_a_watched_file_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "f"
    eager, patient = WatchedFile(path), WatchedFile(path, patient=True)
    assert (eager.changed(), patient.changed()) == (True, True), "the first state, also if there is none"
    assert (eager.changed(), patient.changed()) == (False, False)
    path.write_text("one")
    assert (eager.changed(), patient.changed()) == (True, False)
    assert (eager.changed(), patient.changed()) == (False, True)
    assert (eager.changed(), patient.changed()) == (False, False)


def test_a_driver_that_does_not_know_since_when_it_is_paid_for_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, monkeypatch)
    folder = bench.record.folder
    assert local.given_deadline(folder, bench.resolved.incarnation) is None, "on this machine it knows"
    purse = Purse(bench.record, bench.settings, bench.history, bench.said.append, remote=True)
    bench.history.extend(BEGAN + 10)
    look = purse.look(bench.resolved, BEGAN + 10)
    told = local.given_deadline(folder, bench.resolved.incarnation)
    assert told is not None
    assert look.until is not None
    assert (told.number, told.limit) == (1, look.until.limit)
    bench.history.extend(BEGAN + 12)
    purse.look(bench.resolved, BEGAN + 12)
    again = local.given_deadline(folder, bench.resolved.incarnation)
    assert again == told, "once"

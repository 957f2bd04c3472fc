import math
from decimal import Decimal
from pathlib import Path

import pytest
from support.runs import RATE, event, resolved, tiny_job

from orchestrator.controller import history as history_module
from orchestrator.controller.history import History
from orchestrator.controller.record import Record
from orchestrator.cost.tariff import Tariff
from orchestrator.cost.timeline import Held
from orchestrator.errors import UsageError
from orchestrator.launch.events import Ended, Evaluated, Event, EventLog, FailureClass, Progress


@pytest.fixture
def record(tmp_path: Path) -> Record:
    record = Record.create(tmp_path, tiny_job())
    for attempt, dollars in ((1, 3600), (2, 7200)):
        rate = RATE.model_copy(update={"per_hour": Decimal(dollars)})
        record.folder.resolved(attempt).write_text(resolved(attempt=attempt, rate=rate).model_dump_json())
    return record


def write(record: Record, *events: Event) -> None:
    log = EventLog(record.folder.events)
    for one in events:
        log.append(**one.model_dump(exclude={"seq", "version"}))


def progress(time: float, step: int, attempt: int = 1) -> Event:
    return event("progress", time, attempt=attempt, step=step, tokens=step)


def test_each_attempt_costs_what_it_was_started_at(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0), Held(2, 20.0, 30.0)])
    history = History(record)
    assert [history.spent_at(t).amount for t in (0.0, 5.0, 15.0, 25.0, math.inf)] == [0, 5, 10, 20, 30]
    assert history.paid() == 30
    assert history.spent_at(30.0).seconds == 20
    assert history.ledger(history.resolved(2)).totals.cost == 30


def test_nothing_held_is_nothing_spent(tmp_path: Path, record: Record) -> None:
    for one in (record, Record.create(tmp_path / "fresh", tiny_job())):
        history = History(one)
        assert (history.paid(), history.spent_at(5.0).currency, history.events) == (0, "USD", [])


def test_a_driver_that_went_on_alone_is_paid_until_its_last_word(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0)])
    write(record, progress(50.0, 3))
    assert History(record).held == [Held(1, 0.0, 50.0)]
    assert History(record).last_word(1) == 50.0
    assert History(record).last_word(2) is None


def load(time: float, attempt: int = 1) -> Event:
    return event("machine-load", time, attempt=attempt, node="n", metrics={"cpu_utilization_percentage": 5.0})


def evaluated(time: float, step: int, attempt: int = 1) -> Event:
    return event("evaluated", time, attempt=attempt, step=step, tokens=step, metrics={"eval/loss": 2.0})


def test_a_driver_is_paid_while_it_tells_the_load_of_its_machine(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0)])
    write(record, progress(50.0, 3), load(55.0))
    history = History(record)
    assert history.held == [Held(1, 0.0, 55.0)]
    classes = history.ledger(history.resolved(1)).totals.seconds_by_class
    assert (classes["starting"], classes["productive"]) == (50, 5), "nobody has said that it ended"


@pytest.mark.parametrize("incarnation", ["i1", "later"])
def test_an_evaluation_costs_nothing_and_reopens_nothing(record: Record, incarnation: str) -> None:
    record.save_held([Held(1, 0.0, 10.0)])
    end = event("ended", 10.0, outcome="stopped", failure_class="interrupted", step=3)
    write(record, event("started", 1.0, step=0, tokens=0, world_size=2), progress(9.0, 3), end)
    before = History(record)
    write(record, evaluated(1e6, 3).model_copy(update={"incarnation": incarnation}))
    after = History(record)
    assert isinstance(after.events[-1], Evaluated)
    assert after.held == before.held == [Held(1, 0.0, 10.0)]
    assert after.last_word(1) == 10.0
    assert after.paid() == before.paid() == 10
    assert after.ledger(after.resolved(1)) == before.ledger(before.resolved(1))
    assert after.observation == before.observation
    assert after.has_ended(1)


def test_a_word_on_money_costs_nothing_and_is_no_sign_of_life(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0)])
    write(record, event("started", 1.0, step=0, tokens=0, world_size=2), progress(9.0, 3))
    before = History(record)
    write(record, event("budget", 1e6, about="limit-changed", limit="50.00", spent="10", message="raised"))
    after = History(record)
    assert after.held == before.held
    assert after.last_word(1) == 10.0
    assert (before.limit, after.limit) == (None, 50)
    changed = before.ledger(before.resolved(1)).model_copy(update={"limit": Decimal("50.00")})
    assert after.ledger(after.resolved(1)) == changed
    assert after.observation.warnings == ["raised"]
    assert after.observation.running


def test_a_word_from_the_future_holds_nothing(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module.time, "time", lambda: 60.0)
    record.save_held([Held(1, 0.0, 10.0)])
    write(record, progress(50.0, 3), progress(1e9, 4))
    assert History(record).held == [Held(1, 0.0, 60.0)]
    record.save_held([Held(1, 0.0, 70.0)])
    assert History(record).held == [Held(1, 0.0, 70.0)], "what a launcher has written down stands"


def test_a_tariff_that_was_changed_is_that_of_its_attempt(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0), Held(2, 20.0, 30.0)])
    history, other = History(record), History(record)
    assert other.paid() == 30
    rate = history.tariff(1).rates[0]
    changes = ({"since": 0.0}, {"since": 5.0, "per_hour": Decimal(36_000)})
    history.reprice(1, Tariff(rates=tuple(rate.model_copy(update=change) for change in changes)))
    assert history.paid() == 5 + 50 + 20
    other.refresh()
    assert other.paid() == 75
    record.folder.tariff(1).write_text("{")
    with pytest.raises(UsageError, match=r"tariff-1\.json cannot be read: .* put it back from a backup"):
        History(record).paid()


def test_an_evaluation_of_an_earlier_attempt_is_kept_and_that_of_an_unknown_one_begins_none(record: Record) -> None:
    history = History(record)
    write(record, progress(1.0, 1), progress(2.0, 2, attempt=2), evaluated(3.0, 1), evaluated(4.0, 1, attempt=3))
    write(record, load(5.0), progress(6.0, 3, attempt=2))
    assert [e.time for e in history.read()] == [1.0, 2.0, 3.0, 4.0, 6.0], "the first attempt's driver is a zombie"
    assert (history.observation.attempt, history.observation.step) == (2, 3)


def test_what_another_process_writes_is_taken_in(record: Record) -> None:
    history = History(record)
    record.save_held([Held(1, 0.0, 10.0)])
    write(record, progress(12.0, 3))
    history.refresh()
    assert history.held == [Held(1, 0.0, 12.0)]
    assert history.spent_at(12.0).amount == 12
    assert history.end_of(1) is None
    write(record, event("ended", 13.0, outcome="succeeded", step=3))
    history.refresh()
    ended = history.end_of(1)
    assert ended is not None
    assert ended.outcome == "succeeded"


def test_late_words_of_an_earlier_attempt_do_not_count(record: Record) -> None:
    history = History(record)
    write(record, progress(1.0, 1), progress(2.0, 1, attempt=2), progress(3.0, 9))
    news = history.read()
    assert [(e.attempt, e.step) for e in news if isinstance(e, Progress)] == [(1, 1), (2, 1)]
    assert history.events == news
    assert history.observation.step == 1
    assert history.read() == []


def test_an_end_that_the_driver_has_not_written(record: Record) -> None:
    history = History(record)
    write(record, progress(1.0, 4), event("started", 2.0, step=2, tokens=2, world_size=2), progress(3.0, 3))
    history.read()
    assert not history.has_ended(1)
    history.end(resolved(), "failed", FailureClass.DRIVER_LOST, "gone", at=3.0)
    end = history.events[-1]
    assert isinstance(end, Ended)
    assert (end.time, end.step, end.failure_class) == (3.0, 4, "driver-lost")
    assert history.observation.ended == end
    assert history.has_ended(1)
    assert not history.has_ended(2)


def test_held_time_grows_and_never_shrinks(record: Record) -> None:
    history = History(record)
    history.hold(1, 10.0, 12.0)
    history.hold(1, 99.0, 99.0)
    history.extend(20.0)
    assert history.held == [Held(1, 10.0, 20.0)]
    history.extend(5.0)
    assert history.held == [Held(1, 10.0, 20.0)], "a clock that was put back gives no money back"
    history.hold(2, 30.0, 31.0)
    assert [one.attempt for one in history.held] == [1, 2]


def test_a_rate_that_cannot_be_read_is_named(record: Record) -> None:
    record.save_held([Held(1, 0.0, 10.0)])
    record.folder.resolved(1).write_text("{}")
    with pytest.raises(UsageError, match=r"resolved-1\.json cannot be read"):
        History(record).paid()


def test_of_an_attempt_in_a_cluster_the_cluster_says_what_it_held(record: Record) -> None:
    record.folder.ray_job(2).write_text("{}")
    record.save_held([Held(1, 0.0, 10.0), Held(2, 20.0, 20.0)])
    write(record, progress(500.0, 1, attempt=2))
    history = History(record)
    assert history.held[-1] == Held(2, 20.0, 20.0), "its driver's clock counts for nothing"
    history.begin(2, 30.0)
    history.extend(45.0)
    assert history.held == [Held(1, 0.0, 10.0), Held(2, 30.0, 45.0)]
    history.let_go(2, 44.0)
    assert history.held[-1] == Held(2, 30.0, 44.0)
    history.begin(2, 50.0)
    history.let_go(2, 40.0)
    assert history.held[-1] == Held(2, 50.0, 50.0), "never before it began"
    history.begin(1, 5.0)
    history.let_go(1, 5.0)
    assert history.held[0] == Held(1, 0.0, 10.0)

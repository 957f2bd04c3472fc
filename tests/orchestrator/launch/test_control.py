"""The answer to a running job: taken in turns, and nothing old or wrong in it counts."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cost.budget import Deadlines
from orchestrator.launch.control import amend_control, newest, take_over
from orchestrator.launch.events import CheckpointAndStop, Continue, HardDeadline, read_control, write_control

ORDER = CheckpointAndStop(deadline=50.0, reason="interrupted")


def until(number: int, limit: float = 130.0, incarnation: str = "i1") -> HardDeadline:
    return HardDeadline(number=number, incarnation=incarnation, stop=limit - 30, end=limit - 10, limit=limit)


@given(st.permutations(range(1, 7)), st.lists(st.sampled_from(["i1", "i0"]), min_size=6, max_size=6))
def test_in_whatever_order_answers_come_the_newest_of_the_own_incarnation_counts(
    numbers: list[int], incarnations: list[str]
) -> None:
    known = None
    for number in numbers:
        answer = Continue(hard_deadline=until(number, 100.0 + 37 * number % 50, incarnations[number - 1]))
        known, complaint = newest(known, answer, incarnation="i1", began=1.0)
        assert complaint == ""
    own = [number for number in numbers if incarnations[number - 1] == "i1"]
    assert known == (until(max(own), 100.0 + 37 * max(own) % 50) if own else None)


def test_a_deadline_may_come_nearer_and_go_further() -> None:
    known = until(1, 130.0)
    for number, limit in ((2, 300.0), (3, 60.0)):
        known, _ = newest(known, Continue(hard_deadline=until(number, limit)), incarnation="i1", began=1.0)
        assert known is not None
        assert known.limit == limit
    assert newest(known, Continue(), incarnation="i1", began=1.0) == (known, "")


def test_one_before_the_attempt_began_is_nonsense() -> None:
    known, complaint = newest(until(0), Continue(hard_deadline=until(1, 40.0)), incarnation="i1", began=99.0)
    assert known == until(0)
    assert complaint == "it is 40.000, and the attempt has begun at 99.000"


@pytest.mark.parametrize(
    "offered",
    [
        "soon",
        17.5,
        {},
        {"number": 1, "incarnation": "i1", "stop": 3, "end": 2, "limit": 4},
        {"number": 1, "incarnation": "i1", "stop": -3, "end": 2, "limit": 4},
        {"number": 1, "incarnation": "i1", "stop": "NaN", "end": 2, "limit": 4},
        {"number": 1, "incarnation": "i1", "stop": 1, "end": 2, "limit": "Infinity"},
        {"number": "many", "incarnation": "i1", "stop": 1, "end": 2, "limit": 3},
    ],
)
def test_nonsense_costs_the_deadline_and_not_the_order(tmp_path: Path, offered: object) -> None:
    path = tmp_path / "control.json"
    path.write_text(json.dumps({"kind": "checkpoint-and-stop", "deadline": 50.0, "hardDeadline": offered}))
    answer = read_control(path)
    assert isinstance(answer, CheckpointAndStop)
    known, complaint = newest(until(0), answer, incarnation="i1", began=1.0)
    assert known == until(0)
    assert complaint.startswith("hardDeadline ")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    write_control(path, Continue(hard_deadline=until(3)))
    assert read_control(path) == Continue(hard_deadline=until(3))


def reckoning(limit: float) -> Deadlines:
    return Deadlines(stop=limit - 30, end=limit - 10, limit=limit)


def test_an_order_keeps_the_deadline_and_a_deadline_the_order(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    amend_control(path, until=reckoning(130), incarnation="i1")
    amend_control(path, order=ORDER)
    assert read_control(path) == ORDER.model_copy(update={"hard_deadline": until(1)})
    amend_control(path, until=reckoning(500), incarnation="i1")
    assert read_control(path) == ORDER.model_copy(update={"hard_deadline": until(2, 500.0)})
    assert amend_control(path) == read_control(path)
    amend_control(path, until=reckoning(130), incarnation="i2")
    assert amend_control(path).hard_deadline == until(1, incarnation="i2"), "the next incarnation begins anew"


def test_what_is_no_answer_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text("{")
    assert amend_control(path, until=reckoning(130), incarnation="i1") == Continue(hard_deadline=until(1))


def test_launchers_and_driver_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "control.json"

    def give() -> None:
        for _ in range(20):
            amend_control(path, until=reckoning(130), incarnation="i1")

    threads = [threading.Thread(target=give) for _ in range(2)]
    for thread in threads:
        thread.start()
    amend_control(path, order=ORDER)
    for thread in threads:
        thread.join()
    assert read_control(path) == ORDER.model_copy(update={"hard_deadline": until(40)})


# Taken over from another file


def order(deadline: float, reason: str = "cancelled") -> CheckpointAndStop:
    return CheckpointAndStop(deadline=deadline, reason=reason)


def test_an_order_is_taken_over_once_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    assert take_over(path, order(50.0), Continue()) == order(50.0)
    assert take_over(path, Continue(), order(50.0)) == order(50.0), "it stays"
    amend_control(path, order=order(60.0, "terminated"))
    assert take_over(path, order(50.0), order(50.0)) == order(60.0, "terminated"), "nothing new was said"
    assert take_over(path, order(40.0, "over-budget"), order(50.0)) == order(40.0, "over-budget")
    assert read_control(path) == order(40.0, "over-budget")


def test_a_deadline_is_taken_over_where_it_is_newer_or_of_another_incarnation(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    for offered, expected in (
        (until(2), until(2)),
        (until(1), until(2)),
        (until(2, 500.0), until(2)),
        (None, until(2)),
        (until(3, 60.0), until(3, 60.0)),
        (until(1, incarnation="i2"), until(1, incarnation="i2")),
    ):
        answer = take_over(path, Continue(hard_deadline=offered), Continue())
        assert answer == read_control(path) == Continue(hard_deadline=expected)
    with_order = order(50.0).model_copy(update={"hard_deadline": until(2, 70.0, "i2")})
    assert take_over(path, with_order, Continue()) == with_order


def test_what_is_no_answer_is_replaced_by_what_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "control.json"
    path.write_text("{")
    assert take_over(path, order(50.0), Continue()) == read_control(path) == order(50.0)

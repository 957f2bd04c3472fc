"""Money of deleted runs."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from support.runs import tiny_job

from orchestrator.controller.departed import Departed, departed, remember
from orchestrator.controller.record import Record
from orchestrator.controller.teams import accounts
from orchestrator.cost.book import book_of
from orchestrator.errors import UsageError


def run(**fields: object) -> Departed:
    known = {"team": "vision", "name": "mini", "folder": "mini-1", "spent": "1.25", "currency": "USD"}
    return Departed.model_validate(known | fields)


def test_it_counts_once_its_folder_is_gone_and_for_its_team_only(tmp_path: Path) -> None:
    remember(tmp_path, "a", run())
    remember(tmp_path, "a", run())
    remember(tmp_path, "b", run(team="text"))
    assert list(departed(tmp_path, "vision")) == [("a", run())]
    assert [(one.name, one.spent, one.reserved) for one in accounts(tmp_path, "vision")] == [
        ("mini (a, deleted)", Decimal("1.25"), None)
    ]
    (tmp_path / "mini-1").mkdir()
    (tmp_path / "mini-1" / "tracking.json").touch()
    assert list(departed(tmp_path, "vision")) == [("a", run())], "MLflow's process has written into what was removed"
    (tmp_path / "mini-1" / "held.json").touch()
    assert list(departed(tmp_path, "vision")) == [], "a run that stands is counted itself"
    (tmp_path / "mini-1").rename(tmp_path / ".removing-mini-1")
    assert [one.spent for one in accounts(tmp_path, "vision")] == [Decimal("1.25")], "once, while it is being removed"


def test_a_folder_that_a_controller_made_anew_to_finish_a_removal_does_not_hide_it(tmp_path: Path) -> None:
    remember(tmp_path, "a", run())
    Record.take(tmp_path / "mini-1", "a", tiny_job(name="mini", namespace="vision"))
    assert sum(one.spent for one in accounts(tmp_path, "vision")) == Decimal("1.25")


def test_what_is_known_is_not_taken_back(tmp_path: Path) -> None:
    remember(tmp_path, "a", run())
    remember(tmp_path, "a", run(spent="1.00"))
    assert list(departed(tmp_path, "vision")) == [("a", run())]


def test_two_of_one_name_are_two(tmp_path: Path) -> None:
    remember(tmp_path, "a", run())
    remember(tmp_path, "b", run(folder="mini-2", spent="2.50"))
    assert book_of("vision", Decimal(10), "USD", accounts(tmp_path, "vision")).free == Decimal("6.25")


def test_none_was_ever_deleted(tmp_path: Path) -> None:
    assert list(departed(tmp_path, "vision")) == []


@pytest.mark.parametrize("text", ["", "{", '{"team": "vision"}', '{"spent": "NaN"}'])
def test_what_cannot_be_read_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "departed").mkdir()
    (tmp_path / "departed" / "a.json").write_text(text)
    with pytest.raises(UsageError, match="what a deleted run has cost"):
        list(departed(tmp_path, "vision"))

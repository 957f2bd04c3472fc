from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.cost.book import Account, book_of
from orchestrator.cost.teams import TeamLimit, read_teams
from orchestrator.errors import OverBudget, UsageError


def test_limits_of_teams(tmp_path: Path) -> None:
    file = tmp_path / "budgets.yaml"
    file.write_text('- {team: team-a, limit: "5000.00", currency: USD}\n- {team: default, limit: 12, currency: EUR}\n')
    assert read_teams(file) == {
        "team-a": TeamLimit(team="team-a", limit=Decimal(5000), currency="USD"),
        "default": TeamLimit(team="default", limit=Decimal(12), currency="EUR"),
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{team: a}", "must be a list of rows, got dict"),
        ("- {", "not valid YAML"),
        ("- {team: a, limit: 1.5, currency: USD}", 'row 1: limit: .*as text, e.g. "5000.00", got 1.5'),
        ("- {team: a, limit: true, currency: USD}", "row 1: limit: must not be true"),
        ('- {team: a, limit: "-1", currency: USD}', "row 1: limit: .*greater than or equal to 0"),
        ('- {team: a, limit: "NaN", currency: USD}', "row 1: limit: .*finite"),
        ('- {team: A B, limit: "1", currency: USD}', "row 1: team: "),
        ('- {team: a, limit: "1", currency: usd}', "row 1: currency: "),
        ('- {team: a, limit: "1"}', "row 1: currency: Field required"),
        ('- {team: a, limit: "1", currency: USD, owner: me}', "row 1: owner: "),
        (
            '- {team: a, limit: "1", currency: USD}\n- {team: a, limit: "2", currency: USD}',
            "row 2: a second limit for a",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "budgets.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=words):
        read_teams(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; check FATHOM_BUDGETS"):
        read_teams(tmp_path / "none.yaml")


def test_the_book_of_all_accounts() -> None:
    accounts = [
        Account("going-on", Decimal(5), "USD", reserved=Decimal(30)),
        Account("beyond", Decimal(20), "USD", reserved=Decimal(10)),
        Account("over", Decimal(7), "USD"),
        Account("not begun", Decimal(0), "EUR"),
    ]
    book = book_of("a", Decimal(100), "USD", accounts)
    assert (book.committed, book.free) == (57, 43)
    assert book.reserve("over", Decimal(50), "USD").free == 0, "what it has spent is part of it"
    with pytest.raises(OverBudget, match="going-on asks for 74 USD, but a has 73 of its 100 left"):
        book.reserve("going-on", Decimal(74), "USD")


def test_a_limit_that_was_lowered_frees_nothing() -> None:
    book = book_of("a", Decimal(10), "USD", [Account("one", Decimal(0), "USD", reserved=Decimal(30))])
    assert (book.committed, book.free) == (30, 0)


def test_accounts_that_do_not_add_up() -> None:
    with pytest.raises(OverBudget, match="one is paid in EUR, the budget of a is in USD"):
        book_of("a", Decimal(10), "USD", [Account("one", Decimal(1), "EUR")])
    with pytest.raises(ValueError, match="two accounts"):
        book_of("a", Decimal(10), "USD", [Account("one", Decimal(1), "USD")] * 2)

import contextlib
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cost.book import Book
from orchestrator.errors import OverBudget

TEAM = Book("team-a", Decimal(100), "USD")


def test_money_is_reserved_before_a_job_starts() -> None:
    book = TEAM.reserve("one", Decimal(60), "USD")
    assert (book.committed, book.free) == (60, 40)
    with pytest.raises(OverBudget, match="two asks for 50 USD, but team-a has 40 of its 100 left"):
        book.reserve("two", Decimal(50), "USD")
    book = book.reserve("two", Decimal(40), "USD").pay("one", Decimal(10)).release("one")
    assert (book.committed, book.free) == (50, 50)
    assert TEAM.committed == 0, "a book never changes"


def test_a_reservation_may_be_changed_but_not_below_what_is_spent() -> None:
    book = TEAM.reserve("one", Decimal(60), "USD").pay("one", Decimal(30))
    assert book.reserve("one", Decimal(100), "USD").free == 0
    assert book.reserve("one", Decimal(30), "USD").free == 70
    with pytest.raises(OverBudget, match="asks for 20 USD, but has spent 30 already"):
        book.reserve("one", Decimal(20), "USD")
    with pytest.raises(OverBudget, match="asks for 101 USD, but team-a has 100 of its 100 left"):
        book.reserve("one", Decimal(101), "USD")
    again = book.release("one").reserve("one", Decimal(90), "USD")
    assert again.committed == 90, "resumed: what was spent is part of it"


def test_what_was_spent_without_leave_counts_all_the_same() -> None:
    book = TEAM.pay("stray", Decimal(130))
    assert (book.committed, book.free) == (130, 0)
    with pytest.raises(OverBudget, match="has 0 of its 100 left"):
        book.reserve("one", Decimal(1), "USD")


def test_late_news_and_other_currencies() -> None:
    book = TEAM.reserve("one", Decimal(60), "USD").pay("one", Decimal(30)).pay("one", Decimal(20))
    assert book.jobs["one"].spent == 30
    assert book.release("nobody") == book
    with pytest.raises(OverBudget, match="two asks for EUR, the budget of team-a is in USD"):
        book.reserve("two", Decimal(1), "EUR")
    for wrong in ("-1", "NaN", "Infinity"):
        with pytest.raises(ValueError, match="a number and not negative"):
            book.reserve("two", Decimal(wrong), "USD")
        with pytest.raises(ValueError, match="a number and not negative"):
            book.pay("two", Decimal(wrong))


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["reserve", "pay", "release"]), st.sampled_from("abcd"), st.integers(0, 120)), max_size=30
)


@given(OPERATIONS)
def test_a_team_never_commits_more_than_its_limit(operations: list[tuple[str, str, int]]) -> None:
    """Jobs come, spend what they have reserved and no more, and go, in any order."""
    book, spent = TEAM, dict[str, Decimal]()
    for kind, job, amount in operations:
        if kind == "reserve":
            with contextlib.suppress(OverBudget):
                book = book.reserve(job, Decimal(amount), "USD")
        elif kind == "pay" and job in book.jobs and book.jobs[job].open:
            spent[job] = max(spent.get(job, Decimal(0)), min(Decimal(amount), book.jobs[job].amount))
            book = book.pay(job, spent[job])
        elif kind == "release":
            book = book.release(job)
        assert book.committed <= book.limit
        assert book.committed + book.free == book.limit
        assert sum(spent.values()) <= book.committed

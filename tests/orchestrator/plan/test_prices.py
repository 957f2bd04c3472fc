import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.prices import PriceBook

ROW = (
    "- {accelerator: H100, priceClass: on-demand, amount: '2.10', currency: EUR, unit: gpu-hour, "
    "source: contract 7, date: 2026-09-01}\n"
)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("accelerator", "amount", "unit"),
    [
        ("A100", "1.30", "gpu-hour"),
        ("H100", "2.95", "gpu-hour"),
        ("H800", "2.00", "gpu-hour"),
        ("H200", "4.00", "gpu-hour"),
        ("B200", "6.03", "gpu-hour"),
        ("cpu", "0.0408", "cpu-hour"),
    ],
)
def test_packaged_prices_have_source_and_date(accelerator: str, amount: str, unit: str) -> None:
    price = PriceBook.load(None).price(accelerator, "on-demand")
    assert (price.amount, price.unit, price.currency) == (Decimal(amount), unit, "USD")
    assert price.source
    assert price.date >= datetime.date(2024, 12, 27)


def test_own_file_comes_before_the_packaged_rows(tmp_path: Path) -> None:
    book = PriceBook.load(write(tmp_path, ROW))
    assert book.price("H100", "on-demand").currency == "EUR"
    assert str(book.price("H100", "on-demand").amount) == "2.10"
    assert book.price("H200", "on-demand").currency == "USD"


def test_own_file_may_add_classes_and_accelerators(tmp_path: Path) -> None:
    book = PriceBook.load(write(tmp_path, ROW.replace("on-demand", "spot").replace("H100", "MI300X")))
    assert book.price("MI300X", "spot").amount == Decimal("2.10")
    with pytest.raises(UsageError, match="known: spot"):
        book.price("MI300X", "on-demand")


def test_unknown_accelerator_and_class_list_what_is_known() -> None:
    book = PriceBook.load(None)
    with pytest.raises(UsageError, match=r"'TPU'; known: A100, B200, GB200, H100, H200, H800, cpu"):
        book.price("TPU", "on-demand")
    with pytest.raises(UsageError, match=r"class 'free' for H100; known: on-demand"):
        book.price("H100", "free")


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("'2.10'", "'-2.10'", "amount"),
        ("'2.10'", "0", "amount"),
        ("'2.10'", ".nan", "amount"),
        ("'2.10'", "'NaN'", "amount"),
        ("'2.10'", ".inf", "amount"),
        ("'2.10'", "true", "amount"),
        ("'2.10'", "two", "amount"),
        ("'2.10'", "1e30", "amount"),
        ("EUR", "eur", "currency"),
        ("gpu-hour", "gpu-minute", "unit"),
        ("gpu-hour", "cpu-hour", "unit"),
        ("source: contract 7, ", "", "source"),
        ("2026-09-01", "soon", "date"),
        ("source:", "discount: 5, source:", "discount"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path: Path, old: str, new: str, field: str) -> None:
    path = write(tmp_path, ROW.replace("H100", "H200") + ROW.replace(old, new))
    with pytest.raises(UsageError) as caught:
        PriceBook.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "row 2" in message
    assert field in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n", "list of rows"),
        ("", "list of rows"),
        ("- [1\n", "not valid YAML"),
        ("- {date: 2026-13-45}\n", "row 1: date: "),
        ("- 5\n", "row 1"),
        ("- !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        (ROW + ROW, "a second price for H100 on-demand"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        PriceBook.load(write(tmp_path, text))


def test_missing_folder_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FATHOM_PRICES"):
        PriceBook.load(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="FATHOM_PRICES"):
        PriceBook.load(tmp_path)
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="not UTF-8"):
        PriceBook.load(tmp_path / "x")


def test_amount_without_quotes_keeps_its_digits(tmp_path: Path) -> None:
    book = PriceBook.load(write(tmp_path, ROW.replace("'2.10'", "0.1")))
    assert book.price("H100", "on-demand").amount == Decimal("0.1")


def test_a_range_holds_its_price(tmp_path: Path) -> None:
    price = PriceBook.load(None).price("H100", "on-demand")
    assert (price.low, price.amount, price.high) == (Decimal("1.99"), Decimal("2.95"), Decimal("6.88"))
    assert PriceBook.load(None).price("H800", "on-demand").low is None
    for text, message in (("low: 3, high: 4", "between low 3 and high 4"), ("low: 1", "both or neither")):
        path = tmp_path / "prices.yaml"
        path.write_text(ROW.replace("amount: '2.10'", f"amount: '2.10', {text}"))
        with pytest.raises(UsageError, match=message):
            PriceBook.load(path)


def test_a_price_that_is_announced_is_not_paid_yet(tmp_path: Path) -> None:
    rows = ROW + ROW.replace("2026-09-01", "2999-01-01").replace("2.10", "9.00")
    assert PriceBook.load(write(tmp_path, rows)).price("H100", "on-demand").amount == Decimal("2.10")

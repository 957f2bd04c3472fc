from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.hardware import DATA, accelerator, read_accelerators


@pytest.mark.parametrize(
    ("name", "bf16", "fp8", "gigabytes"),
    [
        ("A100", 312e12, None, 80),
        ("H100", 989.4e12, 1978.9e12, 80),
        ("H800", 989.4e12, 1978.9e12, 80),
        ("H200", 989.4e12, 1978.9e12, 141),
        ("B200", 2250e12, 4500e12, 180),
    ],
)
def test_dense_peaks(name: str, bf16: float, fp8: float | None, gigabytes: int) -> None:
    found = accelerator(name)
    assert found.bf16_flops == pytest.approx(bf16)
    assert found.fp8_flops == (None if fp8 is None else pytest.approx(fp8))
    assert found.memory_bytes == gigabytes * 10**9
    assert found.source
    assert found.date.year >= 2026


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"'cpu'; known: A100, H100, H800, H200, B200"):
        accelerator("cpu")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "bf16Teraflops: 989.4",
            "bf16Teraflops: 1978.9",
            "H100: bf16Teraflops 1978.9 is 2.0 times the dense peak",
        ),
        (
            "fp8Teraflops: 1978.9",
            "fp8Teraflops: 3957.8",
            "H100: fp8Teraflops 3957.8 is more than three times",
        ),
        ("name: H800", "name: H100", "different names"),
        ("bf16Teraflops: 312", "bf16Teraflops: -1", "bf16Teraflops"),
        ("memoryGigabytes: 80", "memory: 80", "memory"),
        ("- {name: A100", "{name: A100", "hardware.yaml"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "hardware.yaml"
    text = DATA.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=says):
        read_accelerators(path)

from dataclasses import fields, replace
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.efficiency import Efficiencies, efficiencies, origins
from orchestrator.plan.hardware import accelerator


def test_few_constants_each_with_an_origin() -> None:
    names = {field.name for field in fields(Efficiencies)}
    assert set(origins()) == names
    assert len(names) <= 11
    assert all(len(origin) > 20 for origin in origins().values())


def test_rates() -> None:
    found, h100 = efficiencies(), accelerator("H100")
    assert found.matrix_rate(h100, "fp8") == found.matrix_fp8 * 1978.9e12
    assert found.matrix_rate(h100, "bf16") == found.matrix_bf16 * 989.4e12
    assert found.matrix_rate(h100, "fp32") == found.matrix_bf16 * 989.4e12 / 16
    assert found.attention_rate(h100, "fp8") == found.attention_rate(h100, "bf16") == found.attention * 989.4e12
    with pytest.raises(ValueError, match="A100 has no 8-bit floating point: use bf16"):
        found.matrix_rate(accelerator("A100"), "fp8")


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["matrix_bf16", "attention", "network"])
def test_shares_lie_between_nothing_and_all(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        replace(efficiencies(), **{name: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), 1e9])
def test_other_constants_are_bounded(value: float) -> None:
    for name in ("communication_cores", "overhead_seconds", "activation_passes"):
        with pytest.raises(ValueError, match=name):
            replace(efficiencies(), **{name: value})


def test_own_constants_come_first(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("- {name: attention, value: 0.5, origin: ours}\n", encoding="utf-8")
    assert efficiencies(path) == replace(efficiencies(), attention=0.5)
    assert origins(path)["attention"] == "ours"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {name: speed, value: 0.5, origin: ours}\n", "unknown speed; known: matrix_bf16"),
        ("- {name: attention, value: 5, origin: ours}\n", "attention must be above 0 and at most 1, got 5"),
        ("- {name: attention, value: .nan, origin: ours}\n", "row 1: value"),
        ("- {name: attention, value: 0.5}\n", "row 1: origin"),
        ("a\n", "list of rows"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=says) as caught:
        efficiencies(path)
    assert str(path) in str(caught.value)

"""What counts as an observation, and the file that holds some."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import tiny_recipe

from orchestrator.errors import UsageError
from orchestrator.plan.observed import Observed, read_observations, step_seconds

RECIPE = tiny_recipe()
GOOD: dict[str, Any] = {
    "name": "a",
    "device": "cpu",
    "model": RECIPE.model.model_dump(mode="json"),
    "sequence_length": 16,
    "precision": "fp32",
    "layout": RECIPE.layout.model_dump(mode="json"),
    "seconds": 0.5,
}


def written(folder: Path, content: object) -> Path:
    path = folder / "runs.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_runs(tmp_path: Path) -> None:
    fast = {key: value for key, value in GOOD.items() if key != "seconds"} | {
        "device": "H100",
        "tokens_per_second": 128,
    }
    first, second = read_observations(written(tmp_path, {"device": "of a report", "runs": [GOOD, fast]}))
    assert first.measured == 0.5
    assert second.batch_tokens == 4 * 16
    assert second.measured == 0.5, "64 tokens at 128 a second"
    again = written(tmp_path, {"runs": [first.model_dump(mode="json", exclude_none=True)]})
    assert read_observations(again) == [first]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seconds": -1}, "run 2: seconds: Input should be greater than"),
        ({"seconds": True}, "run 2: seconds: Value error, must be a number, got true"),
        ({"seconds": float("nan")}, "run 2: seconds: Input should be a finite number"),
        ({"seconds": 1e300}, "run 2: seconds: Input should be less than"),
        ({"seconds": None}, "give seconds or tokens_per_second, got None and None"),
        ({"tokens_per_second": 5.0}, "got 0.5 and 5.0"),
        ({"seconds": None, "tokens_per_second": 5.0}, "says nothing of CPU seconds"),
        ({"second": 1}, "run 2: second: Extra inputs"),
        ({"precision": "int4"}, "run 2: precision"),
        ({"layout": {"world_size": 0}}, "run 2: layout.world_size"),
        ({"model": "mini"}, "run 2: model"),
        ({"name": ""}, "run 2: name"),
    ],
)
def test_rows_that_are_wrong(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_observations(written(tmp_path, {"runs": [GOOD, GOOD | changes]}))
    assert words in str(caught.value)
    assert "runs.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", 'must hold {"runs": [...]}'),
        ('{"runs": 5}', 'must hold {"runs": [...]}'),
        ('{"runs": [5]}', "run 1: row"),
        (" " * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_observations(written(tmp_path, content))
    assert words in str(caught.value)


def test_nan_is_not_a_time(tmp_path: Path) -> None:
    text = json.dumps({"runs": [GOOD | {"seconds": float("nan")}]})
    with pytest.raises(UsageError, match="run 1: seconds"):
        read_observations(written(tmp_path, text))


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_observations(tmp_path / "none")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(UsageError, match="not UTF-8"):
        read_observations(tmp_path / "binary")


# ------------------------------------------------------------------ the median


def test_steps_after_each_start_only_warm_up() -> None:
    steps = {step: float(step) for step in range(1, 11)}
    assert step_seconds("r", "m", steps, [0]) == 7
    assert step_seconds("r", "m", steps, [0, 5]) == 7, "4, 5, 9 and 10 are left"
    assert step_seconds("r", "m", steps, []) == 5.5


def test_too_few_steps_and_steps_that_are_none() -> None:
    with pytest.raises(UsageError, match="r has no m"):
        step_seconds("r", "m", {}, [0])
    with pytest.raises(UsageError, match="r has 2 steps with m, 3 of warm-up left out: 3 are needed"):
        step_seconds("r", "m", dict.fromkeys(range(1, 6), 1.0), [0])
    with pytest.raises(UsageError, match=r"must be above 0 and finite, got 0.0 to 1.0"):
        step_seconds("r", "m", {5: 1.0, 6: 0.0, 7: 1.0}, [0])


@given(st.lists(st.floats(1e-3, 1e3), min_size=3), st.integers(0, 50))
def test_the_median_lies_among_the_steps(seconds: list[float], start: int) -> None:
    steps = {start + 4 + index: value for index, value in enumerate(seconds)}
    found = step_seconds("r", "m", steps, [start])
    assert min(seconds) <= found <= max(seconds)


def test_an_observation_is_what_the_cpu_forecast_takes() -> None:
    from orchestrator.plan.cpu import asked

    assert asked(Observed.model_validate(GOOD)) == asked(RECIPE)

"""One rank's result or error is known to all; nobody waits for one that has failed."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from support.plain_loop import run_ranks

from model.checkpoint import CheckpointError, Fenced
from model.collective import on_first, together
from model.metrics import NotFinite


class Stubborn(Exception):
    """Pickles, but cannot be made again from what was pickled."""

    def __init__(self, number: int, word: str) -> None:
        super().__init__(f"{word} {number}")


class Holding(Exception):
    """Cannot be pickled at all."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def failing(error: Exception) -> Any:  # noqa: ANN401
    raise error


# ------------------------------------------------------------------- alone
@pytest.mark.usefixtures("process_group")
def test_alone_it_is_a_call() -> None:
    assert together(lambda: 5) == [5]
    assert together(lambda: None) == [None]
    assert on_first(lambda: {"a": Path("b")}) == {"a": Path("b")}
    assert on_first(lambda: None) is None


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    "error",
    [ValueError("v"), FileNotFoundError(2, "none", "x"), CheckpointError("c"), Fenced("f"), NotFinite("n")],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_their_type_and_words(error: Exception) -> None:
    for call in (together, on_first):
        with pytest.raises(type(error)) as caught:
            call(lambda: failing(error))
        assert type(caught.value) is type(error)
        assert str(caught.value) == str(error)


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("error", [Stubborn(5, "word"), Holding("word 5")], ids=["makes no copy", "cannot be pickled"])
def test_errors_that_cannot_travel_are_told_in_words(error: Exception) -> None:
    with pytest.raises(RuntimeError, match=f"{type(error).__name__}: word 5"):
        on_first(lambda: failing(error))


@pytest.mark.usefixtures("process_group")
def test_what_is_no_error_goes_straight_up() -> None:
    """An interrupt is nobody else's business."""
    with pytest.raises(KeyboardInterrupt):
        together(lambda: failing(KeyboardInterrupt()))  # type: ignore[arg-type]


# ------------------------------------------------------------------- two processes
def in_two(folder: Path) -> dict[str, Any]:
    """On each rank: what came of each."""
    rank, out = dist.get_rank(), {}
    calls: list[int] = []
    out["results"] = together(lambda: rank * 10)
    out["first"] = on_first(lambda: calls.append(rank) or f"from {rank}")
    out["calls"] = calls
    errors: dict[str, dict[int, Exception]] = {
        "on 0": {0: CheckpointError("a")},
        "on 1": {1: CheckpointError("b")},
        "on both": {0: ValueError("c"), 1: KeyError("d")},
        "makes no copy": {1: Stubborn(5, "word")},
        "cannot be pickled": {0: Holding("word 5")},
    }
    for name, on in errors.items():
        try:
            together(lambda on=on: failing(on[rank]) if rank in on else None)  # type: ignore[misc]
        except Exception as error:  # noqa: BLE001 - for the test
            out[name] = (type(error).__name__, str(error))
    try:
        on_first(lambda: failing(Fenced(f"by {rank}")))
    except Fenced as error:
        out["fenced"] = str(error)
    out["afterwards"] = together(lambda: rank)
    return out


@pytest.mark.processes
def test_all_ranks_hear_of_an_error_and_can_go_on(tmp_path: Path) -> None:
    ranks = run_ranks(in_two, 2, tmp_path)
    for rank, out in enumerate(ranks):
        assert out.pop("calls") == ([0] if rank == 0 else [])
        assert out == {
            "results": [0, 10],
            "first": "from 0",
            "on 0": ("CheckpointError", "a"),
            "on 1": ("CheckpointError", "b"),
            "on both": ("ValueError", "c"),
            "makes no copy": ("RuntimeError", "Stubborn: word 5"),
            "cannot be pickled": ("RuntimeError", "Holding: word 5"),
            "fenced": "by 0",
            "afterwards": [0, 1],
        }


def unportable_result(folder: Path) -> str:
    """A result, not an error, that cannot be sent, on rank 0."""
    rank = dist.get_rank()
    try:
        together(lambda: threading.Lock() if rank == 0 else None)
    except Exception as error:  # noqa: BLE001 - for the test
        told = type(error).__name__
    else:
        told = "nothing"
    return f"{told}, then {together(lambda: rank)}"


@pytest.mark.processes
def test_all_ranks_hear_of_a_result_that_cannot_be_sent(tmp_path: Path) -> None:
    first, second = run_ranks(unportable_result, 2, tmp_path)
    assert first == second
    assert first.endswith("Error, then [0, 1]")

"""Which nodes the next attempt does better without."""

from __future__ import annotations

from pathlib import Path

from orchestrator.launch.reporter import FileReporter
from orchestrator.launch.suspects import MOST, blamed, nodes_of, note_place, suspects


def test_each_node_is_named_once() -> None:
    assert suspects(["b", "a", "b", "c"]) == ("a", "b", "c")
    assert suspects([]) == ()


def test_of_many_those_with_most_losses_are_named() -> None:
    found = suspects([*(f"n{number}" for number in range(MOST + 9)), "worst", "worst"])
    assert "worst" in found
    assert len(found) == MOST


def test_where_many_go_at_once_nobody_is_to_blame() -> None:
    assert blamed(["a", "b"]) == ["a", "b"]
    assert blamed(["a", "b", "c"]) == []


def test_a_rank_is_where_it_was_last(tmp_path: Path) -> None:
    path = tmp_path / "places.txt"
    assert nodes_of(path, [0]) == []
    for rank, node in ((0, "a"), (1, "b"), (2, "b"), (1, "c")):
        note_place(path, rank, node)
    with path.open("a") as file:
        file.write("nonsense\n3")  # torn
    assert nodes_of(path, [1, 0, 3, 9]) == ["a", "c"]
    assert nodes_of(path, [2]) == ["b"]


def test_a_loss_names_its_node(tmp_path: Path) -> None:
    from orchestrator.launch.events import WorkersLost, read

    reporter = FileReporter(tmp_path, "u", 1, "i")
    for rank in range(4):
        reporter.here(rank, f"node-{rank}")
    reporter.workers_lost("rank 2: gone", [2])
    for rank in range(3):
        reporter.here(rank, f"node-{rank}")
    reporter.workers_lost("rank 0, 1, 2: gone", [0, 1, 2])
    reporter.workers_lost("rank 3: gone", [3])  # before it has said where it is now
    reporter.workers_lost("rank 1: told to go")
    lost = [event for event in read(tmp_path / "events" / "events.jsonl")[0] if isinstance(event, WorkersLost)]
    assert [(one.message, one.nodes) for one in lost] == [
        ("rank 2: gone (on node-2)", ("node-2",)),
        ("rank 0, 1, 2: gone (on node-0, node-1, node-2)", ()),
        ("rank 3: gone", ()),
        ("rank 1: told to go", ()),
    ]

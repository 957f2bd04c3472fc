"""Checkpoints that are written in one layout and read in another, by DeepSpeed's means and ours.

Used by the tests, and by `benchmarks/trust.py`, which prints the figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from support import parity
from support.engine_worker import Case, Outcome

Stage = Literal[0, 1, 2, 3]
SAVED: tuple[tuple[int, Stage, int], ...] = (
    (2, 0, 2), (2, 1, 1), (2, 1, 2), (2, 2, 2), (2, 3, 1), (2, 3, 2), (4, 1, 4),
)  # fmt: skip
"""(processes, ZeRO stage, expert size) of the runs that save."""
EXPERTS_SHARED_TWICE: tuple[tuple[int, Stage, int], ...] = ((4, 1, 2), (4, 3, 2))
"""Runs that save only: each group of experts is there twice, so its optimizer's state is divided too."""
SAME = [one for one in SAVED if one[2] == 2]
OTHER: tuple[tuple[tuple[int, Stage, int], tuple[int, Stage, int]], ...] = (
    ((2, 1, 1), (2, 1, 2)), ((2, 1, 2), (2, 1, 1)), ((2, 1, 2), (2, 2, 1)), ((2, 2, 2), (2, 1, 2)),
    ((2, 3, 1), (2, 3, 2)), ((2, 3, 2), (2, 3, 1)), ((4, 1, 4), (2, 1, 2)),
    ((2, 1, 2), (4, 1, 4)), ((2, 1, 2), (4, 2, 1)), ((2, 3, 2), (4, 3, 4)),
    ((2, 1, 2), (1, 1, 1)), ((2, 3, 2), (1, 3, 1)),
)  # fmt: skip
REFUSED: tuple[tuple[tuple[int, Stage, int], tuple[int, Stage, int]], ...] = (
    ((2, 1, 2), (2, 3, 2)), ((2, 3, 2), (2, 2, 2)), ((2, 0, 2), (2, 1, 2)), ((2, 0, 2), (2, 0, 1)),
)  # fmt: skip


def key(one: tuple[int, Stage, int]) -> str:
    return "w{}-z{}-ep{}".format(*one)


def pair(source: tuple[int, Stage, int], target: tuple[int, Stage, int]) -> str:
    return f"{key(source)}->{key(target)}"


def goes_on(
    name: str,
    source: tuple[int, Stage, int],
    target: tuple[int, Stage, int],
    without: tuple[str, ...] = (),
    said: tuple[int, Stage, int] | None = None,
) -> Case:
    """Loads the checkpoint of `source` in the layout `target`; `said`: the topology that it is taken for."""
    return Case(
        name,
        parity.recipe(parity.layout(*target)),
        load=key(source),
        claim=parity.topology(parity.layout(*(said or source))),
        without=without,
        gradients=False,
        state=source == target,
    )


def cases() -> list[tuple[int, list[Case]]]:
    """Groups of cases by number of processes, in an order in which everything is saved before it is loaded."""
    saves = {
        world: [
            Case(key(one), parity.recipe(parity.layout(*one)), save=key(one), gradients=False, state=one in SAME)
            for one in SAVED + EXPERTS_SHARED_TWICE
            if one[0] == world
        ]
        for world in (2, 4)
    }
    loads: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    loads[2] += [goes_on(f"same {key(one)}", one, one) for one in SAME]
    for source, target in OTHER + REFUSED:
        loads[target[0]].append(goes_on(pair(source, target), source, target))
    loads[2] += [
        goes_on("native", (2, 1, 2), (2, 1, 1), said=(2, 1, 1)),
        goes_on("no biases z1", (2, 1, 2), (2, 1, 1), ("_restore_biases",)),
        goes_on("no biases z3", (2, 3, 2), (2, 3, 1), ("_restore_biases",)),
        goes_on("no steps z3", (2, 3, 2), (2, 3, 1), ("_separate_adam_steps",)),
        goes_on("no groups z3", (2, 3, 2), (2, 3, 1), ("_restore_groups",)),
    ]
    return [(4, saves[4]), (2, saves[2] + loads[2]), (4, loads[4]), (1, loads[1])]


def largest(a: Outcome, straight: Outcome) -> float:
    """Largest relative difference of the losses after the resume, or absolute one of the final weights."""
    losses = [abs(x - y) / y for x, y in zip(a.losses, straight.losses[-len(a.losses) :], strict=True)]
    weights = [(a.weights[name] - straight.weights[name]).abs().max().item() for name in straight.weights]
    return max(losses + weights)


CONTROLS = (
    ("native", "loaded natively with another expert size: wrong moments, and no error", "w2-z1-ep2"),
    ("no biases z1", "universal without our copy of the routing biases", "w2-z1-ep2"),
    ("no biases z3", "the same under ZeRO-3", "w2-z3-ep2"),
    ("no steps z3", "universal under ZeRO-3 with DeepSpeed's shared Adam step", "w2-z3-ep2"),
    ("no groups z3", "universal under ZeRO-3 with the first group's weight decay for all", "w2-z3-ep2"),
)
"""Cases without a remedy, in words, and the run that they should have gone on as."""


def rows(out: dict[str, list[Outcome]]) -> Iterator[tuple[str, str, str]]:
    """For people: written by, read by, what came of it."""

    def words(of: tuple[int, Stage, int]) -> str:
        return str(parity.topology(parity.layout(*of)))

    for of in SAME:
        yield words(of), "the same", f"{largest(out[f'same {key(of)}'][0], out[key(of)][0]):.1e}"
    for source, target in OTHER:
        yield words(source), words(target), f"{largest(out[pair(source, target)][0], out[key(source)][0]):.1e}"
    for source, target in REFUSED:
        yield (
            words(source),
            words(target),
            "refused: " + out[pair(source, target)][0].error.split(": ")[1].split(";")[0],
        )
    for name, text, straight in CONTROLS:
        yield "control", text, f"{largest(out[name][0], out[straight][0]):.1e}"

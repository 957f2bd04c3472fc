"""What the engine really holds, against the planner's formula."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from support.recipes import TINY

from benchmarks import memory

CONFIG = TINY.replace(hidden_size=96, vocab_size=512, moe_intermediate_size=64)


@pytest.mark.processes
@pytest.mark.parametrize("case", [("bf16", 1, "full")])
def test_states_and_activations_are_those_of_the_formula(case: memory.Case) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(memory.measure, CONFIG, case, 8, 128).result()
    parts = memory.rows(CONFIG, case, 8, 128, found)
    for name in ("weights", "master", "moments"):
        assert parts[name]["ratio"] == pytest.approx(1, abs=0.001), name
    assert parts["gradients"]["ratio"] == pytest.approx(1, abs=0.03), "nothing else outlives the backward pass"
    assert parts["activations"]["ratio"] == pytest.approx(1, abs=0.02)
    assert 0.9 < parts["logits"]["ratio"] <= 1.01
    assert 0.5 < parts["backward"]["ratio"] <= 1.01, "an upper bound, and not a useless one"
    assert 0.7 < parts["update"]["ratio"] <= 1.01


def test_what_is_alive_is_counted_once_and_until_it_is_freed() -> None:
    old = torch.zeros(100)
    with memory.Alive([old], parameters=10) as alive:
        a = torch.ones(1000)
        view = a[10:]
        old.add_(1)
        assert alive.bytes == 4000
        b = a * 2
        assert alive.bytes == 8000
        del a, b
        assert alive.bytes == 4000, "the view holds it"
        del view
        assert (alive.bytes, alive.peak) == (0, 8000)


def test_storages_are_counted_once() -> None:
    a = torch.zeros(10)
    assert memory.size_of([a, a[:3], a.view(2, 5)]) == 40
    assert memory.size_of([a, torch.zeros(2)], apart=[a[1:]]) == 8

"""What `benchmarks/sparse_dense.py` compares and how it counts; the runs themselves take an hour."""

import json
import math
from typing import Any

import pytest

from benchmarks import sparse_dense as benchmark
from model.flops import count


def run(arm: str, seed: int, *bits: float) -> dict[str, Any]:
    evaluations = [
        {"step": i, "tokens": 100.0 * i, "dollars": 0.1 * i, "bits_per_byte": b} for i, b in enumerate(bits, start=1)
    ]
    tokens = 100 * len(bits)
    return {
        "arm": arm, "seed": seed, "folder": "", "tokens": tokens, "cost": 1.0, "training_seconds": 10.0,
        "evaluations": evaluations,
    }  # fmt: skip


def test_the_dense_model_has_the_same_active_parameters() -> None:
    sparse = benchmark.sparse_model()
    dense = benchmark.dense_twin(sparse)
    assert count(dense).routed_experts == 0
    assert count(dense).active == count(sparse).active == count(dense).total
    assert count(sparse).total > 1.4 * count(dense).total
    assert (dense.hidden_size, dense.num_hidden_layers) == (sparse.hidden_size, sparse.num_hidden_layers)


def test_unequal_models_are_refused() -> None:
    sparse = benchmark.sparse_model()
    models = {"sparse": sparse, "dense": benchmark.dense_twin(sparse)}
    seconds = {"sparse": 2e-4, "dense": 1e-4}
    shapes = benchmark.shapes_of(models, seconds, price=0.36)
    assert shapes["sparse"]["dollars_per_token"] == pytest.approx(2e-8)
    models["dense"] = models["dense"].replace(intermediate_size=448)
    with pytest.raises(ValueError, match="active"):
        benchmark.shapes_of(models, seconds, price=0.36)


def test_where_a_curve_comes_down_to_a_value() -> None:
    curve = [(0.0, 3.0), (100.0, 2.0), (200.0, 2.5), (300.0, 1.0)]
    assert benchmark.reach(curve, 2.5) == 50.0
    assert benchmark.reach(curve, 1.5) == pytest.approx(200 + 100 * 2 / 3)
    assert math.isnan(benchmark.reach(curve, 0.5))


def test_differences_are_paired_by_seed() -> None:
    runs = [
        run("sparse", 1, 3.0, 2.0), run("dense", 1, 3.0, 2.2), run("dense, longer", 1, 3.1, 2.4, 1.9),
        run("sparse", 2, 3.0, 2.4), run("dense", 2, 3.0, 2.5), run("dense, longer", 2, 3.1, 2.6, 2.3),
        run("sparse", 3, 3.0, 9.0),  # not compared with anything yet
    ]  # fmt: skip
    found = benchmark.results({"runs": runs})
    assert found["seeds"] == [1, 2]
    assert found["difference_at_equal_tokens_and_flops"]["by_seed"] == [-0.2, -0.1]
    assert found["difference_at_equal_dollars"]["by_seed"] == [0.1, 0.1]
    assert found["difference_at_equal_dollars"]["mean"] == 0.1
    assert found["dense_tokens_to_reach_sparse"] == [1.4, 1.333]


def test_what_was_never_reached_is_null() -> None:
    found = {"results": {"reach": [benchmark.reach([(0.0, 3.0), (1.0, 2.0)], 1.0), (math.inf, 2)], "text": "nan"}}
    assert json.loads(benchmark.as_json(found)) == {"results": {"reach": [None, [None, 2]], "text": "nan"}}
    assert "NaN" not in benchmark.as_json(found)

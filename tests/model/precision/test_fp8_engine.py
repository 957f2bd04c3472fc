"""8-bit products under DeepSpeed equal those of one process; checkpoints go from one precision to another."""

from pathlib import Path
from typing import Any, Literal

import pytest
from support import parity
from support.engine_worker import Case, run, windows
from support.plain_loop import run_ranks

from model.recipe import PrecisionName, Recipe

pytestmark = pytest.mark.processes
Moments = Literal["fp32", "bf16"]


def test_8_bits_under_autoep_and_zero_equal_one_process(tmp_path: Path) -> None:
    """The first gradients are equal as in FP32: with powers of two as scales, token blocks that are cut otherwise give
    the same numbers. After an update, sums in another order round to another 8-bit number now and then."""
    ways: list[tuple[Literal[1, 2, 3], parity.Variant]] = [
        (1, "plain"), (2, "accumulate-recompute"), (3, "accumulate-selective"),
    ]  # fmt: skip
    fp8 = {"precision": "fp8"}
    layouts = {f"z{stage}": parity.layout(2, stage, 2, variant) for stage, variant in ways}
    recipes = {name: parity.recipe(of, steep=True).model_copy(update=fp8) for name, of in layouts.items()}
    cases = [Case(name, of, sgd=True, steps=2) for name, of in recipes.items()]
    one = parity.recipe(parity.layout(1, 1, 1), steep=True)
    high = parity.one_process(one, by_sgd=True, steps=2)
    expected = parity.one_process(one.model_copy(update=fp8), by_sgd=True, steps=2)
    assert parity.most(high.gradients, expected.gradients) > 1e-4, "8 bits change nothing: are they used?"
    for name, ranks in run(tmp_path, 2, cases).items():
        far = parity.distance(next(case for case in cases if case.name == name), ranks, expected)
        assert abs(ranks[0].losses[0] - expected.losses[0]) < 3e-6, name
        assert far.gradient < 1e-6, name
        assert far.loss < 1e-3, name


def test_a_run_goes_on_in_another_precision_and_comes_back_exactly(tmp_path: Path) -> None:
    """FP32 master weights and moments pass through BF16 and 8 bits unharmed, in both universal forms of DeepSpeed."""
    for stage, found in run_ranks(_through_all, 1, tmp_path)[0].items():
        assert found["back"] == found["straight"], stage
        for name in ("bf16", "fp8"):
            assert found[name] == pytest.approx(found["straight"], rel=1e-2), stage
            assert found[name] != found["straight"], "the same arithmetic"
        assert found["bf16 moments"] == pytest.approx(found["straight"], rel=2e-3), stage
        assert found["bf16 moments"] != found["straight"], stage
        assert found["moments"] == ["torch.bfloat16", "torch.float32"], stage


def _recipe(stage: Any, precision: PrecisionName, moments: Moments = "fp32") -> Recipe:  # noqa: ANN401
    base = parity.recipe(parity.layout(1, stage, 1))
    optimizer = base.optimizer.model_copy(update={"moments_precision": moments})
    return base.model_copy(update={"precision": precision, "optimizer": optimizer})


def _through_all(folder: Path) -> dict[int, dict[str, Any]]:
    return {stage: _chain(folder / f"z{stage}", stage) for stage in (1, 3)}


def _chain(folder: Path, stage: int) -> dict[str, Any]:
    """Two steps in FP32, then two more: at once, and after going through the other precisions."""
    found: dict[str, Any] = {}
    with _engine(_recipe(stage, "fp32")) as engine:
        _train(engine, 0, 2)
        engine.save(folder / "fp32")
        found["straight"] = _train(engine, 2, 4)
    source, before = "fp32", engine.topology
    for precision in ("bf16", "fp8"):
        with _engine(_recipe(stage, precision)) as engine:  # type: ignore[arg-type]
            engine.load(folder, source, before)
            engine.save(folder / precision)
            found[precision] = _train(engine, 2, 4)
        source, before = precision, engine.topology
    with _engine(_recipe(stage, "fp32")) as engine:
        engine.load(folder, source, before)
        found["back"] = _train(engine, 2, 4)
    with _engine(_recipe(stage, "fp32", "bf16")) as engine:  # the same topology, other moments
        engine.load(folder, "fp32", engine.topology)
        found["bf16 moments"] = _train(engine, 2, 4)
        found["moments"] = [engine.moments()]
        engine.save(folder / "moments")
    with _engine(_recipe(stage, "fp32")) as engine:
        engine.load(folder, "moments", engine.topology)
        _train(engine, 4, 5)
        found["moments"].append(engine.moments())
    return found


class _Engine:
    """A real engine that is closed at the end."""

    def __init__(self, recipe: Recipe) -> None:
        from model.engine.zero import ZeroEngine

        self.recipe, self.engine = recipe, ZeroEngine(recipe)
        self.topology = self.engine.topology()

    def __enter__(self) -> "_Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.engine.snapshot({})(folder)

    def load(self, folder: Path, tag: str, saved: Any) -> None:  # noqa: ANN401
        self.engine.load(folder, tag, saved, folder / f"scratch-{self.recipe.precision}")

    def moments(self) -> str:
        optimizer: Any = self.engine._engine.optimizer
        states = getattr(optimizer, "optimizer", optimizer).state.values()
        kinds = {str(state[name].dtype) for state in states for name in ("exp_avg", "exp_avg_sq")}
        assert len(kinds) == 1
        return kinds.pop()


def _engine(recipe: Recipe) -> _Engine:
    return _Engine(recipe)


def _train(engine: _Engine, start: int, end: int) -> list[float]:
    losses = []
    for step in range(start, end):
        window = windows(engine.recipe, step)
        losses.append(engine.engine.micro_step(window, ahead_weight=0.3, alpha=0.01, passes=1).total.item())
        engine.engine.step(1e-2)
    return losses

"""Runs side by side: at equal expense, what differs, which are worth their price, and what is said against it."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.compared import BITS, facts, point

from orchestrator.compare.comparison import POINTS, compare
from orchestrator.compare.document import Comparison, Row
from orchestrator.compare.facts import Axis, DataIdentity, InMlflow, RunFacts
from orchestrator.errors import NotFound, UsageError
from orchestrator.status import Phase

LONG = facts("long", {2: 4.0, 6: 3.0, 10: 2.0})
SHORT = facts("short", {2: 3.8, 4: 3.6, 8: 2.4})


def row(of: Comparison, name: str) -> Row:
    (found,) = [one for one in of.rows if one.name == name]
    return found


def codes(of: Comparison) -> list[str]:
    return [caution.code for caution in of.cautions]


# ------------------------------------------------------------------- at equal expense
def test_all_runs_at_the_largest_common_expense() -> None:
    found = compare([LONG, SHORT], Axis.dollars)
    assert [one.axis for one in found.equal] == ["dollars", "step", "tokens", "flops", "hours"]
    one = found.equal[0]
    assert one.x == 8.0
    assert [(value.value, value.how) for value in one.values] == [(2.5, "interpolated"), (2.4, "measured")]
    assert [value.share for value in one.values] == [0.8, 1.0]
    assert one.best == ["short"]
    assert compare([LONG, SHORT], Axis.tokens).equal[0].x == 800


def test_a_run_without_a_value_that_early_has_none() -> None:
    late = facts("late", {9: 3.0, 10: 2.0})
    one = compare([facts("early", {2: 4.0, 5: 3.0}), late], Axis.step).equal[0]
    assert one.x == 5
    assert [value.value for value in one.values] == [3.0, None]
    assert one.best == [], "one alone is not the best"


def test_equal_runs_are_all_or_none_best() -> None:
    three = [facts("a", {1: 2.0}), facts("b", {1: 2.0}), facts("c", {1: 3.0})]
    assert compare(three).equal[0].best == ["a", "b"]
    assert compare(three[:2]).equal[0].best == []


def test_the_larger_is_the_better_where_it_is_a_share() -> None:
    runs = [facts(name, {}, points=(point(1, **{"eval/arc/acc": acc}),)) for name, acc in (("a", 0.2), ("b", 0.3))]
    found = compare(runs, metric="eval/arc/acc")
    assert found.equal[0].best == ["b"]
    assert row(found, "eval/arc/acc, best").best == [False, True]


def test_a_difference_within_the_noise_of_the_steps_is_none() -> None:
    def run(name: str, shift: float, jump: float) -> RunFacts:
        return facts(name, {}, points=tuple(point(i, loss=5 + shift + jump * (-1) ** i) for i in range(1, 101)))

    noisy = compare([run("a", 0, 1.0), run("b", 0.1, 1.0)], metric="train/loss")
    assert noisy.metric.window == 10
    assert noisy.equal[0].best == []
    assert row(noisy, "train/loss, last 10 steps").best == [False, False]
    calm = compare([run("a", 0, 0.01), run("b", 0.1, 0.01)], metric="train/loss")
    assert calm.equal[0].best == ["a"]
    assert not any(one.name == "train/loss, best" for one in calm.rows), "the best mean is one of lucky batches"


def test_what_it_took_to_become_as_good_as_all_became() -> None:
    level = compare([LONG, SHORT]).level
    assert level is not None
    assert level.value == 2.4
    assert [(one.run, one.step, one.dollars, one.how) for one in level.runs] == [
        ("long", 8, Decimal("8.4"), "interpolated"),
        ("short", 8, Decimal(8), "measured"),
    ]
    assert level.best[Axis.dollars] == ["short"]
    assert level.best[Axis.step] == []


# ------------------------------------------------------------------- money
def test_the_frontier_and_its_price() -> None:
    pareto = compare([LONG, SHORT, facts("vain", {9: 3.0})]).pareto
    assert pareto is not None
    assert pareto.frontier == ["short", "long"]
    assert {spot.run: spot.dominated_by for spot in pareto.spots} == {"long": [], "short": [], "vain": ["short"]}
    (step,) = pareto.steps
    assert (step.cheaper, step.better, step.dollars) == ("short", "long", 2)
    assert step.improvement == pytest.approx(0.4)
    assert step.per_hundredth == pytest.approx(Decimal("0.05"))


def test_the_price_of_the_last_hundredth() -> None:
    found = row(compare([LONG, SHORT]), "price of the last 0.01")
    # long: 2.5 of 10 dollars from 2.625 down to 2; short: 2 of 8 dollars from 3.0 down to 2.4
    assert [float(value or 0) for value in found.values] == pytest.approx([2.5 * 0.01 / 0.625, 2 * 0.01 / 0.6])
    flat = compare([facts("a", {1: 2.0, 10: 2.0}), facts("b", {1: 2.0, 10: 2.5})])
    assert not any(one.name == "price of the last 0.01" for one in flat.rows), "nothing was bought"


def test_no_money_is_compared_across_currencies() -> None:
    found = compare([LONG, replace(SHORT, currency="EUR")], Axis.tokens)
    assert "currencies-differ" in codes(found)
    assert (found.currency, found.pareto) == (None, None)
    assert found.equal_at(Axis.dollars) is None
    assert row(found, "spent").best == [False, False]
    assert found.level is not None
    assert Axis.dollars not in found.level.best


def test_money_by_class_of_time() -> None:
    found = compare([LONG, SHORT])
    assert {one.name: one.values for one in found.cost}["productive"] == ["9.000000000000", "7.000000000000"]
    assert row(found, "spent").best == [False, True]


# ------------------------------------------------------------------- settings, names, curves
SETTINGS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from("xyz"), max_size=5)


@given(st.lists(SETTINGS.filter(bool), min_size=2, max_size=5))
def test_only_settings_that_differ_are_shown(settings: list[dict[str, str]]) -> None:
    found = compare([facts(f"r{i}", {1: 1.0}, configuration=one) for i, one in enumerate(settings)])
    keys = {key for one in settings for key in one}
    differing = {key for key in keys if len({one.get(key) for one in settings}) > 1}
    assert {one.key: one.values for one in found.differing} == {
        key: [one.get(key) for one in settings] for key in differing
    }
    assert found.equal_settings == len(keys - differing)


def test_names_tell_runs_apart() -> None:
    twins = [facts("a", {1: 2.0}, uid="11111111-x"), facts("a", {1: 2.0}, uid="22222222-x")]
    assert [run.name for run in compare(twins).runs] == ["a (11111111)", "a (22222222)"]
    teams = [replace(twins[0], team="red"), replace(twins[1], team="blue")]
    assert [run.name for run in compare(teams).runs] == ["red/a", "blue/a"]


def test_a_long_curve_is_bounded_and_made_of_measured_points() -> None:
    losses = {step: 5 / step + (step % 7) for step in range(1, 3001)}
    long = facts("long", {}, points=tuple(point(step, loss=loss) for step, loss in losses.items()))
    series = compare([long, facts("b", {}, points=(point(1, loss=2.0),))], metric="train/loss").series[0]
    assert series.measured == 3000
    assert len(series.step) <= POINTS
    assert series.step[-1] == 3000
    assert all(losses[step] == value for step, value in zip(series.step, series.value, strict=True))
    assert min(losses.values()) in series.value
    assert {len(getattr(series, name)) for name in ("tokens", "flops", "hours", "dollars")} == {len(series.step)}


def test_a_comparison_is_the_same_after_it_was_written() -> None:
    found = compare([LONG, SHORT])
    assert Comparison.model_validate_json(found.model_dump_json(by_alias=True)) == found
    assert '"perHundredth":"0.05' in found.model_dump_json(by_alias=True), "money is a decimal string"


# ------------------------------------------------------------------- what is said against it
DATA = DataIdentity("1" * 64, "2" * 64, "3" * 64)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"data": replace(DATA, heldout="4" * 64)}, "heldout-differs", "held-out text (a: 333333333333; b: 444"),
        ({"data": replace(DATA, tokenizer="5" * 64)}, "tokenizer-differs", "different tokenizers"),
        ({"data": replace(DATA, digest="6" * 64)}, "data-differs", "trained on different data"),
        ({"data": DataIdentity()}, "data-unknown", "b had is not recorded"),
        ({"currency": "EUR"}, "currencies-differ", "a: USD; b: EUR"),
        ({"phase": Phase.RUNNING}, "not-ended", "b is Running"),
        ({"phase": Phase.FAILED}, "cut-short", "b ended before the last step"),
        ({"configuration": {"price_source": "q"}}, "prices-differ", "a: p; b: q"),
        ({"configuration": {"compute.accelerator": "H100"}}, "devices-differ", "a: cpu; b: H100"),
        ({"configuration": {"sequence_length": "64"}}, "sequence-length-differs", "a: 32; b: 64"),
        ({"configuration": {"eval_tokens": "9"}}, "evaluated-tokens-differ", "a: 8; b: 9"),
        ({"points": ()}, "no-steps", "b has no step yet"),
        ({"points": (point(1, loss=1.0),)}, "metric-missing", f"b has no {BITS}"),
    ],
)  # fmt: skip
def test_what_makes_runs_hard_to_compare(changes: dict[str, object], code: str, says: str) -> None:
    settings = {"price_source": "p", "compute.accelerator": "cpu", "sequence_length": "32", "eval_tokens": "8"}
    one = facts("a", {1: 2.0, 2: 1.0}, data=DATA, configuration=settings)
    same = replace(one, name="b", uid="b")
    assert codes(compare([one, same])) == []
    other = replace(same, **changes)  # type: ignore[arg-type]
    found = compare([one, other], metric=BITS)
    assert codes(found) == [code]
    assert says in found.cautions[0].message


def test_nats_of_another_tokenizer_are_other_units() -> None:
    points = (point(1, loss=1.0),)
    runs = [facts(n, {}, points=points, data=replace(DATA, tokenizer=n * 64)) for n in "ab"]
    (caution,) = compare(runs, metric="train/loss").cautions
    assert "train/loss has different units: compare eval/bits_per_byte" in caution.message


# ------------------------------------------------------------------- what is refused
def test_bits_per_byte_unless_a_run_has_none() -> None:
    assert compare([LONG, SHORT]).metric.name == BITS
    other = facts("c", {}, points=(point(1, loss=1.0),))
    assert compare([LONG, other], metric=None).metric.name == "train/loss"


def test_too_few_too_many_twice_and_a_wrong_metric() -> None:
    with pytest.raises(UsageError, match="of 2 to 20 runs, got 1: name another one"):
        compare([LONG])
    with pytest.raises(UsageError, match="got 21: leave some out"):
        compare([facts(f"r{i}", {1: 1.0}) for i in range(21)])
    with pytest.raises(UsageError, match="the run long is named twice"):
        compare([LONG, SHORT, LONG])
    with pytest.raises(NotFound, match="no run has the metric 'eval/bits': did you mean eval/bits_per_byte"):
        compare([LONG, SHORT], metric="eval/bits")
    with pytest.raises(NotFound, match=r"'x': there are eval/bits_per_byte$"):
        compare([LONG, SHORT], metric="x")


def test_runs_that_have_not_begun_are_compared_by_nothing() -> None:
    found = compare([RunFacts(n, "t", n, Phase.QUEUED) for n in "ab"])
    assert (found.equal, found.level, found.pareto, found.rows) == ([], None, None, [])
    assert codes(found) == ["no-steps", "no-steps", "not-ended"]


# ------------------------------------------------------------------- MLflow
def test_mlflows_own_page_where_all_runs_are_in_one() -> None:
    def run(name: str, target: str) -> RunFacts:
        return facts(name, {1: 1.0}, mlflow=InMlflow(target, "7", f"run-{name}", None))

    here = compare([run("a", "sqlite:///x.db"), run("b", "sqlite:///x.db")]).mlflow_url
    assert here is not None
    assert here.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22run-a%22%2C%20%22run-b%22%5D")
    server = compare([run("a", "https://m.example"), run("b", "https://m.example")]).mlflow_url
    assert server is not None
    assert server.startswith("https://m.example/#/compare-runs")
    assert compare([run("a", "https://m.example"), run("b", "https://n.example")]).mlflow_url is None
    assert compare([run("a", "https://m.example"), LONG]).mlflow_url is None

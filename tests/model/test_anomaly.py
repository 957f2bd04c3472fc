import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from model.anomaly import (
    MAX_SKIPS,
    Action,
    Incident,
    Kind,
    LossHistory,
    Verdict,
    data_step,
    describe,
    judge,
    skipped_data_steps,
)
from model.recipe import Anomalies

POLICY = Anomalies(window=16, minimum=8)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
SPIKE, NAN = 9.0, math.nan


def history(policy: Anomalies = POLICY, level: float = 2.0, length: int = 16) -> LossHistory:
    """Losses around `level` that deviate by a few percent."""
    return LossHistory(policy, [level + 0.05 * math.sin(7 * n) for n in range(length)])


def incident(step: int, data: int, action: Action, kind: Kind = "spike") -> Verdict:
    return Verdict(step=step, data_step=data, kind=kind, value=9, score=20, action=action)


def verdict(
    loss: float, *past: Verdict, policy: Anomalies = POLICY, step: int = 30, data: int = 29, norm: float = 1.0
) -> tuple[Kind, Action] | None:
    found = judge(step, data, loss, norm, history(policy), policy, past)
    return (found.kind, found.action) if found else None


# ---------------------------------------------------------------------- statistics
def test_the_score_by_hand() -> None:
    past = LossHistory(POLICY, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0])
    assert past.score(4.5 + 2 * 1.4826) == pytest.approx(1.0)  # deviations .5 .5 1.5 1.5 2.5 2.5 3.5 4.5: median 2
    assert past.score(4.5) == 0
    assert (past.score(0.0) or 0) < 0


@pytest.mark.parametrize(("level", "loss", "score"), [(2.0, 2.2, 10.0), (0.0, 1e-11, 10.0), (-2.0, -1.8, 10.0)])
def test_a_constant_loss_has_a_floor_of_deviation(level: float, loss: float, score: float) -> None:
    assert LossHistory(POLICY, [level] * 8).score(loss) == pytest.approx(score)


def test_no_judgement_before_the_minimum_and_none_of_older_losses() -> None:
    past = LossHistory(POLICY)
    for step in range(1, 8):
        past.add(step, 2.0)
        assert past.score(100.0) is None
        assert judge(step + 1, step, 100.0, 1.0, past, POLICY, ()) is None
    past.add(8, 2.0)
    assert past.score(100.0) == pytest.approx(4900)
    for step in range(9, 9 + 16):
        past.add(step, 5.0)
    assert past.values() == [5.0] * 16


def test_a_minimum_beyond_the_window_means_a_full_window() -> None:
    past = history(Anomalies(window=8, minimum=50))
    assert len(past.values()) == 8
    assert past.score(2.0) is not None


def test_steps_must_rise_and_losses_be_finite() -> None:
    past = LossHistory(POLICY)
    past.add(3, 1.0)
    for step in (3, 2):
        with pytest.raises(ValueError, match=f"has step 3 already, got step {step}: restore it with the model"):
            past.add(step, 1.0)
    for loss in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="no place in the history"):
            past.add(4, loss)


@settings(max_examples=100, deadline=None)
@given(st.lists(FINITE, min_size=8, max_size=40), FINITE)
def test_a_stored_history_judges_like_the_first_and_scores_are_finite(losses: list[float], loss: float) -> None:
    first = LossHistory(POLICY)
    for step, value in enumerate(losses):
        first.add(step + 1, value)
    again = LossHistory(POLICY, first.values())
    assert again.values() == first.values()
    score = first.score(loss)
    assert score is not None
    assert math.isfinite(score)
    assert again.score(loss) == score
    assert judge(99, 98, loss, 1.0, first, POLICY, ()) == judge(99, 98, loss, 1.0, again, POLICY, ())


def flagged(losses: NDArray[np.floating[Any]], policy: Anomalies | None = None) -> list[int]:
    """Positions of spikes in a curve; every loss counts, as after "accept"."""
    policy = policy or Anomalies()
    past, found = LossHistory(policy), []
    for n, loss in enumerate(losses.tolist()):
        score = past.score(loss)
        if score is not None and score >= policy.threshold:
            found.append(n)
        past.add(n + 1, loss)
    return found


def curve(steps: int) -> NDArray[np.float64]:
    """A falling loss: 11 at the start, 2.9 after 1,000 steps, 2.1 after 100,000 (a power law above 1.9)."""
    return 1.9 + 9.1 / (1 + np.arange(steps) / 12) ** 0.5


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_gaussian_noise_is_never_a_spike(noise: float) -> None:
    rng = np.random.default_rng(1)
    assert flagged(curve(100_000) + noise * rng.standard_normal(100_000)) == []


def test_heavy_tails_give_a_few_false_spikes_in_a_hundred_thousand() -> None:
    """Student t with 5 degrees of freedom, the loss of very uneven and small batches: P(t > 8*1.078) = 1.8e-4."""
    rng = np.random.default_rng(2)
    found = flagged(curve(100_000) + 0.1 * rng.standard_t(5, 100_000))
    assert 5 <= len(found) <= 40


def test_true_spikes_are_found_at_once() -> None:
    rng = np.random.default_rng(3)
    losses = curve(5000) + 0.05 * rng.standard_normal(5000)
    losses[[1500, 3000, 3001, 4500]] += 1.0
    assert flagged(losses) == [1500, 3000, 3001, 4500]


@pytest.mark.parametrize("slope", [1e-6, 1e-3, 1.0, 1e6])
def test_a_straight_rise_is_no_spike_however_steep(slope: float) -> None:
    past = LossHistory(Anomalies(), [2.0 + slope * n for n in range(128)])
    assert (past.score(2.0 + slope * 128) or 0) < 1.4
    assert flagged(2.0 + slope * np.arange(1000)) == []


def test_a_rise_in_warm_up_and_a_slow_divergence_go_unnoticed() -> None:
    """Documented: this is for sudden changes."""
    rng = np.random.default_rng(4)
    rise = np.concatenate((np.linspace(3, 3.4, 300), np.linspace(3.4, 9, 3000)))
    assert flagged(rise + 0.03 * rng.standard_normal(3300)) == []


def test_a_lasting_step_upwards_is_normal_after_half_a_window() -> None:
    rng = np.random.default_rng(5)
    losses = 2 + 0.02 * rng.standard_normal(1000)
    losses[500:] += 1
    found = flagged(losses)
    assert found[0] == 500
    assert 50 <= len(found) <= 64
    assert found[-1] < 564


# ---------------------------------------------------------------------- rules
def test_normal_steps_have_no_verdict() -> None:
    for loss in (2.0, 2.2, 0.0, -5.0):
        assert verdict(loss) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_loss_or_gradient_not_finite(bad: float) -> None:
    assert verdict(bad) == ("not-finite", "replay")
    assert verdict(2.0, norm=bad) == ("not-finite", "replay")
    assert verdict(SPIKE, norm=bad) == ("not-finite", "replay")
    empty = judge(1, 0, bad, 1.0, LossHistory(POLICY), POLICY, ())
    assert empty is not None
    assert (empty.value, empty.score, empty.step, empty.data_step) == (None, None, 1, 0)
    norm = judge(1, 0, 2.5, bad, LossHistory(POLICY), POLICY, ())
    assert norm is not None
    assert norm.value == 2.5


def test_the_threshold_itself_is_a_spike() -> None:
    past = LossHistory(POLICY, [2.0] * 8)
    score = past.score(2.16) or 0.0
    for threshold, anomalous in ((score, True), (math.nextafter(score, math.inf), False)):
        policy = POLICY.model_copy(update={"threshold": threshold})
        assert (judge(30, 29, 2.16, 1.0, past, policy, ()) is not None) == anomalous


def test_replay_then_skip() -> None:
    replay = incident(30, 29, "replay")
    for loss, kind in ((SPIKE, "spike"), (NAN, "not-finite")):
        assert verdict(loss) == (kind, "replay")
        assert verdict(loss, replay) == (kind, "skip")
        # the next data has a replay of its own
        skipped = (replay, incident(30, 29, "skip"))
        assert verdict(loss, *skipped, data=30) == (kind, "replay")
        assert verdict(loss, *skipped, incident(30, 30, "replay"), data=30) == (kind, "skip")
        # what happened to other steps does not matter
        assert verdict(loss, incident(31, 29, "replay"), incident(30, 28, "replay")) == (kind, "replay")


def test_the_policy_replay_never_skips() -> None:
    policy = POLICY.model_copy(update={"action": "replay"})
    replay = incident(30, 29, "replay")
    assert verdict(SPIKE, policy=policy) == ("spike", "replay")
    assert verdict(NAN, policy=policy) == ("not-finite", "replay")
    assert verdict(SPIKE, replay, policy=policy) == ("spike", "accept")
    assert verdict(NAN, replay, policy=policy) == ("not-finite", "fail")


def test_the_policy_warn_never_goes_back() -> None:
    policy = POLICY.model_copy(update={"action": "warn"})
    for past in ((), (incident(30, 29, "replay"),), (incident(30, 29, "warn"),)):
        assert verdict(SPIKE, *past, policy=policy) == ("spike", "warn")
        assert verdict(NAN, *past, policy=policy) == ("not-finite", "fail")


def test_after_three_skips_of_a_step_its_data_is_not_to_blame() -> None:
    past = [incident(30, 29 + n, action) for n in range(MAX_SKIPS) for action in ("replay", "skip")]
    assert verdict(SPIKE, *past[:-1], data=31) == ("spike", "skip")
    assert verdict(SPIKE, *past, data=32) == ("spike", "accept")
    assert verdict(NAN, *past, data=32) == ("not-finite", "fail")
    assert verdict(SPIKE, *past, step=31, data=33) == ("spike", "replay")


def test_rollbacks_are_bounded_over_the_run() -> None:
    policy = POLICY.model_copy(update={"max_rollbacks": 4})
    past = [incident(n, n - 1, "replay") for n in (10, 15, 20)]
    others = [incident(5, 4, "accept"), incident(6, 5, "warn"), incident(7, 6, "fail")]
    assert verdict(SPIKE, *past, *others, policy=policy) == ("spike", "replay")
    past.append(incident(25, 24, "skip"))
    assert verdict(SPIKE, *past, policy=policy) == ("spike", "accept")
    assert verdict(NAN, *past, policy=policy) == ("not-finite", "fail")
    never = POLICY.model_copy(update={"max_rollbacks": 0})
    assert verdict(SPIKE, policy=never) == ("spike", "accept")
    assert verdict(NAN, policy=never) == ("not-finite", "fail")


def test_an_accepted_spike_is_passed_when_the_run_comes_by_again() -> None:
    accepted = incident(30, 29, "accept")
    assert verdict(SPIKE, accepted) is None
    assert verdict(SPIKE, accepted, data=30) == ("spike", "replay")
    assert verdict(SPIKE, accepted, step=31) == ("spike", "replay")
    assert verdict(NAN, accepted) == ("not-finite", "replay")


# ---------------------------------------------------------------------- values and words
def test_incidents_survive_a_dict() -> None:
    found = judge(30, 29, SPIKE, 1.0, history(), POLICY, ())
    assert found is not None
    whole = Incident.of(found, attempt=2, incarnation="a1", time=12.5)
    body: dict[str, Any] = whole.model_dump(mode="json")
    assert " ".join(body) == "step data_step kind value score action attempt incarnation time"
    assert Incident.model_validate(body) == whole
    assert Incident.model_validate_json(whole.model_dump_json()) == whole
    with pytest.raises(ValidationError):
        Incident.model_validate(body | {"step": 0})
    with pytest.raises(ValidationError):
        Incident.model_validate(body | {"action": "guess"})


def test_descriptions() -> None:
    spike = Verdict(step=120, data_step=121, kind="spike", value=9.31208, score=14.23, action="replay")
    assert describe(spike) == (
        "step 120 (data step 121): loss 9.3121 is 14.2 robust deviations above the median of the steps before: "
        "going back to the last checkpoint to compute it again"
    )
    broken = Verdict(step=3, data_step=2, kind="not-finite", value=None, score=None, action="fail")
    assert describe(broken) == (
        "step 3 (data step 2): the loss is not finite: the attempt ends, and nothing of this step is saved"
    )
    norm = Verdict(step=3, data_step=2, kind="not-finite", value=2.5, score=None, action="skip")
    assert describe(norm) == (
        "step 3 (data step 2): the gradient norm is not finite (loss 2.5000): "
        "computing it again did not help; going back to the last checkpoint to leave its data out"
    )


# ---------------------------------------------------------------------- order of data
@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.integers(0, 80))
def test_the_data_step_is_the_nth_that_is_not_skipped(skipped: list[int], step: int) -> None:
    expected = next(islice((n for n in count() if n not in skipped), step, None))
    assert data_step(step, skipped) == expected


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 60), max_size=12))
def test_data_steps_rise_and_miss_nothing_but_what_is_skipped(skipped: set[int]) -> None:
    used = [data_step(step, tuple(skipped)) for step in range(100)]
    assert used == sorted(set(range(100 + len(skipped))) - skipped)[:100]


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, 60), max_size=12), st.integers(0, 60))
def test_skipping_a_steps_data_changes_nothing_before_it(skipped: set[int], step: int) -> None:
    more = skipped | {data_step(step, tuple(skipped))}
    for earlier in range(step):
        assert data_step(earlier, tuple(more)) == data_step(earlier, tuple(skipped))
    assert data_step(step, tuple(more)) == data_step(step + 1, tuple(skipped))


def test_steps_before_the_first_are_refused() -> None:
    with pytest.raises(ValueError, match="counted from 0, got -1"):
        data_step(-1, ())


def test_skipped_data_steps_are_sorted_and_unique() -> None:
    past = [incident(9, 8, "skip"), incident(5, 4, "skip"), incident(9, 9, "replay"), incident(9, 8, "skip")]
    assert skipped_data_steps(past) == (4, 8)
    assert skipped_data_steps([]) == ()


# ---------------------------------------------------------------------- whole runs
Fault = Callable[[int, int, int], float | None]
"""(step, data step, how often this pair was computed before) -> the loss instead of the normal one."""


@dataclass
class Run:
    """A training loop of fakes: checkpoints at multiples of 10 keep step and history, incidents outlive them."""

    fault: Fault
    policy: Anomalies = field(default_factory=lambda: Anomalies(window=32, minimum=8))
    steps: int = 100
    incidents: list[Incident] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    """Data steps of the steps that count."""
    computed: int = 0
    failed: bool = False

    def __post_init__(self) -> None:
        seen: dict[tuple[int, int], int] = {}
        saved: tuple[int, list[float]] = (0, [])
        past = LossHistory(self.policy)
        while len(self.data) < self.steps and not self.failed:
            step, self.computed = len(self.data) + 1, self.computed + 1
            assert self.computed < 50 * self.steps, "the run goes round in circles"
            at = data_step(step - 1, skipped_data_steps(self.incidents))
            before = seen[step, at] = seen.get((step, at), -1) + 1
            loss = self.loss(step, at, before)
            found = judge(step, at, loss, 1.0, past, self.policy, self.incidents)
            if found is not None:
                self.incidents.append(Incident.of(found, attempt=1, incarnation="a", time=0.0))
                if found.action in ("replay", "skip"):
                    del self.data[saved[0] :]
                    past = LossHistory(self.policy, saved[1])
                    continue
                if found.action == "fail":
                    self.failed = True
                    return
            past.add(step, loss)
            self.data.append(at)
            if step % 10 == 0:
                saved = (step, past.values())

    def loss(self, step: int, at: int, before: int) -> float:
        instead = self.fault(step, at, before)
        return 2 + 3 / (1 + step / 20) + 0.03 * math.sin(37 * at) if instead is None else instead

    def actions(self) -> list[tuple[int, int, Action]]:
        return [(i.step, i.data_step, i.action) for i in self.incidents]

    def audit(self, skipped: Sequence[int] = ()) -> None:
        """Every data step once and in order, but for those skipped."""
        assert not self.failed
        assert self.data == sorted(set(range(self.steps + len(skipped))) - set(skipped))
        assert skipped_data_steps(self.incidents) == tuple(skipped)


def test_an_undisturbed_run_has_no_incidents() -> None:
    run = Run(lambda step, at, before: None)
    run.audit()
    assert (run.incidents, run.computed) == ([], 100)


@pytest.mark.parametrize("loss", [NAN, SPIKE, math.inf])
def test_a_transient_fault_costs_one_replay(loss: float) -> None:
    run = Run(lambda step, at, before: loss if (step, before) == (47, 0) else None)
    run.audit()
    assert run.actions() == [(47, 46, "replay")]
    assert run.computed == 100 + 7


@pytest.mark.parametrize("loss", [NAN, SPIKE])
def test_a_bad_batch_is_left_out(loss: float) -> None:
    run = Run(lambda step, at, before: loss if at == 46 else None)
    run.audit([46])
    assert run.actions() == [(47, 46, "replay"), (47, 46, "skip")]
    assert run.computed == 100 + 14


@pytest.mark.parametrize("loss", [NAN, SPIKE])
def test_three_bad_batches_in_a_row_are_left_out(loss: float) -> None:
    run = Run(lambda step, at, before: loss if at in (46, 47, 48) else None)
    run.audit([46, 47, 48])
    assert len(run.incidents) == 6


def test_bad_batches_apart_from_each_other() -> None:
    run = Run(lambda step, at, before: SPIKE if at in (21, 46, 80) else None)
    run.audit([21, 46, 80])
    assert [i.action for i in run.incidents] == ["replay", "skip"] * 3


def test_a_bad_batch_with_policy_replay() -> None:
    replay = Anomalies(action="replay", window=32, minimum=8)
    run = Run(lambda step, at, before: SPIKE if at == 46 else None, replay)
    run.audit()
    assert run.actions() == [(47, 46, "replay"), (47, 46, "accept")]
    run = Run(lambda step, at, before: NAN if at == 46 else None, replay)
    assert run.failed
    assert run.actions() == [(47, 46, "replay"), (47, 46, "fail")]


def test_a_bad_batch_with_policy_warn() -> None:
    warn = Anomalies(action="warn", window=32, minimum=8)
    run = Run(lambda step, at, before: SPIKE if at == 46 else None, warn)
    run.audit()
    assert run.actions() == [(47, 46, "warn")]
    assert run.computed == 100


def test_an_accepted_spike_is_passed_by_a_later_replay() -> None:
    policy = Anomalies(action="replay", window=32, minimum=8)

    def fault(step: int, at: int, before: int) -> float | None:
        return SPIKE if at == 43 or (step, before) == (48, 0) else None

    run = Run(fault, policy)
    run.audit()
    assert run.actions() == [(44, 43, "replay"), (44, 43, "accept"), (48, 47, "replay")]


def test_a_model_that_diverged_goes_on_or_ends() -> None:
    """The cause lies before: neither replays nor other data help."""
    run = Run(lambda step, at, before: 30.0 + 0.1 * math.sin(37 * at) if step >= 47 else None)
    rounds = [(47, at, action) for at in (46, 47, 48) for action in ("replay", "skip")]
    assert run.actions()[:7] == [*rounds, (47, 49, "accept")]
    assert sum(i.action in ("replay", "skip") for i in run.incidents) == Anomalies().max_rollbacks
    run.audit(skipped_data_steps(run.incidents))
    accepted = [i for i in run.incidents if i.action == "accept"]
    assert len(accepted) <= 17  # half a window, then the history is on the new level
    assert run.computed <= 100 + 10 * 10


def test_a_model_that_is_not_finite_for_good_ends_the_run() -> None:
    run = Run(lambda step, at, before: NAN if step >= 47 else None)
    assert run.failed
    assert run.actions()[-1] == (47, 49, "fail")
    assert len(run.incidents) == 7
    assert run.data[:40] == list(range(40))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 0.3), st.floats(0, 0.2), st.sampled_from(["warn", "replay", "skip"]))
def test_any_mixture_of_faults_ends_and_loses_no_data(
    seed: int, transient: float, permanent: float, action: str
) -> None:
    policy = Anomalies.model_validate({"action": action, "window": 32, "minimum": 8})

    def fault(step: int, at: int, before: int) -> float | None:
        rng = np.random.default_rng((seed, at))
        if rng.random() < permanent or np.random.default_rng((seed, step, at, before)).random() < transient:
            return NAN if rng.random() < 0.3 else SPIKE
        return None

    run = Run(fault, policy)
    assert sum(i.action in ("replay", "skip") for i in run.incidents) <= policy.max_rollbacks
    if run.failed:
        assert run.incidents[-1].action == "fail"
        run.failed, run.steps = False, len(run.data)
        skipped = [n for n in skipped_data_steps(run.incidents) if n <= max(run.data, default=0)]
        assert run.data == sorted(set(range(run.steps + len(skipped))) - set(skipped))
    else:
        run.audit(skipped_data_steps(run.incidents) if action == "skip" else ())

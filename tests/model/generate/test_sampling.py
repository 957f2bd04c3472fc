"""What is drawn from, drawing, and the rule of acceptance against rules that are wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.generate.sampling import GREEDY, Sampling, Verdict, distribution, draw, verify

LOGITS = torch.tensor([[0.0, 3.0, 1.0, 2.0, -1.0], [2.0, 2.0, -4.0, 2.0, 1.0]])
DRAWS = 40_000


def chi_square(counts: Tensor, expected: Tensor) -> float:
    """Standard deviations by which Pearson's statistic exceeds its mean; infinite if the impossible occurred."""
    possible = expected > 0
    if counts[~possible].any():
        return float("inf")
    counts, expected = counts[possible].double(), expected[possible].double() * counts.sum()
    freedom = int(possible.sum()) - 1
    statistic = ((counts - expected).square() / expected).sum()
    return float((statistic - freedom) / (2 * freedom) ** 0.5)


# ------------------------------------------------------------------- what is drawn from
def test_temperature_divides_the_logits() -> None:
    for temperature in (0.5, 1.0, 4.0):
        p = distribution(LOGITS, Sampling(temperature, top_k=0))
        torch.testing.assert_close(p, (LOGITS / temperature).softmax(-1))


@pytest.mark.parametrize("temperature", [1e-320, 1e-39, 1e-30])
def test_the_coldest_temperatures_take_the_best(temperature: float) -> None:
    for logits in (LOGITS, LOGITS * 1e30):
        p = distribution(logits, Sampling(temperature, top_k=3, top_p=0.9))
        assert p[0].tolist() == [0, 1, 0, 0, 0]


def test_only_the_best_k_stay_and_ties_with_the_last() -> None:
    p = distribution(LOGITS, Sampling(1.0, top_k=2))
    odds = torch.tensor(1.0).sigmoid().item()  # e^3 / (e^3 + e^2)
    assert p[0].tolist() == pytest.approx([0, odds, 0, 1 - odds, 0])
    assert p[1].tolist() == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3, 0])
    for k in (0, 5, 99):
        torch.testing.assert_close(distribution(LOGITS, Sampling(1.0, top_k=k)), LOGITS.softmax(-1))


def test_only_the_best_that_reach_the_share_stay() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    for share, kept in ((0.4, 1), (0.5001, 2), (0.79, 2), (0.81, 3), (0.951, 4), (1.0, 4)):
        p = distribution(logits, Sampling(1.0, top_k=0, top_p=share))
        assert (p > 0).sum() == kept
        torch.testing.assert_close(p[0, :kept], logits.exp()[0, :kept] / logits.exp()[0, :kept].sum())
    p = distribution(logits[:, [3, 0, 2, 1]], Sampling(1.0, top_k=2, top_p=0.7))  # of the two best: 0.625, 0.375
    assert p[0].tolist() == pytest.approx([0, 0.625, 0, 0.375])


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
    assert GREEDY.greedy
    assert not Sampling().greedy


# ------------------------------------------------------------------- drawing
def test_drawing_is_in_proportion_and_never_what_has_none() -> None:
    weights = torch.tensor([0.0, 2.0, 0.0, 1.0, 5.0, 0.0])
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(0))
    counts = draw(weights.expand(DRAWS, -1), uniform).bincount(minlength=6)
    assert abs(chi_square(counts, weights / 8)) < 4
    edges = torch.tensor([0.0, 1 - 2**-24, 1.0])  # 1 does not come, but products may round to the total
    assert draw(weights.expand(3, -1), edges).tolist() == [1, 4, 4]


# ------------------------------------------------------------------- acceptance
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Verdict]


def counted(rule: Rule, target: Tensor, drafting: Tensor) -> tuple[Tensor, float]:
    """How often each token comes out, and the share of drafts that were accepted."""
    uniform = torch.rand(3, DRAWS, generator=torch.Generator().manual_seed(1))
    q = drafting.expand(DRAWS, -1)
    verdict = rule(target.expand(DRAWS, -1), q, draw(q, uniform[0]), uniform[1:])
    return verdict.token_B.bincount(minlength=len(target)), float(verdict.accepted_B.float().mean())


def by_the_best(target: Tensor, drafting: Tensor, token: Tensor, uniform: Tensor) -> Verdict:
    """Wrong: right for greedy decoding only."""
    accepted = token == target.argmax(-1)
    return Verdict(accepted, torch.where(accepted, token, draw(target, uniform[1])))


def from_the_target(target: Tensor, drafting: Tensor, token: Tensor, uniform: Tensor) -> Verdict:
    """Wrong: what is rejected is drawn anew from the whole target."""
    accepted = verify(target, drafting, token, uniform).accepted_B
    return Verdict(accepted, torch.where(accepted, token, draw(target, uniform[1])))


def always(target: Tensor, drafting: Tensor, token: Tensor, uniform: Tensor) -> Verdict:
    """Wrong: the draft's own distribution."""
    return Verdict(torch.ones_like(token, dtype=torch.bool), token)


P, Q = (x.softmax(-1) for x in (LOGITS[0], torch.tensor([1.0, 2.0, 2.0, 1.0, 0.0])))
CASES = {
    "overlapping": (P, Q),
    "the draft knows less": (P, torch.tensor([0.5, 0.0, 0.5, 0.0, 0.0])),
    "the draft knows too much": (torch.tensor([0.5, 0.0, 0.2, 0.3, 0.0]), Q),
    "equal": (P, P),
    "nothing in common": (torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.2, 0.3, 0.5])),
}


@pytest.mark.parametrize("case", CASES)
def test_the_rule_draws_from_the_target(case: str) -> None:
    target, drafting = CASES[case]
    counts, accepted = counted(verify, target, drafting)
    assert abs(chi_square(counts, target)) < 4
    assert accepted == pytest.approx(float(torch.minimum(target, drafting).sum()), abs=0.01)  # the most possible


@pytest.mark.parametrize("rule", [by_the_best, from_the_target, always])
def test_wrong_rules_are_found_out(rule: Rule) -> None:
    counts, _ = counted(rule, P, Q)
    assert chi_square(counts, P) > 50


def test_a_draft_that_equals_the_target_up_to_rounding_never_gives_an_impossible_token() -> None:
    target, draft = torch.tensor([[0.0, 0.49999997, 0.49999997]]), torch.tensor([[0.0, 0.5, 0.5]])
    found = verify(target, draft, torch.tensor([1]), torch.tensor([[1 - 2**-24], [0.3]]))
    assert found.token_B.tolist() == [1]

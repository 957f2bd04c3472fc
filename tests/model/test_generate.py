"""Writing text: greedy, drawn, and where it ends."""

import pytest
import torch
from support.recipes import TINY

from model.generate import generate, pick
from model.transformer import CausalLM

PROMPT = [3, 14, 15]


@pytest.fixture(scope="module")
def model() -> CausalLM:
    model = CausalLM(TINY)
    model.initialise(1)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # clear preferences
    return model


def greedy(model: CausalLM, tokens: int, context: int) -> list[int]:
    text = list(PROMPT)
    for _ in range(tokens):
        with torch.no_grad():
            scores = model(torch.tensor([text[max(0, len(text) - context) :]])).logits[0][0, -1].tolist()
        text.append(max(range(len(scores)), key=scores.__getitem__))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("context", [64, 4, 1])
def test_temperature_zero_is_greedy_within_its_context(model: CausalLM, context: int) -> None:
    for seed in (0, 1):
        assert generate(model, PROMPT, tokens=12, context=context, temperature=0, seed=seed) == greedy(
            model, 12, context
        )


def test_equal_seeds_write_equal_text_and_others_another(model: CausalLM) -> None:
    texts = [generate(model, PROMPT, tokens=20, context=32, temperature=1.0, seed=s) for s in (0, 0, 1, 2)]
    assert texts[0] == texts[1]
    assert len({tuple(t) for t in texts}) == 3
    torch.manual_seed(5)  # the global generator has no part in it
    assert generate(model, PROMPT, tokens=20, context=32, temperature=1.0, seed=0) == texts[0]


def test_ends_before_the_stop_token(model: CausalLM) -> None:
    whole = generate(model, PROMPT, tokens=20, context=32, temperature=1.0, seed=3)
    stop = whole[6]
    short = generate(model, PROMPT, tokens=20, context=32, temperature=1.0, seed=3, stop=stop)
    assert short == whole[: whole.index(stop)]
    assert stop not in short


def test_top_k_one_is_greedy_at_any_temperature(model: CausalLM) -> None:
    assert generate(model, PROMPT, tokens=12, context=64, temperature=5.0, top_k=1) == greedy(model, 12, 64)


def test_only_the_top_k_are_drawn_in_their_proportions() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    drawn = [pick(logits, 1.0, 2, generator) for _ in range(2000)]
    assert set(drawn) == {1, 3}
    odds = torch.tensor(1.0).sigmoid().item()  # e^3 / (e^3 + e^2)
    assert drawn.count(1) / 2000 == pytest.approx(odds, abs=0.04)
    assert {pick(logits, 5.0, 0, generator) for _ in range(2000)} == {0, 1, 2, 3, 4}  # 0: all
    assert {pick(logits, 5.0, 99, generator) for _ in range(2000)} == {0, 1, 2, 3, 4}


def test_a_high_temperature_is_more_even() -> None:
    logits = torch.tensor([0.0, 2.0])
    generator = torch.Generator().manual_seed(0)
    share = {t: sum(pick(logits, t, 0, generator) for _ in range(2000)) / 2000 for t in (0.5, 1.0, 4.0)}
    for temperature, value in share.items():
        assert value == pytest.approx(torch.tensor(2.0 / temperature).sigmoid().item(), abs=0.04)


def test_no_tokens_asked_for(model: CausalLM) -> None:
    assert generate(model, PROMPT, tokens=0, context=8) == []


def test_an_empty_prompt_is_refused(model: CausalLM) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, [], tokens=1, context=8)


def test_the_prompt_and_the_routers_counts_are_left_alone(model: CausalLM) -> None:
    prompt = list(PROMPT)
    generate(model, prompt, tokens=3, context=8)
    assert prompt == PROMPT
    assert [b.routing.load for b in model.blocks().values() if b.routing] == [None] * 3

"""Whole texts: the same with and without speculation, in the same proportions where they are drawn, and their ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.recipes import TINY
from test_sampling import always, by_the_best, chi_square, from_the_target
from torch import Tensor

import model.generate.writer as writer_module
from model.generate import GREEDY, Sampling, Writer, generate
from model.generate.sampling import distribution
from model.transformer import CausalLM

VOCABULARY = 12
PROMPTS = [[1, 2, 3], [5], [7, 7, 2, 9, 4, 1, 5], [11, 0], [3, 8, 11, 7, 6], [0, 0, 0, 0]]


@torch.no_grad()
def by_forward(model: CausalLM, prompt: list[int], tokens: int) -> list[int]:
    """Greedy, from the whole text at each step."""
    text = list(prompt)
    for _ in range(tokens):
        text.append(int(model(torch.tensor([text])).logits[0][0, -1].argmax()))
    return text[len(prompt) :]


def all_texts(model: CausalLM, prompts: list[list[int]], **how: Any) -> list[list[int]]:  # noqa: ANN401
    writer = Writer(model, prompts, **how)
    came: list[list[int]] = [[] for _ in prompts]
    for row, new in writer:
        came[row] += new
    assert came == [row.text[len(p) :] for row, p in zip(writer.rows, prompts, strict=True)]
    return came


# ------------------------------------------------------------------- greedy
def test_greedy_texts_are_those_of_the_forward_pass(learned: CausalLM) -> None:
    expected = [by_forward(learned, prompt, 24) for prompt in PROMPTS]
    assert len({tuple(text) for text in expected}) > 3
    for speculate in (False, True):
        assert all_texts(learned, PROMPTS, tokens=24, speculate=speculate) == expected
        assert [generate(learned, p, tokens=24, speculate=speculate) for p in PROMPTS] == expected


def test_many_prompts_are_written_alike_with_and_without_speculation(learned: CausalLM) -> None:
    prompts = torch.randint(VOCABULARY, (100, 5), generator=torch.Generator().manual_seed(7)).tolist()
    prompts = [prompt[: 1 + i % 5] for i, prompt in enumerate(prompts)]
    writer = Writer(learned, prompts, tokens=40, speculate=True)
    list(writer)
    plain = all_texts(learned, prompts, tokens=40)
    assert [row.text[len(p) :] for row, p in zip(writer.rows, prompts, strict=True)] == plain
    found = writer.statistics
    assert 0.1 < found.acceptance < 0.95  # both ways were gone
    assert found.tokens == 100 * 40
    assert found.later_tokens == 100 * 39
    assert 1 + found.acceptance - 0.1 < found.tokens_per_pass <= 1 + found.acceptance  # the last draft may be cut off


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_drafts_are_those_of_the_module_over_the_whole_text(
    learned: CausalLM, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> None:
    """So its cache is right after every rejection, too: wrong drafts would not show in the text."""
    seen = 0

    def checked(self: Writer, decoder: Any, live: Any, first: Any, h: Tensor) -> Any:  # noqa: ANN401
        nonlocal seen
        draft = plain_draft(self, decoder, live, first, h)
        for row, token in zip(live, draft.token_B.tolist(), strict=True):
            logits = learned(torch.tensor([row.text]), 1).logits[1][0, -1]
            assert token == logits.argmax()
            seen += 1
        return draft

    plain_draft = Writer._draft
    monkeypatch.setattr(Writer, "_draft", checked)
    all_texts(learned, prompts, tokens=16, speculate=True)
    assert seen > 8 * len(prompts)


# ------------------------------------------------------------------- drawn
HOW = Sampling(temperature=1.3, top_k=6, top_p=0.9, seed=100)
TEXTS, LENGTH = 3000, 3


@torch.no_grad()
def probabilities(model: CausalLM, prompt: list[int]) -> Tensor:
    """[V, V, V] of all texts of three tokens, from the forward pass."""
    out = torch.ones(())
    texts = torch.tensor([prompt])
    for _ in range(LENGTH):
        p = distribution(model(texts).logits[0][:, -1], HOW)
        out = out.reshape(-1, 1) * p
        follows = torch.arange(VOCABULARY).repeat(len(texts)).unsqueeze(1)
        texts = torch.cat((texts.repeat_interleave(VOCABULARY, 0), follows), 1)
    return out.flatten()


def surprise(model: CausalLM, *, speculate: bool) -> float:
    """How far the texts' counts are from what they should be; rare ones are counted together."""
    prompt = [2, 3]
    texts = torch.tensor(all_texts(model, [prompt] * TEXTS, tokens=LENGTH, sampling=HOW, speculate=speculate))
    place = VOCABULARY ** torch.arange(LENGTH - 1, -1, -1)
    counts = (texts * place).sum(1).bincount(minlength=VOCABULARY**LENGTH)
    expected = probabilities(model, prompt)
    rare = expected * TEXTS < 5
    if counts[expected == 0].any():
        return float("inf")
    counts = torch.cat((counts[~rare], counts[rare].sum().unsqueeze(0)))
    return chi_square(counts, torch.cat((expected[~rare], expected[rare].sum().unsqueeze(0))))


@pytest.mark.parametrize("speculate", [False, True])
def test_texts_are_drawn_in_their_proportions(learned: CausalLM, speculate: bool) -> None:
    assert abs(surprise(learned, speculate=speculate)) < 4


@pytest.mark.parametrize("rule", [always, by_the_best, from_the_target])
def test_a_wrong_rule_of_acceptance_shows_in_the_texts(
    learned: CausalLM,
    monkeypatch: pytest.MonkeyPatch,
    rule: Any,  # noqa: ANN401
) -> None:
    monkeypatch.setattr(writer_module, "verify", rule)
    assert surprise(learned, speculate=True) > 10


def test_equal_seeds_write_equal_text_and_others_another(learned: CausalLM) -> None:
    def text(seed: int, speculate: bool) -> list[int]:
        return generate(learned, [1, 2], tokens=15, sampling=Sampling(1.0, seed=seed), speculate=speculate)

    for speculate in (False, True):
        texts = [text(seed, speculate) for seed in (0, 0, 1, 2)]
        assert texts[0] == texts[1]
        assert len({tuple(t) for t in texts}) == 3
        torch.manual_seed(5)  # the global generator has no part in it
        assert text(0, speculate) == texts[0]
        together = all_texts(learned, [[1, 2]] * 3, tokens=15, sampling=Sampling(1.0, seed=0), speculate=speculate)
        assert together == [texts[0], texts[2], texts[3]]  # row r is drawn as seed + r


def test_the_best_of_one_is_greedy_at_any_temperature(learned: CausalLM) -> None:
    expected = by_forward(learned, [1, 2], 16)
    for speculate in (False, True):
        sampling = Sampling(5.0, top_k=1, seed=9)
        assert generate(learned, [1, 2], tokens=16, sampling=sampling, speculate=speculate) == expected


# ------------------------------------------------------------------- ends
@pytest.mark.parametrize("speculate", [False, True])
def test_where_texts_end(learned: CausalLM, speculate: bool) -> None:
    whole = all_texts(learned, PROMPTS, tokens=20)
    end = whole[0][5]
    writer = Writer(learned, PROMPTS, tokens=20, speculate=speculate, end_of_text=end)
    list(writer)
    for row, prompt, text in zip(writer.rows, PROMPTS, whole, strict=True):
        cut = text.index(end) if end in text else None
        assert row.text == prompt + text[:cut]
        assert row.ended == ("tokens" if cut is None else "end of text")
    assert writer.statistics.tokens == sum(len(r.text) - len(p) for r, p in zip(writer.rows, PROMPTS, strict=True))


@pytest.mark.parametrize("speculate", [False, True])
def test_the_end_of_the_context_is_the_end(learned: CausalLM, speculate: bool) -> None:
    context = learned.config.max_position_embeddings
    prompts = [[1, 2, 3] * ((context - 6) // 3), [4, 5], [1] * (context - 1)]
    writer = Writer(learned, prompts, tokens=1000, speculate=speculate)
    list(writer)
    assert [len(row.text) for row in writer.rows] == [context] * 3
    assert [row.ended for row in writer.rows] == ["context"] * 3
    alone = [generate(learned, prompt, tokens=1000, speculate=speculate) for prompt in prompts]
    assert [row.text[len(p) :] for row, p in zip(writer.rows, prompts, strict=True)] == alone


def test_a_text_may_be_ended_from_outside(learned: CausalLM) -> None:
    writer = Writer(learned, PROMPTS[:2], tokens=30)
    for row, _ in writer:
        if row == 1 and len(writer.rows[1].text) - len(PROMPTS[1]) == 4:
            writer.finish(1, "enough")
            writer.finish(1, "too late")
    assert [row.ended for row in writer.rows] == ["tokens", "enough"]
    whole = all_texts(learned, PROMPTS[:2], tokens=30)
    assert [row.text for row in writer.rows] == [PROMPTS[0] + whole[0], PROMPTS[1] + whole[1][:4]]


def test_what_is_refused(learned: CausalLM) -> None:
    context = learned.config.max_position_embeddings
    with pytest.raises(ValueError, match="prompt is empty"):
        Writer(learned, [[]], tokens=1)
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        Writer(learned, [[1], []], tokens=1)
    with pytest.raises(ValueError, match=f"has {context} tokens, but the model's context holds {context}"):
        Writer(learned, [[1] * context], tokens=1)
    without = CausalLM(TINY.replace(num_nextn_predict_layers=0))
    with pytest.raises(ValueError, match="no prediction module"):
        Writer(without, [[1]], tokens=1, speculate=True)


def test_nothing_is_asked_for_and_nothing_is_changed(learned: CausalLM) -> None:
    assert generate(learned, [1], tokens=0) == []
    prompt = [1, 2]
    generate(learned, prompt, tokens=3, sampling=GREEDY, speculate=True)
    assert prompt == [1, 2]
    loads = [block.routing.load for block in learned.blocks().values() if block.routing]
    generate(learned, prompt * 30, tokens=3)
    assert loads == [block.routing.load for block in learned.blocks().values() if block.routing]

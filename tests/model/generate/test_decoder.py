"""Passes over the cache against the model's own forward pass, which knows no cache."""

from __future__ import annotations

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

import model.generate.experts as few
from model.config import ModelConfig, Yarn
from model.flops import cache_bytes_per_token
from model.generate.attention import CachedAttention, expanding_is_cheaper
from model.generate.decoder import Decoder, Prepared
from model.presets import preset
from model.transformer import CausalLM

YARN = Yarn(factor=4, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=0.9)
CONFIGS = {
    "v3": TINY,
    "yarn": TINY.replace(yarn=YARN.model_dump()),
    "plain queries": TINY.replace(q_lora_rank=None),
    "v2": TINY.replace(
        q_lora_rank=None, scoring_func="softmax", topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False
    ),
    "grouped, v2": TINY.replace(scoring_func="softmax", topk_method="group_limited_greedy", n_shared_experts=0),
}
LENGTH = 24
PASSES = [(0, 9), (9, 10), (10, 11), (11, 13), (13, 16), (16, 17), (17, LENGTH)]
"""Places of each pass: a prompt, single tokens, and several at a time."""


def made(config: ModelConfig, dtype: torch.dtype = torch.float32) -> CausalLM:
    """Biases and norms are not what they are at the start, or a forgotten one would not show."""
    model = CausalLM(config)
    model.initialise(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "bias" in name or "norm" in name:
                tensor += torch.randn(tensor.shape, generator=generator) * 0.2
    return model.to(dtype).eval()


def some_tokens(config: ModelConfig, batch: int = 2) -> Tensor:
    return torch.randint(config.vocab_size, (batch, LENGTH + 1), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def through_the_cache(model: CausalLM, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the main model and the module, at all places but the last."""
    decoder = Decoder(Prepared(model), len(tokens), LENGTH, ahead=True)
    main, ahead = [], []
    for first, last in PASSES:
        firsts = [first] * len(tokens)
        h = decoder.read(tokens[:, first:last], firsts)
        main.append(decoder.logits(h))
        ahead.append(decoder.logits(decoder.read_ahead(h, tokens[:, first + 1 : last + 1], firsts)))
    return torch.cat(main, 1), torch.cat(ahead, 1)


@pytest.mark.parametrize("expand", [True, False, None])
@pytest.mark.parametrize("name", CONFIGS)
def test_passes_of_all_sizes_give_the_logits_of_one(
    monkeypatch: pytest.MonkeyPatch, name: str, expand: bool | None
) -> None:
    call = CachedAttention.__call__
    monkeypatch.setattr(CachedAttention, "__call__", lambda *args: call(*args, expand))
    model = made(CONFIGS[name])
    tokens = some_tokens(model.config)
    with torch.inference_mode():
        expected = model(tokens, 1).logits
    for ours, theirs in zip(through_the_cache(model, tokens), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=3e-6, rtol=3e-6)
        assert theirs.std() > 0.05  # something to be wrong about


@pytest.mark.parametrize("expand", [True, False])
def test_in_bf16_it_differs_by_rounding_only(monkeypatch: pytest.MonkeyPatch, expand: bool) -> None:
    call = CachedAttention.__call__
    monkeypatch.setattr(CachedAttention, "__call__", lambda *args: call(*args, expand))
    exact, model = made(TINY), made(TINY, torch.bfloat16)
    tokens = some_tokens(TINY)
    with torch.inference_mode():
        right, forward = exact(tokens, 1).logits, model(tokens, 1).logits
    for ours, plain, truth in zip(through_the_cache(model, tokens), forward, right, strict=True):
        assert ours.dtype == torch.bfloat16
        ours_off, plain_off = ((x.float() - truth).square().mean().sqrt() for x in (ours, plain))
        assert ours_off < 1.3 * plain_off
        assert ours_off < 0.05 * truth.std()


@pytest.mark.parametrize("expand", [True, False])
def test_rows_of_different_lengths(monkeypatch: pytest.MonkeyPatch, expand: bool) -> None:
    call = CachedAttention.__call__
    monkeypatch.setattr(CachedAttention, "__call__", lambda *args: call(*args, expand))
    model = made(TINY)
    tokens, lengths = some_tokens(TINY, 3), [4, 11, 7]
    with torch.inference_mode():
        expected = model(tokens, 1).logits
        decoder, rows = Decoder(Prepared(model), 3, LENGTH, ahead=True), range(3)
        padded = tokens[:, :11].clone()
        for row, length in enumerate(lengths):
            padded[row, length:] = 5
        h = decoder.read(padded, [0, 0, 0])
        decoder.read_ahead(h, tokens[:, 1:12], [0, 0, 0])
        for count in (1, 2, 3):
            now = torch.stack([tokens[row, n : n + count] for row, n in zip(rows, lengths, strict=True)])
            after = torch.stack([tokens[row, n + 1 : n + 1 + count] for row, n in zip(rows, lengths, strict=True)])
            h = decoder.read(now, lengths)
            both = decoder.logits(h), decoder.logits(decoder.read_ahead(h, after, lengths))
            for row, n in zip(rows, lengths, strict=True):
                for ours, theirs in zip(both, expected, strict=True):
                    torch.testing.assert_close(ours[row], theirs[row, n : n + count], atol=3e-6, rtol=3e-6)
            lengths = [n + count for n in lengths]
        decoder.keep([2, 0])  # rows that have ended leave, the others stay what they were
        left = [lengths[2], lengths[0]]
        now = torch.stack([tokens[2, left[0] : left[0] + 1], tokens[0, left[1] : left[1] + 1]])
        ours = decoder.logits(decoder.read(now, left))
    for ours_row, row, n in zip(ours, (2, 0), left, strict=True):
        torch.testing.assert_close(ours_row[0], expected[0][row, n], atol=3e-6, rtol=3e-6)


def test_places_written_in_vain_are_never_seen() -> None:
    """What a rejected draft leaves behind."""
    model = made(TINY)
    tokens = some_tokens(TINY, 1)
    with torch.inference_mode():
        expected = model(tokens).logits[0]
        decoder = Decoder(Prepared(model), 1, LENGTH)
        decoder.read(tokens[:, :8], [0])
        decoder.read(torch.tensor([[int(tokens[0, 8]), 1, 2, 3]]), [8])  # three wrong ones
        ours = decoder.logits(decoder.read(tokens[:, 9:11], [9]))
    torch.testing.assert_close(ours, expected[:, 9:11], atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny", "mini"])
def test_the_cache_is_as_large_as_predicted(name: str, dtype: torch.dtype) -> None:
    config = TINY if name == "tiny" else preset("mini")
    model = CausalLM(config).to(dtype)
    size = dtype.itemsize
    plain, ahead = Decoder(Prepared(model), 2, 8), Decoder(Prepared(model), 2, 8, ahead=True)
    assert plain.bytes_per_token == cache_bytes_per_token(config, size)
    assert ahead.bytes_per_token == cache_bytes_per_token(config, size, modules=1)
    tensors = [ahead.cache.kept_LBSW, ahead.module_cache.kept_LBSW]
    assert sum(t.untyped_storage().nbytes() for t in tensors) == 2 * 8 * ahead.bytes_per_token


@pytest.mark.parametrize("name", ["v3", "grouped, v2"])
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_few_tokens_visit_the_same_experts_with_the_same_results(
    monkeypatch: pytest.MonkeyPatch, name: str, tokens: int
) -> None:
    model = made(CONFIGS[name])
    moe = model.model.layers[1].mlp
    x = torch.randn(2, tokens, TINY.hidden_size, generator=torch.Generator().manual_seed(4))
    calls: list[int] = []
    moe.register_forward_hook(lambda *_: calls.append(tokens))
    with torch.inference_mode():
        expected, ours = moe(x), few.FewExperts(moe)
        torch.testing.assert_close(ours(x), expected, atol=1e-6, rtol=1e-5)
        assert calls == [tokens]
        monkeypatch.setattr(few, "FEW", 0)
        torch.testing.assert_close(ours(x), expected, atol=0, rtol=0)
    assert calls == [tokens, tokens]


def test_the_order_of_products_goes_by_their_number() -> None:
    v3 = preset("v3-671b")
    assert not expanding_is_cheaper(v3, 1, 4096)
    assert not expanding_is_cheaper(v3, 2, 4096)
    assert expanding_is_cheaper(v3, 4096, 4096)


def test_only_the_vocabulary_that_is_asked_for() -> None:
    model = made(TINY)
    with torch.inference_mode():
        decoder = Decoder(Prepared(model), 1, 4, vocabulary=10)
        assert decoder.logits(decoder.read(torch.tensor([[1]]), [0])).shape == (1, 1, 10)

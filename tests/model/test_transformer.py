"""Our model against transformers' DeepseekV3ForCausalLM, an independent implementation of the same architecture."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.recipes import TINY
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from model import moe
from model.config import ModelConfig, Yarn
from model.transformer import CausalLM, documents_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    groups = draw(st.sampled_from([1, 2, 4]))
    experts = groups * draw(st.sampled_from([2, 4]))
    topk_group = draw(st.integers(1, groups))
    layers = draw(st.integers(1, 3))
    yarn = Yarn(
        factor=draw(st.sampled_from([2.0, 8.0, 40.0])),
        original_max_position_embeddings=draw(st.sampled_from([16, 64])),
        mscale=draw(st.sampled_from([0.707, 1.0])),
        mscale_all_dim=draw(st.sampled_from([0.707, 1.0])),
    )
    return ModelConfig(
        vocab_size=draw(st.sampled_from([37, 64])),
        hidden_size=draw(st.sampled_from([32, 48])),
        num_hidden_layers=layers,
        num_attention_heads=draw(st.sampled_from([2, 4])),
        q_lora_rank=draw(st.sampled_from([None, 12])),
        kv_lora_rank=draw(st.sampled_from([8, 16])),
        qk_nope_head_dim=draw(st.sampled_from([8, 12])),
        qk_rope_head_dim=draw(st.sampled_from([4, 8])),
        v_head_dim=draw(st.sampled_from([8, 16])),
        intermediate_size=40,
        moe_intermediate_size=draw(st.sampled_from([8, 24])),
        first_k_dense_replace=draw(st.integers(0, layers)),
        n_routed_experts=experts,
        num_experts_per_tok=draw(st.integers(1, min(4, topk_group * experts // groups))),
        n_shared_experts=draw(st.integers(1, 2)),
        n_group=groups,
        topk_group=topk_group,
        norm_topk_prob=draw(st.booleans()),
        routed_scaling_factor=draw(st.sampled_from([1.0, 2.5])),
        rope_theta=draw(st.sampled_from([1e4, 5e4])),
        yarn=draw(st.sampled_from([None, yarn])),
    )


def independent(config: ModelConfig) -> DeepseekV3ForCausalLM:
    c = config
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.yarn:
        rope = {"rope_type": "yarn", "rope_theta": c.rope_theta, **c.yarn.model_dump()}
    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            moe_intermediate_size=c.moe_intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_attention_heads,
            n_shared_experts=c.n_shared_experts,
            n_routed_experts=c.n_routed_experts,
            routed_scaling_factor=c.routed_scaling_factor,
            kv_lora_rank=c.kv_lora_rank,
            q_lora_rank=c.q_lora_rank,
            qk_rope_head_dim=c.qk_rope_head_dim,
            v_head_dim=c.v_head_dim,
            qk_nope_head_dim=c.qk_nope_head_dim,
            n_group=c.n_group,
            topk_group=c.topk_group,
            num_experts_per_tok=c.num_experts_per_tok,
            first_k_dense_replace=c.first_k_dense_replace,
            norm_topk_prob=c.norm_topk_prob,
            max_position_embeddings=c.max_position_embeddings,
            rms_norm_eps=c.rms_norm_eps,
            rope_parameters=rope,
            attn_implementation="eager",
            use_cache=False,
        )
    )


def randomised(config: ModelConfig, seed: int) -> CausalLM:
    """Weights large enough that every part matters; norms and biases away from their initial values."""
    ours = CausalLM(config)
    ours.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*ours.named_parameters(), *ours.named_buffers()]:
            noise = torch.empty(tensor.shape).normal_(0, 1, generator=generator)
            if name.endswith("norm.weight"):
                tensor.copy_(1 + 0.1 * noise)
            elif name.endswith("e_score_correction_bias"):
                tensor.copy_(0.05 * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    return ours


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(config=configs(), seed=st.integers(0, 1000))
def test_logits_and_gradients_equal_transformers(config: ModelConfig, seed: int) -> None:
    ours, theirs = randomised(config, seed), independent(config)
    theirs.load_state_dict(ours.state_dict())  # strict: names and shapes are the same
    tokens = torch.randint(0, config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(seed))
    mine, reference = ours(tokens).logits[0], theirs(tokens).logits
    assert (mine - reference).abs().max() < 1e-5

    pick = torch.randn(mine.shape, generator=torch.Generator().manual_seed(seed)) / mine.numel() ** 0.5
    (mine * pick).sum().backward()
    (reference * pick).sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        other = expected[name].grad
        if other is None:  # transformers skips experts that no token visits
            assert parameter.grad is not None
            assert parameter.grad.abs().max() == 0, name
            continue
        scale = other.abs().max().clamp_min(1e-3)
        assert parameter.grad is not None
        assert (parameter.grad - other).abs().max() / scale < 1e-4, name


@pytest.mark.parametrize(
    "yarn",
    [
        Yarn(factor=40, original_max_position_embeddings=32),
        Yarn(factor=4, original_max_position_embeddings=64, beta_fast=8, beta_slow=2, mscale=1.0, mscale_all_dim=0.0),
        Yarn(factor=32, original_max_position_embeddings=64, beta_fast=1, beta_slow=1),
        Yarn(factor=3.5, original_max_position_embeddings=16, mscale=0.5, mscale_all_dim=0.707),
    ],
)
def test_yarn_equals_transformers_far_beyond_the_original_length(yarn: Yarn) -> None:
    config = _small(yarn=yarn, qk_rope_head_dim=16, max_position_embeddings=512)
    ours, theirs = randomised(config, 5), independent(config)
    theirs.load_state_dict(ours.state_dict())
    tokens = torch.randint(0, config.vocab_size, (1, 300), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        mine, reference = ours(tokens).logits[0], theirs(tokens).logits
        plain = CausalLM(config.replace(yarn=None))
        plain.load_state_dict(ours.state_dict())
        assert (plain(tokens).logits[0] - reference)[:, 64:].abs().max() > 0.1, "there is a difference to see"
    assert (mine - reference).abs().max() < 2e-5


def test_depth_zero_ignores_the_prediction_modules() -> None:
    config = _small(num_nextn_predict_layers=2)
    model = randomised(config, 0)
    tokens = torch.randint(0, config.vocab_size, (1, 9))
    assert len(model(tokens).logits) == 1
    torch.testing.assert_close(model(tokens).logits[0][:, :7], model(tokens, depth=2).logits[0])


@pytest.mark.parametrize("quick", [True, False])
def test_no_position_sees_the_future(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tokens later on, with embeddings ten thousand times larger, change nothing before them. Only in the quick
    path of experts may a last bit differ, by how many rows share a product: a leak would be of the size of logits."""
    if not quick:
        monkeypatch.setattr(moe, "applies", lambda *_: False)
    config = _small(num_nextn_predict_layers=2)
    model, large = randomised(config, 1), config.vocab_size - 1
    with torch.no_grad():
        model.model.embed_tokens.weight[large].mul_(1e4)
    tokens = torch.randint(0, large, (1, 12), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 7:] = large
    before, after = model(tokens, depth=2).logits, model(changed, depth=2).logits
    for head in range(3):  # head k at position i reads tokens up to i + k
        far = (before[head] - after[head])[0].abs().amax(-1)
        assert far[: 7 - head].max() <= (2e-6 if quick else 0), head
        assert far[7 - head :].min() > 0.5, head


def test_no_gradient_comes_from_the_future() -> None:
    """Exactly none, in the quick path too."""
    config = _small(num_nextn_predict_layers=2)
    model, embedded = randomised(config, 1), list[Tensor]()
    model.model.embed_tokens.register_forward_hook(lambda _module, _inputs, output: embedded.append(output))
    tokens = torch.randint(0, config.vocab_size, (1, 12), generator=torch.Generator().manual_seed(0))
    for head, logits in enumerate(model(tokens, depth=2).logits):
        (gradient,) = torch.autograd.grad(logits[0, 5].sum(), embedded[0], retain_graph=True)
        size = gradient[0].abs().amax(-1)
        assert size[: 6 + head].min() > 0.1, head
        assert not size[6 + head :].any(), head


def test_depth_beyond_the_modules_names_both_numbers() -> None:
    model = CausalLM(_small(num_nextn_predict_layers=1))
    with pytest.raises(ValueError, match="depth 2 needs at most 1"):
        model(torch.zeros(1, 8, dtype=torch.long), depth=2)


def test_sparse_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="index_n_heads=4"):
        CausalLM(_small(index_n_heads=4, index_head_dim=8, index_topk=4))


def test_initialisation_is_the_papers_and_repeatable() -> None:
    config = _small(hidden_size=128, vocab_size=512)
    first, second = CausalLM(config), CausalLM(config)
    first.initialise(3)
    second.initialise(3)
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.ndim > 1:
            assert abs(a.std().item() - config.initializer_range) < 0.1 * config.initializer_range, name
        else:
            assert (a == 1).all(), name


def _small(**changes: object) -> ModelConfig:
    base = ModelConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        q_lora_rank=12,
        kv_lora_rank=8,
        qk_nope_head_dim=8,
        qk_rope_head_dim=4,
        v_head_dim=8,
        intermediate_size=48,
        moe_intermediate_size=16,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_group=4,
        topk_group=2,
    )
    return base.replace(**changes)


# ------------------------------------------------------------------- documents that share a sequence
END = 5


def packed(lengths: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Documents one after the other, each ended by END; -> [1, S], and each by itself."""
    generator = torch.Generator().manual_seed(1)
    parts = []
    for length in lengths:
        body = torch.randint(6, TINY.vocab_size, (1, length - 1), generator=generator)
        parts.append(torch.cat((body, torch.tensor([[END]])), dim=1))
    return torch.cat(parts, dim=1), parts


def test_numbers_of_documents_by_hand() -> None:
    tokens = torch.tensor([[9, 8, END, 7, END, END, 6], [END, 1, 2, 3, 4, 6, END]])
    assert documents_of(tokens, END).tolist() == [[0, 0, 0, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


def test_isolated_documents_give_what_each_gives_alone() -> None:
    model = CausalLM(TINY)
    model.initialise(3)
    model.eval()
    tokens, parts = packed([7, 1, 12, 5])
    with torch.no_grad():
        together = model(tokens, 0, documents_of(tokens, END)).logits[0]
        mixed = model(tokens).logits[0]
        alone = torch.cat([model(part).logits[0] for part in parts], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (mixed - alone)[0, 7:].abs().max() > 1e-3, "without isolation there is a difference to see"


def test_nothing_flows_back_into_another_document() -> None:
    model = CausalLM(TINY)
    model.initialise(3)
    tokens, _ = packed([7, 12, 5])
    embedded: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda m, i, out: embedded.append(out) or out.retain_grad())
    logits = model(tokens, 0, documents_of(tokens, END)).logits[0]
    logits[0, 7:19].square().sum().backward()
    gradient = embedded[0].grad
    assert gradient is not None
    touched = gradient[0].abs().sum(-1) > 0
    assert touched.nonzero().flatten().tolist() == list(range(7, 19))


def test_isolation_with_recomputation_and_prediction_modules() -> None:
    tokens, _ = packed([9, 8])
    losses = []
    for recompute in (False, True):
        model = CausalLM(TINY)
        model.initialise(3)
        model.train()
        for block in model.blocks().values():
            block.recompute = recompute
        output = model(tokens, 1, documents_of(tokens, END))
        loss = sum((z.float().square().mean() for z in output.logits), torch.zeros(()))
        loss.backward()
        head = model.model.layers[0].self_attn.o_proj.weight.grad
        losses.append((loss.item(), head.norm().item()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)

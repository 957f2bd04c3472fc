"""Loss and multi-token prediction against the paper's description, built position by position."""

import math

import pytest
import torch
from support.recipes import TINY
from torch import Tensor

from model.config import ModelConfig
from model.loss import targets, training_losses
from model.transformer import CausalLM, Output

LENGTH, ALPHA, LAMBDA = 7, 0.02, 0.3


def random_model(config: ModelConfig) -> CausalLM:
    model = CausalLM(config)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.ndim == 1:
                tensor.copy_(0.05 * noise if name.endswith("bias") else 1 + 0.1 * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)
    return model


# ------------------------------------------------------- the model again, one vector at a time
class Slow:
    """The formulas of arXiv 2412.19437, sections 2.1 and 2.2, on the weights of `model`: no batch, no masks."""

    def __init__(self, model: CausalLM) -> None:
        self.c = model.config
        self.w = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:
        return x / torch.sqrt(sum(v * v for v in x) / len(x) + eps) * self.w[f"{name}.weight"]

    def turned(self, x: Tensor, position: int) -> Tensor:
        """Rotary embedding as a product of complex numbers."""
        pairs = torch.view_as_complex(x.view(-1, 2))
        angles = torch.tensor([position * self.c.rope_theta ** (-2 * j / len(x)) for j in range(len(pairs))])
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()

    def attention(self, xs: list[Tensor], name: str) -> list[Tensor]:
        c, w = self.c, {k.removeprefix(name + "."): v for k, v in self.w.items() if k.startswith(name + ".")}
        queries, keys, values = [], [], []
        for t, x in enumerate(xs):
            q = w["q_b_proj.weight"] @ self.norm(w["q_a_proj.weight"] @ x, f"{name}.q_a_layernorm")
            latent = w["kv_a_proj_with_mqa.weight"] @ x
            rope_key = self.turned(latent[c.kv_lora_rank :], t)
            kv = w["kv_b_proj.weight"] @ self.norm(latent[: c.kv_lora_rank], f"{name}.kv_a_layernorm")
            by_head = kv.view(c.num_attention_heads, -1)
            nope = c.qk_nope_head_dim
            queries.append([torch.cat((h[:nope], self.turned(h[nope:], t))) for h in q.view(c.num_attention_heads, -1)])
            keys.append([torch.cat((h[:nope], rope_key)) for h in by_head])
            values.append([h[nope:] for h in by_head])
        out = []
        for t in range(len(xs)):
            heads = []
            for h in range(c.num_attention_heads):
                scores = [queries[t][h] @ keys[s][h] / math.sqrt(c.qk_head_dim) for s in range(t + 1)]
                shares = torch.stack(scores).softmax(0)
                heads.append(sum(shares[s] * values[s][h] for s in range(t + 1)))
            out.append(w["o_proj.weight"] @ torch.cat(heads))
        return out

    def swiglu(self, x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        z = gate @ x
        return down @ (z * torch.sigmoid(z) * (up @ x))

    def dense(self, x: Tensor, name: str) -> Tensor:
        return self.swiglu(x, *(self.w[f"{name}.{part}_proj.weight"] for part in ("gate", "up", "down")))

    def moe(self, x: Tensor, name: str) -> tuple[Tensor, Tensor, list[int]]:
        """Output, affinities, and the experts of highest affinity."""
        c = self.c
        s = torch.sigmoid(self.w[f"{name}.gate.weight"] @ x)
        biased = (s + self.w[f"{name}.gate.e_score_correction_bias"]).tolist()
        size = c.n_routed_experts // c.n_group
        groups = [list(range(g * size, (g + 1) * size)) for g in range(c.n_group)]
        groups.sort(key=lambda members: -sum(sorted(biased[e] for e in members)[-2:]))
        allowed = [e for members in groups[: c.topk_group] for e in members]
        chosen = sorted(allowed, key=lambda e: -biased[e])[: c.num_experts_per_tok]
        y = self.dense(x, f"{name}.shared_experts")
        for e in chosen:
            gate, up = self.w[f"{name}.experts.gate_up_proj"][e].chunk(2)
            weight = c.routed_scaling_factor * s[e] / sum(s[j] for j in chosen)
            y = y + weight * self.swiglu(x, gate, up, self.w[f"{name}.experts.down_proj"][e])
        best = sorted(range(c.n_routed_experts), key=lambda e: -s[e].item())[: c.num_experts_per_tok]
        return y, s, best

    def block(self, xs: list[Tensor], name: str, *, moe: bool) -> tuple[list[Tensor], Tensor]:
        attended = self.attention([self.norm(x, f"{name}.input_layernorm") for x in xs], f"{name}.self_attn")
        xs = [x + a for x, a in zip(xs, attended, strict=True)]
        inner = [self.norm(x, f"{name}.post_attention_layernorm") for x in xs]
        if not moe:
            return [x + self.dense(i, f"{name}.mlp") for x, i in zip(xs, inner, strict=True)], torch.zeros(())
        routed = [self.moe(i, f"{name}.mlp") for i in inner]
        balance, c = torch.zeros(()), self.c
        for e in range(c.n_routed_experts):
            f = sum(e in best for _, _, best in routed) * c.n_routed_experts / (c.num_experts_per_tok * len(xs))
            balance = balance + f * sum(s[e] / s.sum() for _, s, _ in routed) / len(xs)
        return [x + r[0] for x, r in zip(xs, routed, strict=True)], balance

    def surprise(self, h: Tensor, token: int) -> Tensor:
        """Cross-entropy in nats of the shared head."""
        logits = self.w["lm_head.weight"] @ h
        return torch.logsumexp(logits, 0) - logits[token]

    def losses(self, window: list[int], depth: int) -> tuple[list[Tensor], Tensor]:
        """Of one sequence: mean cross-entropy per head, sum of the layers' balance losses."""
        c, positions = self.c, range(len(window) - 1 - depth)
        embed = self.w["model.embed_tokens.weight"]
        h, balance = [embed[window[i]] for i in positions], torch.zeros(())
        for layer in range(c.num_hidden_layers):
            h, extra = self.block(h, f"model.layers.{layer}", moe=layer >= c.first_k_dense_replace)
            balance = balance + extra
        h = [self.norm(x, "model.norm") for x in h]
        heads = [sum(self.surprise(h[i], window[i + 1]) for i in positions) / len(positions)]
        for k in range(1, depth + 1):
            name = f"model.mtp.{k - 1}"
            joined = [
                self.w[f"{name}.eh_proj.weight"]
                @ torch.cat((self.norm(embed[window[i + k]], f"{name}.enorm"), self.norm(h[i], f"{name}.hnorm")))
                for i in positions
            ]
            h, extra = self.block(joined, f"{name}.block", moe=True)
            balance = balance + extra
            h = [self.norm(x, f"{name}.norm") for x in h]
            asked = [self.surprise(h[i], window[i + k + 1]) for i in positions]
            heads.append(sum(asked) / len(positions))
        return heads, balance


def window_of(config: ModelConfig, batch: int, depth: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, config.vocab_size, (batch, LENGTH + 1 + depth), generator=generator)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_loss_and_gradients_equal_a_slow_construction(depth: int) -> None:
    config = TINY.replace(num_hidden_layers=2, num_nextn_predict_layers=depth)
    model, window = random_model(config), window_of(config, 2, depth)
    losses = training_losses(model(window[:, :-1], depth), window, ahead_weight=LAMBDA, alpha=ALPHA)

    sequences = [Slow(model).losses(row, depth) for row in window.tolist()]
    heads = [sum(s[0][k] for s in sequences) / 2 for k in range(depth + 1)]
    balance = ALPHA * sum(s[1] for s in sequences) / 2
    ahead = sum(heads[1:], torch.zeros(())) / max(depth, 1)
    expected = heads[0] + LAMBDA * ahead + balance

    torch.testing.assert_close(losses.next_token, heads[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.ahead, ahead, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(losses.balance, balance, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.total, expected, rtol=1e-5, atol=1e-5)
    names, parameters = zip(*model.named_parameters(), strict=True)
    mine = torch.autograd.grad(losses.total, parameters)
    reference = torch.autograd.grad(expected, parameters)
    for name, a, b in zip(names, mine, reference, strict=True):
        scale = b.abs().max().clamp_min(1e-4)
        assert (a - b).abs().max() / scale < 1e-3, name
        assert b.abs().max() > 0, f"{name} has no gradient: this comparison would show nothing"


def test_shared_embedding_and_head_learn_from_both_losses() -> None:
    config = TINY.replace(num_hidden_layers=1)
    model, window = random_model(config), window_of(config, 2, 1)
    shared = [model.model.embed_tokens.weight, model.lm_head.weight]

    def gradients(ahead_weight: float) -> tuple[Tensor, ...]:
        output = model(window[:, :-1], 1)
        return torch.autograd.grad(training_losses(output, window, ahead_weight=ahead_weight, alpha=0).total, shared)

    main = gradients(0.0)
    output = model(window[:, :-1], 1)
    ahead = torch.autograd.grad(training_losses(output, window, ahead_weight=1.0, alpha=0).ahead, shared)
    for both, one, other in zip(gradients(LAMBDA), main, ahead, strict=True):
        assert one.abs().max() > 1e-3
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(both, one + LAMBDA * other, rtol=1e-4, atol=1e-6)


def test_each_head_is_asked_for_its_own_token() -> None:
    window = torch.arange(20).view(2, 10)
    for head in range(4):
        for b in range(2):
            for i in range(6):
                assert targets(window, head, 6)[b, i] == window[b, i + 1 + head]


def test_lambda_weighs_the_mean_of_the_depths_and_accuracy_is_of_the_first() -> None:
    """Logits that are sure of the right token at known places."""
    window = torch.tensor([[1, 2, 3, 4, 5, 6]])  # S = 3, two depths
    sure = [torch.zeros(1, 3, 8) for _ in range(3)]
    sure[1][0, 0, 3] = sure[1][0, 2, 5] = 50.0  # depth 1: right at positions 0 and 2
    sure[2][0, 1, 5] = 50.0  # depth 2: right at position 1
    losses = training_losses(Output(tuple(sure), torch.tensor(4.0)), window, ahead_weight=0.5, alpha=0.25)
    unsure = math.log(8)
    assert losses.next_token.item() == pytest.approx(unsure)
    assert losses.ahead.item() == pytest.approx((unsure / 3 + 2 * unsure / 3) / 2)
    assert losses.ahead_accuracy.item() == pytest.approx(2 / 3)
    assert losses.balance.item() == pytest.approx(1.0)
    assert losses.total.item() == pytest.approx(unsure + 0.5 * unsure / 2 + 1.0)


def test_cross_entropy_is_fp32_under_bf16_logits() -> None:
    logits = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    window = torch.tensor([[0, 1, 2, 3, 4]])
    losses = training_losses(Output((logits,), torch.zeros(())), window, ahead_weight=0, alpha=0)
    expected = sum(
        math.log(sum(math.exp(v) for v in logits[0, i].tolist())) - logits[0, i, i + 1].item() for i in range(4)
    )
    assert losses.next_token.dtype == torch.float32
    assert losses.next_token.item() == pytest.approx(expected / 4, rel=1e-6)

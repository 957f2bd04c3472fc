"""Scores against transformers' DeepSeek-V3 and against themselves: batches, padding and processes change nothing."""

import math
from pathlib import Path

import pytest
import torch
from support.forked import in_processes
from support.recipes import TINY

from model.tasks.requests import Request
from model.tasks.score import Score, score
from model.transformer import CausalLM
from model.weights import write_weights

LENGTH, PAD = 50, 0
CONFIG = TINY.model_copy(update={"max_position_embeddings": 64})


def _model() -> CausalLM:
    model = CausalLM(CONFIG)
    model.initialise(2)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # clear preferences
        model.model.embed_tokens.weight.mul_(10)
        for name, parameter in model.named_parameters():
            if "self_attn" in name and parameter.ndim == 2:
                parameter.mul_(5)  # what stands before matters
    return model


class Scorer:
    """The part of an engine that scoring uses, on a plain model."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size, self.device = rank, world_size, torch.device("cpu")
        self.model = _model()
        self.passes: list[tuple[int, ...]] = []

    @torch.no_grad()
    def evaluate(self, window_BL: torch.Tensor, depth: int) -> tuple[torch.Tensor, ...]:
        assert depth == 0
        self.passes.append(tuple(window_BL.shape))
        logits: tuple[torch.Tensor, ...] = self.model(window_BL[:, :-1]).logits
        return logits


def _requests() -> list[Request]:
    """Some as long as can be; of some the continuation is what the model would write."""
    random = torch.Generator().manual_seed(3)
    model, made = _model(), []
    lengths = [(1, 1), (50, 1), (1, 50), (20, 31), (5, 3), (9, 2), (33, 1), (2, 7), (12, 12), (3, 1), (30, 4)]
    for number, (before, after) in enumerate(lengths):
        tokens = torch.randint(0, CONFIG.vocab_size, (before + after,), generator=random).tolist()
        if number % 2:
            for i in range(before, before + after):
                with torch.no_grad():
                    tokens[i] = int(model(torch.tensor([tokens[:i]])).logits[0][0, -1].argmax())
        made.append(Request(tuple(tokens[:before]), tuple(tokens[before:])))
    return made


REQUESTS = _requests()


def same(found: list[Score], expected: list[Score]) -> bool:
    assert len(found) == len(expected)
    assert [one.greedy for one in found] == [one.greedy for one in expected]
    return [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], rel=1e-5, abs=1e-4)


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> list[Score]:
    """Token by token with the independent implementation, each request for itself."""
    from transformers import DeepseekV3ForCausalLM

    folder, model = tmp_path_factory.mktemp("weights"), _model()
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "bias" in n)]
    write_weights(str(folder), CONFIG, tensors, "{}", write=True)
    other = DeepseekV3ForCausalLM.from_pretrained(folder).eval()
    scores = []
    for request in REQUESTS:
        total, greedy = 0.0, True
        for i, token in enumerate(request.continuation):
            with torch.no_grad():
                logits = other(torch.tensor([request.context + request.continuation[:i]])).logits[0, -1].double()
            total += float(logits[token] - logits.logsumexp(0))
            greedy = greedy and int(logits.argmax()) == token
        scores.append(Score(total, greedy))
    return scores


@pytest.mark.parametrize("batch", [1, 3, 11, 64])
def test_equal_to_transformers_token_by_token(direct: list[Score], batch: int) -> None:
    assert {one.greedy for one in direct} == {True, False}
    assert same(score(Scorer(), REQUESTS, LENGTH, batch, PAD), direct)


def test_order_neighbours_and_padding_have_no_part_in_it(direct: list[Score]) -> None:
    backwards = score(Scorer(), REQUESTS[::-1], LENGTH, 4, PAD)
    assert same(backwards[::-1], direct)
    assert same(score(Scorer(), REQUESTS, LENGTH, 4, 63), direct)
    for request, expected in zip(REQUESTS, direct, strict=True):
        assert same(score(Scorer(), [request], LENGTH, 2, 17), [expected])


def test_short_requests_make_short_passes() -> None:
    engine = Scorer()
    score(engine, REQUESTS, LENGTH, 3, PAD)
    # by threes, lengths are 51, 51, 51 | 34, 34, 24 | 11, 9, 8 | 4, 2: rounded up to 32 positions, 50 at most
    assert engine.passes == [(3, 51), (3, 51), (3, 33), (3, 33)]


def test_nothing_to_score() -> None:
    assert score(Scorer(), [], LENGTH, 4, PAD) == []


def test_a_broken_model_is_not_hidden() -> None:
    engine = Scorer()
    with torch.no_grad():
        engine.model.lm_head.weight[5] = math.nan
    assert all(math.isnan(one.logprob) for one in score(engine, REQUESTS, LENGTH, 4, PAD))


def share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    engine = Scorer(rank, 2)
    scores = score(engine, REQUESTS, LENGTH, 2, PAD)
    torch.save({"scores": [tuple(one) for one in scores], "passes": engine.passes}, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.processes
def test_two_processes_share_the_requests_and_make_the_same_passes(tmp_path: Path, direct: list[Score]) -> None:
    """Eleven for two processes of two: the last pass has three, on one process one row is filled up."""
    in_processes(share, 2, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1]
    assert len(found[0]["passes"]) == 3
    assert same([Score(*one) for one in found[0]["scores"]], direct)

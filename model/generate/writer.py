"""Writing several texts at once, token by token or with drafts of the prediction module.

A draft is what the prediction module expects after the next token. One pass of the main model over the last token and
the draft tells whether the draft is right, and what follows it. The module is run on confirmed tokens only, so that its
cache holds nothing else; the main model's cache may hold a rejected draft, at a place that the next pass overwrites.
Shapes: B unfinished rows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.generate.decoder import Decoder, Prepared
from model.generate.sampling import GREEDY, Sampling, distribution, draw, verify
from model.generate.statistics import Statistics
from model.transformer import CausalLM


@dataclass
class Row:
    """One text."""

    number: int
    text: list[int]
    """Prompt and what was written."""
    limit: int
    """Tokens of text at which it ends."""
    chance: torch.Generator
    ended: str | None = None
    """Why: "end of text", "tokens", "context", or what `Writer.finish` was told."""


@dataclass(frozen=True)
class Draft:
    """What the prediction module expects."""

    token_B: Tensor
    probabilities_BV: Tensor | None
    """What it was drawn from; None: it is the best."""


class Writer:
    """Goes on with several prompts; iterating yields (row, its new tokens) as they come. One use only.

    Texts end before `end_of_text`, after `tokens` new tokens, or where the model's context is full.
    """

    def __init__(
        self,
        model: CausalLM | Prepared,
        prompts: Sequence[Sequence[int]],
        *,
        tokens: int,
        sampling: Sampling = GREEDY,
        speculate: bool = False,
        end_of_text: int | None = None,
        vocabulary: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`model`: prepared already where several writers share it. `vocabulary`: only tokens below it are written.

        ValueError for prompts that are empty or too long, and for `speculate` without a prediction module."""
        self.context = model.config.max_position_embeddings
        _check(prompts, self.context)
        if speculate and not model.config.num_nextn_predict_layers:
            raise ValueError("the model has no prediction module (num_nextn_predict_layers is 0) to speculate with")
        self.model, self.sampling, self.speculate = model, sampling, speculate
        self.device = (model.head if isinstance(model, Prepared) else model.lm_head.weight).device
        self.end_of_text, self.vocabulary, self.clock = end_of_text, vocabulary, clock
        self.cache_bytes_per_token = 0
        """Of what was kept for one token of one row, once begun."""
        self.statistics = Statistics(prompt_tokens=sum(map(len, prompts)))
        self.rows = [
            Row(
                number=i,
                text=list(prompt),
                limit=min(len(prompt) + tokens, self.context),
                chance=torch.Generator().manual_seed(sampling.seed + i),
                ended=None if tokens else "tokens",
            )
            for i, prompt in enumerate(prompts)
        ]

    def finish(self, number: int, why: str) -> None:
        """Let a row end where it is."""
        row = self.rows[number]
        row.ended = row.ended or why

    @torch.inference_mode()
    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        live, statistics = [row for row in self.rows if row.ended is None], self.statistics
        if not live:
            return
        model = self.model if isinstance(self.model, Prepared) else Prepared(self.model)
        began = self.clock()
        decoder = Decoder(
            model, len(live), max(row.limit for row in live), ahead=self.speculate, vocabulary=self.vocabulary
        )
        self.cache_bytes_per_token, first_B = decoder.bytes_per_token, [0] * len(live)
        h_BTD, found = self._read_prompts(decoder, live)
        statistics.prompt_seconds = self.clock() - began
        while True:
            news = [self._take(row, tokens) for row, tokens in zip(live, found, strict=True)]
            yield from [(row.number, new) for row, new in zip(live, news, strict=True) if new]
            kept = [i for i, row in enumerate(live) if row.ended is None]
            if len(kept) < len(live):
                decoder.keep(kept)
                live, first_B, h_BTD = [live[i] for i in kept], [first_B[i] for i in kept], h_BTD[kept]
            if not live:
                break
            start = self.clock()
            draft = self._draft(decoder, live, first_B, h_BTD) if self.speculate else None
            drafted = self.clock()
            first_B = [len(row.text) - 1 for row in live]
            h_BTD, found = self._round(decoder, live, first_B, draft)
            now = self.clock()
            statistics.draft_seconds += drafted - start
            statistics.main_seconds += now - drafted
            statistics.seconds += now - start

    def _read_prompts(self, decoder: Decoder, live: Sequence[Row]) -> tuple[Tensor, list[list[int]]]:
        """-> what the head reads [B, T, D], and each row's first token."""
        last_B = [len(row.text) - 1 for row in live]
        h_BTD = decoder.read(self._tokens(live, [0] * len(live), max(last_B) + 1), [0] * len(live))
        token_B = self._pick(decoder.logits(_at(h_BTD, last_B)), live)
        return h_BTD, [[token] for token in token_B.tolist()]

    def _draft(self, decoder: Decoder, live: Sequence[Row], first_B: Sequence[int], h_BTD: Tensor) -> Draft:
        """Read `h_BTD`, which stands at `first_B` and after, as far as the token after is known. -> what comes next."""
        count_B = [len(row.text) - 1 - first for row, first in zip(live, first_B, strict=True)]
        tokens = max(count_B)
        next_BT = self._tokens(live, [first + 1 for first in first_B], tokens)
        ahead_BTD = decoder.read_ahead(h_BTD[:, :tokens], next_BT, first_B)
        logits_BV = decoder.logits(_at(ahead_BTD, [count - 1 for count in count_B]))
        if self.sampling.greedy:
            return Draft(logits_BV.argmax(-1), None)
        probabilities_BV = distribution(logits_BV, self.sampling)
        return Draft(draw(probabilities_BV, self._uniform(live, 1)[0]), probabilities_BV)

    def _round(
        self, decoder: Decoder, live: Sequence[Row], first_B: Sequence[int], draft: Draft | None
    ) -> tuple[Tensor, list[list[int]]]:
        """One pass of the main model over the last token of each row, and its draft. -> as `_read_prompts`, with two
        tokens where the draft was right."""
        tokens_BT = self._tokens(live, first_B, 1)
        if draft is not None:
            tokens_BT = torch.cat((tokens_BT, draft.token_B.unsqueeze(1)), dim=1)
        h_BTD = decoder.read(tokens_BT, first_B)
        found = self._found(decoder.logits(h_BTD), draft, live)
        self.statistics.accepted += sum(len(one) == 2 for one in found)
        self.statistics.rounds += 1
        self.statistics.row_rounds += len(live)
        return h_BTD, found

    def _found(self, logits_BTV: Tensor, draft: Draft | None, live: Sequence[Row]) -> list[list[int]]:
        """Each row's next token, and the one after where the draft was right."""
        if draft is None:
            return [[token] for token in self._pick(logits_BTV[:, 0], live).tolist()]
        if draft.probabilities_BV is None:
            right = draft.token_B.tolist()
            best = logits_BTV.argmax(-1).tolist()
            return [pair if pair[0] == token else pair[:1] for pair, token in zip(best, right, strict=True)]
        target_BTV, uniform_3B = distribution(logits_BTV, self.sampling), self._uniform(live, 3)
        verdict = verify(target_BTV[:, 0], draft.probabilities_BV, draft.token_B, uniform_3B[:2])
        pairs = torch.stack((verdict.token_B, draw(target_BTV[:, 1], uniform_3B[2])), dim=1).tolist()
        return [pair if ok else pair[:1] for pair, ok in zip(pairs, verdict.accepted_B.tolist(), strict=True)]

    def _pick(self, logits_BV: Tensor, live: Sequence[Row]) -> Tensor:
        """[B] the next token of each row."""
        if self.sampling.greedy:
            return logits_BV.argmax(-1)
        return draw(distribution(logits_BV, self.sampling), self._uniform(live, 1)[0])

    def _uniform(self, live: Sequence[Row], count: int) -> Tensor:
        """[count, B] numbers in [0, 1), each row's from its own generator."""
        drawn = [torch.rand(count, generator=row.chance) for row in live]
        return torch.stack(drawn, dim=1).to(self.device)

    def _tokens(self, live: Sequence[Row], first_B: Sequence[int], tokens: int) -> Tensor:
        """[B, T] from the texts, with 0 beyond their ends."""
        cut = [row.text[first : first + tokens] for row, first in zip(live, first_B, strict=True)]
        padded = [one + [0] * (tokens - len(one)) for one in cut]
        return torch.tensor(padded, device=self.device)

    def _take(self, row: Row, tokens: Sequence[int]) -> list[int]:
        """Append what belongs to the text, and see whether it ends. -> what was appended."""
        new: list[int] = []
        for token in tokens:
            if token == self.end_of_text:
                row.ended = "end of text"
                break
            new.append(token)
            if len(row.text) + len(new) == row.limit:
                row.ended = "context" if row.limit == self.context else "tokens"
                break
        row.text += new
        self.statistics.tokens += len(new)
        self.statistics.later_tokens += len(new) if self.statistics.rounds else 0
        return new


def _at(h_BTD: Tensor, places_B: Sequence[int]) -> Tensor:
    """[B, D] of one place in each row."""
    if min(places_B) == max(places_B):
        return h_BTD[:, places_B[0]]
    return h_BTD[range(len(places_B)), places_B]


def _check(prompts: Sequence[Sequence[int]], context: int) -> None:
    for i, prompt in enumerate(prompts, start=1):
        which = f"prompt {i}" if len(prompts) > 1 else "the prompt"
        if not prompt:
            raise ValueError(f"{which} is empty: give at least one token")
        if len(prompt) >= context:
            raise ValueError(
                f"{which} has {len(prompt)} tokens, but the model's context holds {context}, the new text included: "
                "shorten it"
            )

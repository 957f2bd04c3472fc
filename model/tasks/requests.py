"""Examples to tokens: which tokens are scored, after which context. Follows lm-eval to the token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from model.tasks.example import Example
from model.tasks.task import Task
from model.tokenizer import Tokenizer

FEW_SHOT_SEED = 1234
"""lm-eval's own default, so that the same examples are drawn."""


@dataclass(frozen=True)
class Request:
    """Tokens to score and what stands before them."""

    context: tuple[int, ...]
    """At least one token."""
    continuation: tuple[int, ...]
    """At least one token."""


def task_requests(task: Task, tokenizer: Tokenizer, sequence_length: int) -> list[list[Request]]:
    """For each example its requests, one a choice, or one for a completion.

    ValueError where a continuation alone is longer than the model's `sequence_length`; contexts lose their beginning.
    """
    prefixes = _few_shot_texts(task)
    made = []
    for example, prefix in zip(task.examples, prefixes, strict=True):
        before = example.description + prefix
        pairs = zip(example.contexts, example.continuations, strict=True)
        try:
            made.append([_request(before + context, text, tokenizer, sequence_length) for context, text in pairs])
        except ValueError as error:
            raise ValueError(f"{example.where}: {error}") from None
    return made


def _request(context: str, continuation: str, tokenizer: Tokenizer, sequence_length: int) -> Request:
    before, scored = encode_pair(context, continuation, tokenizer)
    if len(scored) > sequence_length:
        raise ValueError(
            f"a continuation has {len(scored)} tokens, the model's sequence length is {sequence_length}: "
            f"it does not fit ({continuation[:40]!r}...)"
        )
    room = sequence_length + 1 - len(scored)  # the last token is only predicted
    return Request(tuple(before[-room:]), tuple(scored))


def encode_pair(context: str, continuation: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Both are encoded as one text and cut where the context alone would end; spaces at the context's end count to the
    continuation, because in most vocabularies a word's token begins with its space."""
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    if not context:
        tokens = tokenizer.encode(continuation)
        return [tokenizer.end_of_text], tokens
    before = tokenizer.encode(context)
    scored = tokenizer.encode(context + continuation)[len(before) :]
    # swallowed by a merge over the border (lm-eval would fail here): as two texts
    return before, scored or tokenizer.encode(continuation)


def _few_shot_texts(task: Task) -> list[str]:
    """What stands before each example; equal in every call and on every machine."""
    if not task.few_shot:
        return [""] * len(task.examples)
    random = Random(FEW_SHOT_SEED)
    return ["".join(e.solved for e in _few_shot(task, example, random)) for example in task.examples]


def _few_shot(task: Task, example: Example, random: Random) -> Sequence[Example]:
    """Drawn from the pool, never the example itself or one that asks the same."""
    count, pool = task.few_shot, task.pool
    if not task.spare:
        return pool[:count] if task.first_few else random.sample(pool, count)
    if not task.first_few:
        drawn = _others(example, random.sample(pool, min(count + 1, len(pool))))
        if len(drawn) >= count:
            return drawn[:count]
    others = _others(example, pool)
    if len(others) < count:
        raise ValueError(f"{example.where}: only {len(others)} others to show before it, num_fewshot is {count}")
    return others[:count] if task.first_few else random.sample(others, count)


def _others(example: Example, pool: Sequence[Example]) -> list[Example]:
    own = (example.contexts, example.continuations)
    return [other for other in pool if (other.contexts, other.continuations) != own]

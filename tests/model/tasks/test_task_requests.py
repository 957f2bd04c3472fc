"""Which tokens are scored after which, and which examples stand before them."""

from dataclasses import replace
from random import Random

import pytest

from model.tasks.example import Example
from model.tasks.requests import encode_pair, task_requests
from model.tasks.task import Task
from model.tokenizer import Tokenizer

TEXTS = ["the deep river runs to the sea and the stones lie in the river"] * 50


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def example(number: int, question: str = "", choices: tuple[str, ...] = ("left", "right")) -> Example:
    asked = question or f"q{number}:"
    return Example(
        where=f"t.jsonl:{number}",
        description="",
        contexts=(asked,) * len(choices),
        continuations=tuple(f" {choice}" for choice in choices),
        choices=choices,
        gold=0,
        solved=f"{asked} {choices[0]}\n\n",
    )


def task(*examples: Example, shots: int = 0, pool: tuple[Example, ...] = (), spare: bool = False) -> Task:
    return Task("t", "multiple_choice", ("acc",), examples, shots, pool, spare)


def texts(tokenizer: Tokenizer, task: Task, length: int = 500) -> list[str]:
    """Of each example, the context of its first request."""
    return [tokenizer.decode(own[0].context) for own in task_requests(task, tokenizer, length)]


# ------------------------------------------------------------------- tokens
def test_both_are_encoded_as_one_text(tokenizer: Tokenizer) -> None:
    before, scored = encode_pair("the deep", " river", tokenizer)
    assert before == tokenizer.encode("the deep")
    assert scored == tokenizer.encode(" river")
    assert len(scored) == 1, "the vocabulary has the word with its space"


@pytest.mark.parametrize("space", [" ", "  ", "\n", " \n "])
def test_space_at_the_end_of_the_context_counts_to_the_continuation(tokenizer: Tokenizer, space: str) -> None:
    before, scored = encode_pair(f"the deep{space}", "river", tokenizer)
    assert before == tokenizer.encode("the deep")
    assert tokenizer.decode(scored) == f"{space}river"
    if space == " ":
        assert len(scored) == 1


def test_without_a_context_end_of_text_stands_there(tokenizer: Tokenizer) -> None:
    for nothing in ("", " "):
        before, scored = encode_pair(nothing, "river", tokenizer)
        assert before == [tokenizer.end_of_text]
        assert tokenizer.decode(scored) == f"{nothing}river"


def test_a_merge_over_the_border_is_cut_by_the_contexts_count(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode(" river")) == 1
    before, scored = encode_pair("the ri", "ver", tokenizer)  # together: "the", " river"
    assert len(tokenizer.encode("the ri")) > len(tokenizer.encode("the river"))
    assert before == tokenizer.encode("the ri")
    assert scored == tokenizer.encode("ver"), "swallowed: as two texts"
    before, scored = encode_pair("the ri", "ver runs to the sea", tokenizer)
    assert scored == tokenizer.encode("the river runs to the sea")[len(before) :]
    assert scored != tokenizer.encode("ver runs to the sea")


def test_long_contexts_lose_their_beginning(tokenizer: Tokenizer) -> None:
    one = task(example(1, question="the deep river runs to the sea:"))
    whole = task_requests(one, tokenizer, 500)[0][0]
    for length in (len(whole.context) + len(whole.continuation) - 1, len(whole.continuation) + 2):
        cut = task_requests(one, tokenizer, length)[0][0]
        assert cut.continuation == whole.continuation
        # the last token of the window is predicted only
        assert cut.context == whole.context[-(length + 1 - len(whole.continuation)) :]
        assert len(cut.context) + len(cut.continuation) == length + 1
    least = task_requests(one, tokenizer, len(whole.continuation))[0][0]
    assert least.context == whole.context[-1:]


def test_a_continuation_that_does_not_fit(tokenizer: Tokenizer) -> None:
    one = task(example(7, choices=("a", "bcdfghjklm")))
    with pytest.raises(ValueError, match=r"t\.jsonl:7: a continuation has 11 tokens, .* length is 10: it does not fit"):
        task_requests(one, tokenizer, 10)
    assert len(task_requests(one, tokenizer, 11)[0]) == 2


# ------------------------------------------------------------------- few-shot
POOL = tuple(example(i) for i in range(100, 120))


def test_examples_are_drawn_the_same_in_every_call_and_differ(tokenizer: Tokenizer) -> None:
    one = task(*(example(i) for i in range(10)), shots=3, pool=POOL)
    found = texts(tokenizer, one)
    assert found == texts(tokenizer, one)
    assert len(set(found)) == 10
    for number, text in enumerate(found):
        *shots, asked = text.split("\n\n")
        assert asked == f"q{number}:"
        assert len(set(shots)) == 3
        assert all(shot.endswith(" left") and shot.startswith("q1") for shot in shots)
    assert len({text.split("\n\n")[0] for text in found}) > 3


@pytest.mark.parametrize("spare", [False, True])
def test_the_draws_are_those_of_lm_eval(tokenizer: Tokenizer, spare: bool) -> None:
    """One generator for all documents; one more is drawn where the document itself may be among them."""
    random = Random(1234)
    for one, text in zip(POOL, texts(tokenizer, task(*POOL, shots=2, pool=POOL, spare=spare)), strict=True):
        drawn = [other for other in random.sample(POOL, 2 + spare) if not spare or other is not one]
        assert text == "".join(other.solved for other in drawn[:2]) + one.contexts[0]


def test_the_first_few(tokenizer: Tokenizer) -> None:
    one = replace(task(example(1), example(2), shots=2, pool=POOL), first_few=True)
    assert texts(tokenizer, one) == [f"q100: left\n\nq101: left\n\nq{i}:" for i in (1, 2)]
    own = replace(task(*POOL, shots=2, pool=POOL, spare=True), first_few=True)
    assert texts(tokenizer, own)[:2] == ["q101: left\n\nq102: left\n\nq100:", "q100: left\n\nq102: left\n\nq101:"]


def test_no_example_stands_before_itself_or_its_double(tokenizer: Tokenizer) -> None:
    doubled = (*POOL[:3], example(102))
    for pool, shots in ((POOL, 5), (POOL[:4], 3), (doubled, 2)):
        for one, text in zip(pool, texts(tokenizer, task(*pool, shots=shots, pool=pool, spare=True)), strict=True):
            *others, asked = text.split("\n\n")
            assert len(others) == shots
            assert asked == one.contexts[0]
            assert f"{asked} left" not in others
    with pytest.raises(ValueError, match=r"t\.jsonl:102: only 2 others to show before it, num_fewshot is 3"):
        task_requests(task(*doubled, shots=3, pool=doubled, spare=True), tokenizer, 500)


def test_the_description_stands_before_everything(tokenizer: Tokenizer) -> None:
    described = replace(example(1), description="Tell. ")
    assert texts(tokenizer, replace(task(described, shots=1, pool=POOL[:1]))) == ["Tell. q100: left\n\nq1:"]

"""Metrics by hand, the table, and all parts together."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from support.recipes import TINY, tiny_recipe

from model.tasks.engines import PlainEngine, process_group, single
from model.tasks.evaluation import evaluate_tasks, prepare_tasks, score_tasks, tables
from model.tasks.example import Example
from model.tasks.results import task_metrics, task_table
from model.tasks.score import Score
from model.tasks.task import Task, load_tasks
from model.tokenizer import Tokenizer
from model.transformer import CausalLM


def choice(gold: int, *choices: str) -> Example:
    return Example("t:1", "", ("q",) * len(choices), tuple(f" {c}" for c in choices), choices, gold, "")


def completion(context: str = "q") -> Example:
    return Example("t:2", "", (context,), (" x",), (), None, "")


def scored(*logprobs: float, greedy: bool = False) -> list[Score]:
    return [Score(value, greedy) for value in logprobs]


def test_accuracy_and_accuracy_by_length() -> None:
    examples = (choice(0, "ab", "abcd"), choice(1, "ab", "abcd"), choice(0, "é", "xx"), choice(1, "a", "b"))
    task = Task("x", "multiple_choice", ("acc", "acc_norm"), examples)
    # by sum:       0 (right)          0 (wrong)           1 (wrong)          0, the first of equals (wrong)
    # by character: 1 (wrong)          1 (right)           0: -3 and -1.45... -> 1 (wrong)
    scores = [scored(-4.0, -6.0), scored(-4.0, -6.0), scored(-3.0, -2.9), scored(-1.0, -1.0)]
    metrics = task_metrics(task, scores)
    assert metrics == {
        "eval/x/acc": 0.25,
        "eval/x/acc_stderr": pytest.approx(math.sqrt((3 * 0.25**2 + 0.75**2) / 3) / 2),
        "eval/x/acc_norm": 0.25,
        "eval/x/acc_norm_stderr": pytest.approx(0.25),
        "eval/x/examples": 4.0,
    }


def test_length_is_in_characters() -> None:
    task = Task("x", "multiple_choice", ("acc_norm",), (choice(0, "éé", "abc"),))
    # in characters -1.5 beats -1.6; in bytes -0.75 would, too, but -2.4 / 2 would lose against -4.5 / 3
    assert task_metrics(task, [scored(-3.0, -4.8)])["eval/x/acc_norm"] == 1.0
    assert task_metrics(task, [scored(-3.4, -4.8)])["eval/x/acc_norm"] == 0.0


def test_completions() -> None:
    task = Task("x", "completion", ("perplexity", "acc"), (completion(),) * 3)
    metrics = task_metrics(task, [scored(-1.0, greedy=True), scored(-2.0), scored(-6.0)])
    assert metrics["eval/x/perplexity"] == pytest.approx(math.exp(3.0))
    assert metrics["eval/x/acc"] == pytest.approx(1 / 3)
    assert metrics["eval/x/acc_stderr"] == pytest.approx(1 / 3)


def test_the_error_of_the_perplexity_is_that_of_resampling() -> None:
    logs = np.random.default_rng(1).normal(-2, 0.3, 400)
    task = Task("x", "completion", ("perplexity",), (completion(),) * 400)
    found = task_metrics(task, [scored(float(value)) for value in logs])
    # to first order: perplexity times the standard error of the mean
    assert found["eval/x/perplexity_stderr"] == pytest.approx(
        found["eval/x/perplexity"] * logs.std(ddof=1) / 20, rel=0.1
    )


def test_one_example_has_no_error_and_extremes_do_not_stop_it() -> None:
    task = Task("x", "completion", ("perplexity", "acc"), (completion(),))
    assert task_metrics(task, [scored(-1e9)]) == {
        "eval/x/perplexity": math.inf, "eval/x/acc": 0.0, "eval/x/examples": 1.0
    }  # fmt: skip


def test_the_table_is_json_and_clipped() -> None:
    task = Task("x", "completion", ("acc",), (completion("y" * 500 + "END"), choice(1, "ab", "abcd")))
    rows = task_table(task, [scored(-math.inf, greedy=True), scored(-4.0, -6.0)])
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[0]["context"].endswith("yEND")
    assert len(rows[0]["context"]) == 203
    assert (rows[0]["target"], rows[0]["greedy"], rows[0]["logprobs"]) == (" x", True, [None])
    assert [rows[1][name] for name in ("choices", "gold", "chosen", "chosen_normalised", "logprobs")] == [
        ["ab", "abcd"], 1, 0, 1, [-4.0, -6.0]
    ]  # fmt: skip


def test_all_together(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a river runs"], 257)
    model = CausalLM(TINY.model_copy(update={"vocab_size": 257}))
    model.initialise(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    engine = PlainEngine(model, tiny_recipe())
    (tmp_path / "c.jsonl").write_text('{"query": "a", "choices": ["x", "yz"], "gold": 1}\n' * 2)
    (tmp_path / "l.jsonl").write_text('{"text": "a b c"}\n')
    tasks = load_tasks([str(tmp_path / "c.jsonl"), str(tmp_path / "l.jsonl")])
    metrics = evaluate_tasks(engine, tasks, tokenizer, 16, 2)
    prepared = prepare_tasks(tasks, tokenizer, 16)
    scores = score_tasks(engine, prepared, 16, 3, tokenizer.end_of_text)
    assert [[len(own) for own in task] for task in scores] == [[2, 2], [1]]
    window = torch.tensor([list(b"a b c")])
    ids = torch.tensor([tokenizer.encode("a b c")])
    assert ids.shape == window.shape
    with torch.no_grad():
        logs = model(ids[:, :-1]).logits[0][0].log_softmax(-1)
    expected = float(logs[2, ids[0, 3]] + logs[3, ids[0, 4]])
    assert metrics["eval/l/perplexity"] == pytest.approx(math.exp(-expected), rel=1e-4)
    made = tables(prepared, scores)
    assert [row["example"].rsplit("/", 1)[1] for row in made["c"]] == ["c.jsonl:1", "c.jsonl:2"]
    assert metrics["eval/c/acc"] == float(made["c"][0]["chosen"] == 1)


def test_documents_are_isolated_where_the_recipe_says_so() -> None:
    model = CausalLM(TINY)
    model.initialise(0)
    window = torch.tensor([[5, 6, 9, 7, 8, 3], [1, 2, 9, 7, 8, 3]])
    joined, apart = (
        PlainEngine(model, tiny_recipe(isolate_documents=flag, end_of_text=9)).evaluate(window, 0)[0]
        for flag in (False, True)
    )
    assert torch.allclose(apart[0, 3:], apart[1, 3:], atol=1e-6)
    assert not torch.allclose(joined[0, 3:], joined[1, 3:], atol=1e-4)


def test_one_process_is_a_group_and_no_more_afterwards() -> None:
    with process_group(), process_group():
        ones = torch.ones(2)
        torch.distributed.all_reduce(ones)
        assert torch.distributed.get_world_size() == 1
        assert ones.tolist() == [1, 1]
    assert not torch.distributed.is_initialized()


def test_a_recipe_for_one_process() -> None:
    layout = tiny_recipe().layout.model_copy(update={"world_size": 4, "expert_parallel": 2, "zero_stage": 2})
    one = single(tiny_recipe(layout=layout)).layout
    assert (one.world_size, one.expert_parallel, one.zero_stage) == (1, 1, 2)

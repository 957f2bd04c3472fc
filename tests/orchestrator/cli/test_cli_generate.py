"""`fathom generate`: what it prints, where it stops, and what it refuses."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.cli import Cli, command
from support.recipes import TINY, tiny_recipe
from support.runs import resolved, tiny_job

from model.generate import Sampling, Writer, generate
from model.recipe import Checkpointing
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import write_weights
from orchestrator.controller.record import Record
from orchestrator.launch.resolve import JobRef

TOKENIZER = Tokenizer.train(["seven stones lie in the river"], MIN_VOCAB + 10)
MODEL = TINY.replace(vocab_size=TOKENIZER.vocab_size + 5, max_position_embeddings=64)
"""A few tokens more than the tokenizer knows, as released models have."""


def write_model(folder: Path, **changes: Any) -> CausalLM:  # noqa: ANN401 - field values
    model = CausalLM(MODEL.replace(**changes))
    model.initialise(4)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        model.lm_head.weight[TOKENIZER.vocab_size :] *= 10  # numbers without a text would be the best ones
    tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "bias" in n)]
    write_weights(str(folder), model.config, tensors, TOKENIZER.to_json(), write=True)
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.vocab_size :] = 0
    return model


@pytest.fixture
def model(tmp_path: Path) -> CausalLM:
    return write_model(tmp_path / "weights")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return command("generate", monkeypatch, capsys)


def expected(model: CausalLM, prompt: str, tokens: int, sampling: Sampling | None = None) -> str:
    """In the tokenizer's numbers only."""
    start = TOKENIZER.encode(prompt) or [TOKENIZER.end_of_text]
    size = TOKENIZER.vocab_size
    writer = Writer(
        model, [start], tokens=tokens, sampling=sampling or Sampling(0), end_of_text=TOKENIZER.end_of_text,
        vocabulary=size,
    )  # fmt: skip
    return TOKENIZER.decode(token for _, new in writer for token in new)


def test_text_to_stdout_figures_to_stderr(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    code, out, err = cli(tmp_path, "--prompt", "seven", "--tokens", 20, "--temperature", 0)
    assert code == 0
    assert out == expected(model, "seven", 20) + "\n"
    assert "20 tokens after" in err
    assert "drafts accepted" in err
    plain = cli(tmp_path / "weights", "--prompt", "seven", "--tokens", 20, "--temperature", 0, "--no-speculate")
    assert plain[:2] == (0, out)
    assert "drafts" not in plain[2]


def test_options_reach_the_sampling(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    options = ("--temperature", 1.5, "--top-k", 7, "--top-p", 0.9, "--seed", 5, "--no-speculate")
    _, out, _ = cli(tmp_path, "-p", "the", "--tokens", 12, *options)
    assert out == expected(model, "the", 12, Sampling(1.5, 7, 0.9, 5)) + "\n"


def test_an_empty_prompt_begins_a_text(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    _, out, _ = cli(tmp_path, "-p", "", "--tokens", 8, "--temperature", 0)
    assert out == expected(model, "", 8) + "\n"


def test_stdin(cli: Cli, tmp_path: Path, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"stones\n")))
    _, out, _ = cli(tmp_path, "-p", "-", "--tokens", 8, "--temperature", 0)
    assert out == expected(model, "stones\n", 8) + "\n"


def test_prompts_that_are_no_text(cli: Cli, tmp_path: Path, model: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    (tmp_path / "half.jsonl").write_text('"\\ud800"\n')
    for words, arguments in {
        "the prompt on stdin is not UTF-8": ("-p", "-"),
        "--prompt is no text in UTF-8": ("-p", "a\udcff"),
        "--stop is no text in UTF-8": ("-p", "a", "--stop", "\udcff"),
        "half.jsonl:1 is no text in UTF-8": ("--prompts-file", tmp_path / "half.jsonl"),
    }.items():
        code, out, err = cli(tmp_path, *arguments)
        assert (code, out) == (2, "")
        assert words in " ".join(err.split())


def test_only_newlines_end_a_prompt(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    lines, rows = tmp_path / "more.txt", tmp_path / "more.jsonl"
    lines.write_bytes("a\u2028b\fc\r\nd".encode())
    rows.write_text('"a\u2028b"\n', encoding="utf-8")
    for file, prompts in ((lines, ["a\u2028b\fc", "d"]), (rows, ["a\u2028b"])):
        _, out, _ = cli(tmp_path, "--prompts-file", file, "--tokens", 1, "-o", "json")
        assert [text["prompt"] for text in json.loads(out)["texts"]] == prompts


def test_weights_without_their_index_are_none_yet(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    (tmp_path / "weights" / "model.safetensors.index.json").unlink()
    for source in (tmp_path, tmp_path / "weights"):
        code, _, err = cli(source, "-p", "x")
        assert code == 3
        assert f"no weights in {source} or {source}/weights" in " ".join(err.split())


def test_several_prompts_for_programs(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    lines, rows = tmp_path / "more.txt", tmp_path / "more.jsonl"
    lines.write_text("stones lie\nriver\n")
    rows.write_text(json.dumps("two\nlines") + "\n")
    ask = ("-p", "seven", "--tokens", 10, "--temperature", 0, "-o", "json")
    code, out, _ = cli(tmp_path, *ask, "--prompts-file", lines)
    assert code == 0
    found = json.loads(out)
    assert found["source"] == str(tmp_path / "weights")
    prompts = ["seven", "stones lie", "river"]
    assert [t["prompt"] for t in found["texts"]] == prompts
    assert [t["text"] for t in found["texts"]] == [expected(model, p, 10) for p in prompts]
    assert {t["ended"] for t in found["texts"]} == {"tokens"}
    statistics = found["statistics"]
    assert statistics["tokens"] == 30
    assert 1 <= statistics["tokensPerPass"] <= 2
    assert statistics["bound"] == pytest.approx((1 + statistics["acceptance"]) / (1 + statistics["draftCost"]))
    _, out, _ = cli(tmp_path, *ask, "--prompts-file", rows)
    assert json.loads(out)["texts"][1]["text"] == expected(model, "two\nlines", 10)


def test_several_prompts_for_people(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    _, out, _ = cli(tmp_path, "-p", "seven", "-p", "a\nriver", "--tokens", 5, "--temperature", 0)
    first, second = expected(model, "seven", 5), expected(model, "a\nriver", 5)
    assert out == f"==> 1: seven <==\n{first}\n==> 2: river <==\n{second}\n"


def test_stop_strings(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    whole = expected(model, "seven", 20)
    stop = whole[5:8]
    assert "�" not in stop
    _, out, _ = cli(tmp_path, "-p", "seven", "--tokens", 20, "--temperature", 0, "--stop", "nowhere", "--stop", stop)
    assert out == whole[: whole.index(stop)] + "\n"
    _, out, _ = cli(tmp_path, "-p", "seven", "--tokens", 20, "--temperature", 0, "--stop", stop, "-o", "json")
    assert json.loads(out)["texts"][0]["ended"] == "stop string"
    assert json.loads(out)["statistics"]["tokens"] < 20


def test_the_context_ends_the_text_and_it_says_so(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    start = TOKENIZER.encode("seven")
    code, out, err = cli(tmp_path, "-p", "seven", "--tokens", 500, "--temperature", 0)
    assert (code, out) == (0, expected(model, "seven", 64 - len(start)) + "\n")
    assert "context (64 tokens) was full" in err


def test_compared_with_plain_decoding(cli: Cli, tmp_path: Path, model: CausalLM) -> None:
    code, out, err = cli(tmp_path, "-p", "seven", "--tokens", 12, "--temperature", 0, "--compare")
    assert (code, out) == (0, expected(model, "seven", 12) + "\n")
    assert "times plain decoding" in err
    assert "the same text" in err
    statistics = json.loads(cli(tmp_path, "-p", "seven", "--tokens", 12, "--compare", "-o", "json")[1])["statistics"]
    speeds = statistics["tokensPerSecond"], statistics["plainTokensPerSecond"]
    assert statistics["speedup"] == pytest.approx(speeds[0] / speeds[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_what_was_written(
    cli: Cli, tmp_path: Path, model: CausalLM, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    rounds = 0

    def interrupted(self: Writer, *arguments: Any) -> Any:  # noqa: ANN401
        nonlocal rounds
        rounds += 1
        if rounds == 4:
            signal.raise_signal(number)
        return plain(self, *arguments)

    plain, handler = Writer._round, signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(Writer, "_round", interrupted)
    usual = signal.getsignal(number)
    code, out, err = cli(tmp_path, "-p", "seven", "--tokens", 12, "--temperature", 0, "--no-speculate")
    assert (code, out) == (130, expected_beginning(model) + "\n")
    assert "4 tokens after" in err
    assert "Traceback" not in err
    rounds = 0
    code, out, _ = cli(tmp_path, "-p", "seven", "--tokens", 12, "--temperature", 0, "--no-speculate", "-o", "json")
    assert code == 130
    assert json.loads(out)["texts"][0] == {"prompt": "seven", "text": expected_beginning(model), "ended": "interrupted"}
    assert signal.getsignal(number) == usual
    signal.signal(signal.SIGINT, handler)


def test_a_signal_while_the_model_is_read(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path / "weights")
    monkeypatch.setattr("model.weights.read_model", lambda *_: signal.raise_signal(signal.SIGTERM))
    assert cli(tmp_path, "-p", "seven") == (130, "", "error: stopped before anything was written\n")


def expected_beginning(model: CausalLM) -> str:
    tokens = generate(model, TOKENIZER.encode("seven"), tokens=4)
    return TOKENIZER.decode(tokens)


def test_without_a_prediction_module(cli: Cli, tmp_path: Path) -> None:
    model = write_model(tmp_path, num_nextn_predict_layers=0)
    ask = (tmp_path, "-p", "seven", "--tokens", 5, "--temperature", 0)
    code, out, err = cli(*ask)
    assert (code, out) == (0, expected(model, "seven", 5) + "\n")
    assert "drafts" not in err
    code, out, err = cli(*ask, "--speculate")
    assert (code, out) == (2, "")
    assert "no prediction module" in err
    code, out, err = cli(*ask, "--compare")
    assert (code, out) == (2, "")
    assert "--compare needs" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no prompt"),
        (["-p", "x" * 64], 2, "has 64 tokens, but the model's context holds 64"),
        (["-p", "x", "--stop", ""], 2, "stop string is empty"),
        (["-p", "x", "--top-p", "0"], 2, "top_p must be above 0"),
        (["-p", "x", "--prompts-file", "none.txt"], 2, "none.txt cannot be read: No such file"),
        (["-p", "x", "--prompts-file", "bad.jsonl"], 2, "bad.jsonl:2: a JSON text was expected"),
        (["-p", "x", "--step", "3"], 2, "folder of weights"),
    ],
)
def test_mistakes(
    cli: Cli,
    tmp_path: Path,
    model: CausalLM,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.jsonl").write_text('"fine"\n{"query": 5}\n')
    found, out, err = cli("weights", *arguments)
    assert (found, out) == (code, "")
    assert words in " ".join(err.split())


def test_a_run_without_anything_to_write_with(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path / "runs"))
    record = Record.create(tmp_path / "runs", tiny_job())
    code, _, err = cli(record.folder.root, "-p", "x")
    assert code == 3
    assert "none of its attempts was ever started" in err
    recipe = tiny_recipe(
        model=MODEL, checkpoint=Checkpointing(uri=str(record.folder.root), interval_seconds=60, keep=2)
    )
    job = JobRef(namespace="default", name="tiny", uid=record.uid)
    one = resolved(storage=str(record.folder.root), job=job, recipe=recipe)
    record.folder.resolved(1).write_text(one.model_dump_json())
    from orchestrator.settings import Settings

    Settings.load().signing_key()
    code, _, err = cli(record.folder.root, "-p", "x", "--step", 7)
    assert code == 3
    assert "no checkpoint of step 7" in " ".join(err.split())
    code, _, err = cli(record.folder.root, "-p", "x")
    assert code == 3
    assert "neither final weights nor a checkpoint" in " ".join(err.split())

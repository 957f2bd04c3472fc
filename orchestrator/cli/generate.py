"""`fathom generate`: let a trained model write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.loaded import load, require_source
from orchestrator.cli.talking import remark, stoppable
from orchestrator.cli.writing import Writing, content, print_texts, report
from orchestrator.errors import Interrupted, UsageError


class Format(StrEnum):
    """How the result is printed."""

    text = "text"
    json = "json"


def generate_command(
    source: Annotated[Path, typer.Argument(help="A run's folder, or a folder of weights.")],
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="Text to go on from; '-' reads it from stdin. Repeatable."),
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option(help="More prompts: one per line, or .jsonl with a JSON text per line.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="New tokens per text at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 takes the best token always.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many best tokens; 0: from all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Of these, from the best that reach this share together.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="Equal seeds write equal text.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text. Repeatable.")] = None,
    speculate: Annotated[
        bool | None,
        typer.Option(
            "--speculate/--no-speculate",
            help="Two tokens at a time, by the model's MTP module. Left out: if it has one.",
        ),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Write it without speculation too, in turns.")] = False,
    step: Annotated[int | None, typer.Option(min=0, help="Take this checkpoint, not the final weights.")] = None,
    output: Annotated[Format, typer.Option("--output", "-o", help="How to print.")] = Format.text,
) -> None:
    """Continue prompts with a trained model; prints the continuations only, and how fast they came to stderr.

    Several prompts are written at once. An empty prompt begins a new text.

    Example: fathom generate runs/mini-20260101-120000 --prompt 'def '
    """
    prompts, stops = _prompts(prompt or [], prompts_file), [_text("--stop", one) for one in stop or ()]
    require_source(source)
    with stoppable("stopped before anything was written"):
        from model.generate import Prepared, Sampling, TextStream, Writer

        try:
            sampling = Sampling(temperature, top_k, top_p, seed)
        except ValueError as error:
            raise UsageError(str(error)) from error
        model, tokenizer, where = load(source, step, remark)
        ahead = model.config.num_nextn_predict_layers > 0 if speculate is None else speculate
        if compare and not ahead:
            raise UsageError("--compare needs speculation, and a model with a prediction module (MTP)")

        prepared = Prepared(model)

        def writer(speculates: bool) -> Writing:
            starts = [tokenizer.encode(text) or [tokenizer.end_of_text] for text in prompts]
            one = Writer(
                prepared,
                starts,
                tokens=tokens,
                sampling=sampling,
                speculate=speculates,
                end_of_text=tokenizer.end_of_text,
                vocabulary=tokenizer.vocab_size,
            )
            return Writing(one, [TextStream(tokenizer, stops) for _ in prompts])

        try:
            written, plain = writer(ahead), writer(False) if compare else None
        except ValueError as error:
            raise UsageError(str(error)) from error
        written.run(sys.stdout if output is Format.text and len(prompts) == 1 else None, beside=plain)
        if output is Format.json:
            print(json.dumps(content(where, prompts, written, plain), indent=1))
        elif len(prompts) > 1:
            print_texts(prompts, written.texts)
        report(written, plain, remark)
        if written.interrupted:
            raise Interrupted("stopped; what was written until then is whole")


def _prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """UsageError where there is none, or the file is not as it should be."""
    prompts = [_stdin() if one == "-" else _text("--prompt", one) for one in given]
    if file is not None:
        try:
            with file.open(encoding="utf-8", newline="\n") as stream:  # no other character ends a line
                lines = [line.removesuffix("\n").removesuffix("\r") for line in stream]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        prompts += [_from_json(file, i, line) if file.suffix == ".jsonl" else line for i, line in enumerate(lines, 1)]
    if not prompts:
        raise UsageError("no prompt: give --prompt TEXT or --prompts-file FILE")
    return prompts


def _stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"the prompt on stdin is not UTF-8: {error}") from None


def _text(what: str, given: str) -> str:
    """Arguments that are not UTF-8, and halves of characters, come as surrogates."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is no text in UTF-8: {error.reason} at character {error.start}") from None
    return given


def _from_json(file: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise UsageError(f'{file}:{number}: a JSON text was expected, such as "def "; got {line[:60]}')
    return _text(f"{file}:{number}", value)

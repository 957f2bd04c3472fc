"""`fathom generate`: let a trained model write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.errors import NotFound, UsageError


def generate_command(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder of weights.")],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to go on from; '-' reads it from stdin.")],
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens to write at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, max=10, help="0 takes the best token always.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Draw from so many best tokens; 0: from all.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds write equal text.")] = 0,
) -> None:
    """Continue a prompt with a trained model; prints the continuation only.

    Example: fathom generate runs/mini-20260101-120000 --prompt 'def '
    """
    folder = _weights_folder(run)
    text = sys.stdin.read() if prompt == "-" else prompt
    from model.generate import generate
    from model.weights import read_model

    try:
        model, tokenizer = read_model(str(folder))
        start = tokenizer.encode(text) or [tokenizer.end_of_text]
        out = generate(
            model,
            start,
            tokens=tokens,
            context=model.config.max_position_embeddings,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            stop=tokenizer.end_of_text,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(tokenizer.decode(out))


def _weights_folder(run: Path) -> Path:
    for folder in (run, run / "weights"):
        if (folder / "config.json").exists():
            return folder
    raise NotFound(
        f"no weights in {run} or {run}/weights: they are written when a run succeeds "
        f"(`fathom train --resume {run}` goes on with an unfinished one)"
    )

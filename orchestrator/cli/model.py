"""`fathom model`: the parameters, FLOPs and bytes of a preset or of a released `config.json`.

Registered by `orchestrator.cli.main`. Data goes to stdout only; the JSON and YAML hold exact integers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.output import Output, OutputOption, for_programs
from orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from model.config import ModelConfig


def model_command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME_OR_PATH]",
            help="A preset, a config.json of the DeepSeek family, or its folder. Left out: list the presets.",
        ),
    ] = None,
    sequence_length: Annotated[
        int,
        typer.Option("--sequence-length", min=1, max=100_000_000, help="Tokens per sequence, for the FLOPs."),
    ] = 4096,
    output: OutputOption = Output.table,
) -> None:
    """Show a model's parameters, FLOPs per token and memory, exactly.

    Example: fathom model v3-671b --sequence-length 4096
    """
    if name is None:
        presets = list_presets()
        _print(presets, output, lambda: _presets_table(presets), [row["name"] for row in presets])
        return
    config = find_model(name)
    try:
        report = describe(name, config, sequence_length)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    _print(report, output, lambda: _report_table(report), [name])


def find_model(name: str) -> ModelConfig:
    """The architecture of a preset, a `config.json` or a folder with one.

    A preset wins over a file of the same name; write ./NAME for the file.
    """
    from model.presets import PRESETS, preset
    from model.released import read_released

    if name in PRESETS:
        return preset(name)
    try:
        if Path(name).exists() or "/" in name or name.endswith(".json"):
            return read_released(name)
    except FileNotFoundError as error:
        raise NotFound(str(error)) from error
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    near = get_close_matches(name.lower(), PRESETS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"presets: {', '.join(PRESETS)}"
    raise UsageError(f"there is no preset and no file {name!r}; {hint}")


def list_presets() -> list[dict[str, Any]]:
    """Name, parameters and first paragraph of description of every preset."""
    from model.flops import count
    from model.presets import PRESETS

    rows = []
    for name, make in PRESETS.items():
        counts = count(make())
        text = " ".join((make.__doc__ or "").split("\n\n")[0].split())
        rows.append(
            {
                "name": name,
                "total": counts.total,
                "active": counts.active,
                "mtp": counts.mtp,
                "description": text,
            }
        )
    return rows


def describe(name: str, config: ModelConfig, sequence_length: int) -> dict[str, Any]:
    """Everything that is printed about a model, as plain values.

    FLOPs are rounded to integers (they are whole unless an indexer cuts a sequence); what needs MTP is null
    where there is none.
    """
    from model import flops

    counts, storage = flops.count(config), flops.released_storage(config)
    depth = config.num_nextn_predict_layers

    def work(causal: bool, mtp: bool) -> int | None:
        if mtp and not depth:
            return None
        return round(flops.flops_per_token(config, sequence_length, causal=causal, mtp=mtp))

    return {
        "name": name,
        "config": config.model_dump(mode="json"),
        "parameters": {_camel(key): value for key, value in asdict(counts).items()},
        "flopsPerToken": {
            "sequenceLength": sequence_length,
            "sixN": 6 * counts.matmul,
            "causal": work(True, False),
            "nonCausal": work(False, False),
            "causalWithMtp": work(True, True),
            "nonCausalWithMtp": work(False, True),
        },
        "cacheBytesPerToken": {
            "latent": flops.cache_bytes_per_token(config),
            "plainAttention": flops.plain_cache_bytes_per_token(config),
        },
        "weightBytes": {
            "bf16": 2 * counts.total,
            "bf16WithMtp": 2 * (counts.total + counts.mtp) if depth else None,
            "fp8Released": storage.bytes,
        },
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


def _print(data: Any, output: Output, table: Callable[[], Table], names: Sequence[str]) -> None:  # noqa: ANN401 - JSON
    if not for_programs(data, output, names):
        from rich.console import Console

        Console(file=sys.stdout).print(table())


def short(value: float, unit: str = "") -> str:
    """A number of any size for people, with decimal prefixes; without a unit the field's own: "671.0 B"."""
    prefix = ""
    for prefix in ("", "k", "M", "G" if unit else "B", "T", "P"):
        if abs(value) < 999.95 or prefix == "P":
            break
        value /= 1000
    digits = f"{value:.1f}" if prefix else f"{value:g}"
    return f"{digits} {prefix}{unit}".rstrip()


def _presets_table(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("PRESET", "TOTAL", "ACTIVE", "MTP", "DESCRIPTION"):
        table.add_column(
            heading,
            justify="right" if heading in ("TOTAL", "ACTIVE", "MTP") else "left",
            no_wrap=heading != "DESCRIPTION",
        )
    for row in rows:
        mtp = short(row["mtp"]) if row["mtp"] else "-"
        table.add_row(row["name"], short(row["total"]), short(row["active"]), mtp, row["description"])
    return table


_PARTS = (
    ("total", "total"),
    ("active", "active per token"),
    ("activeWithoutEmbedding", "active, without embedding"),
    ("activeWithoutEmbeddingAndHead", "active, without embedding and head"),
    ("mtp", "MTP modules (added)"),
    ("mtpShipped", "MTP modules as released (own embedding, head)"),
    ("embedding", "embedding"),
    ("head", "output head"),
    ("attention", "attention"),
    ("indexer", "sparse-attention indexer"),
    ("denseFfn", "dense feed-forward"),
    ("routedExperts", "routed experts"),
    ("sharedExperts", "shared experts"),
    ("routers", "routers"),
    ("norms", "norms"),
    ("routerBias", "router biases (buffers, not in total)"),
    ("expert", "one routed expert"),
    ("denseLayer", "one dense layer"),
    ("moeLayer", "one MoE layer"),
)
_WORK = (
    ("sixN", "6N, without attention scores"),
    ("causal", "causal"),
    ("nonCausal", "non-causal"),
    ("causalWithMtp", "causal, with MTP"),
    ("nonCausalWithMtp", "non-causal, with MTP"),
)
_CACHE = (("latent", "latent (BF16)"), ("plainAttention", "plain attention, same heads (BF16)"))
_WEIGHTS = (
    ("bf16", "BF16"),
    ("bf16WithMtp", "BF16, with MTP"),
    ("fp8Released", "FP8 files in the released layout, all modules"),
)


def _report_table(report: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text  # a path is text: its brackets are no markup

    length = report["flopsPerToken"]["sequenceLength"]
    table = Table(box=None, pad_edge=False, header_style="bold", title=Text(report["name"]), title_justify="left")
    table.add_column("")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("EXACT", justify="right", no_wrap=True)
    sections = (
        ("Parameters", "parameters", _PARTS, ""),
        (f"Training FLOPs per token, sequences of {length:,}", "flopsPerToken", _WORK, "FLOP"),
        ("Cache per token in generation", "cacheBytesPerToken", _CACHE, "B"),
        ("Weights", "weightBytes", _WEIGHTS, "B"),
    )
    for index, (heading, key, labels, unit) in enumerate(sections):
        if index:
            table.add_row()
        table.add_row(heading, style="bold")
        for field, label in labels:
            value = report[key][field]
            if value:  # parts that this model does not have would only be noise
                table.add_row(f"  {label}", short(value, unit), f"{value:,}")
    return table

"""Why runs may not be comparable. Pure. Every caution names the runs, both values, and what can be compared instead."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from orchestrator.compare.document import Caution
from orchestrator.compare.facts import RunFacts
from orchestrator.compare.measures import BITS, unit_of

_SHOWN = 12
"""Characters of a digest."""


def cautions_of(runs: Sequence[RunFacts], names: Sequence[str], metric: str) -> list[Caution]:
    """In the order of their weight."""
    found = [
        *_missing(runs, names, metric),
        *_data(runs, names, metric),
        *_currencies(runs, names),
        *_prices(runs, names),
        *_evaluation(runs, names, metric),
        *_phases(runs, names),
    ]
    return [Caution(code=code, message=message) for code, message in found]


Said = list[tuple[str, str]]


def _missing(runs: Sequence[RunFacts], names: Sequence[str], metric: str) -> Said:
    found: Said = []
    for run, name in zip(runs, names, strict=True):
        if not run.points:
            found.append(("no-steps", f"{name} has no step yet: it stands here with its settings only"))
        elif not any(metric in point.metrics for point in run.points):
            found.append(("metric-missing", f"{name} has no {metric}: it has no curve here"))
    return found


def _data(runs: Sequence[RunFacts], names: Sequence[str], metric: str) -> Said:
    found: Said = []
    heldout = _by(runs, names, lambda run: run.data.heldout)
    tokenizers = _by(runs, names, lambda run: run.data.tokenizer)
    digests = _by(runs, names, lambda run: run.data.digest)
    if len(heldout) > 1 and metric.startswith("eval/"):
        text = f"different held-out text ({_shown(heldout)}): {metric} measures different things"
        found.append(("heldout-differs", text))
    if len(tokenizers) > 1:
        text = f"different tokenizers ({_shown(tokenizers)}): a token is not the same piece of text"
        if unit_of(metric) == "nats per token":
            text += f", so {metric} has different units: compare {BITS}"
        found.append(("tokenizer-differs", text))
    if len(digests) > 1:
        found.append(("data-differs", f"trained on different data ({_shown(digests)})"))
    unknown = [name for run, name in zip(runs, names, strict=True) if run.data.digest is None and run.points]
    if unknown:
        text = f"which data {_list(unknown)} had is not recorded here: whether it is the same is not checked"
        found.append(("data-unknown", text))
    return found


def _currencies(runs: Sequence[RunFacts], names: Sequence[str]) -> Said:
    currencies = _by(runs, names, lambda run: run.currency)
    if len(currencies) < 2:
        return []
    return [("currencies-differ", f"paid in different currencies ({_shown(currencies)}): no money is compared")]


def _prices(runs: Sequence[RunFacts], names: Sequence[str]) -> Said:
    prices = _by(runs, names, lambda run: run.configuration.get("price_source"))
    found: Said = []
    if len(prices) > 1:
        text = f"paid by different prices ({_shown(prices)}): money differs for the same work, too"
        found.append(("prices-differ", text))
    devices = _by(runs, names, lambda run: run.configuration.get("compute.accelerator"))
    if len(devices) > 1:
        text = f"on different devices ({_shown(devices)}): hours are not of the same thing"
        found.append(("devices-differ", text))
    return found


def _evaluation(runs: Sequence[RunFacts], names: Sequence[str], metric: str) -> Said:
    if not metric.startswith("eval/"):
        return []
    found: Said = []
    for key, code, what in (
        ("eval_tokens", "evaluated-tokens-differ", "evaluated on different amounts of text, in tokens"),
        ("sequence_length", "sequence-length-differs", "evaluated on sequences of different length, in tokens"),
    ):
        values = _by(runs, names, lambda run, key=key: run.configuration.get(key))  # type: ignore[misc]
        if len(values) > 1:
            found.append((code, f"{what} ({_shown(values)}): {metric} differs for that reason, too"))
    return found


def _phases(runs: Sequence[RunFacts], names: Sequence[str]) -> Said:
    going = [f"{name} is {run.phase}" for run, name in zip(runs, names, strict=True) if not run.phase.terminal]
    failed = [name for run, name in zip(runs, names, strict=True) if run.phase.value in ("Failed", "Cancelled")]
    found: Said = []
    if going:
        found.append(("not-ended", f"{'; '.join(going)}: these numbers are of now, and the schedule is not at its end"))
    if failed:
        text = (
            f"{_list(failed)} ended before the last step: a learning rate that had not come down makes the loss higher"
        )
        found.append(("cut-short", text))
    return found


def _by(
    runs: Sequence[RunFacts], names: Sequence[str], pick: Callable[[RunFacts], Hashable | None]
) -> dict[Hashable, list[str]]:
    """Names by what their runs have; those of which it is not known are left out."""
    found: dict[Hashable, list[str]] = {}
    for run, name in zip(runs, names, strict=True):
        if (value := pick(run)) is not None:
            found.setdefault(value, []).append(name)
    return found


def _shown(groups: dict[Hashable, list[str]]) -> str:
    return "; ".join(f"{_list(names)}: {_short(str(value))}" for value, names in groups.items())


def _short(text: str) -> str:
    """A digest by its beginning."""
    return text[:_SHOWN] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)

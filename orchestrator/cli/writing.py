"""Texts as they are written: to the terminal while they come, and what is said of them afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from model.generate import Statistics, TextStream, Writer

STOP_STRING, INTERRUPTED = "stop string", "interrupted"


class Writing:
    """One run of a `Writer`, as text."""

    def __init__(self, writer: Writer, streams: Sequence[TextStream]) -> None:
        self.writer, self._streams, self._rounds = writer, streams, iter(writer)
        self.texts = [""] * len(streams)
        self.interrupted = False

    @property
    def statistics(self) -> Statistics:
        """Of the writer."""
        return self.writer.statistics

    def run(self, out: TextIO | None = None, beside: Writing | None = None) -> None:
        """To the end, or until Ctrl-C. `out` gets the first text as it comes, and a line's end after it. `beside` is
        written in turns with this one, so that whatever else the machine does slows both down."""
        every = [one for one in (beside, self) if one is not None]
        going = every
        try:
            while going:
                going = [one for one in going if one._advance(out if one is self else None)]
        except KeyboardInterrupt:
            for one in every:
                one.interrupted = True
        for one in every:
            one._close(out if one is self else None)

    def _advance(self, out: TextIO | None) -> bool:
        """-> whether there was more."""
        if (item := next(self._rounds, None)) is None:
            return False
        number, tokens = item
        self._add(number, self._streams[number].add(tokens), out)
        if self._streams[number].stopped is not None:
            self.writer.finish(number, STOP_STRING)
        return True

    def _close(self, out: TextIO | None) -> None:
        for number, stream in enumerate(self._streams):
            self.writer.finish(number, INTERRUPTED)  # those that had not ended
            self._add(number, stream.finish(), out)
        if out is not None:
            print(file=out, flush=True)

    def ended(self, number: int) -> str:
        """Why a text is not longer."""
        if self._streams[number].stopped is not None:
            return STOP_STRING  # may have come with the very last token
        return self.writer.rows[number].ended or INTERRUPTED

    def _add(self, number: int, text: str, out: TextIO | None) -> None:
        self.texts[number] += text
        if out is not None and number == 0:
            print(text, end="", file=out, flush=True)


def figures(written: Writing, plain: Writing | None) -> dict[str, Any]:
    """What was measured, for programs. Speeds are those after the prompts."""
    s, ahead = written.statistics, written.writer.speculate
    found: dict[str, Any] = {
        "promptTokens": s.prompt_tokens,
        "tokens": s.tokens,
        "promptSeconds": s.prompt_seconds,
        "seconds": s.seconds,
        "tokensPerSecond": s.tokens_per_second,
        "passes": s.rounds,
        "tokensPerPass": s.tokens_per_pass,
        "cacheBytesPerToken": written.writer.cache_bytes_per_token,
    }
    if ahead:
        found |= {"acceptance": s.acceptance, "draftCost": s.draft_cost(), "bound": s.bound()}
    if plain is not None:
        p = plain.statistics
        found |= {
            "plainTokensPerSecond": p.tokens_per_second,
            "speedup": s.tokens_per_second / p.tokens_per_second if p.tokens_per_second else None,
            "draftCost": s.draft_cost(p),
            "bound": s.bound(p),
            "sameText": written.texts == plain.texts,
        }
    return found


def content(source: str, prompts: Sequence[str], written: Writing, plain: Writing | None) -> dict[str, Any]:
    """Everything, for programs."""
    texts = [
        {"prompt": prompt, "text": text, "ended": written.ended(i)}
        for i, (prompt, text) in enumerate(zip(prompts, written.texts, strict=True))
    ]
    return {"source": source, "texts": texts, "statistics": figures(written, plain)}


def print_texts(prompts: Sequence[str], texts: Sequence[str]) -> None:
    """One after the other, each under its number and its prompt's last line."""
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), start=1):
        last = prompt.splitlines()[-1] if prompt else ""
        print(f"==> {number}: {last[-60:]} <==\n{text}")


def report(written: Writing, plain: Writing | None, say: Callable[[str], None]) -> None:
    """The same for people."""
    found, s = figures(written, plain), written.statistics
    full = sum(written.ended(i) == "context" for i in range(len(written.texts)))
    if full:
        which = "the text" if len(written.texts) == 1 else f"{full} of {len(written.texts)} texts"
        say(f"{which} ended where the model's context ({written.writer.context} tokens) was full")
    say(
        f"{s.tokens} tokens after {s.prompt_tokens} of prompt in {s.prompt_seconds + s.seconds:.2f} s: "
        f"{s.tokens_per_second:.1f} tokens/s after {s.prompt_seconds:.2f} s for the prompt"
    )
    if "acceptance" in found and s.row_rounds:
        say(
            f"{s.acceptance:.1%} of {s.row_rounds} drafts accepted, {s.tokens_per_pass:.2f} tokens per main pass; "
            f"a draft costs {found['draftCost']:.2f} of a main pass, so at most "
            f"{found['bound']:.2f} times plain decoding is possible"
        )
    if plain is not None and found["speedup"] is not None:
        same = "the same text" if found["sameText"] else "another text"
        say(
            f"measured {found['speedup']:.2f} times plain decoding ({found['plainTokensPerSecond']:.1f} tokens/s, "
            f"{same}), {found['speedup'] / found['bound']:.0%} of what is possible"
        )

"""How fast text was written, and how fast speculation could have made it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """Sums over one `Writer`. Seconds are those of its clock."""

    prompt_tokens: int = 0
    tokens: int = 0
    """Written, end-of-text not counted."""
    rounds: int = 0
    """Passes of the main model after that over the prompts; each takes all unfinished rows at once."""
    row_rounds: int = 0
    """The same, counted once per row."""
    later_tokens: int = 0
    """Written in those rounds (the pass over a prompt yields a token too)."""
    accepted: int = 0
    """Drafts that the main model confirmed, one per row and round at most."""
    prompt_seconds: float = 0.0
    main_seconds: float = 0.0
    """In passes of the main model, after the prompts."""
    draft_seconds: float = 0.0
    """In passes of the prediction module, after the prompts."""
    seconds: float = 0.0
    """Everything after the prompts."""

    @property
    def acceptance(self) -> float:
        """Share of drafts that were confirmed."""
        return self.accepted / self.row_rounds if self.row_rounds else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """Tokens that one row gets from one pass of the main model."""
        return self.later_tokens / self.row_rounds if self.row_rounds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """After the prompts."""
        return self.later_tokens / self.seconds if self.seconds else 0.0

    @property
    def main_pass(self) -> float:
        """Seconds of one."""
        return self.main_seconds / self.rounds if self.rounds else 0.0

    def draft_cost(self, plain: Statistics | None = None) -> float:
        """c: seconds of a draft over those of a main pass, which are those of `plain` decoding where that was measured,
        and otherwise those of our own passes over two tokens."""
        main = (plain or self).main_pass
        return self.draft_seconds / self.rounds / main if self.rounds and main else 0.0

    def bound(self, plain: Statistics | None = None) -> float:
        """See `bound`."""
        return bound(self.acceptance, self.draft_cost(plain))


def bound(acceptance: float, cost: float) -> float:
    """The most that one draft per pass can speed writing up: (1 + a) / (1 + c), where a draft costs c of a main pass,
    and a pass over two tokens as much as one over one."""
    return (1 + acceptance) / (1 + cost)

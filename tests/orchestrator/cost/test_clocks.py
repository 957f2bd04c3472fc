"""Held time is divided by events that come of several clocks, some of them wrong."""

import pytest
from support.stories import Story

from orchestrator.cost.timeline import Held, timeline


@pytest.mark.parametrize("ahead", [3.5, 3600, 1e10])
@pytest.mark.parametrize("later", [False, True])
def test_one_clock_that_is_ahead_takes_no_time_from_what_follows(ahead: float, *, later: bool) -> None:
    """The second step is told by a worker whose clock is wrong; what follows is told by another's, perhaps by a newer
    incarnation's too."""

    def told(wrong: float) -> list[tuple[str, float]]:
        story = Story()
        story.started(110, 0)
        story.progress(115, 1)
        story.progress(120 + wrong, 2)
        story.saved(123, 2, 1)
        story.progress(125, 3)
        if later:
            story.started(130, 3, incarnation="b")
            story.progress(135, 4, incarnation="b")
        else:
            story.ended(127, "succeeded")
        pieces = timeline(story.events, [Held(1, 100, 140)]).pieces
        return [(piece.time_class, piece.end / 1e6) for piece in pieces]

    classes = ["starting", "productive", "checkpoint", "productive"]
    ends = [115, 122, 123, 125]
    more = [("recovering", 135), ("productive", 140)] if later else [("idle", 140)]
    expected = [*zip(classes, ends, strict=True), *more]
    assert told(ahead) == told(0) == expected

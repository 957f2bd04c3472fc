"""A row of numbers as small as a word: `▇▅▄▃▂▁`. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` bars, oldest left; each is the mean of equally many values, the lowest mean the lowest bar.

    Heights compare only within one line: from the least to the greatest that it shows. Values that are not finite are
    left out; equal ones are all low.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known or width < 1:
        return ""
    count = min(width, len(known))
    bounds = [len(known) * index // count for index in range(count + 1)]
    means = [sum(known[begin:end]) / (end - begin) for begin, end in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)

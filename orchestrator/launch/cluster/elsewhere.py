"""Where the next attempt of a run should not go, by what its folder says of those before."""

from __future__ import annotations

import re
from collections import defaultdict

from pydantic import ValidationError

from orchestrator.launch.base import RunFolder
from orchestrator.launch.cluster.memory import read_mark
from orchestrator.launch.events import WorkersLost
from orchestrator.launch.suspects import Suspects, suspects

_MARK = b'"workers-lost"'
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
"""Names of nodes (RFC 1123). Events come from the job's own pods: anything else would make its next ones invalid."""


def suspects_before(folder: RunFolder, attempt: int) -> Suspects:
    """By the drivers' words and by the pods that were seen; a node that both name for one attempt has lost it once."""
    if attempt == 1:
        return Suspects()
    told, losses = _told(folder), list[str]()
    marks = [read_mark(folder, number) for number in range(1, attempt)]
    for number, mark in enumerate(marks, start=1):
        losses += told[number]
        losses += [node for node in (() if mark is None else mark.lost) if node not in told[number]]
    unplaced = marks[-1] is not None and marks[-1].began is None
    return suspects((node for node in losses if _NODE.fullmatch(node)), unplaced=unplaced)


def _told(folder: RunFolder) -> defaultdict[int, list[str]]:
    """Nodes of lost workers by attempt, one for each loss. Other lines are not read: there may be a million."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    try:
        with folder.events.open("rb") as lines:
            for line in lines:
                if _MARK in line and (event := _lost(line)) is not None:
                    found[event.attempt] += event.nodes
    except FileNotFoundError:
        pass
    return found


def _lost(line: bytes) -> WorkersLost | None:
    try:
        return WorkersLost.model_validate_json(line)
    except ValidationError:  # torn, or of another kind that quotes the word
        return None

"""Where the next attempt of a run should not go, by what its folder says of those before."""

from __future__ import annotations

import re
from collections import defaultdict

from pydantic import ValidationError

from orchestrator.launch.base import RunFolder
from orchestrator.launch.cluster.memory import read_mark
from orchestrator.launch.events import WorkersLost
from orchestrator.launch.suspects import blamed, suspects

_MARK = b'"workers-lost"'
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NODE = re.compile(rf"{_LABEL}(\.{_LABEL})*")
"""Names of nodes (RFC 1123). Events come from the job's own pods: anything else would make its next ones invalid."""


def suspects_before(folder: RunFolder, attempt: int) -> tuple[str, ...]:
    """By the drivers' words and by the pods that were seen. An attempt counts once for a node: it may lose a worker
    there again and again, and by both."""
    if attempt == 1:
        return ()
    told, losses = _told(folder), list[str]()
    for number in range(1, attempt):
        mark = read_mark(folder, number)
        losses += told[number].union(() if mark is None else blamed(mark.lost))
    return suspects(node for node in losses if _NODE.fullmatch(node))


def _told(folder: RunFolder) -> defaultdict[int, set[str]]:
    """Nodes of lost workers by attempt. Other lines are not read: there may be a million."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    try:
        with folder.events.open("rb") as lines:
            for line in lines:
                if _MARK in line and (event := _lost(line)) is not None:
                    found[event.attempt].update(event.nodes)
    except FileNotFoundError:
        pass
    return found


def _lost(line: bytes) -> WorkersLost | None:
    try:
        return WorkersLost.model_validate_json(line)
    except ValidationError:  # torn, or of another kind that quotes the word
        return None

"""A worker that was killed for want of memory is known by its pod's control group when Ray starts the next one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.launch.pods.shortage import shortage
from orchestrator.launch.pods.worker import _require_memory

# as two kernels write them
V1 = {
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n",
    "memory/memory.limit_in_bytes": "3221225472\n",
}
V2 = {
    "memory.events": "low 0\nhigh 0\nmax 213\noom 4\noom_kill {}\noom_group_kill 0\n",
    "memory.max": "3221225472\n",
}


def written(root: Path, files: dict[str, str], kills: int) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text.format(kills))
    return root


class Told:
    """In place of the reporter."""

    def __init__(self, failed: bool = False) -> None:
        self.said: list[tuple[str, str]] = []
        self._failed = failed

    def has_failed(self) -> bool:
        return self._failed

    def failed(self, kind: str, message: str) -> None:
        self.said.append((kind, message))


@pytest.mark.parametrize("files", [V1, V2])
def test_what_was_killed_is_counted_with_the_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert shortage("pod w1", written(tmp_path, files, 0)) is None
    said = shortage("pod w1", written(tmp_path, files, 2))
    assert said == (
        "the kernel has killed 2 of the processes of pod w1, which needed more memory than its limit of 3072 MiB"
    )


def test_a_pod_without_a_limit_had_its_node(tmp_path: Path) -> None:
    files = V2 | {"memory.max": "max\n"}
    assert "than what its node has" in (shortage("pod w1", written(tmp_path, files, 1)) or "")


def test_where_nobody_counts_nothing_is_said(tmp_path: Path) -> None:
    assert shortage("pod w1", tmp_path) is None
    assert shortage("pod w1", written(tmp_path, {"memory.events": "nonsense\noom_kill many\n"}, 0)) is None


def test_the_next_worker_of_such_a_pod_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_POD", "w1")
    told: Any = Told()
    _require_memory(told, written(tmp_path, V1, 0))
    assert told.said == []
    with pytest.raises(MemoryError, match="pod w1"):
        _require_memory(told, written(tmp_path, V1, 1))
    [(kind, message)] = told.said
    assert kind == "out-of-memory"
    assert "3072 MiB" in message


def test_one_that_is_started_after_that_says_nothing(tmp_path: Path) -> None:
    told: Any = Told(failed=True)
    _require_memory(told, written(tmp_path, V1, 1))
    assert told.said == []

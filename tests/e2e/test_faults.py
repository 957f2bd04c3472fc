"""Whatever happens to a run, it ends as the undisturbed one does: same losses, samples and weights, to the last bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import fsspec
import pytest
import s3fs
from support import faults
from support.faults import Scenario, one, require_undisturbed
from support.home import STEPS, Done, Home, events, points, runs
from support.s3 import serving, use

from orchestrator.launch.events import Started

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]
SEED = 20261124
IN_ATTEMPT = ("exception", "kill", "nan", "weights", "read", "kill-before-manifest", "disk-full")
HARMLESS = ("read", "disk-full")
"""These cost no restart."""
STORE = "s3://team/tiny"


def test_faults_at_random_steps(
    calm: tuple[Home, Done], make_home: Callable[[], Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each kind that training survives within an attempt, at steps drawn by a seed. Checkpoints lie on S3, from
    where each restart goes on, and so do the weights."""
    draw = random.Random(SEED)
    steps = sorted(draw.sample(range(60, 118, 5), len(IN_ATTEMPT)))
    kinds = draw.sample(IN_ATTEMPT, len(IN_ATTEMPT))
    drawn: list[dict[str, Any]] = []
    for kind, step in zip(kinds, steps, strict=True):
        counts_saves = kind in ("kill-before-manifest", "disk-full")
        rank = 0 if kind == "kill-before-manifest" else draw.randrange(2)
        drawn.append(one(kind, 2 if counts_saves else step, rank))
    restarts = len(IN_ATTEMPT) - len(HARMLESS)
    home = make_home()
    often_on_s3 = ("--set", f"checkpoint.uri={STORE}", "--set", "checkpoint.intervalMinutes=0.01")
    scenario = Scenario("chaos", tuple(drawn), "No space left", restarts=restarts, options=often_on_s3)
    with serving() as port:
        use(monkeypatch, port)
        s3fs.S3FileSystem.clear_instance_cache()
        s3 = fsspec.filesystem("s3")
        s3.mkdir("team")
        code, said = faults.run(home, scenario)
        assert code == 0, said
        written = {path.rpartition("/")[2]: s3.cat_file(path) for path in s3.find(f"{STORE}/weights")}
        require_undisturbed(home, calm[0], scenario, written=written)
        assert s3.exists(f"{STORE}/checkpoints/step-{STEPS}/manifest.json")
        starts = [str(e.resumed_from) for e in events(home.run_folder()) if isinstance(e, Started)]
        assert all(start.startswith(f"{STORE}/checkpoints/step-") for start in starts[1:]), starts
        listed = home.fathom("checkpoints", "verify", home.run_folder().root)
        assert listed.code == 0, listed.err
        assert str(STEPS) in listed.out
    client = home.client()
    assert points(client, "train/loss") == points(calm[0].client(), "train/loss")
    assert {run.info.status for run in (runs(client)[0], *runs(client)[1])} == {"FINISHED"}

"""A controller that dies at any of its writes, before the server has it or before the answer comes."""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass, field

from orchestrator.errors import FathomError
from orchestrator.settings import Settings
from support.kube_proxy import Call, Fault, KubeProxy
from support.kube_stage import KubeStage
from support.kube_stories import LIVES, PRICES, Life

STORIES = [("success", 11), ("cancel", 11), ("retry", 22), ("suspend and resume", 22), ("budget", 11)]
"""And how many writes there are in each, at least."""
_PATIENCE, _PAUSE = 240.0, 0.05


@dataclass
class Fate:
    """Of a controller: it dies at the n-th write of its job."""

    at: int | None = None
    how: Fault = "cut before"
    dead: bool = False
    died: bool = False
    writes: list[str] = field(default_factory=list)

    def plan(self, call: Call) -> Fault:
        if self.dead:
            return "cut before"
        if not call.writes:
            return "ok"
        self.writes.append(f"{call.method} {call.path}")
        if self.at == len(self.writes) - 1:
            self.dead = self.died = True
            return self.how
        return "ok"


def live(life: Life, proxy: KubeProxy, fate: Fate) -> None:
    """Controllers, one after the other, until the job is at its end and cleaned up."""
    stage, proxy.plan = life.stage, fate.plan
    end = time.monotonic() + _PATIENCE
    while True:
        with stage.service():
            while not fate.dead:
                assert time.monotonic() < end, (fate, stage.status, stage.said)
                with contextlib.suppress(FathomError):
                    stage.controller.turn()
                if life.go_on():
                    return
                time.sleep(_PAUSE)
        proxy.hang_up()
        fate.dead = False


def die_at_every_write(between: KubeStage, proxy: KubeProxy, story: str, least: int, how: Fault) -> None:
    """The next one ends up where an undisturbed one does, with one RayJob for each attempt and nothing left behind."""
    prices = between.settings.home / "prices.yaml"
    prices.write_text(PRICES)
    between.settings = Settings.load({"FATHOM_HOME": str(between.settings.home), "FATHOM_PRICES": str(prices)})
    life, reference = LIVES[story](between), Fate()
    life.begin("mini")
    live(life, proxy, reference)
    undisturbed = life.outcome
    for at in itertools.count():
        fate = Fate(at, how)
        life.begin(f"mini-{at}")
        live(life, proxy, fate)
        assert life.outcome == undisturbed, fate
        if not fate.died:  # it has no more writes than that; how many it has, caches that lag have a say in
            break
    assert at >= least, reference.writes
    print(f"{story}: died at each of {at} writes, {how}; {undisturbed}")

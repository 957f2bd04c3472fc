"""Makes faults happen inside real training processes; Python runs it at its start where this folder is on the path.

The file named by TEST_FAULTS holds a JSON list of faults: kind, step (0-based), rank, and `always` if it is to happen
each time instead of once. `slow` makes each step take so many `seconds` longer, in which its process does nothing;
with `steps` in runs of so many only. The product knows nothing of this: functions are wrapped when their module is
imported.
"""

import errno
import faulthandler
import importlib.abc
import importlib.machinery
import json
import os
import signal
import sys
from pathlib import Path

PLAN = os.environ.get("TEST_FAULTS")


def _due(kind, step, rank):
    """Whether this fault is to happen here and now; what happens once leaves a mark."""
    for number, fault in enumerate(json.loads(Path(PLAN).read_text())):
        if (fault["kind"], fault.get("step")) != (kind, step) or fault.get("rank", rank) != rank:
            continue
        if fault.get("always"):
            return True
        try:
            os.close(os.open(f"{PLAN}.done-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return True
    return False


def _pause(steps):
    """By how many seconds each step of a run of so many is longer."""
    plan = json.loads(Path(PLAN).read_text())
    return sum(one["seconds"] for one in plan if one["kind"] == "slow" and one.get("steps", steps) == steps)


def _patch_loop(module):
    import time

    import numpy as np
    import torch

    original, micro_step = module.Loop._micro_steps, module.Loop._step

    def step(self, number, saver):
        self.engine.faulty_step = number
        return micro_step(self, number, saver)

    def micro_steps(self, number, position):
        rank = self.engine.rank
        time.sleep(_pause(self.recipe.steps))
        if _due("exception", number, rank):
            raise RuntimeError("an injected fault")
        if _due("kill", number, rank):
            os.kill(os.getpid(), signal.SIGKILL)
        if _due("stop", number, rank):
            os.kill(os.getpid(), signal.SIGSTOP)
        if _due("out-of-memory", number, rank):
            torch.empty(1 << 48)
        if _due("kill-driver", number, rank):
            os.kill(json.loads((Path(self.store.uri) / "driver.lock").read_text())["pid"], signal.SIGKILL)
        if _due("weights", number, rank):
            with torch.no_grad():
                self.engine.model.lm_head.weight.mul_(1e4)
        return original(self, number, position)

    module.Loop._step, module.Loop._micro_steps = step, micro_steps
    read = module.TrainingBatches.batch_for

    def batch_for(self, number, rank, k):
        BROKEN_READ.update(due=_due("read", number, rank))
        windows = read(self, number, rank, k)
        if _due("batch", number, rank):
            windows = np.random.default_rng(number).integers(0, 512, windows.shape)
        return windows

    module.TrainingBatches.batch_for = batch_for


def _patch_engine(module):
    losses, micro_step = module.training_losses, module.ZeroEngine.micro_step
    here = {}

    def training_losses(output, window, **options):
        found = losses(output, window, **options)
        engine = here["engine"]
        if _due("nan", engine.faulty_step, engine.rank):
            found = found._replace(total=found.total * float("nan"), next_token=found.next_token * float("nan"))
        return found

    def remember(self, *arguments, **options):
        here["engine"] = self
        return micro_step(self, *arguments, **options)

    module.training_losses, module.ZeroEngine.micro_step = training_losses, remember


def _patch_store(module):
    publish, upload = module.Store.publish, module.Store.upload
    saves = {"published": 0, "uploaded": 0}

    def fatal_publish(self, manifest):
        saves["published"] += 1
        if _due("kill-before-manifest", saves["published"], 0):
            os.kill(os.getpid(), signal.SIGKILL)
        return publish(self, manifest)

    def full_upload(self, step, folder):
        saves["uploaded"] += 1
        if _due("disk-full", saves["uploaded"], int(os.environ.get("RANK", "0"))):
            raise OSError(errno.ENOSPC, "No space left on device")
        return upload(self, step, folder)

    module.Store.publish, module.Store.upload = fatal_publish, full_upload


BROKEN_READ = {"due": False}


def _patch_data(module):
    read = module._ShardFile._read_bytes

    def read_bytes(self, offset, count):
        found = read(self, offset, count)
        if BROKEN_READ["due"]:
            BROKEN_READ.update(due=False)
            return b"\xff" * len(found)
        return found

    module._ShardFile._read_bytes = read_bytes


PATCHES = {
    "model.data.shards": _patch_data,
    "model.loop": _patch_loop,
    "model.engine.zero": _patch_engine,
    "model.checkpoint.store": _patch_store,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            PATCHES[name](module)

        spec.loader.exec_module = exec_module
        return spec


faulthandler.register(signal.SIGUSR1)  # for a test that waited in vain: where does this process stand?
if PLAN:
    sys.meta_path.insert(0, _Finder())

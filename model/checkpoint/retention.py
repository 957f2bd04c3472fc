"""Which checkpoints and leftovers may be removed. Invariant: a checkpoint that verifies is never the last one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from model.checkpoint.fence import Acceptance
from model.checkpoint.manifest import MANIFEST, CheckpointError, Unfinished, tag_epoch
from model.checkpoint.reading import Reader, step_folder


def doomed(reader: Reader, acceptance: Acceptance, steps: Sequence[int], keep: int) -> list[int]:
    """Those of `steps` that retention gives up, when the newest `keep` that can be used stay.

    Only steps before the newest one that verifies whole are ever given up. Reads files only if there is anything to
    give up, and then from the newest back until one verifies.
    """
    usable, useless = [], []
    for step in sorted(steps, reverse=True):
        try:
            reader.examine(step, acceptance, contents=False)
            usable.append(step)
        except Unfinished:
            continue  # it may be in the making; `sweep` knows better
        except CheckpointError:
            useless.append(step)
    if len(usable) <= keep and not useless:
        return []
    while usable:
        try:
            reader.examine(usable[0], acceptance, contents=True)
            break
        except CheckpointError:
            useless.append(usable.pop(0))
    else:
        return []
    return sorted(usable[keep:] + [step for step in useless if step < usable[0]])


def sweep_step(reader: Reader, step: int, epoch: int) -> None:
    """Remove the folders of writers before `epoch` that no manifest names, and the step if nothing else is in it."""
    storage, folder = reader.storage, step_folder(step)
    there, named = storage.entries(folder), None
    if MANIFEST in there:
        try:
            named = reader.written(step).tag
        except CheckpointError:
            return  # nobody knows what it named: left to `doomed`
    stale = [name for name, entry in there.items() if entry.is_folder and name != named and _older(name, epoch)]
    drafts = [name for name in there if name.startswith(".") and name.endswith(".tmp")]
    if MANIFEST not in there and len(stale) + len(drafts) == len(there):
        storage.remove_folder(folder)
        return
    for name in stale:
        storage.remove_folder(f"{folder}/{name}")


def sweep_staging(parent: Path, prefix: str, epoch: int) -> None:
    """Remove the staging folders of writers before `epoch`."""
    for folder in parent.glob(f"{prefix}*"):
        written = folder.name.removeprefix(prefix).partition("-")[0]
        if written.isdecimal() and int(written) < epoch:
            shutil.rmtree(folder, ignore_errors=True)


def _older(name: str, epoch: int) -> bool:
    written = tag_epoch(name)
    return written is not None and written < epoch

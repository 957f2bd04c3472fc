"""A writer killed between any two operations of its life leaves a checkpoint that verifies."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.checkpoints import (
    claimed,
    content,
    fetched,
    newest_step,
    save,
    upload,
)


class Killed(BaseException):
    """The process has ended: nobody catches it."""


class Killer:
    """Lets `allowed` operations of the operating system pass and then ends the process: nothing works any more."""

    NAMES = ("link", "replace", "rename", "unlink", "remove", "rmdir", "mkdir", "open", "fsync", "write")

    def __init__(self, patch: pytest.MonkeyPatch, allowed: int) -> None:
        self.allowed = allowed
        for name in self.NAMES:
            patch.setattr(os, name, self._wrap(getattr(os, name), torn=name == "write"))

    def _wrap(self, real: Callable[..., object], torn: bool) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            if self.allowed <= 0:
                if torn and self.allowed == 0:
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])  # type: ignore[call-overload, arg-type]
                self.allowed = -1
                raise Killed
            self.allowed -= 1
            return real(*args, **options)

        return call


def life_of_a_writer(root: Path) -> None:
    """A restart as rank 0 does it, with a step saved again and retention."""
    store = claimed(root, 1, "b")
    store.sweep()
    assert newest_step(store) == 10
    save(store, 12)
    store.prune(1, 12)
    save(store, 15)
    store.prune(1, 15)


def test_killed_between_any_two_operations_a_good_checkpoint_is_found(tmp_path: Path) -> None:
    begin = tmp_path / "begin"
    first = claimed(begin)
    save(first, 5)
    save(first, 10)
    upload(first, 12)
    shutil.copytree(begin / "checkpoints/step-5", begin / "checkpoints/step-11")  # damaged: of another step
    seen = []
    for allowed in range(1000):
        root = tmp_path / f"killed-{allowed}"
        shutil.copytree(begin, root)
        done = False
        with pytest.MonkeyPatch.context() as patch:
            Killer(patch, allowed)
            try:
                life_of_a_writer(root)
                done = True
            except Killed:
                pass
        after = claimed(root, 2, "c")
        after.sweep()
        found, _ = after.newest()
        assert found is not None
        seen.append(found.manifest.step)
        assert fetched(after, found, tmp_path) == content(found.manifest.step)
        save(after, 20)
        after.prune(1, 20)
        assert after.steps() == [20], "whatever was left is cleared away"
        assert not list((root / "checkpoints").glob(".staging*"))
        shutil.rmtree(root)
        if done:
            break
    assert done
    assert seen == sorted(seen), "never further back for having lived longer"
    assert set(seen) == {10, 12, 15}
    assert len(seen) > 60

"""The output folder: what may be replaced there, and how the finished dataset takes its place."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import re
import shutil
from pathlib import Path

from model.dataset import (
    MANIFEST,
    DatasetDamaged,
    DatasetManifest,
    DatasetMissing,
    is_whole,
    read_manifest,
)
from model.files import local_path, make_durable

OWN_FILES = re.compile(
    r"manifest\.json|tokenizer\.json|(train|heldout)-\d{5}\.bin|[a-z0-9][a-z0-9_-]{0,31}(/(train|heldout)-\d{5,8}\.bin)?"
)


def require_apart(uri: str, out: Path) -> None:
    """Refuse an output that overlaps with a source of this machine."""
    path = local_path(uri)
    if path is None:
        return
    given = Path(os.path.expanduser(path)).absolute()
    if glob.has_magic(str(given)) and not given.exists():
        if not _reaches(given.parts, out.parts):
            return
        given = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), given.parts))
    source = Path(os.path.realpath(given))
    if out == source or source in out.parents:
        raise ValueError(f"the output {out} lies inside the source {source}: choose a folder outside of it")
    if out in source.parents:
        raise ValueError(f"the source {source} lies inside the output {out}: choose another output folder")


def _reaches(pattern: tuple[str, ...], folder: tuple[str, ...]) -> bool:
    """Whether a glob can find files in a folder."""
    for number, part in enumerate(pattern):
        if part == "**":
            return True
        if number == len(folder):
            return True
        if not fnmatch.fnmatchcase(folder[number], part):
            return False
    return False


def existing(out: Path, inputs_digest: str, force: bool) -> DatasetManifest | None:
    """The dataset at `out` if it is whole and has the same inputs, None if `out` may be (re)written.

    FileExistsError for anything else that is there; `force` replaces a dataset, never other files.
    """
    if not out.exists():
        return None
    if not out.is_dir():
        raise FileExistsError(f"{out} exists and is not a folder")
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    if not names:
        return None
    if MANIFEST not in names or not all(_is_own(out, name) for name in names):
        raise FileExistsError(f"{out} is not empty and not a prepared dataset: choose another output folder")
    try:
        manifest = read_manifest(out)
    except (DatasetDamaged, DatasetMissing):
        manifest = None
    if force:
        return None
    if manifest is None or manifest.inputs_digest != inputs_digest:
        raise FileExistsError(
            f"{out} holds a dataset that was prepared from other files or with other options: "
            "choose another output folder, or replace it with --force"
        )
    return manifest if is_whole(out, manifest) else None


def _is_own(out: Path, name: str) -> bool:
    """Whether a file or folder in `out` is a dataset's."""
    return OWN_FILES.fullmatch(name) is not None and (out / name).is_dir() == ("." not in name)


def publish(building: Path, out: Path) -> None:
    """Put the finished folder in the place of `out`, which is absent, empty or a dataset to replace."""
    for path in (*building.rglob("*"), building):
        make_durable(path)
    old = building.with_suffix(".old")
    if out.exists():
        shutil.rmtree(old, ignore_errors=True)  # of a call that was interrupted right after this
        os.rename(out, old)
    try:
        os.rename(building, out)
    except OSError as error:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise FileExistsError(f"{out} appeared while the dataset was being prepared ({error})") from error
    make_durable(out.parent)
    shutil.rmtree(old, ignore_errors=True)

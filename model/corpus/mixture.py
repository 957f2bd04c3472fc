"""What a dataset is made from: one source, or a mixture of several with weights, as a person writes it."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from model.config import Frozen
from model.dataset import MAX_SOURCES, SourceName

Format = Literal["auto", "text", "jsonl", "parquet", "datasets"]
_MAX_BYTES = 1 << 20


class Source(Frozen):
    """Documents of one origin."""

    name: SourceName
    """Its shards lie in a folder of this name, and its held-out score is reported under it."""
    uri: str = Field(min_length=1, max_length=4096)
    """A file, a folder or a glob: a path, or any URL that fsspec knows."""
    format: Format = "auto"
    """auto: by the ending of each file; other files are text."""
    text_field: str = Field("text", min_length=1, max_length=256)
    """Field of a record (JSONL, Parquet, datasets) that holds the document."""
    split: str | None = Field(None, max_length=256)
    """Split of a `datasets` folder that has several; absent: train."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    weight: float | None = Field(None, gt=0, le=1e9, allow_inf_nan=False)
    """Share of the training sequences, relative to the other sources."""
    license: str = Field("", max_length=200)
    provenance: str = Field("", max_length=1000)


class Mixture(Frozen):
    """All sources of a dataset."""

    sources: tuple[Source, ...] = Field(min_length=1, max_length=MAX_SOURCES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"names of sources must differ, got {', '.join(names)}")
        missing = [source.name for source in self.sources if source.weight is None]
        if missing and len(missing) < len(names):
            raise ValueError(f"either all sources have a weight or none has; {', '.join(missing)} has none")
        return self


def source_name(uri: str) -> str:
    """A name for a source that has none: the last part of its address that can be one."""
    plain = [part.lower() for part in re.split(r"[/\\]", uri) if not re.search(r"[*?\[\]]", part)]
    stems = [re.sub(r"(\.(txt|md|jsonl|ndjson|json|parquet|arrow|gz|bz2|xz|zst))+$", "", part) for part in plain]
    names = [re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_")[:32].strip("-_") for stem in stems]
    return next((name for name in reversed(names) if name), "text")


def is_mixture(uri: str) -> bool:
    """Whether an address means a file that describes a mixture rather than text."""
    return uri.endswith((".yaml", ".yml")) and not glob.has_magic(uri) and not Path(uri).is_dir()


def read_mixture(path: str | Path) -> Mixture:
    """Read a YAML file: `sources`, a list of mappings by the fields of `Source` (camelCase or snake_case).

    Relative paths in it are relative to the file. ValueError names each field that is wrong.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    with file.open("rb") as stream:
        raw = stream.read(_MAX_BYTES + 1)
    if len(raw) > _MAX_BYTES:
        raise ValueError(f"{file} is larger than {_MAX_BYTES} bytes: no description of a mixture")
    try:
        content = yaml.safe_load(raw.decode())
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError, AttributeError) as error:
        # the last four: PyYAML of values that are not what their tag says
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("sources"), list):
        raise ValueError(f"{file} describes no mixture: it needs `sources:`, a list of sources with `name` and `uri`")
    sources = [_snake(item) for item in content["sources"]]
    try:
        mixture = Mixture.model_validate({**content, "sources": sources})
    except ValidationError as error:
        problems = [
            f"  {'.'.join(map(str, one['loc']))}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors(include_url=False)[:10]
        ]
        raise ValueError("\n".join([f"{file} is no valid mixture:", *problems])) from None
    return Mixture(sources=tuple(_relative_to(source, file.absolute().parent) for source in mixture.sources))


def _snake(item: object) -> object:
    if not isinstance(item, dict):
        return item
    return {re.sub(r"(?<=[a-z])([A-Z])", lambda m: f"_{m[1].lower()}", str(key)): value for key, value in item.items()}


def _relative_to(source: Source, folder: Path) -> Source:
    uri = source.uri
    if "://" in uri or "::" in uri or os.path.isabs(os.path.expanduser(uri)):
        return source
    base = glob.escape(str(folder)) if glob.has_magic(uri) else str(folder)
    return source.model_copy(update={"uri": str(Path(base) / uri)})

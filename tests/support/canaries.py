"""Secrets that are worth nothing, and where they have got to: in no form, in no file that somebody may be given."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote


def forms(secret: bytes) -> set[bytes]:
    """How a secret looks that somebody has written down; a text also as the middle of what was encoded in base64."""
    plain = {secret, secret.hex().encode(), repr(secret)[2:-1].encode(), base64.b64encode(secret).rstrip(b"=")}
    return plain | {quote(secret).encode()}


def found_in_texts(secrets: Mapping[str, bytes], texts: Mapping[str, bytes]) -> list[str]:
    """`NAME in TEXT` for each that is there."""
    return [
        f"{name} in {where}"
        for where, text in sorted(texts.items())
        for name, secret in secrets.items()
        if any(form in text for form in forms(secret))
    ]


def files_below(root: Path, apart_from: Iterable[str]) -> dict[str, bytes]:
    """All files, by their paths, but those whose names are given."""
    left_out = set(apart_from)
    files = (path for path in root.rglob("*") if path.is_file() and path.name not in left_out)
    return {str(path.relative_to(root)): path.read_bytes() for path in files}

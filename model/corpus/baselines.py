"""What simple compressors need for the held-out text."""

from __future__ import annotations

import lzma
from collections.abc import Iterable

import numpy as np

from model.dataset import Baselines

XZ_BYTES = 16 * 1024 * 1024
"""xz compresses at most this much held-out text; its level 9 takes seconds per 10 MiB."""


def baselines(texts: Iterable[bytes]) -> Baselines:
    """Order-0 entropy of all bytes, and xz of the first XZ_BYTES."""
    counts = np.zeros(256, dtype=np.int64)
    # a dictionary no larger than the text compresses it as well, and needs a quarter of the memory
    whole = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(XZ_BYTES, 1 << 16)}
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, filters=[whole])
    fed = compressed = 0
    for text in texts:
        counts += np.bincount(np.frombuffer(text, dtype=np.uint8), minlength=256)
        part = text[: XZ_BYTES - fed]
        compressed += len(compressor.compress(part))
        fed += len(part)
    compressed += len(compressor.flush())
    shares = counts[counts > 0] / counts.sum()
    entropy = float(np.sum(shares * -np.log2(shares)))
    return Baselines(order0_bits_per_byte=entropy, xz_bits_per_byte=8 * compressed / fed, xz_bytes=fed)

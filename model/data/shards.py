"""Token shards on disk, read as one array of tokens for each side of each source.

Used by training, evaluation and `fathom data inspect`; `model.corpus.assemble` writes what is read here.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.dataset import (
    DatasetDamaged,
    DatasetManifest,
    DatasetMissing,
    Shard,
    SourceManifest,
    SplitName,
)
from model.files import local_path

LITTLE_ENDIAN = {"uint16": "<u2", "uint32": "<u4"}
OPEN_SHARDS = 16
"""Of each side of a source."""
REPAIR = "restore the file, or prepare the dataset again with `fathom data prepare` and --force"


class TokenSplit:
    """The shards of one side of a source, seen as one array of tokens.

    Read by pread, not by memory map: a map of a file that is truncated meanwhile kills the process (SIGBUS).
    """

    def __init__(self, uri: str | Path, manifest: DatasetManifest, source: SourceManifest, split: SplitName) -> None:
        """Raises DatasetMissing or DatasetDamaged if a file is absent or has the wrong size."""
        self.name = f"{source.name}/{split}"
        folder = local_path(uri)
        if folder is None:
            raise ValueError(
                f"training reads prepared datasets from local or mounted folders only, got {uri}: "
                "copy the dataset to a folder that every worker sees"
            )
        vocab_size = manifest.tokenizer.vocab_size
        shards = source.split(split).shards
        self._files: list[_ShardFile] = []
        self._open: deque[_ShardFile] = deque()
        for shard in shards:
            self._files.append(_ShardFile(folder / shard.name, shard, manifest.dtype, vocab_size))
            self._keep_open(self._files[-1])
        self._ends = list(accumulate(shard.tokens for shard in shards))

    def __len__(self) -> int:
        """Number of tokens."""
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) as a copy, each below the vocabulary's size; IndexError outside the split.

        A read that fails is tried once more; DatasetDamaged (or the OSError) if that fails as well.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"tokens {start} to {stop} are not within the {len(self)} of {self.name}")
        out = np.empty(stop - start, dtype=np.int64)
        done = 0
        number = bisect_right(self._ends, start)
        while done < out.size:
            file = self._files[number]
            if file.closed:
                self._keep_open(file)
            offset = start + done - (self._ends[number] - file.tokens)
            part = file.read(offset, min(out.size - done, file.tokens - offset))
            out[done : done + part.size] = part
            done += part.size
            number += 1
        return out

    def _keep_open(self, file: _ShardFile) -> None:
        """It, and the few that were opened last: a corpus may have more shards than a process may have files."""
        self._open.append(file)
        if len(self._open) > OPEN_SHARDS:
            self._open.popleft().close()

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Compare every shard's SHA-256 with the manifest; DatasetDamaged names the first that differs. Of several
        processes each looks at its share."""
        for shard_file in self._files[rank::world_size]:
            path, expected = shard_file.path, shard_file.sha256
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                raise DatasetDamaged(
                    f"{path} has SHA-256 {found}, the manifest says {expected}: prepare the dataset again with --force"
                )


class _ShardFile:
    """One shard, open until it is closed, and opened again when it is read."""

    _descriptor: int
    """-1 while it is closed."""
    _close: Callable[[], object]
    """Closes the descriptor, once; called when the object goes away too."""

    def __init__(self, path: Path, shard: Shard, dtype: str, vocab_size: int) -> None:
        self.path, self.tokens, self.sha256 = path, shard.tokens, shard.sha256
        self._dtype, self._vocab_size = np.dtype(LITTLE_ENDIAN[dtype]), vocab_size
        self._item_bytes = self._dtype.itemsize
        self._open()

    @property
    def closed(self) -> bool:
        """Whether it is not open."""
        return self._descriptor < 0

    def close(self) -> None:
        """Give back the descriptor."""
        self._close()
        self._descriptor = -1  # the number may soon be that of another file

    def read(self, offset: int, count: int) -> NDArray[np.unsignedinteger]:
        """`count` tokens from token `offset` on, which lie within the shard."""
        if self.closed:
            self._open()
        try:
            return self._read_checked(offset, count)
        except (DatasetDamaged, OSError):
            # Perhaps a passing fault, or the file has been restored: read once more, from the disk.
            self._forget_cached(offset, count)
            self.close()
            self._open()
            return self._read_checked(offset, count)

    def _open(self) -> None:
        """Open the file, of exactly the size that the manifest says."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            raise DatasetMissing(str(self.path.parent.parent)) from None
        self._descriptor, self._close = descriptor, weakref.finalize(self, os.close, descriptor)
        size, expected = os.fstat(descriptor).st_size, self.tokens * self._item_bytes
        if size != expected:
            raise DatasetDamaged(f"{self.path} has {size} bytes, the manifest says {expected}: {REPAIR}")

    def _read_checked(self, offset: int, count: int) -> NDArray[np.unsignedinteger]:
        tokens = np.frombuffer(self._read_bytes(offset, count), dtype=self._dtype)
        if np.maximum.reduce(tokens) >= self._vocab_size:  # tokens.max(), but for half its overhead
            wrong = int(np.argmax(tokens >= self._vocab_size))
            raise DatasetDamaged(
                f"{self.path} has token {tokens[wrong]} at position {offset + wrong} (byte "
                f"{(offset + wrong) * self._item_bytes}), the vocabulary ends at {self._vocab_size - 1}: {REPAIR}"
            )
        return tokens

    def _read_bytes(self, offset: int, count: int) -> bytes:
        first, length = offset * self._item_bytes, count * self._item_bytes
        raw = os.pread(self._descriptor, length, first)
        while len(raw) < length:  # a signal, a network file system, more than 2 GiB, or the end of the file
            more = os.pread(self._descriptor, length - len(raw), first + len(raw))
            if not more:
                raise DatasetDamaged(
                    f"{self.path} ends at byte {first + len(raw)}, the manifest says "
                    f"{self.tokens * self._item_bytes}: {REPAIR}"
                )
            raw += more
        return raw

    def _forget_cached(self, offset: int, count: int) -> None:
        """Ask the kernel to drop its copy, which may be what is wrong; macOS has no such call."""
        if hasattr(os, "posix_fadvise"):
            first, length = offset * self._item_bytes, count * self._item_bytes
            with suppress(OSError):  # a wish only
                os.posix_fadvise(self._descriptor, first, length, os.POSIX_FADV_DONTNEED)

"""Shards of tokens on disk: whole, damaged, changed while they are read."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tokens import write_tokens

from model.data import TokenSplit, TrainingBatches, TrainingWindows, verify_heldout
from model.dataset import DatasetDamaged, DatasetManifest, DatasetMissing, SplitName
from model.ramp import BatchSchedule, BatchStage


def split_of(folder: Path, manifest: DatasetManifest, side: SplitName) -> TokenSplit:
    return TokenSplit(folder, manifest, manifest.sources[0], side)


def test_shards_are_bounded_little_endian_and_read_as_one(tmp_path: Path) -> None:
    tokens = list(range(256, 286))
    manifest = write_tokens(tmp_path, {"s": (tokens, [1, 2, 3])}, shard_tokens=7)
    assert [shard.tokens for shard in manifest.sources[0].train.shards] == [7, 7, 7, 7, 2]
    assert (tmp_path / "s/train-00000.bin").read_bytes()[:4] == b"\x00\x01\x01\x01"
    split = TokenSplit(tmp_path, manifest, manifest.sources[0], "train")
    assert len(split) == 30
    for start in range(31):
        for stop in range(start, 31):
            assert split.read(start, stop).tolist() == tokens[start:stop]
    for start, stop in ((-1, 2), (0, 31), (3, 2)):
        with pytest.raises(IndexError, match="30"):
            split.read(start, stop)
    split.verify()


def test_large_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": ([70_000, 1], [65_536, 2])}, shard_tokens=7, vocab_size=100_000)
    assert manifest.dtype == "uint32"
    split = TokenSplit(f"file://{tmp_path}", manifest, manifest.sources[0], "heldout")
    assert split.read(0, 2).tolist() == [65_536, 2]


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": (list(range(30)), [1, 2, 3])}, shard_tokens=7)
    split = TokenSplit(tmp_path, manifest, manifest.sources[0], "train")
    path = tmp_path / "s/train-00002.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DatasetDamaged, match=r"train-00002\.bin has SHA-256"):
        split.verify()
    path.write_bytes(whole[:-2])
    with pytest.raises(DatasetDamaged, match=r"train-00002\.bin has 12 bytes, the manifest says 14"):
        TokenSplit(tmp_path, manifest, manifest.sources[0], "train")
    path.unlink()
    with pytest.raises(DatasetMissing):
        TokenSplit(tmp_path, manifest, manifest.sources[0], "train")


def test_remote_datasets_are_refused_in_words(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": ([1, 2], [1, 2])}, shard_tokens=7)
    with pytest.raises(ValueError, match="local or mounted folders only, got s3://bucket/data"):
        TokenSplit("s3://bucket/data", manifest, manifest.sources[0], "train")


class BadReads:
    """`os.pread` whose first `faults` calls are answered by `answer(right bytes)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faults: int, answer: Callable[[bytes], bytes]) -> None:
        self.faults, self.answer, self.calls, self.pread = faults, answer, 0, os.pread
        monkeypatch.setattr("model.data.shards.os.pread", self)

    def __call__(self, descriptor: int, length: int, offset: int) -> bytes:
        self.calls += 1
        raw = self.pread(descriptor, length, offset)
        return self.answer(raw) if self.calls <= self.faults else raw


def damage(path: Path, position: int, token: int) -> None:
    """Overwrite one token in place, as a faulty disk would."""
    with path.open("r+b") as file:
        file.seek(2 * position)
        file.write(token.to_bytes(2, "little"))


def batches_of_shards(folder: Path) -> TrainingBatches:
    """30 tokens in shards of 7, as 7 windows of 4 + 1 tokens, all in one batch."""
    manifest = write_tokens(folder, {"s": (list(range(30)), [1, 2])}, shard_tokens=7)
    schedule = BatchSchedule.of([BatchStage(first_step=0, sequences=7)])
    return TrainingBatches(TrainingWindows(folder, manifest, 4, 1), 0, 1, 7, schedule)


def test_a_token_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    batches = batches_of_shards(tmp_path)
    damage(tmp_path / "s/train-00001.bin", 3, 299)  # the last number of the vocabulary
    assert 299 in batches.batch_for(0, 0, 0)
    for token in (300, 65535):
        damage(tmp_path / "s/train-00001.bin", 3, token)
        message = (
            rf"{tmp_path}/s/train-00001\.bin has token {token} at position 3 \(byte 6\), the vocabulary ends at 299: "
            "restore the file, or prepare the dataset again with `fathom data prepare` and --force"
        )
        with pytest.raises(DatasetDamaged, match=message):
            batches.batch_for(0, 0, 0)
    assert batches.windows.read([0]).tolist() == [[0, 1, 2, 3, 4]]  # what is whole can still be read
    damage(tmp_path / "s/train-00001.bin", 3, 10)
    assert sorted(batches.batch_for(0, 0, 0)[:, 0].tolist()) == list(range(0, 28, 4))


def test_the_largest_vocabularies_of_both_types(tmp_path: Path) -> None:
    """The bound itself does not fit the data type."""
    assert (
        split_of(
            tmp_path, write_tokens(tmp_path, {"s": ([65535, 1], [1, 2])}, shard_tokens=7, vocab_size=65536), "train"
        ).read(0, 1)
        == 65535
    )
    wide = tmp_path / "wide"
    wide.mkdir()
    split = split_of(
        wide, write_tokens(wide, {"s": ([2**32 - 1, 1], [1, 2])}, shard_tokens=7, vocab_size=2**32), "train"
    )
    assert split.read(0, 1) == 2**32 - 1


def test_a_passing_read_fault_is_read_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path, write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7), "train")
    bad = BadReads(monkeypatch, 1, lambda raw: raw[:-1] + b"\xff")
    assert split.read(7, 14).tolist() == list(range(7, 14))
    assert bad.calls == 2
    bad = BadReads(monkeypatch, 2, lambda raw: raw[:-1] + b"\xff")
    with pytest.raises(DatasetDamaged, match=r"train-00001\.bin has token 65293 at position 6"):
        split.read(7, 14)
    assert bad.calls == 2


def test_an_input_output_error_is_tried_again_and_stays_an_oserror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(tmp_path, write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7), "train")

    def fail(raw: bytes) -> bytes:
        raise OSError(5, "Input/output error")

    BadReads(monkeypatch, 1, fail)
    assert split.read(0, 14).tolist() == list(range(14))
    BadReads(monkeypatch, 2, fail)
    with pytest.raises(OSError, match="Input/output error"):
        split.read(0, 14)
    assert split.read(0, 14).tolist() == list(range(14))


def test_short_reads_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path, write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7), "train")
    bad = BadReads(monkeypatch, 1000, lambda raw: raw[:3])
    assert split.read(2, 16).tolist() == list(range(2, 16))
    assert bad.calls > 9


@pytest.mark.parametrize("size", [13, 6, 0])
def test_a_shard_truncated_between_two_reads_is_an_error_and_no_crash(tmp_path: Path, size: int) -> None:
    batches = batches_of_shards(tmp_path)
    before = batches.batch_for(0, 0, 0)
    path = tmp_path / "s/train-00002.bin"
    whole = path.read_bytes()
    os.truncate(path, size)
    message = rf"train-00002\.bin has {size} bytes, the manifest says 14: restore the file, or prepare"
    for _ in range(2):
        with pytest.raises(DatasetDamaged, match=message):
            batches.batch_for(0, 0, 0)
    path.unlink()
    with pytest.raises(DatasetMissing):
        batches.batch_for(0, 0, 0)
    path.write_bytes(whole)
    assert (batches.batch_for(0, 0, 0) == before).all()


def test_a_file_truncated_again_after_the_second_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = split_of(tmp_path, write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7), "train")
    BadReads(monkeypatch, 1000, lambda raw: b"")
    with pytest.raises(DatasetDamaged, match=r"train-00001\.bin ends at byte 4, the manifest says 14"):
        split.read(9, 12)


@pytest.mark.parametrize("replace", [True, False], ids=["by another file", "in place"])
@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "overwritten"])
def test_a_file_repaired_before_the_second_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, truncate: bool
) -> None:
    split = split_of(tmp_path, write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7), "train")
    path = tmp_path / "s/train-00001.bin"
    whole = path.read_bytes()
    if truncate:
        os.truncate(path, 5)
    else:
        damage(path, 4, 40_000)

    def repair(raw: bytes) -> bytes:
        if replace:
            (tmp_path / "restored").write_bytes(whole)
            (tmp_path / "restored").rename(path)
        else:
            path.write_bytes(whole)
        return raw

    # A truncated file's first read is two calls: what there is, and nothing more.
    bad = BadReads(monkeypatch, 2 if truncate else 1, repair)
    assert split.read(7, 14).tolist() == list(range(7, 14))
    assert bad.calls >= 2
    split.verify()


def test_descriptors_are_closed_with_the_split(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": (list(range(30)), [1, 2])}, shard_tokens=7)

    def opened() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links)

    split = TokenSplit(tmp_path, manifest, manifest.sources[0], "train")
    damage(tmp_path / "s/train-00001.bin", 0, 300)
    for _ in range(10):
        with pytest.raises(DatasetDamaged):
            split.read(7, 8)
    assert opened() == 5
    del split
    assert opened() == 0


def test_each_process_looks_at_its_share_of_the_shards(tmp_path: Path) -> None:
    manifest = write_tokens(tmp_path, {"s": (list(range(1, 60)), list(range(1, 30)))}, shard_tokens=10)
    shard = tmp_path / manifest.shards()[3].name
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x01\x01")
    windows = TrainingWindows(tmp_path, manifest, 5)
    windows.verify(0, 2)
    with pytest.raises(DatasetDamaged, match=shard.name):
        windows.verify(1, 2)
    with pytest.raises(DatasetDamaged, match=shard.name):
        windows.verify()
    verify_heldout(tmp_path, manifest)

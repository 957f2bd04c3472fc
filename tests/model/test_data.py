import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data import ShardWriter, TokenSplit, TrainingBatches, Windows, sample_checksum, sample_indices
from model.dataset import (
    Baselines,
    DatasetDamaged,
    DatasetManifest,
    DatasetMissing,
    Split,
    SplitName,
    Splits,
    TokenizerFile,
    content_digest,
)

SHA = "ab" * 32


def dataset(
    folder: Path, train: list[int], heldout: list[int], shard_tokens: int = 7, vocab_size: int = 300
) -> DatasetManifest:
    """Token shards with a manifest, straight from numbers."""
    dtype = "uint16" if vocab_size <= 65536 else "uint32"
    sides: dict[str, Split] = {}
    names: tuple[SplitName, SplitName] = ("train", "heldout")
    for name, tokens in zip(names, (train, heldout), strict=True):
        writer = ShardWriter(folder, name, dtype, shard_tokens)
        for start in range(0, len(tokens), 5):
            writer.write(np.array(tokens[start : start + 5], dtype=np.int64))
        sides[name] = Split(documents=1, tokens=len(tokens), bytes=len(tokens), shards=writer.close())
    splits = Splits(train=sides["train"], heldout=sides["heldout"])
    return DatasetManifest(
        digest=content_digest(SHA, splits.train.shards + splits.heldout.shards),
        inputs_digest=SHA,
        tokenizer=TokenizerFile(sha256=SHA, vocab_size=vocab_size, end_of_text=0),
        dtype=dtype,
        splits=splits,
        source="numbers",
        baselines=Baselines(order0_bits_per_byte=1, xz_bits_per_byte=1, xz_bytes=1),
    )


def test_shards_are_bounded_little_endian_and_read_as_one(tmp_path: Path) -> None:
    tokens = list(range(256, 286))
    manifest = dataset(tmp_path, tokens, [1, 2, 3])
    assert [shard.tokens for shard in manifest.splits.train.shards] == [7, 7, 7, 7, 2]
    assert (tmp_path / "train-00000.bin").read_bytes()[:4] == b"\x00\x01\x01\x01"
    split = TokenSplit(tmp_path, manifest, "train")
    assert len(split) == 30
    for start in range(31):
        for stop in range(start, 31):
            assert split.read(start, stop).tolist() == tokens[start:stop]
    for start, stop in ((-1, 2), (0, 31), (3, 2)):
        with pytest.raises(IndexError, match="30"):
            split.read(start, stop)
    split.verify()


def test_large_vocabularies_use_four_bytes(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, [70_000, 1], [65_536, 2], vocab_size=100_000)
    assert manifest.dtype == "uint32"
    split = TokenSplit(f"file://{tmp_path}", manifest, "heldout")
    assert split.read(0, 2).tolist() == [65_536, 2]


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, list(range(30)), [1, 2, 3])
    split = TokenSplit(tmp_path, manifest, "train")
    path = tmp_path / "train-00002.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DatasetDamaged, match=r"train-00002\.bin has SHA-256"):
        split.verify()
    path.write_bytes(whole[:-2])
    with pytest.raises(DatasetDamaged, match=r"train-00002\.bin has 12 bytes, the manifest says 14"):
        TokenSplit(tmp_path, manifest, "train")
    path.unlink()
    with pytest.raises(DatasetMissing):
        TokenSplit(tmp_path, manifest, "train")


def test_remote_datasets_are_refused_in_words(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, [1, 2], [1, 2])
    with pytest.raises(ValueError, match="local or mounted folders only, got s3://bucket/data"):
        TokenSplit("s3://bucket/data", manifest, "train")


def test_windows_overlap_by_extra_and_cover_targets_once(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, list(range(30)), list(range(100, 123)))
    windows = Windows(TokenSplit(tmp_path, manifest, "train"), sequence_length=4, extra=2)
    assert windows.count == 7
    rows = windows.read(range(7))
    assert rows.shape == (7, 6)
    assert rows.dtype == np.int64
    assert rows[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert rows[6].tolist() == [24, 25, 26, 27, 28, 29]
    assert rows[:, 1:5].ravel().tolist() == list(range(1, 29))
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match=f"window {wrong} is not one of the 7"):
            windows.read([wrong])


@pytest.mark.parametrize(("limit", "count"), [(0, 1), (4, 1), (11, 2), (12, 3), (10**9, 5)])
def test_heldout_windows_come_in_order_up_to_the_limit(tmp_path: Path, limit: int, count: int) -> None:
    manifest = dataset(tmp_path, [1, 2], list(range(100, 123)))
    windows = Windows(TokenSplit(tmp_path, manifest, "heldout"), sequence_length=4, extra=1)
    rows = windows.heldout_windows(limit)
    assert rows[:, :4].ravel().tolist() == list(range(100, 100 + 4 * count))
    assert (rows[:, 1:] == rows[:, :-1] + 1).all()


def test_too_little_text_names_both_numbers(tmp_path: Path) -> None:
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")
    assert Windows(split, 28, 2).count == 1
    with pytest.raises(ValueError, match=r"30 tokens, but one sequence needs 31 \(sequence_length 29 \+ 2\)"):
        Windows(split, 29, 2)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 700), st.integers(1, 64), st.integers(0, 3))
def test_no_window_is_lost_or_seen_twice_in_an_epoch(seed: int, windows: int, batch: int, epoch: int) -> None:
    first, last = epoch * windows // batch, (epoch + 1) * windows // batch + 1
    order = np.concatenate([sample_indices(seed, step, batch, windows) for step in range(first, last)])
    start = epoch * windows - first * batch
    assert sorted(order[start : start + windows].tolist()) == list(range(windows))


def test_the_order_depends_on_samples_seen_not_on_the_batch() -> None:
    one_by_one = [int(sample_indices(3, step, 1, 100)[0]) for step in range(240)]
    assert np.concatenate([sample_indices(3, step, 24, 100) for step in range(10)]).tolist() == one_by_one


def test_seeds_and_epochs_differ_and_look_shuffled() -> None:
    size = 1000
    orders = [sample_indices(seed, epoch, size, size) for seed in range(4) for epoch in range(4)]
    assert len({order.tobytes() for order in orders}) == 16
    for order in orders:
        assert (order == np.arange(size)).sum() < 12  # expected: 1 fixed point
        assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.15  # standard deviation: 0.03
        assert 0.4 < (np.diff(order) > 0).mean() < 0.6


def test_small_epochs_use_all_permutations() -> None:
    seen = {sample_indices(seed, 0, 3, 3).tobytes() for seed in range(200)}
    assert len(seen) == 6


def test_the_order_is_the_same_for_ever() -> None:
    """Resuming an old run with a newer program must not change what it reads next."""
    assert sample_indices(1, 0, 8, 1000).tolist() == [791, 498, 166, 904, 254, 147, 941, 416]
    assert sample_indices(1, 10**12, 2, 3_600_000_000).tolist() == [2472510199, 1103231720]


@pytest.mark.parametrize("arguments", [(-1, 1, 1), (0, 0, 1), (0, 1, 0)])
def test_nonsense_is_refused(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="num_windows"):
        sample_indices(0, *arguments)


def test_another_world_size_sees_the_same_windows(tmp_path: Path) -> None:
    windows = Windows(TokenSplit(tmp_path, dataset(tmp_path, list(range(250)), [1, 2]), "train"), 3, 1)
    layouts = [(1, 8, 1), (2, 4, 1), (4, 1, 2), (2, 1, 4), (8, 1, 1), (1, 2, 4)]
    for step in (0, 5, 40):
        seen = set()
        for world, micro, accumulation in layouts:
            batches = TrainingBatches(windows, 9, world, micro, accumulation)
            assert batches.batch == 8
            parts = [batches.numbers_for(step, rank, k) for k in range(accumulation) for rank in range(world)]
            seen.add(np.concatenate(parts).tobytes())
            rows = batches.batch_for(step, world - 1, accumulation - 1)
            assert rows.shape == (micro, 4)
            assert (rows[:, 0] == 3 * parts[-1]).all()
        assert seen == {sample_indices(9, step, 8, windows.count).tobytes()}


@pytest.mark.parametrize(("rank", "k"), [(2, 0), (-1, 0), (0, 3), (0, -1)])
def test_ranks_and_passes_out_of_range(tmp_path: Path, rank: int, k: int) -> None:
    windows = Windows(TokenSplit(tmp_path, dataset(tmp_path, list(range(50)), [1, 2]), "train"), 3, 1)
    with pytest.raises(ValueError, match="out of range"):
        TrainingBatches(windows, 0, 2, 1, 3).batch_for(0, rank, k)


def test_a_shard_needs_room(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 token, got 0"):
        ShardWriter(tmp_path, "train", "uint16", 0)


class BadReads:
    """`os.pread` whose first `faults` calls are answered by `answer(right bytes)`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, faults: int, answer: Callable[[bytes], bytes]) -> None:
        self.faults, self.answer, self.calls, self.pread = faults, answer, 0, os.pread
        monkeypatch.setattr("model.data.os.pread", self)

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
    windows = Windows(TokenSplit(folder, dataset(folder, list(range(30)), [1, 2]), "train"), 4, 1)
    return TrainingBatches(windows, 0, 1, 7, 1)


def test_a_token_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    batches = batches_of_shards(tmp_path)
    damage(tmp_path / "train-00001.bin", 3, 299)  # the last number of the vocabulary
    assert 299 in batches.batch_for(0, 0, 0)
    for token in (300, 65535):
        damage(tmp_path / "train-00001.bin", 3, token)
        message = (
            rf"{tmp_path}/train-00001\.bin has token {token} at position 3 \(byte 6\), the vocabulary ends at 299: "
            "restore the file, or prepare the dataset again with `fathom data prepare` and --force"
        )
        with pytest.raises(DatasetDamaged, match=message):
            batches.batch_for(0, 0, 0)
    assert batches.windows.read([0]).tolist() == [[0, 1, 2, 3, 4]]  # what is whole can still be read
    damage(tmp_path / "train-00001.bin", 3, 10)
    assert sorted(batches.batch_for(0, 0, 0)[:, 0].tolist()) == list(range(0, 28, 4))


def test_the_largest_vocabularies_of_both_types(tmp_path: Path) -> None:
    """The bound itself does not fit the data type."""
    assert TokenSplit(tmp_path, dataset(tmp_path, [65535, 1], [1, 2], vocab_size=65536), "train").read(0, 1) == 65535
    wide = tmp_path / "wide"
    wide.mkdir()
    split = TokenSplit(wide, dataset(wide, [2**32 - 1, 1], [1, 2], vocab_size=2**32), "train")
    assert split.read(0, 1) == 2**32 - 1


def test_a_passing_read_fault_is_read_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")
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
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")

    def fail(raw: bytes) -> bytes:
        raise OSError(5, "Input/output error")

    BadReads(monkeypatch, 1, fail)
    assert split.read(0, 14).tolist() == list(range(14))
    BadReads(monkeypatch, 2, fail)
    with pytest.raises(OSError, match="Input/output error"):
        split.read(0, 14)
    assert split.read(0, 14).tolist() == list(range(14))


def test_short_reads_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")
    bad = BadReads(monkeypatch, 1000, lambda raw: raw[:3])
    assert split.read(2, 16).tolist() == list(range(2, 16))
    assert bad.calls > 9


@pytest.mark.parametrize("size", [13, 6, 0])
def test_a_shard_truncated_between_two_reads_is_an_error_and_no_crash(tmp_path: Path, size: int) -> None:
    batches = batches_of_shards(tmp_path)
    before = batches.batch_for(0, 0, 0)
    path = tmp_path / "train-00002.bin"
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
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")
    BadReads(monkeypatch, 1000, lambda raw: b"")
    with pytest.raises(DatasetDamaged, match=r"train-00001\.bin ends at byte 4, the manifest says 14"):
        split.read(9, 12)


@pytest.mark.parametrize("replace", [True, False], ids=["by another file", "in place"])
@pytest.mark.parametrize("truncate", [True, False], ids=["truncated", "overwritten"])
def test_a_file_repaired_before_the_second_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool, truncate: bool
) -> None:
    split = TokenSplit(tmp_path, dataset(tmp_path, list(range(30)), [1, 2]), "train")
    path = tmp_path / "train-00001.bin"
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
    manifest = dataset(tmp_path, list(range(30)), [1, 2])

    def opened() -> int:
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(os.path.realpath(link).startswith(str(tmp_path)) for link in links)

    split = TokenSplit(tmp_path, manifest, "train")
    damage(tmp_path / "train-00001.bin", 0, 300)
    for _ in range(10):
        with pytest.raises(DatasetDamaged):
            split.read(7, 8)
    assert opened() == 5
    del split
    assert opened() == 0


def test_the_checksum_by_hand() -> None:
    one = zlib.crc32(bytes([3, 0, 0, 0, 0, 0, 0, 0] + [1, 1, 0, 0, 0, 0, 0, 0] + [2] + 7 * [0]))
    two = zlib.crc32(bytes([4] + 7 * [0] + [5] + 7 * [0] + [6] + 7 * [0]))
    assert sample_checksum(np.array([3, 4]), np.array([[257, 2], [5, 6]])) == one + two
    assert sample_checksum(np.array([], dtype=np.int64), np.empty((0, 5), dtype=np.int64)) == 0
    with pytest.raises(ValueError, match="zip"):
        sample_checksum(np.array([1, 2]), np.array([[1]]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 24), st.integers(1, 6), st.integers(1, 8))
def test_the_checksum_does_not_depend_on_how_sequences_are_divided(seed: int, n: int, parts: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    numbers, windows = rng.permutation(1000)[:n], rng.integers(0, 300, (n, length))
    whole = sample_checksum(numbers, windows)
    assert 0 <= whole < n * 2**32
    order = rng.permutation(n)
    divided = [sample_checksum(numbers[part], windows[part]) for part in np.array_split(order, parts)]
    assert sum(divided) == whole
    assert sample_checksum(numbers, np.asfortranarray(windows)) == whole
    changed = windows.copy()
    changed[rng.integers(n), rng.integers(length)] += 1
    assert sample_checksum(numbers, changed) != whole
    assert sample_checksum(numbers + 1, windows) != whole


def test_the_checksum_of_a_step_is_the_same_on_all_layouts(tmp_path: Path) -> None:
    windows = Windows(TokenSplit(tmp_path, dataset(tmp_path, list(range(250)), [1, 2]), "train"), 3, 1)
    sums = set()
    for world, micro, accumulation in ((1, 8, 1), (2, 2, 2), (8, 1, 1)):
        batches = TrainingBatches(windows, 9, world, micro, accumulation)
        each = [(5, rank, k) for rank in range(world) for k in range(accumulation)]
        sums.add(sum(sample_checksum(batches.numbers_for(*at), batches.batch_for(*at)) for at in each))
    assert len(sums) == 1

"""What once went wrong with hostile and with very large inputs."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from support.tokens import write_tokens

from model.corpus import Mixture, Options, Source, prepare, read_mixture
from model.corpus.listing import _glob_expression
from model.corpus.mixture import is_mixture
from model.corpus.runs import RunWriter, bucket_rows
from model.corpus.whole import in_short_words
from model.corpus.workspace import workspace
from model.data import TokenSplit
from model.data.shards import OPEN_SHARDS
from model.dataset import DatasetManifest
from model.tokenizer import Tokenizer

SAME_FIRST = hashlib.sha256(b"the same").digest() < hashlib.sha256(b"another").digest()
FEW = Options(vocab_size=300, heldout_share=0.2, workers=1)


def made(uri: Path | str, out: Path, options: Options = FEW) -> DatasetManifest:
    return prepare(Mixture(sources=(Source(name="s", uri=str(uri)),)), out, options)


def apart(path: Path, out: Path, what: str) -> subprocess.CompletedProcess[str]:
    """`made` in a process of its own; prints `what` and the peak of its memory in MiB."""
    # VmHWM, not ru_maxrss: that one has the size of the process that started this one
    code = f"""
from pathlib import Path
from model.corpus import Mixture, Options, Source, prepare
options = Options(vocab_size={FEW.vocab_size}, heldout_share={FEW.heldout_share}, workers=1)
m = prepare(Mixture(sources=(Source(name="s", uri={str(path)!r}),)), Path({str(out)!r}), options)
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1]
print({what}, int(peak) // 1024)
"""
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment)


def test_an_arrow_file_whose_offsets_lead_out_of_it_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    batch = pyarrow.record_batch({"text": [f"document {n} of several" for n in range(8)]})
    with path.open("wb") as file, pyarrow.ipc.new_stream(file, batch.schema) as writer:
        writer.write_batch(batch)
    raw = bytearray(path.read_bytes())
    offsets = batch.column(0).buffers()[1].to_pybytes()[:36]
    place = raw.find(offsets)
    assert place > 0
    raw[place + 12 : place + 16] = (2_000_000_000).to_bytes(4, "little")
    path.write_bytes(raw)
    done = apart(path, tmp_path / "out", "0")  # it would not survive
    assert done.returncode == 1, done.stderr
    assert "1 damaged" in done.stderr


def test_one_endless_word_does_not_take_for_ever_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    word = "".join("ACGT"[n * n % 7 % 4] for n in range(300_000))
    (tmp_path / "source" / "dna.txt").write_text(word)
    for number in range(5):
        (tmp_path / "source" / f"{number}.txt").write_text(f"something {number}")
    began = time.process_time()
    made(tmp_path / "source", tmp_path / "out")
    assert time.process_time() - began < 60, "quadratic: it was many minutes"


@pytest.mark.parametrize("text", ["", "ab", "a" * 5000, " " * 3000 + "x", "ab " * 2000, "é" * 1024, "x" * 1023 + " y"])
def test_texts_in_short_words_are_the_same_texts(text: str) -> None:
    parts = list(in_short_words(text))
    assert "".join(parts) == text
    assert all(len(run) <= 1024 for part in parts for run in part.split())


def test_links_in_circles_do_not_hold_a_glob(tmp_path: Path) -> None:
    folder = tmp_path / "loop"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).symlink_to(".")
    for number, place in enumerate(("x.txt", "deep/y.txt", "deep/.hidden/z.txt", ".w.txt", "deep/v.md")):
        (folder / place).write_text(f"text number {number}")
    manifest = made(folder / "**" / "*.txt", tmp_path / "out", Options(vocab_size=300, workers=1))
    assert manifest.documents("train") + manifest.documents("heldout") == 2


@pytest.mark.parametrize(
    ("pattern", "found", "others"),
    [
        ("**/*.txt", ["a.txt", "x/a.txt", "x/y/a.txt"], ["a.md", ".a.txt", "x/.y/a.txt", ".x/a.txt"]),
        ("**", ["a", "x/a.txt"], [".a", "x/.a"]),
        ("x*/**/b?.txt", ["x1/b1.txt", "x/y/z/b2.txt"], ["y/b1.txt", "x/b.txt", "x/y/bb1.txt"]),
        ("**/[ab].txt", ["a.txt", "q/b.txt"], ["c.txt", "q/ab.txt"]),
        ("**/.git/*", [".git/x", "a/.git/y"], ["a/git/y"]),
    ],
)
def test_what_a_glob_finds(pattern: str, found: list[str], others: list[str]) -> None:
    expression = _glob_expression(tuple(pattern.split("/")))
    assert [name for name in found if not expression.fullmatch(name)] == []
    assert [name for name in others if expression.fullmatch(name)] == []


def test_very_many_equal_records_are_held_once(tmp_path: Path) -> None:
    lines = (json.dumps({"text": "a"}) for _ in range(100_000))
    (tmp_path / "a.jsonl").write_text("\n".join(itertools.chain(lines, ('{"text": "b"}', '{"text": "c"}'))))
    manifest = made(tmp_path / "a.jsonl", tmp_path / "out")
    assert manifest.sources[0].skipped.duplicate.count == 99_999
    assert len(manifest.sources[0].skipped.duplicate.examples) == 5
    assert manifest.documents("train") + manifest.documents("heldout") == 3


def test_a_run_holds_equal_documents_once(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path, "r")
    for member, place in ((0, 5), (0, 1), (1, 0), (0, 9)):
        writer.add(0, member, place, b"the same")
    writer.add(0, 0, 7, b"another")
    writer.flush()
    assert bucket_rows(tmp_path / "r.0.idx", 0, 1)["place"].tolist() == ([1, 7] if SAME_FIRST else [7, 1])
    assert (tmp_path / "r.0.txt").stat().st_size == len(b"the same" + b"another")
    assert writer.repeated == [(0, 0, 5), (0, 0, 9), (0, 1, 0)], "the first by file and place stays"


def test_a_small_table_of_one_large_text_stays_small(tmp_path: Path) -> None:
    large = "word " * 200_000  # 1 MB, 512 times
    path = tmp_path / "t.parquet"
    table = pyarrow.table({"text": [large] * 512 + ["b", "c"]})
    # in pages of one row: a page is unpacked as a whole, whoever reads it
    pyarrow.parquet.write_table(table, path, compression="zstd", use_dictionary=False, write_batch_size=1)
    assert path.stat().st_size < 200_000
    done = apart(path, tmp_path / "out", "m.sources[0].skipped.duplicate.count")
    assert done.returncode == 0, done.stderr
    duplicates, peak = map(int, done.stdout.split())
    assert duplicates == 511
    assert peak < 500, "all the copies were held"  # half of it is for the tokens of the one text


@pytest.mark.parametrize("kind", [pyarrow.timestamp("us"), pyarrow.date32()])
def test_cells_that_python_has_no_value_for_are_no_text(tmp_path: Path, kind: pyarrow.DataType) -> None:
    number = 2**62 if kind == pyarrow.timestamp("us") else 2**30
    table = pyarrow.table({"text": pyarrow.array([number, number], type=kind)})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"skipped: 2 no text; name the field"):
        made(tmp_path / "t.parquet", tmp_path / "out")


def test_tokenizers_that_draw_or_number_wildly_are_refused() -> None:
    plain = Tokenizer.train(["some words to learn from"], 300).to_json()
    dropping = json.loads(plain)
    dropping["model"]["dropout"] = 0.3
    with pytest.raises(ValueError, match="drops merges at random"):
        Tokenizer.from_json(json.dumps(dropping))
    wild = json.loads(plain)
    wild["model"]["vocab"]["zz"] = 4_000_000_000
    with pytest.raises(ValueError, match="a token has number 4000000000, but numbers must be below 1000000"):
        Tokenizer.from_json(json.dumps(wild))


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    tokens = list(range(1, 201))
    manifest = write_tokens(tmp_path, {"s": (tokens, [1, 2])}, shard_tokens=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + OPEN_SHARDS + 10, hard))
    try:
        split = TokenSplit(tmp_path, manifest, manifest.sources[0], "train")
        assert split.read(0, 200).tolist() == tokens
        assert split.read(0, 200).tolist() == tokens
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    split.verify()


@pytest.mark.parametrize(("pattern", "refused"), [("*.txt", False), ("**", True), ("*/*.txt", True), ("x*/*", False)])
def test_an_output_that_a_glob_would_find_is_refused(tmp_path: Path, pattern: str, refused: bool) -> None:
    for number in range(4):
        for place in ("", "x1"):
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / f"{number}.txt").write_text(f"text {number} {place}")
    if refused:
        with pytest.raises(ValueError, match="lies inside the source"):
            made(tmp_path / pattern, tmp_path / "out")
    else:
        assert made(tmp_path / pattern, tmp_path / "out").documents("train") == 3


def test_a_glob_of_yaml_files_is_no_mixture(tmp_path: Path) -> None:
    assert is_mixture("a/mix.yaml")
    assert not is_mixture("k8s/*.yaml")
    (tmp_path / "odd.yml").mkdir()
    assert not is_mixture(str(tmp_path / "odd.yml"))


def test_globs_of_a_mixture_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    folder = tmp_path / "d[1]"
    folder.mkdir()
    (folder / "mix.yaml").write_text("sources: [{name: a, uri: '*.txt'}, {name: b, uri: '~nobody-of-that-name/x'}]")
    for number in range(3):
        (folder / f"{number}.txt").write_text(f"text {number}")
    first, second = read_mixture(folder / "mix.yaml").sources
    assert second.uri == str(folder / "~nobody-of-that-name/x")
    assert prepare(Mixture(sources=(first,)), tmp_path / "out", FEW).documents("train") == 2


def test_a_lock_on_a_file_that_is_gone_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes the workspace between our opening of its lock and our locking."""
    import fcntl

    real, calls = fcntl.flock, []

    def flock(descriptor: object, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            (tmp_path / ".out.preparing" / "lock").unlink()
        real(descriptor, operation)  # type: ignore[arg-type]

    monkeypatch.setattr("model.corpus.workspace.fcntl.flock", flock)
    with (
        workspace(tmp_path / "out"),
        pytest.raises(FileExistsError, match="another process"),
        workspace(tmp_path / "out"),
    ):
        pass
    assert len(calls) == 3


def test_shards_beyond_the_hundred_thousandth_have_names() -> None:
    from model.dataset import Shard

    assert Shard(name="s/train-100000.bin", tokens=1, sha256="a" * 64).tokens == 1

"""Preparing text for training: `fathom data prepare` against `datasets` with `tokenizers`, the same work in both.

    python benchmarks/prepare_data.py [CORPUS.jsonl] [--bytes 64M] [--repeats 5] [--vocab-size 16384]

Reads JSON lines, drops equal documents, holds out a share by hash, tokenizes with one tokenizer (learned before, not
timed), and writes shards, with two processes each. Every run is a process of its own, in turns, with fresh folders:
tokens per CPU second (all processes, imports included) and peak memory (PSS summed over the processes every 50 ms; also
what of it is anonymous, since mapped files can be dropped from memory). Ratios, ours to theirs, are medians over the
pairs. All must write the same number of tokens.

Three ways: `fathom`; `datasets`, as one usually does it; `datasets-checked`, which also does what ours does besides:
decode every document and compare, hash the shards, the baselines of the held-out text.

Without CORPUS the text is the Python files of this interpreter's libraries, again with another first line until there
is enough. `--write FILE` only writes that corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

MIB = 1024 * 1024
WORKERS = 2
HELDOUT = 0.02
LONGEST = 1024 * 1024
TOKENIZER_BYTES = 16 * MIB
EVERY_S = 0.05
THRESHOLD = int(HELDOUT * 2**64).to_bytes(8, "big").ljust(32, b"\0")


# ------------------------------------------------------------------ corpus
def source_files() -> list[Path]:
    """Python files of the standard library and of the installed packages, in an order that mixes them."""
    folders = {sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    files = {path.resolve() for folder in folders for path in Path(folder).rglob("*.py") if path.is_file()}
    return sorted(files, key=lambda path: hashlib.sha256(str(path).encode()).digest())


def write_corpus(target: Path, size: int) -> int:
    """About `size` bytes of JSON lines; -> how often the files were taken."""
    files, written = source_files(), 0
    with target.open("w", encoding="ascii") as out:
        for turn in count():
            for path in files:
                try:
                    text = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError):
                    continue
                if not text.strip() or "\0" in text or len(text.encode()) > LONGEST:
                    continue
                written += out.write(json.dumps({"text": f"# {turn}\n{text}" if turn else text}) + "\n")
                if written >= size:
                    return turn + 1
    raise AssertionError


def learn(corpus: Path, vocab_size: int, target: Path) -> None:
    """A tokenizer of the first documents."""
    from model.tokenizer import Tokenizer

    def texts() -> Iterator[str]:
        done = 0
        with corpus.open("rb") as lines:
            for line in lines:
                yield (text := json.loads(line)["text"])
                done += len(text)
                if done >= TOKENIZER_BYTES:
                    return

    target.write_text(Tokenizer.train(texts(), vocab_size).to_json(), encoding="utf-8")


# ------------------------------------------------------------------ the ways
def with_fathom(corpus: Path, tokenizer: Path, out: Path) -> int:
    """-> tokens."""
    from model.corpus import Mixture, Options, Source, prepare

    mixture = Mixture(sources=(Source(name="corpus", uri=str(corpus)),))
    options = Options(heldout_share=HELDOUT, tokenizer=tokenizer, fim_rate=0.0, workers=WORKERS)
    manifest = prepare(mixture, out, options)
    return manifest.tokens("train") + manifest.tokens("heldout")


def with_datasets(corpus: Path, tokenizer: Path, out: Path, *, checked: bool = False) -> int:
    """-> tokens."""
    from datasets import Features, List, Value, load_dataset

    cache = out / "cache"
    rows = load_dataset("json", data_files=str(corpus), split="train", cache_dir=str(cache))
    rows = rows.map(_hashed, batched=True, num_proc=WORKERS)
    hashes = np.array(rows["sha256"], dtype="S32")
    _, first = np.unique(hashes, return_index=True)
    heldout = hashes[first] < np.bytes_(THRESHOLD)
    dtype = "uint16" if _backend(str(tokenizer)).get_vocab_size() <= 65536 else "uint32"
    tokens = 0
    for side, indices in (("train", first[~heldout]), ("heldout", first[heldout])):
        chosen = rows.select(np.sort(indices))
        encoded = chosen.map(
            _encoded,
            batched=True,
            num_proc=WORKERS,
            remove_columns=rows.column_names,
            features=Features({"ids": List(Value(dtype))}),
            fn_kwargs={"tokenizer": str(tokenizer), "checked": checked},
        )
        digest = hashlib.sha256()
        with (out / f"{side}-00000.bin").open("wb") as shard:
            for table in encoded.with_format("arrow").iter(batch_size=1000):
                numbers = table["ids"].combine_chunks().flatten().to_numpy()
                tokens += len(numbers)
                shard.write(numbers)
                if checked:
                    digest.update(numbers)
        if checked and side == "heldout":
            from model.corpus.baselines import baselines

            baselines(row["text"].encode() for row in chosen)
    return tokens


def with_datasets_checked(corpus: Path, tokenizer: Path, out: Path) -> int:
    """-> tokens."""
    return with_datasets(corpus, tokenizer, out, checked=True)


def _hashed(batch: dict[str, list[str]]) -> dict[str, list[bytes]]:
    return {"sha256": [hashlib.sha256(text.encode()).digest() for text in batch["text"]]}


def _encoded(batch: dict[str, list[Any]], tokenizer: str, *, checked: bool) -> dict[str, list[list[int]]]:
    backend, end = _backend(tokenizer), _backend(tokenizer).token_to_id("<|endoftext|>")
    ids = [encoding.ids for encoding in backend.encode_batch_fast(batch["text"], add_special_tokens=False)]
    if checked and backend.decode_batch(ids, skip_special_tokens=False) != batch["text"]:
        raise ValueError("a document does not come back from its tokens")
    return {"ids": [[*own, end] for own in ids]}


@lru_cache
def _backend(path: str) -> Any:  # noqa: ANN401 - untyped
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(path)
    backend.encode_special_tokens = True
    return backend


WAYS = {"fathom": with_fathom, "datasets": with_datasets, "datasets-checked": with_datasets_checked}


def child(way: str, corpus: str, tokenizer: str, out: str) -> None:
    """Do it one way, in this process; the last line on stdout is the number of tokens."""
    print(WAYS[way](Path(corpus), Path(tokenizer), Path(out)))


# ------------------------------------------------------------------ measuring
@dataclass
class Memory:
    """Memory of a process and all below it, over time."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)
    """(seconds, PSS, anonymous part of it), in bytes."""

    def sample(self, process: psutil.Process, seconds: float) -> None:
        """Look once."""
        pss = anonymous = 0
        try:
            tree = [process, *process.children(recursive=True)]
        except psutil.Error:
            return
        for one in tree:
            try:
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # has just ended
                continue
            sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (x.partition(":") for x in lines[1:])}
            pss += sizes["Pss"]
            anonymous += sizes["Pss_Anon"]
        self.samples.append((seconds, pss, anonymous))

    def peak(self, column: int) -> float:
        """The most, in MiB."""
        return max(sample[column] for sample in self.samples) / MIB


def measured(command: list[str], env: dict[str, str], log: Path) -> tuple[dict[str, float], Memory]:
    """Run a command; -> its CPU and wall seconds and peak memory, with all processes below it."""
    memory, began = Memory(), time.perf_counter()
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env) as running:
        process = psutil.Process(running.pid)
        while True:
            pid, status, usage = os.wait4(running.pid, os.WNOHANG)
            if pid:
                break
            memory.sample(process, time.perf_counter() - began)
            time.sleep(EVERY_S)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise RuntimeError(f"{command} ended with {running.returncode}:\n{log.read_text()[-4000:]}")
    seconds = {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": time.perf_counter() - began}
    return seconds | {"peak_mib": memory.peak(1), "anonymous_mib": memory.peak(2)}, memory


def run(way: str, corpus: Path, tokenizer: Path) -> dict[str, float]:
    """One run in a process and folders of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (out := Path(folder, "out")).mkdir()
        env = os.environ | {"HF_HOME": folder, "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
                            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
        # imported, not run as a script: `datasets` would take all of a script's globals for a part of its functions
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import prepare_data as p; "
        code += f"p.child(*{(way, str(corpus), str(tokenizer), str(out))!r})"
        log = Path(folder, "log")
        result, _ = measured([sys.executable, "-c", code], env, log)
        tokens = int(log.read_text().split()[-1])
    size = corpus.stat().st_size
    return result | {
        "tokens": tokens,
        "tokens_per_cpu_s": tokens / result["cpu_s"],
        "mb_per_cpu_s": size / 1e6 / result["cpu_s"],
        "mb_per_wall_s": size / 1e6 / result["wall_s"],
    }


@contextmanager
def _corpus(given: Path | None, size: int) -> Iterator[tuple[Path, int]]:
    """-> the corpus, and how often its files were taken."""
    if given is not None:
        yield given, 1
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "corpus.jsonl")
        yield path, write_corpus(path, size)


def _size(text: str) -> int:
    units = {"K": 1000, "M": 1000**2, "G": 1000**3}
    return int(float(text[:-1]) * units[text[-1].upper()]) if text[-1].upper() in units else int(text)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path)
    parser.add_argument("--bytes", type=_size, default=_size("64M"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=16384)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--write", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.write:
        print(f"{args.write}: each file {write_corpus(args.write, args.bytes)} times at most")
        return
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in args.ways}
    with _corpus(args.corpus, args.bytes) as (corpus, turns), tempfile.TemporaryDirectory() as folder:
        size, tokenizer = corpus.stat().st_size, Path(folder, "tokenizer.json")
        learn(corpus, args.vocab_size, tokenizer)
        for repeat in range(args.repeats):
            for way in args.ways:
                runs[way].append(run(way, corpus, tokenizer))
                print(f"{repeat + 1}/{args.repeats} {way}: {json.dumps(runs[way][-1])}", file=sys.stderr)
    tokens = {int(one["tokens"]) for own in runs.values() for one in own}
    if len(tokens) != 1:
        raise RuntimeError(f"the ways wrote different numbers of tokens: {sorted(tokens)}")
    medians = {
        way: {name: round(statistics.median(one[name] for one in own), 2) for name in own[0]}
        for way, own in runs.items()
    }
    names = ("tokens_per_cpu_s", "mb_per_wall_s", "peak_mib", "anonymous_mib")
    ratios = {
        way: {
            name: round(statistics.median(a[name] / b[name] for a, b in zip(runs["fathom"], own, strict=True)), 3)
            for name in names
        }
        for way, own in runs.items()
        if way != "fathom" and "fathom" in runs
    }
    for way, own in medians.items():
        print(
            f"{way:<17} {own['tokens_per_cpu_s']:>9,.0f} tokens/CPU s {own['mb_per_cpu_s']:>6.2f} MB/CPU s "
            f"{own['mb_per_wall_s']:>6.2f} MB/s {own['peak_mib']:>7.0f} MiB ({own['anonymous_mib']:.0f} anonymous)"
        )
    print(json.dumps({"bytes": size, "turns": turns, "repeats": args.repeats, "medians": medians, "ratios": ratios}))


if __name__ == "__main__":
    main()

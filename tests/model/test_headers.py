"""Folders of safetensors that anything may have happened to: everything that is wrong is said, nothing is believed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import TINY as SMALL
from torch import Tensor

from model.config import ModelConfig
from model.export import write_release
from model.fit import fit
from model.headers import INDEX, SINGLE, read_headers
from model.names import DiskEntry
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import load_weights

TOKENIZER = Tokenizer.train(["text"], MIN_VOCAB)
TINY = SMALL.replace(vocab_size=MIN_VOCAB)
NAME = "model.layers.1.mlp.experts.3.up_proj.weight"
FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with an index, and the same in one file below `single`; `fp8` too."""
    root = tmp_path_factory.mktemp("whole")
    made = CausalLM(TINY)
    made.initialise(4)
    state = made.state_dict()

    def read(entry: DiskEntry) -> Tensor:
        return state[entry.memory_name][entry.index]

    write_release(root / "sharded", TINY, read, TOKENIZER, dtype="fp32", shard_bytes=200_000)
    write_release(root / "single", TINY, read, TOKENIZER, dtype="fp32")
    write_release(root / "fp8", TINY, read, TOKENIZER, dtype="fp8")
    assert (root / "sharded" / FIRST).exists()
    return root


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "sharded", tmp_path / "w"))


@pytest.fixture
def fp8(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "fp8", tmp_path / "8"))


def refused(folder: Path, config: ModelConfig = TINY) -> str:
    """What is said; and that nothing of the model was touched before."""
    made = CausalLM(config)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.fill_(7)
    with pytest.raises((ValueError, FileNotFoundError)) as told:
        load_weights(made, str(folder))
    assert all(bool((tensor == 7).all()) for tensor in made.state_dict().values())
    return str(told.value)


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def change_header(file: Path, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    """Leaves the data as it is."""
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])


def test_everything_is_told_in_one_error(folder: Path) -> None:
    tensors = load_file(folder / FIRST)
    del tensors["model.layers.0.self_attn.o_proj.weight"]
    tensors["model.embed_tokens.weight"] = torch.zeros(3, 5)
    tensors["model.layers.0.input_layernorm.weight"] = torch.zeros(32, dtype=torch.int64)
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(4)
    save_file(tensors, folder / FIRST)

    def renamed(where: dict[str, str]) -> None:
        del where["model.layers.0.self_attn.o_proj.weight"]
        where["model.layers.0.self_attn.q_proj.bias"] = FIRST

    change_index(folder, renamed)
    told = refused(folder)
    for words in (
        "1 missing of", "model.layers.0.self_attn.o_proj.weight", "1 of another shape",
        "model.embed_tokens.weight has [3, 5], the model needs [257, 32]", "1 of a type that is not read",
        "model.layers.0.input_layernorm.weight is I64", "1 unknown", "q_proj.bias [4]",
    ):  # fmt: skip
        assert words in told


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "has 0 bytes"),
        (b"\x01\x00", "has 2 bytes"),
        (b"\xff" * 8 + b"{}", "has 10 bytes, its header should have 18446744073709551615"),
        ((10**7).to_bytes(8, "little") + b"{}", "has 10 bytes, its header should have 10000000"),
        ((2).to_bytes(8, "little") + b"[]", "its header is a JSON list"),
        ((4).to_bytes(8, "little") + b"garb", "its header is not JSON"),
        ((4).to_bytes(8, "little") + b"\xff\xfe\x00\x01", "its header is not JSON"),
        (b"".join([(100_000).to_bytes(8, "little"), b"[" * 100_000]), "its header is not JSON"),
    ],
    ids=["empty", "two bytes", "huge", "beyond the end", "list", "garbage", "no text", "nested"],
)
def test_headers_that_are_none(folder: Path, raw: bytes, words: str) -> None:
    (folder / FIRST).write_bytes(raw)
    told = refused(folder)
    assert f"{FIRST}: {words}" in told
    assert "missing of" not in told, "what stands in a damaged file is not told once more"


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [-1, 32], "data_offsets": [0, 8192]},
        {"dtype": "F32", "shape": [64, 32], "data_offsets": [0, 8191]},
        {"dtype": "F32", "shape": [64, 32], "data_offsets": [8192, 0]},
        {"dtype": "F33", "shape": [64, 32], "data_offsets": [0, 8192]},
        {"dtype": "F32", "shape": "64", "data_offsets": [0, 8192]},
        {"dtype": "F32", "shape": [True, 2048], "data_offsets": [0, 8192]},
        {"dtype": ["F32"], "shape": [64, 32], "data_offsets": [0, 8192]},
        {"dtype": "F32"},
        [],
    ],
)
def test_entries_that_cannot_be(folder: Path, entry: object) -> None:
    change_header(folder / FIRST, lambda header: header.update({"model.embed_tokens.weight": entry}))  # type: ignore[dict-item]
    assert "describes model.embed_tokens.weight as" in refused(folder)


def test_tensors_must_not_overlap_or_leave_gaps(folder: Path) -> None:
    def overlap(header: dict[str, dict[str, object]]) -> None:
        header["model.layers.0.post_attention_layernorm.weight"]["data_offsets"] = [0, 128]

    change_header(folder / FIRST, overlap)
    assert "begin at byte" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..\\x.safetensors", "x.bin"]
)
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    shutil.copy(folder / FIRST, folder.parent / "secret.safetensors")
    change_index(folder, lambda where: where.update({NAME: name}))
    assert "only .safetensors files of its own folder are read" in refused(folder)


def test_an_index_that_names_absent_files_and_folders(folder: Path) -> None:
    (folder / FIRST).unlink()
    assert f"{FIRST}: is missing" in refused(folder)
    (folder / FIRST).mkdir()
    assert f"{FIRST}: is a folder, not a file" in refused(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}']
)
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert "is not an index of weights" in refused(folder)


def test_an_index_that_lies(folder: Path) -> None:
    other = "model-00002-of-00002.safetensors"
    change_index(folder, lambda where: where.update({"model.embed_tokens.weight": other}))
    assert f"model.embed_tokens.weight: the index says that it is in {other}, but it is not" in refused(folder)
    change_index(folder, lambda where: where.pop("model.embed_tokens.weight"))
    assert f"model.embed_tokens.weight: it is in {FIRST}, but not in the index" in refused(folder)


def test_pickle_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert f"neither {INDEX} nor {SINGLE} is there" in refused(tmp_path)


def test_a_single_file_is_read_and_a_cut_one_refused(whole: Path, tmp_path: Path) -> None:
    load_weights(CausalLM(TINY), str(whole / "single"))
    folder = Path(shutil.copytree(whole / "single", tmp_path / "w"))
    raw = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(raw[:-1])
    told = refused(folder)
    assert f"{SINGLE}: has {len(raw) - 1} bytes, its header describes {len(raw)}: cut off" in told


def test_numbers_that_are_not_finite(folder: Path) -> None:
    tensors = load_file(folder / FIRST)
    tensors["model.layers.0.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(tensors, folder / FIRST)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.up_proj\.weight .* holds what is no finite number"):
        load_weights(CausalLM(TINY), str(folder))


def test_copies_of_embedding_and_head_must_be_copies(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        if (name := "model.layers.3.shared_head.head.weight") in tensors:
            tensors[name][0, 0] += 1
            save_file(tensors, file)
    with pytest.raises(ValueError, match=r"shared_head\.head\.weight .* differs from lm_head\.weight"):
        load_weights(CausalLM(TINY), str(folder))
    load_weights(CausalLM(TINY.replace(num_nextn_predict_layers=0)), str(folder))  # it does not matter then


def test_scales_of_8_bits(fp8: Path) -> None:
    file = fp8 / SINGLE
    tensors = load_file(file)
    good = dict(tensors)
    tensors[f"{NAME}_scale_inv"] = torch.ones(2, 1)
    del tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    tensors["model.layers.0.self_attn.o_proj.weight_scale_inv"] = torch.ones(1, 1, dtype=torch.float16)
    tensors["lm_head.weight_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, file)
    told = refused(fp8)
    assert f"{NAME}_scale_inv has [2, 1], blocks of 128 need [1, 1]" in told
    assert "model.layers.0.mlp.up_proj.weight_scale_inv, the scales of a tensor in FP8" in told
    assert "model.layers.0.self_attn.o_proj.weight_scale_inv is F16, scales are F32" in told
    assert "unknown: lm_head.weight_scale_inv [1, 1]" in told
    save_file(good, file)
    load_weights(CausalLM(TINY), str(fp8))


def test_the_fingerprint_is_that_of_the_content(folder: Path, whole: Path) -> None:
    assert read_headers(str(folder)).fingerprint == read_headers(str(whole / "sharded")).fingerprint
    raw = bytearray((folder / FIRST).read_bytes())
    raw[-1] ^= 1
    (folder / FIRST).write_bytes(raw)
    assert read_headers(str(folder)).fingerprint != read_headers(str(whole / "sharded")).fingerprint


@pytest.mark.parametrize("name", [FIRST, INDEX])
@pytest.mark.parametrize("linked", [False, True])
def test_pipes_are_not_waited_for(folder: Path, name: str, linked: bool) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / ("pipe" if linked else name))
    if linked:
        (folder / name).symlink_to(folder / "pipe")
    assert f"{name}{':' if name == FIRST else ''} is a device or pipe, not a file" in refused(folder)


def test_shapes_of_many_dimensions_are_not_multiplied(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}
    change_header(folder / FIRST, lambda header: header.update({"model.embed_tokens.weight": entry}))
    assert "describes model.embed_tokens.weight as" in refused(folder)


def test_names_cannot_speak_to_the_terminal(folder: Path) -> None:
    def renamed(header: dict[str, dict[str, object]]) -> None:
        header["evil\x1b[2J\n"] = header.pop("model.embed_tokens.weight")

    change_header(folder / FIRST, renamed)
    told = refused(folder)
    assert "\x1b" not in told
    assert r"'evil\x1b[2J\n'" in told


@pytest.mark.parametrize("size", [{"n_routed_experts": 100_000}, {"num_hidden_layers": 10_000}])
def test_absurd_numbers_of_tensors_are_not_enumerated(
    folder: Path, size: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(config: ModelConfig) -> list[DiskEntry]:
        raise AssertionError("enumerated")

    monkeypatch.setattr("model.fit.disk_entries", never)
    with pytest.raises(ValueError, match=r"tensors are there, \d{6,} are needed"):
        fit(TINY.replace(**size), read_headers(str(folder)))

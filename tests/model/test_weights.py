"""Whole weights: written in the released layout, read back bit by bit."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import TINY
from torch import Tensor

import model.weights as weights
from model.config import ModelConfig
from model.headers import is_weights
from model.tokenizer import MIN_VOCAB, Tokenizer
from model.transformer import CausalLM
from model.weights import load_weights, read_model, write_weights

DEEP = TINY.replace(num_nextn_predict_layers=2)
V2 = TINY.replace(
    topk_method="greedy", scoring_func="softmax", num_nextn_predict_layers=0, q_lora_rank=None, n_shared_experts=0
)
INDEX = "model.safetensors.index.json"


def random_model(config: ModelConfig) -> CausalLM:
    made = CausalLM(config)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, tensor in tensors(made):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return made


def tensors(made: CausalLM) -> Iterator[tuple[str, Tensor]]:
    yield from made.state_dict().items()


def write(uri: str, made: CausalLM, tokenizer_json: str = "{}") -> None:
    write_weights(uri, made.config, tensors(made), tokenizer_json, write=True)


def blank(config: ModelConfig) -> CausalLM:
    made = CausalLM(config)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.fill_(float("nan"))
    return made


def assert_equal(a: CausalLM, b: CausalLM) -> None:
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("config", [TINY, DEEP], ids=["tiny", "two-modules"])
def test_bitwise_round_trip(tmp_path: Path, config: ModelConfig) -> None:
    made = random_model(config)
    biases = [t for n, t in tensors(made) if n.endswith("e_score_correction_bias")]
    assert all(b.abs().min() > 0 for b in biases)
    assert len(biases) == config.num_moe_layers + config.num_nextn_predict_layers
    write(str(tmp_path), made)
    again = blank(config)
    load_weights(again, f"{tmp_path}/")
    assert_equal(made, again)


def test_v2_round_trip_leaves_only_the_unused_bias(tmp_path: Path) -> None:
    made = random_model(V2)
    write(str(tmp_path), made)
    again = CausalLM(V2)
    load_weights(again, str(tmp_path))
    for name, tensor in tensors(again):
        if name.endswith("e_score_correction_bias"):
            assert tensor.abs().max() == 0
        else:
            assert torch.equal(tensor, made.state_dict()[name]), name


def test_several_files_and_an_index_that_tells_the_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", 10_000)
    made = random_model(DEEP)
    write(str(tmp_path), made)
    index = json.loads((tmp_path / INDEX).read_text())
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == "model-00001.safetensors"
    held = {file: load_file(tmp_path / file) for file in files}
    assert {name: file for file, part in held.items() for name in part} == index["weight_map"]
    sizes = {file: sum(t.numel() * 4 for t in part.values()) for file, part in held.items()}
    assert sum(sizes.values()) == index["metadata"]["total_size"]
    assert all(sizes[file] <= 10_000 or len(held[file]) == 1 for file in files)
    again = blank(DEEP)
    load_weights(again, str(tmp_path))
    assert_equal(made, again)


def test_the_layout_is_the_released_one(tmp_path: Path) -> None:
    """Names written out here, not taken from the table of names."""
    made = random_model(TINY)
    write(str(tmp_path), made)
    disk = load_file(tmp_path / "model-00001.safetensors")
    state = made.state_dict()
    for expert in range(8):
        stem = f"model.layers.1.mlp.experts.{expert}"
        stacked = state["model.layers.1.mlp.experts.gate_up_proj"][expert]
        assert torch.equal(disk[f"{stem}.gate_proj.weight"], stacked[:16])
        assert torch.equal(disk[f"{stem}.up_proj.weight"], stacked[16:])
        down = state["model.layers.1.mlp.experts.down_proj"][expert]
        assert torch.equal(disk[f"{stem}.down_proj.weight"], down)
    # the prediction module is the layer after the last, with copies of embedding and head
    assert torch.equal(disk["model.layers.3.eh_proj.weight"], state["model.mtp.0.eh_proj.weight"])
    assert torch.equal(disk["model.layers.3.shared_head.norm.weight"], state["model.mtp.0.norm.weight"])
    assert torch.equal(disk["model.layers.3.embed_tokens.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(disk["model.layers.3.shared_head.head.weight"], state["lm_head.weight"])
    bias = "mlp.gate.e_score_correction_bias"
    assert torch.equal(disk[f"model.layers.3.{bias}"], state[f"model.mtp.0.block.{bias}"])


def test_a_rank_that_does_not_write_iterates_and_writes_nothing(tmp_path: Path) -> None:
    seen = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors(random_model(TINY)):
            seen.append(name)
            yield name, tensor

    write_weights(str(tmp_path / "out"), TINY, watched(), "{}", write=False)
    assert len(seen) == len(CausalLM(TINY).state_dict())
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------- what is wrong is said
def test_missing_tensors_are_named(tmp_path: Path) -> None:
    write(str(tmp_path), random_model(TINY))
    path, name = tmp_path / "model-00001.safetensors", "model.layers.2.mlp.experts.5.up_proj.weight"
    save_file({n: t for n, t in load_file(path).items() if n != name}, path)
    index = json.loads((tmp_path / INDEX).read_text())
    del index["weight_map"][name]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=rf"1 missing of \d+\n  missing of \d+: {name}$"):
        load_weights(CausalLM(TINY), str(tmp_path))


def test_weights_of_a_smaller_model_are_refused(tmp_path: Path) -> None:
    write(str(tmp_path), random_model(TINY.replace(num_nextn_predict_layers=0)))
    with pytest.raises(
        ValueError, match=r"\d+ missing of \d+\n  missing of \d+: model.layers.3.input_layernorm"
    ) as told:
        load_weights(CausalLM(TINY.replace(num_hidden_layers=5, num_nextn_predict_layers=0)), str(tmp_path))
    assert len(str(told.value).splitlines()) == 22, "a headline, twenty tensors, the number of the rest"


def test_misshapen_tensors_are_named_with_both_shapes(tmp_path: Path) -> None:
    write(str(tmp_path), random_model(TINY))
    path = tmp_path / "model-00001.safetensors"
    disk = load_file(path)
    name = "model.layers.0.self_attn.o_proj.weight"
    disk[name] = torch.zeros(3, 5)
    save_file(disk, path)
    with pytest.raises(ValueError, match=rf"of another shape: {name} has \[3, 5\], the model needs \[32, 16\]"):
        load_weights(CausalLM(TINY), str(tmp_path))


@pytest.mark.parametrize("shape", [(1,), (1, 32), (32, 1), ()])
def test_shapes_that_would_broadcast_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write(str(tmp_path), random_model(TINY))
    path = tmp_path / "model-00001.safetensors"
    disk = load_file(path) | {"model.layers.1.mlp.experts.0.down_proj.weight": torch.ones(shape)}
    save_file(disk, path)
    with pytest.raises(ValueError, match=r"experts\.0\.down_proj"):
        load_weights(CausalLM(TINY), str(tmp_path))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no weights in {tmp_path}: neither {INDEX} nor "):
        load_weights(CausalLM(TINY), str(tmp_path))


def test_an_interrupted_write_has_no_index(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from list(tensors(random_model(TINY)))[:5]
        raise RuntimeError("a worker died")

    with pytest.raises(RuntimeError, match="a worker died"):
        write_weights(str(tmp_path), TINY, broken(), "{}", write=True)
    assert not (tmp_path / INDEX).exists()


def test_tensors_that_never_came_are_noticed_on_writing(tmp_path: Path) -> None:
    some = list(tensors(random_model(TINY)))[:-1]
    with pytest.raises(ValueError, match=r"never came.*lm_head\.weight"):
        write_weights(str(tmp_path), TINY, iter(some), "{}", write=True)
    assert not (tmp_path / INDEX).exists()


# ------------------------------------------------------------------- elsewhere
def test_remote_storage() -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    tokenizer = Tokenizer.train(["some text"], MIN_VOCAB)
    made = random_model(TINY.replace(vocab_size=tokenizer.vocab_size))
    write(uri, made, tokenizer.to_json())
    again, read = read_model(uri)
    assert_equal(made, again)
    assert read.vocab_size == tokenizer.vocab_size
    fsspec.filesystem("memory").rm(uri, recursive=True)


@pytest.mark.parametrize("size", [{"kv_lora_rank": 10**6}, {"intermediate_size": 10**7}])
def test_no_model_is_made_for_weights_that_are_not_there(tmp_path: Path, size: dict[str, int]) -> None:
    write(str(tmp_path), random_model(TINY), Tokenizer.train(["some text"], MIN_VOCAB).to_json())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | size | {"hidden_size": 10**6}))
    with pytest.raises(ValueError, match=r"of another shape"):
        read_model(str(tmp_path))


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    write(str(tmp_path), random_model(TINY), Tokenizer.train(["some text"], MIN_VOCAB).to_json())
    with pytest.raises(ValueError, match=rf"has {MIN_VOCAB} tokens, the model's vocabulary {TINY.vocab_size}"):
        read_model(str(tmp_path))


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_read_model_gives_model_and_tokenizer(tmp_path: Path, prefix: str) -> None:
    tokenizer = Tokenizer.train(["some text"], MIN_VOCAB)
    made = random_model(TINY.replace(vocab_size=tokenizer.vocab_size))
    write(f"{prefix}{tmp_path}", made, tokenizer.to_json())
    again, read = read_model(f"{prefix}{tmp_path}")
    assert again.config == made.config
    assert_equal(made, again)
    assert read.decode(read.encode("some text")) == "some text"


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_weights_that_replace_others_are_none_until_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """A run that goes on writes again where it has written: half of the old and half of the new is no model."""
    monkeypatch.setattr(weights, "FILE_BYTES", 100_000)
    uri = f"{scheme}{tmp_path}"
    write(uri, random_model(TINY))
    assert is_weights(uri)
    flush, calls = weights._Writer.flush, iter(range(9))

    def killed(writer: weights._Writer) -> None:
        if next(calls) == 2:
            raise KeyboardInterrupt
        flush(writer)

    monkeypatch.setattr(weights._Writer, "flush", killed)
    with pytest.raises(KeyboardInterrupt):
        write(uri, random_model(TINY))
    assert not is_weights(uri)

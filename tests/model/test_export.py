"""What the export writes: transformers opens it, and nothing of it changes on the way there and back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.recipes import TINY
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from model import export
from model.config import ModelConfig, Yarn
from model.export import Dtype, lossless, planned, shards, write_release
from model.fit import fit
from model.flops import released_storage
from model.headers import read_headers
from model.names import DiskEntry, disk_entries
from model.presets import preset
from model.released import read_released
from model.tokenizer import Tokenizer
from model.transformer import CausalLM
from model.weights import load_weights, read_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
TOKENIZER = Tokenizer.train(["some text, and some more of the text"], 280, fim=True)
CONFIG = TINY.replace(vocab_size=288)
WIDE = CONFIG.replace(hidden_size=136, moe_intermediate_size=130, intermediate_size=300)
"""Sizes that blocks of 128 do not divide."""


def random_model(config: ModelConfig = CONFIG) -> CausalLM:
    made = CausalLM(config)
    made.initialise(4)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in made.state_dict().items():
            if tensor.dim() == 1:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * (0.01 if "bias" in name else 0.1))
    return made.eval()


def write(folder: Path, made: CausalLM, **options: Any) -> Path:  # noqa: ANN401
    state = made.state_dict()

    def read(entry: DiskEntry) -> Tensor:
        return state[entry.memory_name][entry.index]

    write_release(folder, made.config, read, TOKENIZER, **({"dtype": "fp32"} | options))
    return folder


def tokens() -> Tensor:
    return torch.randint(0, 257, (2, 11), generator=torch.Generator().manual_seed(1))


def files_of(folder: Path) -> dict[str, Tensor]:
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


# ------------------------------------------------------------------- transformers
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_transformers_opens_it_with_equal_logits(tmp_path: Path, shard_bytes: int) -> None:
    made = random_model()
    folder = write(tmp_path / "out", made, shard_bytes=shard_bytes)
    assert (folder / "model.safetensors").exists() == (shard_bytes == 10**9)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(theirs, DeepseekV3ForCausalLM)
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, made(tokens()).logits[0], rtol=0, atol=2e-6)
    assert theirs.config.eos_token_id == theirs.generation_config.eos_token_id == TOKENIZER.end_of_text


def test_yarn_and_a_model_without_modules(tmp_path: Path) -> None:
    yarn = Yarn(factor=8.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0)
    config = CONFIG.replace(yarn=yarn.model_dump(), max_position_embeddings=128, num_nextn_predict_layers=0)
    made = random_model(config)
    theirs = AutoModelForCausalLM.from_pretrained(write(tmp_path / "out", made))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens()).logits, made(tokens()).logits[0], rtol=0, atol=2e-6)


def test_transformers_tokenizer_gives_the_same_numbers(tmp_path: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(write(tmp_path / "out", random_model()))
    for text in ("some text", "  two\n\nlines\t", "Ünïcödé 漢字 🎲", ""):
        assert theirs(text)["input_ids"] == TOKENIZER.encode(text)
        assert theirs.decode(TOKENIZER.encode(text)) == text
    assert theirs.eos_token_id == theirs.bos_token_id == theirs.pad_token_id == TOKENIZER.end_of_text


def test_prediction_logits_agree_with_an_independent_implementation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' MtpModel: its own order of norms, halves and hidden states, from the released names on disk."""
    made = random_model(CONFIG.replace(num_nextn_predict_layers=2))
    folder = write(tmp_path / "out", made)
    # it knows the module of DeepSeek-V3 only, layer 61
    monkeypatch.setattr(DeepseekV3ForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.(3|4)\."])
    main = AutoModelForCausalLM.from_pretrained(folder)
    modules = MtpModel.from_pretrained(main).eval()
    window, length = tokens(), 9
    positions = torch.arange(length).unsqueeze(0)
    with torch.no_grad():
        ours = made(window, depth=2).logits
        # the last of transformers' hidden states is what its head reads: after the final norm
        h = main(window[:, :length], output_hidden_states=True).hidden_states[-1]
        before_norm = main.model.layers[-1]
        seen: list[Tensor] = []
        hook = before_norm.register_forward_hook(lambda *args: seen.append(args[2]))
        main(window[:, :length])
        hook.remove()
        for k in (1, 2):
            h = modules.forward_layer(k - 1, h, positions, None, input_ids=window[:, k : k + length])
            torch.testing.assert_close(modules._project_to_logits(h), ours[k], rtol=0, atol=3e-6)
        raw = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
        other = modules.forward_layer(0, raw, positions, None, input_ids=window[:, 1 : 1 + length])
        assert (modules._project_to_logits(other) - ours[1]).abs().max() > 1e-3, "the order must make a difference"


# ------------------------------------------------------------------- there and back
@pytest.mark.parametrize(
    "config", [CONFIG, CONFIG.replace(num_nextn_predict_layers=2), WIDE], ids=["one", "two", "wide"]
)
def test_fp32_comes_back_bitwise(tmp_path: Path, config: ModelConfig) -> None:
    made = random_model(config)
    again, tokenizer = read_model(str(write(tmp_path / "out", made)))
    assert again.config == made.config
    assert tokenizer.to_json() == TOKENIZER.to_json()
    for (name, a), b in zip(made.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_what_was_rounded_once_comes_back_bitwise(tmp_path: Path, dtype: Dtype) -> None:
    made = random_model(WIDE)
    first = write(tmp_path / "first", made, dtype=dtype)
    again, _ = read_model(str(first))
    second = write(tmp_path / "second", again, dtype=dtype)
    a, b = files_of(first), files_of(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor.view(torch.uint8), b[name].view(torch.uint8)), name
    changed = [n for n, t in made.state_dict().items() if not torch.equal(t, again.state_dict()[n])]
    assert changed
    assert not any("bias" in name for name in changed), "biases stay in FP32"


def test_fp8_is_the_released_layout(tmp_path: Path) -> None:
    made = random_model(WIDE)
    folder = write(tmp_path / "out", made, dtype="fp8")
    disk = files_of(folder)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    weight, scale = disk[name], disk[f"{name}_scale_inv"]
    assert (weight.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
    assert (weight.shape, scale.shape) == ((130, 136), (2, 2))
    whole = torch.repeat_interleave(torch.repeat_interleave(scale, 128, 0), 128, 1)[:130, :136]
    original = made.state_dict()["model.layers.1.mlp.experts.gate_up_proj"][3, 130:]
    assert ((weight.float() * whole - original).abs() <= original.abs() / 16 + whole / 512).all()
    for other in ("lm_head", "model.embed_tokens", "model.layers.1.mlp.gate", "model.layers.3.eh_proj", "model.norm"):
        assert disk[f"{other}.weight"].dtype == torch.bfloat16
    assert disk["model.layers.1.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    quantisation = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert quantisation == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["mini", "v2-lite-16b", "v3-671b"])
def test_fp8_takes_the_bytes_that_the_planner_counts(name: str) -> None:
    config = preset(name)
    bytes_by_type = {"F8_E4M3": 0, "BF16": 0, "F32": 0}
    for one in planned(config, "fp8"):
        for _, dtype, shape in one.parts:
            bytes_by_type[dtype] += torch.Size(shape).numel()
    counted = released_storage(config)
    assert bytes_by_type == {"F8_E4M3": counted.fp8, "BF16": counted.bf16, "F32": counted.fp32}


def test_files_of_v3_have_the_right_names_and_sizes() -> None:
    files = shards(planned(preset("v3-671b"), "fp8"), 5 * 10**9)
    assert next(iter(files)) == f"model-00001-of-{len(files):05d}.safetensors"
    assert 130 < len(files) < 145  # 688.6 GB
    assert all(sum(one.size for one in held) <= 5 * 10**9 for held in files.values())
    assert sum(len(held) for held in files.values()) == len(disk_entries(preset("v3-671b")))


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    """With and without its stacks of experts; it writes no prediction modules."""
    made = random_model()
    theirs = AutoModelForCausalLM.from_pretrained(write(tmp_path / "out", made))
    for stacked in (False, True):
        folder = tmp_path / f"theirs-{stacked}"
        theirs.save_pretrained(folder, save_original_format=not stacked)
        names = files_of(folder).keys()
        assert ("model.layers.1.mlp.experts.gate_up_proj" in names) == stacked
        assert ("model.layers.1.mlp.experts.0.up_proj.weight" in names) != stacked
        config = read_released(folder)
        assert config.num_nextn_predict_layers == 1
        with pytest.raises(ValueError, match=r"holds 0 of the 1 prediction modules .* mtpDepth in a job, to 0"):
            load_weights(CausalLM(config), str(folder))
        plain = CausalLM(config.replace(num_nextn_predict_layers=0))
        load_weights(plain, str(folder))
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, made.state_dict()[name]), name


# ------------------------------------------------------------------- nothing half-written
def test_an_existing_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", random_model())
    before = (folder / "model.safetensors").read_bytes()
    other = random_model(CONFIG.replace(num_nextn_predict_layers=0))
    with pytest.raises(FileExistsError, match="--force"):
        write(folder, other)
    assert (folder / "model.safetensors").read_bytes() == before
    write(folder, other, force=True)
    assert read_model(str(folder))[0].config == other.config
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_force_replaces_no_other_folder(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is no export"):
        write(tmp_path / "home", random_model(), force=True)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with pytest.raises(FileExistsError, match="is no export"):
        write(tmp_path / "link", random_model(), force=True)


@pytest.mark.parametrize("name", ["letter.txt", "notes/letter.txt", "model.bin"])
def test_force_deletes_nothing_but_an_export(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "out", random_model())
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("dear")
    with pytest.raises(FileExistsError, match="is no export"):
        write(folder, random_model(), force=True)
    assert (folder / name).read_text() == "dear"


@pytest.mark.parametrize("kind", ["link", "folder"])
def test_force_deletes_no_link_and_no_folder_of_a_files_name(tmp_path: Path, kind: str) -> None:
    folder, kept = write(tmp_path / "out", random_model()), tmp_path / "kept.json"
    kept.write_text("mine")
    odd = folder / "tokenizer_config.json"
    odd.unlink()
    odd.symlink_to(kept) if kind == "link" else odd.mkdir()
    with pytest.raises(FileExistsError, match=r"holds 'tokenizer_config.json'"):
        write(folder, random_model(), force=True)
    assert os.path.lexists(odd)
    assert kept.read_text() == "mine"


def test_what_was_put_there_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at again when all is written, which may be hours later."""
    folder, own = write(tmp_path / "out", random_model()), export._write_json

    def slow(path: Path, content: object) -> None:
        own(path, content)
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(export, "_write_json", slow)
    with pytest.raises(FileExistsError, match=r"holds 'notes.txt'"):
        write(folder, random_model(), force=True)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_data_of_every_file_begin_at_a_multiple_of_eight(tmp_path: Path) -> None:
    """As the library writes them, so that what maps a file gets aligned tensors."""
    folder = write(tmp_path / "out", random_model(), shard_bytes=20_000)
    lengths = [int.from_bytes(file.read_bytes()[:8], "little") for file in folder.glob("*.safetensors")]
    assert len(lengths) > 5
    assert not any(length % 8 for length in lengths)


def test_force_wants_weights_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds no weights"):
        write(tmp_path, random_model(), force=True)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_the_source_is_not_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", random_model())
    (tmp_path / "link").symlink_to(folder)
    for source in (folder, tmp_path / "link", folder / "deep"):
        with pytest.raises(ValueError, match="is or holds what is read"):
            write(folder, random_model(), force=True, source=str(source))
    read_model(str(folder))


def test_an_interrupted_exchange_brings_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "out", random_model())
    real = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(folder, random_model(), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    read_model(str(folder))


def test_a_file_where_the_folder_should_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "out", tmp_path / "file" / "deep" / "out"):
        with pytest.raises(ValueError, match="cannot be made"):
            write(folder, random_model())


def test_a_tokenizer_with_more_tokens_than_the_model_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"has {TOKENIZER.vocab_size} tokens, the model's vocabulary 64"):
        write(tmp_path / "out", random_model(TINY))
    assert list(tmp_path.iterdir()) == []


def test_the_type_that_nothing_is_lost_in(tmp_path: Path) -> None:
    def found(folder: Path) -> str:
        return lossless(fit(CONFIG, read_headers(str(folder))))

    for dtype in ("fp32", "bf16", "fp8"):
        assert found(write(tmp_path / dtype, random_model(), dtype=dtype)) == dtype
    bf16, fp8 = files_of(tmp_path / "bf16"), files_of(tmp_path / "fp8")
    matrix = "model.layers.1.self_attn.o_proj.weight"
    one = {name: fp8[name] for name in (matrix, f"{matrix}_scale_inv")}
    save_file(bf16 | one, tmp_path / "bf16" / "model.safetensors")  # a single matrix of them all
    assert found(tmp_path / "bf16") == "fp32"
    norm = {"model.norm.weight": fp8["model.norm.weight"].float()}
    save_file(fp8 | norm, tmp_path / "fp8" / "model.safetensors")
    assert found(tmp_path / "fp8") == "fp32"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    made = random_model()
    write(tmp_path / "out", made)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir())
    written: list[str] = []
    real = export._write_tensor

    def full(file: Any, tensor: Tensor, one: Any) -> None:  # noqa: ANN401
        written.append(one.entry.name)
        if len(written) == 20:
            raise failure
        real(file, tensor, one)

    monkeypatch.setattr(export, "_write_tensor", full)
    with pytest.raises(type(failure)):
        write(tmp_path / "out", made, force=True)
    written.clear()
    with pytest.raises(type(failure)):
        write(tmp_path / "new" / "deep", made)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert list((tmp_path / "new").iterdir()) == []


def test_what_is_not_finite_is_not_exported(tmp_path: Path) -> None:
    made = random_model()
    with torch.no_grad():
        made.state_dict()["model.layers.1.mlp.experts.down_proj"][2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"experts\.2\.down_proj\.weight holds what is no finite"):
        write(tmp_path / "out", made)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_numbers_too_large_for_the_type(tmp_path: Path, dtype: Dtype) -> None:
    made = random_model()
    with torch.no_grad():
        made.state_dict()["model.embed_tokens.weight"][0, 0] = torch.finfo(torch.float32).max
    with pytest.raises(ValueError, match=r"embed_tokens\.weight holds numbers too large for BF16"):
        write(tmp_path / "out", made, dtype=dtype)

"""Copies in host memory: equal to what they were made of, and independent of it."""

import io
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deepspeed's own
    from model.engine.host import HostCheckpoints, host_copy


@dataclass
class Place:
    """As DeepSpeed's descriptions of fragments: numbers only."""

    start: int
    count: int


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def copied(value: object) -> Any:  # noqa: ANN401 - as deep as the value
    return host_copy(value)


DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4)])
def test_a_tensor_is_equal_and_independent(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    original = (torch.rand(shape) * 100).to(dtype)
    kept = original.clone()
    copy = copied(original)
    assert (copy.dtype, copy.shape, copy.device.type) == (dtype, original.shape, "cpu")
    original.zero_() if dtype != torch.bool else original.logical_not_()
    assert torch.equal(copy, kept)


def test_parameters_and_graphs_are_left_behind() -> None:
    parameter = nn.Parameter(torch.rand(3))
    for value in (parameter, parameter * 2):
        copy = copied(value)
        assert type(copy) is Tensor
        assert not copy.requires_grad
        assert copy.grad_fn is None


def test_views_do_not_drag_their_storage_along() -> None:
    whole = torch.rand(1000, 1000)
    views = {"row": whole[3], "column": whole[:, 5], "block": whole[10:20, 30:40], "narrow": whole.view(-1)[7:17]}
    views["turned"] = whole[:20, :10].T
    copies = copied(views)
    for name, view in views.items():
        assert torch.equal(copies[name], view), name
        assert copies[name].untyped_storage().nbytes() == view.numel() * 4, name
    assert saved_size(views) > 4_000_000
    assert saved_size(copies) < 20_000


def test_what_was_spread_out_is_equal() -> None:
    thin = torch.arange(4.0)
    spread = thin.expand(3, 4)
    copy = copied(spread)
    thin.zero_()
    assert torch.equal(copy, torch.arange(4.0).repeat(3, 1))
    copy[0, 0] = 9.0
    assert copy[1, 0] == 0.0, "rows share no memory"


def saved_size(value: object) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return len(file.getvalue())


def test_containers_of_containers() -> None:
    inner = torch.zeros(2)
    value = {"a": [inner, (inner, 5)], "b": {"c": {7: inner}}, "d": (), "e": [], "f": None, "g": 1.5, "h": "text"}
    copy = copied(value)
    inner += 1
    value["a"].append(6)  # type: ignore[attr-defined]
    value["b"]["c"][8] = 9  # type: ignore[index]
    zero = [0.0, 0.0]
    assert copy.keys() == value.keys()
    assert type(copy["a"]) is list
    assert len(copy["a"]) == 2
    assert type(copy["a"][1]) is tuple
    assert [copy["a"][0].tolist(), copy["a"][1][0].tolist(), copy["a"][1][1]] == [zero, zero, 5]
    assert list(copy["b"]["c"]) == [7]
    assert copy["b"]["c"][7].tolist() == zero
    assert [copy[key] for key in "defgh"] == [(), [], None, 1.5, "text"]


def test_the_original_keeps_its_tensors() -> None:
    tensor = torch.zeros(2)
    value = {"a": tensor, "b": OrderedDict(c=tensor)}
    copied(value)
    assert value["a"] is tensor
    assert value["b"]["c"] is tensor  # type: ignore[index]


def test_module_state_keeps_its_type_and_metadata() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    state = module.state_dict()
    before = {name: tensor.clone() for name, tensor in state.items()}
    copy = copied(state)
    assert type(copy) is OrderedDict
    assert list(copy) == list(state)
    assert copy._metadata == state._metadata  # type: ignore[attr-defined]
    assert copy._metadata["1"]["version"] == 2
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.fill_(7)
        module[1].running_mean.fill_(7)  # type: ignore[union-attr,operator]
    assert all(torch.equal(copy[name], tensor) for name, tensor in before.items())
    fresh = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    fresh.load_state_dict(copy)
    assert torch.equal(fresh[0].weight, before["0.weight"])  # type: ignore[arg-type]


def test_an_optimizers_state_can_be_loaded_from_its_copy() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    parameter.grad = torch.ones(3)
    optimizer.step()
    copy, moment = copied(optimizer.state_dict()), optimizer.state[parameter]["exp_avg"].clone()
    optimizer.step()
    assert copy["state"][0]["step"] == 1
    assert torch.equal(copy["state"][0]["exp_avg"], moment)
    other = torch.optim.AdamW([nn.Parameter(torch.ones(3))], lr=0.5)
    other.load_state_dict(copy)
    assert other.param_groups[0]["lr"] == 0.1


def test_dataclasses_sizes_and_numbers_stay_what_they_are() -> None:
    value = {"place": Place(3, 4), "shape": torch.Size([2, 3]), "dtype": torch.bfloat16, "path": Path("a")}
    assert copied(value) == value
    assert type(copied(value)["shape"]) is torch.Size
    assert [type(item) for item in copied([True, 1, 1.0])] == [bool, int, float]


def test_named_tuples_are_copied_too() -> None:
    pair = Pair(torch.zeros(2), torch.ones(2))
    copy = copied({"pair": pair})["pair"]
    pair.left.fill_(7)
    assert type(copy) is Pair
    assert copy.left.tolist() == [0.0, 0.0]


# ------------------------------------------------------------------- as DeepSpeed uses it
def test_files_are_kept_by_name_until_they_are_taken(tmp_path: Path) -> None:
    engine, weight = HostCheckpoints(), torch.zeros(2)
    engine.create(None)
    engine.makedirs(str(tmp_path / "unused" / "tag"), exist_ok=True)
    engine.save({"weight": weight}, str(tmp_path / "unused" / "tag" / "mp_rank_00_model_states.pt"))
    engine.save([weight], str(tmp_path / "unused" / "tag" / "zero.pt"))
    assert engine.commit(None)
    weight += 1
    files: dict[str, Any] = engine.take()
    assert list(files) == ["mp_rank_00_model_states.pt", "zero.pt"]
    assert files["mp_rank_00_model_states.pt"]["weight"].tolist() == [0.0, 0.0]
    assert files["zero.pt"][0].tolist() == [0.0, 0.0]
    assert engine.take() == {}, "nothing of it is kept"
    assert list(tmp_path.iterdir()) == [], "no file, no folder"


def test_two_files_of_one_name_would_be_one() -> None:
    engine = HostCheckpoints()
    engine.save({}, "a/same.pt")
    with pytest.raises(AssertionError, match=r"same\.pt"):
        engine.save({}, "b/same.pt")
    engine.take()
    engine.save({}, "b/same.pt")


def test_what_was_written_from_a_copy_can_be_loaded(tmp_path: Path) -> None:
    engine = HostCheckpoints()
    engine.save({"weight": torch.arange(3), "place": Place(1, 2)}, "unused/file.pt")
    torch.save(engine.take()["file.pt"], tmp_path / "file.pt")
    loaded = engine.load(str(tmp_path / "file.pt"), map_location="cpu")
    assert loaded["weight"].tolist() == [0, 1, 2]
    assert loaded["place"] == Place(1, 2)


def test_deepspeed_need_not_clone_before() -> None:
    """It would hold everything twice; and writes on each rank as for files."""
    engine = HostCheckpoints()
    assert not engine.preserves_storage_sharing()
    assert not engine.is_decoupled()
    assert [engine.is_data_parallel_writer(rank) for rank in (0, 1)] == [True, False]

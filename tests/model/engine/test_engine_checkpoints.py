"""A run that goes on from a checkpoint: bitwise equal on the same topology, within 1e-6 on another, or refused.

Each trap of DeepSpeed has a control here that leaves the remedy out and must differ.
"""

from pathlib import Path

import pytest
import torch
from support import parity
from support.checkpoint_cases import (
    EXPERTS_SHARED_TWICE,
    OTHER,
    REFUSED,
    SAME,
    SAVED,
    Stage,
    cases,
    key,
    largest,
    pair,
)
from support.engine_worker import Outcome, run

from model.engine.masters import Masters
from model.names import disk_entries

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, list[Outcome]]:
    out: dict[str, list[Outcome]] = {}
    for world, group in cases():
        out |= run(folder, world, group)
    return out


@pytest.mark.parametrize("one", SAME, ids=key)
def test_the_same_topology_goes_on_to_the_last_bit(
    results: dict[str, list[Outcome]], one: tuple[int, Stage, int]
) -> None:
    for straight, resumed in zip(results[key(one)], results[f"same {key(one)}"], strict=True):
        assert resumed.losses
        assert resumed.losses == straight.losses[-len(resumed.losses) :]
        assert resumed.norms == straight.norms[-len(resumed.norms) :]
        assert resumed.random == straight.random, "random states"
        assert resumed.state.keys() == straight.state.keys()
        tensors = 0
        for name, value in straight.state.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, resumed.state[name]), name
                tensors += value.is_floating_point()
        assert tensors > 10, "weights and moments should be among them"


@pytest.mark.parametrize(("source", "target"), OTHER, ids=lambda one: key(one))
def test_another_topology_goes_on_by_the_universal_form(
    results: dict[str, list[Outcome]], source: tuple[int, Stage, int], target: tuple[int, Stage, int]
) -> None:
    resumed = results[pair(source, target)][0]
    assert not resumed.error
    assert len(resumed.losses) == 2
    assert largest(resumed, results[key(source)][0]) <= 1e-6


@pytest.mark.parametrize(("source", "target"), REFUSED, ids=lambda one: key(one))
def test_what_cannot_be_loaded_is_refused_with_both_topologies(
    results: dict[str, list[Outcome]], source: tuple[int, Stage, int], target: tuple[int, Stage, int]
) -> None:
    topologies = [str(parity.topology(parity.layout(*one))) for one in (source, target)]
    for rank in results[pair(source, target)]:
        assert f"written by {topologies[0]}, this run has {topologies[1]}: " in rank.error
        assert not rank.losses


def test_without_conversion_deepspeed_takes_wrong_moments_silently(results: dict[str, list[Outcome]]) -> None:
    wrong = results["native"][0]
    assert not wrong.error
    assert largest(wrong, results["w2-z1-ep2"][0]) > 1e-4


@pytest.mark.parametrize(("name", "straight"), [("no biases z1", "w2-z1-ep2"), ("no biases z3", "w2-z3-ep2")])
def test_without_our_copy_the_universal_load_loses_the_routing_biases(
    results: dict[str, list[Outcome]], name: str, straight: str
) -> None:
    lost = results[name][0].weights
    kept = results[straight][0].weights
    biases = [n for n in kept if n.endswith("e_score_correction_bias")]
    assert biases
    for bias in biases:
        assert (lost[bias] - kept[bias]).abs().max() > 5e-3, bias


@pytest.mark.parametrize("name", ["no steps z3", "no groups z3"])
def test_without_own_counters_and_settings_zero_3_goes_on_wrongly(results: dict[str, list[Outcome]], name: str) -> None:
    """All groups would share one Adam step, which counts once for each; and all would have the first's decay."""
    assert largest(results[name][0], results["w2-z3-ep2"][0]) > 1e-5


@pytest.mark.parametrize("one", SAVED + EXPERTS_SHARED_TWICE, ids=key)
def test_one_process_reads_the_weights_of_any_topology(
    results: dict[str, list[Outcome]], folder: Path, one: tuple[int, Stage, int]
) -> None:
    """Bit for bit, without a process group: what the export writes."""
    saved = results[key(one)][0].saved
    masters = Masters(folder / "saved" / key(one), parity.topology(parity.layout(*one)), parity.MODEL)
    biases = 0
    for entry in disk_entries(parity.MODEL):
        tensor = masters.read(entry)
        assert torch.equal(tensor, saved[entry.memory_name][entry.index]), entry.name
        biases += entry.name.endswith("bias") and bool(tensor.any())
    assert biases == 2


def test_a_checkpoint_of_another_model_or_topology_is_refused(results: dict[str, list[Outcome]], folder: Path) -> None:
    assert results
    saved = folder / "saved" / "w2-z3-ep2"
    with pytest.raises(ValueError, match=r"lacks \d+ tensors .* e.g. model.embed_tokens.weight: 2048 of 4096 elements"):
        Masters(saved, parity.topology(parity.layout(2, 3, 2)), parity.MODEL.replace(vocab_size=128))
    with pytest.raises(ValueError, match=r"e.g. model.layers.1.mlp.experts.w1: 2048 of 4096"):
        Masters(saved, parity.topology(parity.layout(2, 3, 1)), parity.MODEL)
    with pytest.raises(ValueError, match=r"elements of .* do not fit"):
        Masters(saved, parity.topology(parity.layout(4, 3, 2)), parity.MODEL)
    with pytest.raises(ValueError, match=r"0 files .*zero_pp_rank_2_.* one is needed"):
        Masters(folder / "saved" / "w2-z1-ep1", parity.topology(parity.layout(4, 1, 1)), parity.MODEL)

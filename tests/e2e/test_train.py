"""`fathom train` on a real Ray cluster of this machine, undisturbed and under fire.

The disturbed runs are compared with the undisturbed one to the last digit: every step's loss, and the weights.
"""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from support.faults import QUICK_STALL, Scenario, one, require_undisturbed
from support.home import (
    STEPS,
    TOKENS_OF_STEP,
    Done,
    Home,
    events,
    finish,
    points,
    runs,
    wait_for,
)
from support.shooting import left, wait_until

from model.dataset import content_digest, read_manifest
from orchestrator.controller.record import Record
from orchestrator.launch import local
from orchestrator.launch.base import RunFolder
from orchestrator.launch.events import Ended, FailureClass, Progress

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]


# What MLflow holds of the only job


def statuses(client: MlflowClient) -> list[str]:
    parent, children = runs(client)
    return [run.info.status for run in (parent, *children)]


def losses(home: Home) -> list[dict[int, float]]:
    client = home.client()
    return [points(client, name) for name in ("train/loss", "train/mtp_loss", "train/grad_norm", "eval/loss")]


# The runs


def test_a_calm_run_succeeds(calm: tuple[Home, Done]) -> None:
    home, done = calm
    assert done.code == 0, done.err
    folder, result = home.run_folder(), done.result()
    assert (result["outcome"], result["step"], result["tokens"]) == ("succeeded", STEPS, STEPS * TOKENS_OF_STEP)
    assert (result["attempts"], result["workerRestarts"]) == (1, 0)
    assert result["run"] == str(folder.root)
    assert result["metrics"]["eval/bits_per_byte"] < result["order0BitsPerByte"]
    assert "written by the model" in result["sample"]
    status = Record.open(folder.root).status()
    assert status is not None
    assert (status.phase, status.attempt_count) == ("Succeeded", 1)
    assert local.running(folder) is None
    assert f"step={STEPS}/{STEPS} " in done.err


def test_a_calm_run_leaves_files_for_people(calm: tuple[Home, Done]) -> None:
    folder = calm[0].run_folder()
    pictures = {"loss_vs_tokens.png", "loss_vs_dollars.png", "expert_load.png"}
    expected = pictures | {"resolved.json", "ledger.json", "sample.txt", "metrics.csv"}
    assert expected <= {path.name for path in folder.artifacts.iterdir()}
    for name in pictures:
        assert (folder.artifacts / name).read_bytes().startswith(b"\x89PNG")
    with (folder.artifacts / "metrics.csv").open() as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == list(range(1, STEPS + 1))
    resolved = json.loads((folder.artifacts / "resolved.json").read_text())
    assert resolved == json.loads(folder.resolved(1).read_text())
    load = json.loads((folder.artifacts / "expert_load.json").read_text())
    tokens = STEPS * TOKENS_OF_STEP * 2  # each token visits two experts
    assert [sum(row) for row in load["load"]] == [tokens] * len(load["layers"])


def test_a_calm_run_is_whole_in_mlflow(calm: tuple[Home, Done]) -> None:
    home, done = calm
    client = home.client()
    assert statuses(client) == ["FINISHED", "FINISHED"]
    parent, (child,) = runs(client)
    steps = set(range(1, STEPS + 1))
    for name in parent.data.metrics:
        taken = set(points(client, name))
        assert taken <= steps or name.startswith(("ledger/", "best/", "system/", "loss_by/", "bits_per_byte_by/")), name
        if name.startswith(("train/", "moe/", "cost/", "progress/")):
            assert taken == steps, name
    bits = points(client, "eval/bits_per_byte")
    assert list(bits) == [30, 60, 90, 120]
    assert bits[120] < bits[30]
    assert child.data.metrics["train/loss"] == done.result()["metrics"]["train/loss"]
    spent = list(points(client, "cost/usd").values())
    assert spent == sorted(spent)
    assert spent[0] > 0
    assert parent.data.params["layout.expert_parallel"] == "2"
    assert int(parent.data.params["model.parameters_total"]) > 0
    assert parent.data.tags["purpose"] == "test"
    manifest = read_manifest(str(home.root / "data"))
    train, heldout = (one.dataset for one in parent.inputs.dataset_inputs)
    for used, side in ((train, "train"), (heldout, "heldout")):
        shards = manifest.sources[0].train.shards if side == "train" else manifest.sources[0].heldout.shards
        assert content_digest(manifest.tokenizer.sha256, shards).startswith(used.digest)
    assert (train.name, heldout.name) == ("data-source", "data-heldout")
    assert "sample.txt" in {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_the_ledger_covers_the_calm_run(calm: tuple[Home, Done]) -> None:
    ledger = calm[1].result()["ledger"]
    seconds = {name: float(value) for name, value in ledger["secondsByClass"].items()}
    assert sum(seconds.values()) == pytest.approx(float(ledger["heldSeconds"]))
    assert min(seconds["starting"], seconds["productive"], seconds["checkpoint"]) > 0
    assert seconds["lost"] == seconds["recovering"] == 0
    assert float(ledger["cost"]) > float(ledger["wasted"])


def test_a_trained_model_writes(calm: tuple[Home, Done]) -> None:
    home = calm[0]
    folder = home.run_folder().root
    ask = ("generate", folder, "--prompt", "import ", "--tokens", 8, "--seed", 3)
    first, second = home.fathom(*ask), home.fathom(*ask)
    assert first.code == 0, first.err
    assert first.out.strip()
    assert first.out == second.out


def test_a_run_is_exported_from_its_weights_and_from_its_last_checkpoint(calm: tuple[Home, Done]) -> None:
    """Two processes trained it; one reads both, and they say the same bits."""
    from model.weights import read_model

    home = calm[0]
    folder, out = home.run_folder().root, home.runs.parent
    final, last = out / "exported", out / "exported-checkpoint"
    for where, options in ((final, ()), (last, ("--step", STEPS))):
        done = home.fathom("export", folder, where, *options)
        assert done.code == 0, done.err
    a, b = (read_model(str(where))[0].state_dict() for where in (final, last))
    assert all(torch.equal(a[name], tensor) for name, tensor in b.items())
    assert (final / "tokenizer.json").read_bytes() == (last / "tokenizer.json").read_bytes()


def test_resuming_a_finished_run_trains_nothing(calm: tuple[Home, Done]) -> None:
    home, before = calm
    folder = home.run_folder()
    known = len(events(folder))
    done = home.fathom("train", "--resume", folder.root, "-o", "json")
    assert done.code == 0, done.err
    assert done.result() == before.result()
    assert len(events(folder)) == known
    assert statuses(home.client()) == ["FINISHED", "FINISHED"]


def test_stopped_and_in_every_way_a_run_can_end_it_ends_the_same(
    calm: tuple[Home, Done], make_home: Callable[[], Home]
) -> None:
    """Ctrl-C, out of memory, a worker that is stopped, a driver that is shot: the next attempt goes on each time."""
    home = make_home()
    three = (one("out-of-memory", 70, 1), one("stop", 85, 1), one("kill-driver", 100, 0))
    home.inject(*three)
    process = home.start("train", "job.yaml", "-o", "json", *QUICK_STALL)
    folder = home.run_folder()
    wait_for(lambda: any(isinstance(event, Progress) for event in events(folder)) or None)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    stopped_well(home, stopped)

    process = home.start("train", "--resume", folder.root, "-o", "json")
    wait_for(lambda: local.running(folder))
    second = home.fathom("train", "--resume", folder.root)
    assert second.code == 4
    assert f"in the hands of process {process.pid}" in second.err
    done = finish(process)
    assert done.code == 0, done.err
    wait_until(lambda: not left(home.runs), lambda: left(home.runs))  # nor of the driver that was shot
    assert (done.result()["step"], done.result()["attempts"]) == (STEPS, 5)
    require_undisturbed(home, calm[0], Scenario("all ends", three, "without a word", restarts=0, attempts=5))
    assert losses(home) == losses(calm[0])
    audit = home.fathom("data", "audit", folder.root)
    assert audit.code == 0, audit.err
    assert statuses(home.client()) == ["FINISHED", "KILLED", "FAILED", "FAILED", "FAILED", "FINISHED"]
    status = Record.open(folder.root).status()
    assert status is not None
    assert [attempt.outcome for attempt in status.attempts] == ["stopped", "failed", "failed", "failed", "succeeded"]
    ended_each_in_its_way(folder, done.err)


def ended_each_in_its_way(folder: RunFolder, said: str) -> None:
    """With the reason told, and the stacks of who waited for the worker that was stopped."""
    ends = [e for e in events(folder) if isinstance(e, Ended)]
    assert [e.failure_class for e in ends] == [
        FailureClass.INTERRUPTED,
        FailureClass.OUT_OF_MEMORY,
        FailureClass.STALLED,
        FailureClass.DRIVER_LOST,
        None,
    ]
    assert "attempt 4 ended: driver-lost" in said
    assert "stopped" in ends[2].message
    stacks = [path.read_text() for path in (folder.root / "logs").glob("stacks-attempt-3-*")]
    assert any("model/loop.py" in text for text in stacks), "the other worker should have said where it waits"


def stopped_well(home: Home, stopped: Done) -> None:
    """Ctrl-C saved the step at which it stopped, closed MLflow, and said how to go on."""
    folder = home.run_folder()
    assert stopped.code == 130, stopped.err
    last = max(e.step for e in events(folder) if isinstance(e, Progress))
    assert 0 < last < STEPS
    assert (folder.root / f"checkpoints/step-{last}/manifest.json").exists()
    assert f"stopped at step {last}, all saved; go on with `fathom train --resume {folder.root}`" in stopped.err
    assert stopped.result()["outcome"] == "stopped"
    assert statuses(home.client()) == ["KILLED", "KILLED"]
    assert local.running(folder) is None

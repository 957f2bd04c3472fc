"""From a mixture of folders to a run on it: growing batches, isolated documents, tasks, another number of workers.

And a batch that stays bad, is left out and named.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable

import pytest
from support.faults import one
from support.home import CORPUS, JOB, Home, events, finish, history, runs, wait_for_checkpoint

from orchestrator.launch.events import Anomaly, Progress

pytestmark = [pytest.mark.ray, pytest.mark.timeout(3600)]
MIXTURE = """
sources:
  - {name: small, uri: texts/small, weight: 0.25, license: PSF-2.0}
  - {name: large, uri: texts/large, weight: 0.75}
"""
BAD = 50
"""Data step of a batch that is bad whenever it is read."""
TASK = {"question": "import", "choices": [" os", " zq!"], "answer": 0}


def job() -> str:
    """As in the other tests, on less data with more to it."""
    return (
        JOB.replace("tokens: 30_720", "tokens: 15_360\n    batchRamp: {startTokens: 128, share: 0.3}")
        .replace("everySteps: 30, tokens: 2048", "everySteps: 30, tokens: 2048, tasks: [words.jsonl]")
        .replace("sequenceLength: 32", "sequenceLength: 32, isolateDocuments: true")
        .replace("{expert: 2}", "{expert: 2, microBatch: 1}")
    )


def test_a_mixture_is_trained_on_as_it_should_be_whatever_the_workers(make_home: Callable[[], Home]) -> None:
    home = make_home()
    shutil.rmtree(home.root / "data")
    for number, module in enumerate(CORPUS):
        folder = home.root / "texts" / ("small" if number % 3 == 0 else "large")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(module.__file__), folder / f"{module.__name__}.py")
    (home.root / "mixture.yaml").write_text(MIXTURE)
    (home.root / "words.jsonl").write_text(json.dumps(TASK) + "\n")
    (home.root / "job.yaml").write_text(job())
    prepared = home.fathom("data", "prepare", "mixture.yaml", "data", "--vocab-size", 512, "--heldout-share", 0.1)
    assert prepared.code == 0, prepared.err

    home.inject(one("batch", BAD, always=True))
    process = home.start("train", "job.yaml", "-o", "json")
    folder = home.run_folder()
    wait_for_checkpoint(folder, attempt=1)
    process.send_signal(signal.SIGINT)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    alone = ("--set", "compute.workers=1", "--set", "parallelism.expert=1")
    done = home.fathom("train", "--resume", folder.root, "-o", "json", *alone)
    assert done.code == 0, done.err
    assert "leave its data out" in stopped.err + done.err
    odd = [e for e in events(folder) if isinstance(e, Anomaly)]
    assert [(e.data_step, e.action) for e in odd] == [(BAD, "replay"), (BAD, "skip")]
    assert f'"data_step": {BAD}' in (folder.artifacts / "incidents.json").read_text()

    audit = home.fathom("data", "audit", folder.root, "-o", "json")
    assert audit.code == 0, audit.err
    found = json.loads(audit.out)
    assert (found["missing"], found["different"], found["skipped"]) == ([], [], [BAD])
    assert found["steps"] == len(history(folder)) == done.result()["step"]
    assert found["samples"] * 32 == done.result()["tokens"]
    sizes = [e.tokens for e in events(folder) if isinstance(e, Progress)]
    assert sizes[0] == 128
    assert sizes[-1] - max(size for size in sizes if size < sizes[-1]) == 256

    metrics = json.loads(home.fathom("metrics", folder.root, "-o", "json").out)
    last = (metrics["rows"] if isinstance(metrics, dict) else metrics)[-1]
    assert {"eval/bits_per_byte/small", "eval/bits_per_byte/large", "eval/words/acc"} <= last.keys()
    parent, _ = runs(home.client())
    assert [one.dataset.name for one in parent.inputs.dataset_inputs] == ["data-small", "data-large", "data-heldout"]
    assert parent.data.tags["data.license"] == "PSF-2.0"

    (folder.root / "events" / "events.jsonl").write_text(
        (folder.root / "events" / "events.jsonl").read_text().replace('"samples":', '"samples":1', 1)
    )
    forged = home.fathom("data", "audit", folder.root)
    assert forged.code == 1
    assert "the run was not trained on what it should have been" in forged.err

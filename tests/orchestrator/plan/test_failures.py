"""Rates of failure: the packaged table is the published one, and a user's own file is read or refused."""

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.plan.failures import failure_models, find_failures, node_count

OWN = """
name: ours
source: our own log
date: 2026-10-01
observed: {gpus: 64, hours: 1000}
causes:
  - {name: GPU, count: 3, cure: node}
  - {name: program, perJobDay: 0.5, cure: process, hangs: true}
"""


def write(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "failures.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_the_table_of_llama_3_adds_up() -> None:
    model = failure_models()["llama-3"]
    counts = {cause.name: cause.per_hour(16384, 2048) * 54 * 24 for cause in model.causes}
    assert sum(counts.values()) == pytest.approx(419)
    assert counts["faulty GPU"] == pytest.approx(148)
    assert counts["GPU memory (HBM3)"] == pytest.approx(72)
    assert 1e6 * model.per_hour(16384, 8) / 16384 == pytest.approx(19.7, abs=0.05)


@pytest.mark.parametrize(
    ("name", "gpus", "hours"),
    [
        ("llama-3", 64, 792), ("llama-3", 256, 198), ("llama-3", 1024, 49.5), ("llama-3", 2048, 24.7),
        ("llama-3", 16384, 3.09), ("rsc-1", 64, 462), ("rsc-1", 256, 115), ("rsc-1", 1024, 28.9),
        ("rsc-1", 2048, 14.4), ("rsc-1", 16384, 1.80), ("rsc-1", 131072, 13.5 / 60), ("rsc-1-measured", 1024, 7.9),
        ("opt-175b", 64, 116), ("opt-175b", 1024, 7.27), ("opt-175b", 16384, 0.454), ("ant", 64, 139),
        ("ant", 1024, 8.68), ("ant", 2048, 4.34), ("ant", 16384, 0.54),
    ],
)  # fmt: skip
def test_mean_times_between_failures(name: str, gpus: int, hours: float) -> None:
    assert failure_models()[name].mtbf_hours(gpus, 8) == pytest.approx(hours, rel=0.006)


def test_every_model_says_where_it_comes_from() -> None:
    models = failure_models()
    assert list(models) == ["llama-3", "rsc-1", "rsc-1-measured", "opt-175b", "opt-175b-aws", "ant"]
    assert all(model.source and model.date and model.description for model in models.values())


def test_own_file(tmp_path: Path) -> None:
    model = find_failures(write(tmp_path, OWN))
    assert model.per_hour(64, 8) == pytest.approx(3 / 1000 + 0.5 / 24)
    assert model.per_hour(640, 8) == pytest.approx(30 / 1000 + 0.5 / 24), "the program fails as often in a larger job"
    assert [cause.hangs for cause in model.causes] == [False, True]


def test_the_example_of_the_document_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "goodput.md").read_text(encoding="utf-8")
    model = find_failures(write(tmp_path, text.partition("```yaml\n")[2].partition("```")[0]))
    assert [cause.name for cause in model.causes] == ["GPU", "program"]
    assert model.lemons is not None
    assert model.stragglers is not None


def test_lemons_and_stragglers_in_a_file(tmp_path: Path) -> None:
    more = "lemons: {share: 0.05, perNodeDay: 2.4}\nstragglers: {perNodeDay: 0.24, slowdown: 1.5, minutes: 10}\n"
    model = find_failures(write(tmp_path, OWN + more))
    assert model.lemons is not None
    assert (model.lemons.count(63), model.lemons.per_hour) == (3, pytest.approx(0.1))
    assert model.stragglers is not None
    assert (model.stragglers.per_node_hour, model.stragglers.seconds) == (pytest.approx(0.01), 600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold one mapping with `name` and `causes`, got NoneType"),
        ("- {a: 1}\n- {b: 1}", "got a list of 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("[" * 5000, "not valid YAML"),
        ("a: [", "not valid YAML"),
        (OWN.replace("count: 3", "count: -3"), "causes.0.count: Input should be greater than or equal to 0"),
        (OWN.replace("count: 3", "count: .nan"), "causes.0.count: Input should be a finite number"),
        (OWN.replace("count: 3", "count: true"), "must be a number, not true or false"),
        (OWN.replace("count: 3", "count: 3, perNodeDay: 1"), "needs one of .*, got count, perNodeDay"),
        (OWN.replace("count: 3, ", ""), "needs one of .*, got none"),
        (OWN.replace("observed: {gpus: 64, hours: 1000}", ""), "`count` of GPU says nothing without `observed"),
        (OWN.replace("hours: 1000", "hours: 0"), "observed.hours: Input should be greater than 0"),
        (OWN.replace("name: program", "name: GPU"), "2 causes, but only 1 different names"),
        (OWN.replace("name: program", "name: productive"), "a cause cannot be called 'productive'"),
        (OWN.replace("name: program", "name: lemon nodes"), "a cause cannot be called 'lemon nodes'"),
        (OWN.replace("perJobDay: 0.5", "everySeconds: [9, 3]"), r"everySeconds must be \[least, most\], got"),
        (OWN.replace("cure: node", "cure: prayer"), "causes.0.cure: Input should be 'process' or 'node'"),
        (OWN.replace("2026-10-01", "2026-13-45"), "date: Input should be a valid date"),
        ("#" * 1_000_001, "larger than 1000000 bytes"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_failures(write(tmp_path, text))


def test_what_is_no_model_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown failure model 'llama'; known: llama-3, rsc-1"):
        find_failures("llama")
    with pytest.raises(UsageError, match="No such file or directory; packaged models: llama-3"):
        find_failures(str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="is a device or pipe, not a file"):
        find_failures("/dev/zero")
    with pytest.raises(UsageError, match="is a folder, not a file"):
        find_failures(str(tmp_path))


@pytest.mark.parametrize(("gpus", "per_node"), [(0, 8), (-8, 8), (10**9, 8), (8, 0), (8, -1)])
def test_absurd_sizes(gpus: int, per_node: int) -> None:
    with pytest.raises(UsageError, match="must be between 1 and 10,000,000, got"):
        node_count(gpus, per_node)

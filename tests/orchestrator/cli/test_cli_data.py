import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.data import data_app
from orchestrator.errors import Conflict, FathomError, RunFailed, UsageError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(data_app, list(map(str, arguments)))


def prepared(*arguments: object) -> Result:
    return run("prepare", *arguments, "--workers", 1)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "drafts").mkdir(parents=True)
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"document {number} about rivers and stones\n" * 5)
        (folder / "drafts" / f"{number}.txt").write_text(f"draft {number}\n")
    return folder


@pytest.fixture
def mixture(source: Path, tmp_path: Path) -> Path:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"body": f"row {number}"}) + "\n" for number in range(9)))
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "sources:\n"
        "- {name: files, uri: source, weight: 3, license: CC0}\n"
        "- {name: rows, uri: x.jsonl, textField: body, weight: 1}\n"
    )
    return path


def documents(source: dict[str, Any]) -> int:
    return int(source["train"]["documents"] + source["heldout"]["documents"])


def test_prints_the_result_as_json_on_stdout_only(source: Path, tmp_path: Path) -> None:
    options = ["--vocab-size", 280, "--exclude", "drafts", "--license", "CC0", "--provenance", "drawn", "-o", "json"]
    result = prepared(source, tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["path"] == str(tmp_path / "out")
    (own,) = value["sources"]
    assert documents(own) == 12
    assert (own["name"], own["license"], own["provenance"]) == ("source", "CC0", "drawn")
    assert value["fim_rate"] == 0.1
    phases = ["reading files", "learning the vocabulary", "writing tokens", "writing shards"]
    assert result.stderr.splitlines() == phases
    again = prepared(source, tmp_path / "out", *options)
    assert json.loads(again.stdout) == value
    assert again.stderr.splitlines() == ["already prepared from the same inputs"]


def rows(text: str) -> dict[str, str]:
    return dict(line.split(None, 1) for line in text.replace("held out", "held-out").splitlines())


def test_prints_a_table_for_people(source: Path, tmp_path: Path) -> None:
    (source / "x").write_bytes(b"\0")
    result = prepared(source, tmp_path / "out", "--vocab-size", 280)
    assert result.exit_code == 0, result.output
    found = rows(result.stdout)
    names = {"dataset", "training", "held-out", "vocabulary", "baselines", "rearranged", "skipped", "digest"}
    assert set(found) == names
    assert found["skipped"] == "1 binary (e.g. x)"
    assert found["vocabulary"].startswith("280 tokens")
    assert found["rearranged"].startswith("10% of the training documents")
    assert "bits per byte" in found["baselines"]


def test_names_of_files_cannot_write_to_the_terminal(source: Path, tmp_path: Path) -> None:
    (source / "\x1b]0;title\x07\nname").write_bytes(b"\0")
    result = prepared(source, tmp_path / "out", "--vocab-size", 280)
    assert "\x1b" not in result.output
    assert rows(result.stdout)["skipped"] == "1 binary (e.g. \ufffd]0;title\ufffd\ufffdname)"


def test_all_options_reach_the_source(tmp_path: Path) -> None:
    lines = [json.dumps({"body": f"row {number}"}) for number in range(9)]
    (tmp_path / "x.txt").write_text("\n".join([*lines, json.dumps({"body": "x" * (1 << 20) + "y"})]))
    options = ["--format", "jsonl", "--text-field", "body", "--fim-rate", 0, "--max-document-mib", 1]
    result = prepared(tmp_path / "x.txt", tmp_path / "out", *options, "-o", "json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (documents(value["sources"][0]), value["fim_rate"]) == (9, 0)
    assert value["sources"][0]["skipped"]["too_large"]["count"] == 1


def test_a_mixture(mixture: Path, tmp_path: Path) -> None:
    result = prepared(mixture, tmp_path / "out", "--vocab-size", 280, "-o", "json")
    assert result.exit_code == 0, result.output
    files, texts = json.loads(result.stdout)["sources"]
    assert (files["name"], files["weight"], files["license"], documents(files)) == ("files", 3, "CC0", 24)
    assert (texts["name"], texts["weight"], documents(texts)) == ("rows", 1, 9)
    table = prepared(mixture, tmp_path / "out", "--vocab-size", 280)
    assert "files: " in table.stdout
    assert "75.0% of what training sees" in table.stdout
    assert "25.0% of what training sees" in table.stdout


def failure(result: Result) -> FathomError:
    """The error that the main program prints; nothing may have gone to stdout."""
    assert isinstance(result.exception, FathomError), result.exception
    assert result.stdout == ""
    assert len(str(result.exception)) > 20
    assert "Traceback" not in str(result.exception)
    assert "pydantic" not in str(result.exception)
    return result.exception


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/absent", "{tmp}/out"], "no file or folder"),
        (["{tmp}/*.md", "{tmp}/out"], "no file matches"),
        (["nonsense://x", "{tmp}/out"], "cannot read nonsense://x"),
        (["", "{tmp}/out"], "uri of the source: .*at least 1 character"),
        (["{tmp}/empty", "{tmp}/out"], "0 usable document"),
        (["{tmp}/source", "{tmp}/source/out"], "lies inside the source"),
        (["{tmp}/source", "{tmp}/out", "--vocab-size", "256"], "vocabulary of 256 .* at least 257"),
        (["{tmp}/source", "{tmp}/out", "--heldout-share", "0.9"], "got 0.9"),
        (["{tmp}/source", "{tmp}/out", "--fim-rate", "2"], "fim_rate must be a share"),
        (["{tmp}/source", "{tmp}/out", "--include", "*.md"], "0 usable document"),
        (["{tmp}/source", "{tmp}/out", "--format", "datasets"], "no state.json"),
        (["{tmp}/source", "{tmp}/out", "--format", "jsonl"], "skipped: .* damaged"),
        (["{tmp}/source", "{tmp}/out", "--tokenizer", "{tmp}/none.json"], "no tokenizer at"),
        (["{tmp}/source", "{tmp}/out", "--license", "x" * 201], "license of the source: .*at most 200 characters"),
        (["{tmp}/mixture.yaml", "{tmp}/out", "--license", "x"], "--license cannot be used with a mixture"),
        (["{tmp}/mixture.yaml", "{tmp}/out", "--include", "x", "--text-field", "y", "--format", "text"],
         "--include, --format, --text-field cannot be used with a mixture"),
        (["{tmp}/mixture.yaml", "{tmp}/out", "--split", "x", "--exclude", "y", "--provenance", "z"],
         "--exclude, --split, --provenance cannot be used"),
        (["{tmp}/absent.yaml", "{tmp}/out"], "no file .*absent.yaml"),
        (["{tmp}/wrong.yml", "{tmp}/out"], r"is no valid mixture:\n  sources\.0\.uri: Field required"),
        (["{tmp}/x.zip", "{tmp}/out"], "is an archive"),
    ],
)  # fmt: skip
def test_bad_input_ends_with_2_and_a_sentence(
    mixture: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.yml").write_text("sources: [{name: x}]")
    (tmp_path / "x.zip").write_bytes(b"PK")
    error = failure(prepared(*[argument.replace("{tmp}", str(tmp_path)) for argument in arguments]))
    assert isinstance(error, UsageError)
    assert error.exit_code == 2
    with pytest.raises(UsageError, match=message):
        raise error
    assert not (tmp_path / "out").exists()


def test_another_dataset_is_a_conflict_unless_forced(source: Path, tmp_path: Path) -> None:
    assert prepared(source, tmp_path / "out", "--vocab-size", 280).exit_code == 0
    error = failure(prepared(source, tmp_path / "out", "--vocab-size", 290))
    assert isinstance(error, Conflict)
    assert error.exit_code == 4
    assert "--force" in str(error)
    assert prepared(source, tmp_path / "out", "--vocab-size", 290, "--force").exit_code == 0


def test_another_preparation_is_a_conflict(source: Path, tmp_path: Path) -> None:
    from model.corpus.workspace import workspace

    with workspace(tmp_path / "out"):
        error = failure(prepared(source, tmp_path / "out"))
    assert isinstance(error, Conflict)
    assert "another process is preparing" in str(error)


def test_a_full_disk_is_told_and_the_next_call_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import model.corpus.steps

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(model.corpus.steps, "assemble", full)
        patch.setattr(sys.modules["model.corpus.prepare"], "assemble", full)
        error = failure(prepared(source, tmp_path / "out", "--vocab-size", 280))
    assert isinstance(error, RunFailed)
    assert "No space left on device; run the same command again to go on" in str(error)
    result = prepared(source, tmp_path / "out", "--vocab-size", 280)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[0] == "going on with an interrupted preparation"


def test_unknown_options_are_usage_errors(source: Path, tmp_path: Path) -> None:
    for options in (["--vocabulary", 3], ["-o", "xml"], ["--format", "csv"], ["--max-document-mib", 0]):
        result = prepared(source, tmp_path / "out", *options)
        assert result.exit_code == 2
        assert result.stdout == ""
    assert run("prepare", source, tmp_path / "out", "--workers", 0).exit_code == 2


def test_inspect_shows_what_is_in_a_dataset(mixture: Path, tmp_path: Path) -> None:
    made = json.loads(prepared(mixture, tmp_path / "out", "--vocab-size", 280, "-o", "json").stdout)
    result = run("inspect", tmp_path / "out", "--samples", 3, "--verify", "-o", "json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert (value["digest"], value["verified"], value["vocabSize"]) == (made["digest"], True, 280)
    assert value["fimRate"] == 0.1
    for found, own in zip(value["sources"], made["sources"], strict=True):
        assert (found["name"], found["weight"], len(found["samples"])) == (own["name"], own["weight"], 3)
        for side in ("train", "heldout"):
            for key in ("documents", "tokens", "bytes"):
                assert found[side][key] == own[side][key]
            lengths = found[side]["documentTokens"]
            assert 0 < lengths["median"] <= lengths["p90"] <= lengths["p99"] <= lengths["longest"]
    assert all("document" in text or "draft" in text for text in value["sources"][0]["samples"])
    assert run("inspect", tmp_path / "out", "--samples", 3, "--verify", "-o", "json").stdout == result.stdout
    assert run("inspect", tmp_path / "out", "--samples", 3, "--seed", 5, "--verify", "-o", "json").exit_code == 0


def test_inspect_for_people(mixture: Path, tmp_path: Path) -> None:
    made = json.loads(prepared(mixture, tmp_path / "out", "--vocab-size", 280, "-o", "json").stdout)
    result = run("inspect", tmp_path / "out", "--samples", 1)
    assert result.exit_code == 0, result.output
    assert made["digest"][:16] in "".join(result.stdout.split())
    assert "SHA-256" not in result.stdout
    assert "--- files, document 1" in result.stdout
    assert "--- rows, document 1" in result.stdout
    assert len([line for line in result.stdout.splitlines() if " train " in line or " heldout " in line]) == 4
    verified = run("inspect", tmp_path / "out", "--verify").stdout
    assert "asitsSHA-256says" in "".join(verified.split()), "lines are broken wherever the path is long"


def test_samples_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"\x1b[31m{number}\x9b"}) + "\n" for number in "abc"))
    assert prepared(tmp_path / "x.jsonl", tmp_path / "out", "--vocab-size", 280).exit_code == 0
    result = run("inspect", tmp_path / "out")
    assert "\x1b" not in result.stdout
    assert "\x9b" not in result.stdout
    assert "\ufffd[31m" in result.stdout


@pytest.mark.parametrize("damage", ["flip", "tokenizer"])
def test_verify_finds_what_a_look_does_not(source: Path, tmp_path: Path, damage: str) -> None:
    assert prepared(source, tmp_path / "out", "--vocab-size", 280).exit_code == 0
    path = tmp_path / "out" / ("tokenizer.json" if damage == "tokenizer" else "source/heldout-00000.bin")
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[0] ^= 1
    path.write_bytes(raw + (b"\n" if damage == "tokenizer" else b""))
    assert run("inspect", tmp_path / "out").exit_code == 0
    error = failure(run("inspect", tmp_path / "out", "--verify"))
    assert isinstance(error, UsageError)
    assert path.name in str(error)
    assert "prepare the dataset again with --force" in str(error)


def test_inspect_without_a_dataset(source: Path, tmp_path: Path) -> None:
    error = failure(run("inspect", tmp_path / "absent"))
    assert (error.exit_code, isinstance(error, UsageError)) == (2, True)
    assert "no prepared dataset" in str(error)
    assert prepared(source, tmp_path / "out", "--vocab-size", 280).exit_code == 0
    os.truncate(tmp_path / "out" / "source" / "train-00000.bin", 10)
    assert "the manifest says" in str(failure(run("inspect", tmp_path / "out")))
    (tmp_path / "out" / "manifest.json").write_text("{")
    assert "is not JSON" in str(failure(run("inspect", tmp_path / "out")))
    assert run("inspect", tmp_path / "out", "--samples", 101).exit_code == 2


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, orchestrator.cli.data; print(sorted({'numpy', 'tokenizers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

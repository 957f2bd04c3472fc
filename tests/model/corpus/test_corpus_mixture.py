"""Mixtures of sources, and the files that describe them."""

from pathlib import Path
from typing import Any

import pytest
from corpora import documents, everything, json_lines, made, skipped, texts, write_folder

from model.corpus import Mixture, Source, read_mixture
from model.corpus.mixture import is_mixture, source_name


def mixture(tmp_path: Path, **sources: tuple[list[str], dict[str, Any]]) -> Mixture:
    """Sources of a JSONL each, with these fields."""
    found = []
    for name, (lines, fields) in sources.items():
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(lines))
        found.append(Source(name=name, uri=str(tmp_path / f"{name}.jsonl"), **fields))
    return Mixture(sources=tuple(found))


def test_a_duplicate_belongs_to_the_first_source(tmp_path: Path) -> None:
    first, second = texts(30), texts(30, first=20)
    found = made(mixture(tmp_path, web=(first, {}), code=(second, {})), tmp_path / "out")
    assert [source.name for source in found.sources] == ["web", "code"]
    for source, expected in enumerate((first, second[10:])):
        sides = [documents(tmp_path / "out", found, side, source) for side in ("train", "heldout")]  # type: ignore[arg-type]
        assert sorted(sides[0] + sides[1]) == sorted(expected)
    assert skipped(found, 0) == {}
    assert skipped(found, 1) == {"duplicate": 10}
    assert found.sources[1].skipped.duplicate.examples[0].startswith("code.jsonl[")
    (tmp_path / "reversed").mkdir()
    turned = made(mixture(tmp_path / "reversed", code=(second, {}), web=(first, {})), tmp_path / "two")
    assert [skipped(turned, source) for source in range(2)] == [{}, {"duplicate": 10}]
    assert everything(tmp_path / "two", turned) == everything(tmp_path / "out", found)


def test_weights_licences_and_provenance_are_in_the_manifest(tmp_path: Path) -> None:
    fields = {"license": "MIT", "provenance": "a dump", "weight": 3}
    found = made(
        mixture(tmp_path, web=(texts(9), fields), code=(texts(9, first=50), {"weight": 0.5})), tmp_path / "out"
    )
    web, code = found.sources
    assert (web.weight, code.weight) == (3, 0.5)
    assert (web.license, web.provenance, code.license) == ("MIT", "a dump", "")
    assert web.uri == str(tmp_path / "web.jsonl")
    with pytest.raises(FileExistsError, match="--force"):
        made(mixture(tmp_path, web=(texts(9), fields), code=(texts(9, first=50), {"weight": 1})), tmp_path / "out")


def test_every_source_with_two_documents_holds_one_out(tmp_path: Path) -> None:
    sources = mixture(tmp_path, many=(texts(40), {}), two=(texts(2, first=100), {}), single=(texts(1, first=200), {}))
    found = made(sources, tmp_path / "out", heldout_share=1e-9)
    assert [source.heldout.documents for source in found.sources] == [1, 1, 0]
    assert [source.train.documents for source in found.sources] == [39, 1, 1]


def test_too_few_documents_in_a_mixture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no document is held out: at least one source needs 2"):
        made(mixture(tmp_path, a=(texts(1), {}), b=(texts(1, first=9), {})), tmp_path / "out")
    with pytest.raises(ValueError, match=r"b\.jsonl has 0 usable document\(s\), 1 is needed; skipped: 2 duplicate"):
        made(mixture(tmp_path, a=(texts(9), {}), b=(texts(2), {})), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}


def test_a_description_is_read_relative_to_itself(tmp_path: Path) -> None:
    write_folder(tmp_path / "web", texts(20))
    (tmp_path / "code.jsonl").write_bytes(json_lines(texts(20, first=100), "body"))
    path = tmp_path / "mixture.yaml"
    path.write_text(
        "sources:\n"
        "- {name: web, uri: web, weight: 2, include: ['*.txt'], license: CC0}\n"
        "- {name: code, uri: ./code.jsonl, textField: body, weight: 1}\n"
        "- {name: far, uri: 's3://bucket/*.txt', text_field: body, weight: 1}\n"
    )
    found = read_mixture(path)
    assert [source.uri for source in found.sources] == [str(tmp_path / "web"), str(tmp_path / "code.jsonl"),
        "s3://bucket/*.txt"]  # fmt: skip
    assert [source.text_field for source in found.sources] == ["text", "body", "body"]
    assert found.sources[0].include == ("*.txt",)
    manifest = made(Mixture(sources=found.sources[:2]), tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(texts(20) + texts(20, first=100))


ONE = "{name: a, uri: x}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sources: [{name: a, uri: x}, {name: a, uri: y}]", "names of sources must differ, got a, a"),
        ("sources: [{name: a, uri: x, weight: 1}, {name: b, uri: y}]", "b has none"),
        ("sources: [{name: a, uri: x, weight: -1}]", r"sources\.0\.weight: .*greater than 0"),
        ("sources: [{name: a, uri: x, weight: 0}]", r"sources\.0\.weight: .*greater than 0"),
        ("sources: [{name: a, uri: x, weight: .nan}]", r"sources\.0\.weight: .*finite"),
        ("sources: [{name: a, uri: x, weight: .inf}]", r"sources\.0\.weight: .*finite"),
        ("sources: [{name: a, uri: x, weight: heavy}]", r"sources\.0\.weight: .*valid number"),
        ("sources: [{name: a, uri: x, wieght: 1}]", r"sources\.0\.wieght: Extra inputs"),
        (f"sources: [{ONE}]\nseed: 3", "seed: Extra inputs"),
        (f"sources: [{ONE}]\n3: 4", r"3: "),
        ("sources: [{name: a}]", r"sources\.0\.uri: Field required"),
        ("sources: [{uri: x}]", r"sources\.0\.name: Field required"),
        ("sources: [{name: ../up, uri: x}]", r"sources\.0\.name: String should match"),
        ("sources: [{name: a, uri: ''}]", r"sources\.0\.uri: .*at least 1 character"),
        ("sources: [{name: a, uri: x, format: csv}]", r"sources\.0\.format: Input should be 'auto'"),
        ("sources: [text]", r"sources\.0: "),
        ("sources: []", "sources: .*at least 1 item"),
        ("sources: text", "describes no mixture: it needs `sources:`"),
        ("sources:", "describes no mixture"),
        ("just words", "describes no mixture"),
        ("", "describes no mixture"),
        ("- a", "describes no mixture"),
        ("sources: [", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("\t- x", "is not YAML"),
        ("sources: !!python/object/apply:os.system ['false']", "is not YAML"),
        ("sources: 2020-99-99", "is not YAML"),
        ("sources: !!timestamp x", "is not YAML"),
        ("sources: !!bool x", "is not YAML"),
        ("sources: " + "[" * 50_000, "is not YAML"),
        ("a: \0", "is not YAML"),
        ("#" * (1 << 20) + "\n", "is larger than 1048576 bytes"),
        (f"sources: [{', '.join([ONE] * 65)}]", "sources: .*at most 64 items"),
    ],
)
def test_wrong_descriptions(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mixture.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        read_mixture(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 3000


def test_aliases_that_multiply_cost_nothing(tmp_path: Path) -> None:
    """Nine levels of nine aliases: nearly four hundred million strings, if anybody wrote them out."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    path = tmp_path / "mixture.yaml"
    for field in ("uri", "include", "name"):
        path.write_text("\n".join([*levels, f"sources: [{{name: a, uri: x, {field}: *a8}}, *a8]"]))
        with pytest.raises(ValueError, match="is no valid mixture") as raised:
            read_mixture(path)
        assert len(str(raised.value)) < 3000


def test_descriptions_that_are_none(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"no file {path}"):
            read_mixture(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not YAML"):
        read_mixture(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("/data/Web Pages/", "web-pages"),
        ("s3://bucket/wiki/*.jsonl", "wiki"),
        ("x/books.jsonl.gz", "books"),
        ("/", "text"),
        ("..", "text"),
        ("漢字", "text"),
        ("_under_", "under"),
        ("a" * 50, "a" * 32),
        ("data\\texts", "texts"),
    ],
)
def test_a_source_without_a_name_gets_one(uri: str, name: str) -> None:
    found = source_name(uri)
    Source(name=found, uri=uri)
    assert found == name


def test_what_is_a_description() -> None:
    assert [is_mixture(name) for name in ("a.yaml", "a.yml", "a.jsonl", "yaml", "a.yaml/x")] == [
        True, True, False, False, False]  # fmt: skip

"""Sources on S3: a real server on loopback."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from corpora import everything, json_lines, made, texts, write_folder
from support.s3 import serving, use

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
pytestmark = pytest.mark.processes  # the server takes seconds

DOCUMENTS = texts(20)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """One server for all tests."""
    with serving() as port:
        yield port


@pytest.fixture
def bucket(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One with documents as text, JSONL and Parquet."""
    import pyarrow
    import pyarrow.parquet as parquet

    use(monkeypatch, port)
    s3fs.S3FileSystem.clear_instance_cache()
    fs = fsspec.filesystem("s3")
    if not fs.exists("corpus"):
        fs.mkdir("corpus")
        for number, document in enumerate(DOCUMENTS):
            fs.pipe_file(f"corpus/text/sub/{number}.txt", document.encode())
        fs.pipe_file("corpus/jsonl/x.jsonl", json_lines(DOCUMENTS[:10]))
        fs.pipe_file("corpus/jsonl/y.jsonl.gz", gzip.compress(json_lines(DOCUMENTS[10:])))
        with fs.open("corpus/x.parquet", "wb") as file:
            parquet.write_table(pyarrow.table({"text": DOCUMENTS}), file, row_group_size=6)
    yield "s3://corpus"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("place", ["text", "text/**/*.txt", "jsonl", "jsonl/*", "x.parquet"])
def test_all_formats(bucket: str, tmp_path: Path, place: str) -> None:
    manifest = made(f"{bucket}/{place}", tmp_path / "out")
    assert everything(tmp_path / "out", manifest) == sorted(DOCUMENTS)
    local = made(write_folder(tmp_path / "source", DOCUMENTS), tmp_path / "local")
    assert manifest.digest == local.digest


def test_in_units_with_several_processes(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process opens its own connection; the same again does nothing."""
    manifest = made(f"{bucket}/text", tmp_path / "out", workers=2)
    assert everything(tmp_path / "out", manifest) == sorted(DOCUMENTS)
    phases: list[str] = []
    assert made(f"{bucket}/text", tmp_path / "out", progress=lambda *step: phases.append(step[0])) == manifest
    assert phases == ["reused"]


def test_an_object_that_is_replaced_is_another_input(bucket: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3")
    for number, document in enumerate(DOCUMENTS[:4]):
        fs.pipe_file(f"corpus/changing/{number}.txt", document.encode())
    made(f"{bucket}/changing", tmp_path / "out")
    fs.pipe_file("corpus/changing/0.txt", DOCUMENTS[0].replace("0:", "9:").encode())
    with pytest.raises(FileExistsError, match="--force"):
        made(f"{bucket}/changing", tmp_path / "out")


def test_an_object_that_changes_meanwhile_is_noticed(bucket: str, tmp_path: Path) -> None:
    fs = fsspec.filesystem("s3")
    for number, document in enumerate(DOCUMENTS[:4]):
        fs.pipe_file(f"corpus/meanwhile/{number}.txt", document.encode())

    def change(phase: str, done: int, total: int) -> None:
        if phase == "reading" and done == 0:
            fs.pipe_file("corpus/meanwhile/3.txt", b"replaced")

    with pytest.raises(ValueError, match=r"s3://corpus/meanwhile/3\.txt changed while it was being prepared"):
        made(f"{bucket}/meanwhile", tmp_path / "out", progress=change)


@pytest.mark.parametrize("place", ["text", "text/0.txt", "jsonl/*.gz"])
def test_without_credentials_or_server_it_says_so(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match="connect"):
        made(f"{bucket}/{place}", tmp_path / "out")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match="credentials"):
        made(f"{bucket}/{place}", tmp_path / "out")


def test_a_missing_bucket(bucket: str, tmp_path: Path) -> None:
    for uri in ("s3://no-such-bucket/x", "s3://no-such-bucket/*.txt", f"{bucket}/absent", f"{bucket}/absent/*.txt"):
        with pytest.raises(FileNotFoundError):
            made(uri, tmp_path / "out")

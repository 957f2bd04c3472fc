"""A server's certificate is replaced while it runs; what does not fit together is never taken."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from support.certificates import certificate as made_in

from orchestrator.api.certificates import Certificates
from orchestrator.errors import UsageError


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    (folder / name).mkdir()
    return made_in(folder / name, name)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_certificate(tmp_path, "old")


def replace(files: tuple[Path, Path], *others: Path) -> None:
    for file, other in zip(files, others, strict=False):
        shutil.copy(other, file.with_suffix(".new"))
        file.with_suffix(".new").replace(file)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def served(certificates: Certificates, listener: socket.socket) -> str:
    """The name in the certificate that a new connection is shown."""

    def answer() -> None:
        connection, _ = listener.accept()
        with certificates.context.wrap_socket(connection, server_side=True) as wrapped:
            wrapped.recv(1)

    thread = threading.Thread(target=answer)
    thread.start()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with client.wrap_socket(socket.create_connection(listener.getsockname())) as wrapped:
        found = wrapped.getpeercert(binary_form=True)
        wrapped.send(b"x")
    thread.join()
    assert found is not None
    [name] = x509.load_der_x509_certificate(found).subject
    return str(name.value)


def test_connections_get_the_new_certificate(tmp_path: Path, files: tuple[Path, Path], listener: socket.socket) -> None:
    certificates = Certificates(*files)
    assert served(certificates, listener) == "old"
    assert not certificates.refresh(), "nothing is new"
    replace(files, *write_certificate(tmp_path, "new"))
    assert certificates.refresh()
    assert served(certificates, listener) == "new"


def test_half_of_a_new_pair_is_looked_at_again(
    tmp_path: Path, files: tuple[Path, Path], listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    certificates, (certificate, key) = Certificates(*files), write_certificate(tmp_path, "new")
    replace(files, certificate)
    assert not certificates.refresh()
    assert "the ones before stay" in caplog.text
    assert served(certificates, listener) == "old"
    replace(files[1:], key)
    assert certificates.refresh()
    assert served(certificates, listener) == "new"


def test_what_cannot_be_used_is_told_at_the_start(tmp_path: Path, files: tuple[Path, Path]) -> None:
    other, _ = write_certificate(tmp_path, "other")
    for certificate, key in ((other, files[1]), (tmp_path / "none", files[1]), (files[1], files[0])):
        with pytest.raises(UsageError, match="no certificate and its key"):
            Certificates(certificate, key)

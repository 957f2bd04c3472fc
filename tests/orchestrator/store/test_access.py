from __future__ import annotations

import hashlib
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator.errors import Conflict, NotFound, Unauthorized, UsageError
from orchestrator.store.access import Access, Role, Token
from orchestrator.store.sqlite import SqliteStore

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(store: SqliteStore, clock: Clock) -> Access:
    return Access(store.database, clock=clock)


def test_a_secret_is_known_once_and_kept_as_a_hash(store: SqliteStore, access: Access) -> None:
    token, secret = access.make("ann", Role.RUNNER, team="vision", by="admin")
    assert token == Token("ann", Role.RUNNER, "vision", NOON, "admin")
    assert access.authenticate(secret) == token
    assert access.tokens() == [token]
    assert len(secret) >= len("fathom_") + 43, "256 bits"
    store.database.close()
    stored = b"".join(file.read_bytes() for file in store.database.path.parent.glob("fathom.db*"))
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in stored
    assert secret.removeprefix("fathom_").encode() not in stored


def test_secrets_differ(access: Access) -> None:
    secrets = {access.make(f"t{number}", Role.READER, by="admin")[1] for number in range(50)}
    assert len(secrets) == 50


@pytest.mark.parametrize("secret", ["", "fathom_", "ann", "\ud800", "é" * 100, "x" * 100_000])
def test_what_is_no_secret(access: Access, secret: str) -> None:
    access.make("ann", Role.READER, by="admin")
    with pytest.raises(Unauthorized, match="not known here"):
        access.authenticate(secret)


def test_roles_are_in_order() -> None:
    allowed = [[role.allows(wanted) for wanted in Role] for role in Role]
    assert allowed == [[True, False, False], [True, True, False], [True, True, True]]


def test_a_token_expires(access: Access, clock: Clock) -> None:
    _, secret = access.make("ann", Role.READER, by="admin", expires_at=NOON + timedelta(days=1))
    clock.now = NOON + timedelta(days=1, microseconds=-1)
    assert access.authenticate(secret).name == "ann"
    clock.now = NOON + timedelta(days=1)
    with pytest.raises(Unauthorized, match="ann expired 2026-03-02"):
        access.authenticate(secret)


def test_a_revoked_token_counts_no_more_at_once(store: SqliteStore, access: Access, clock: Clock) -> None:
    _, secret = access.make("ann", Role.READER, by="admin")
    Access(store.database, clock=clock).revoke("ann")  # as another process would
    with pytest.raises(Unauthorized, match="ann was revoked 2026-03-01"):
        access.authenticate(secret)
    clock.now += timedelta(hours=1)
    assert access.revoke("ann").revoked_at == NOON, "once"
    with pytest.raises(NotFound, match="no token bob"):
        access.revoke("bob")


def test_a_name_is_given_once(access: Access) -> None:
    access.make("ann", Role.READER, by="admin")
    with pytest.raises(Conflict, match="ann was made before"):
        access.make("ann", Role.ADMIN, by="admin")
    access.revoke("ann")
    with pytest.raises(Conflict, match="ann was made and revoked before"):
        access.make("ann", Role.READER, by="admin")


def test_what_makes_no_sense_is_refused(access: Access) -> None:
    with pytest.raises(UsageError, match="does not have the form"):
        access.make("Ann\n", Role.READER, by="admin")
    with pytest.raises(UsageError, match="an admin is one of all teams"):
        access.make("ann", Role.ADMIN, team="vision", by="admin")
    with pytest.raises(UsageError, match="is past"):
        access.make("ann", Role.READER, by="admin", expires_at=NOON)
    assert access.tokens() == []


def test_the_admin_token_of_a_home_lasts(access: Access, tmp_path: Path) -> None:
    file = access.admin_file(tmp_path)
    secret = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert access.authenticate(secret).role is Role.ADMIN
    file.chmod(0o644)
    assert access.admin_file(tmp_path).read_text().strip() == secret
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "not a token", "\udcff"])
def test_a_lost_admin_token_is_made_anew(access: Access, tmp_path: Path, content: str) -> None:
    old = access.admin_file(tmp_path).read_text().strip()
    (tmp_path / "admin.token").write_bytes(content.encode(errors="surrogateescape"))
    new = access.admin_file(tmp_path).read_text().strip()
    assert access.authenticate(new).role is Role.ADMIN
    with pytest.raises(Unauthorized):
        access.authenticate(old)


def test_a_readers_token_in_the_admin_file_makes_no_admin(access: Access, tmp_path: Path) -> None:
    _, secret = access.make("ann", Role.READER, by="admin")
    (tmp_path / "admin.token").write_text(secret)
    assert access.authenticate(access.admin_file(tmp_path).read_text().strip()).name == "admin"

"""Who may do what: tokens, of which only a hash is kept. Called by the API and by `fathom serve`.

A secret has 256 random bits, so that one SHA-256 of it is enough (there is nothing to guess), and looking the hash up
tells no timing from which the secret follows. Invariants: a secret leaves this module once, from the call that makes
it; a name is given once, so that the audit record stays clear; whether a token counts is read anew each time.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from orchestrator.errors import Conflict, NotFound, Unauthorized, UsageError
from orchestrator.store.database import Database
from orchestrator.store.document import timestamp
from orchestrator.store.tables import tokens

PREFIX = "fathom_"
"""Of secrets: those who scan for leaked ones find them by it."""
ADMIN = "admin"
"""Name of the token that a service writes into its home."""
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_ADMIN_FILE = "admin.token"
_SECRET_BYTES = 32


class Role(StrEnum):
    """What a token allows; each allows what those before it do."""

    READER = "reader"
    RUNNER = "runner"
    ADMIN = "admin"

    def allows(self, wanted: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(wanted)


@dataclass(frozen=True)
class Token:
    """What is known of a token: all but its secret."""

    name: str
    role: Role
    team: str | None
    """The only namespace that it may see; None: all."""
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """Only a cluster knows some."""
        return ()

    def why_not(self, role: Role, namespace: str | None) -> str:
        """Why it does not allow in a namespace, or (None) in all of them, what the role does; empty: it does."""
        if why := self.why_never(role):
            return why
        return "" if self.team in (None, namespace) else f"your token is of team {self.team}"

    def why_never(self, role: Role) -> str:
        """The same of every namespace."""
        if self.role.allows(role):
            return ""
        return f"this takes a token of role {role}, that of {self.name} is of role {self.role}"

    def about(self) -> dict[str, str]:
        """For whoever holds it."""
        return {
            "name": self.name,
            "role": self.role.value,
            **({} if self.team is None else {"team": self.team}),
            **({} if self.expires_at is None else {"expires": timestamp(self.expires_at)}),
        }


class Access:
    """The tokens of a home."""

    def __init__(self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._database = database
        self._clock = clock

    def make(
        self, name: str, role: Role, *, by: str, team: str | None = None, expires_at: datetime | None = None
    ) -> tuple[Token, str]:
        """A new token and its secret, which is known here and now only. Conflict if the name was given before;
        UsageError for what makes no sense."""
        now = self._clock()
        if not re.fullmatch(NAME_PATTERN, name):
            raise UsageError(f"token name {name[:80]!r} does not have the form {NAME_PATTERN}")
        if role is Role.ADMIN and team is not None:
            raise UsageError(f"an admin is one of all teams, but team is {team}: leave it out, or make a runner")
        if expires_at is not None and expires_at <= now:
            raise UsageError(f"expires {timestamp(expires_at)} is past, it is {timestamp(now)}: give a later time")
        token, secret = Token(name, role, team, now, by, expires_at), _secret()
        with self._database.write() as connection:
            if (there := _find(connection, name)) is not None:
                state = "and revoked " if there.revoked_at else ""
                raise Conflict(
                    f"a token {name} was made {state}before: names are given once, so that the audit record stays "
                    "clear; choose another"
                )
            connection.execute(insert(tokens).values(_row(token, secret)))
        return token, secret

    def authenticate(self, secret: str) -> Token:
        """Whose secret it is; Unauthorized if nobody's (any more)."""
        digest = _digest(secret)
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.digest == digest)).mappings().first()
        if row is None or not hmac.compare_digest(row["digest"], digest):
            raise Unauthorized("the token is not known here: ask an admin of this service for one")
        token = _token(row)
        if token.revoked_at is not None:
            raise Unauthorized(f"token {token.name} was revoked {timestamp(token.revoked_at)}: ask for another one")
        if token.expires_at is not None and token.expires_at <= self._clock():
            raise Unauthorized(f"token {token.name} expired {timestamp(token.expires_at)}: ask for another one")
        return token

    def tokens(self) -> Sequence[Token]:
        """All that were ever made, in order of their names."""
        with self._database.read() as connection:
            return [_token(row) for row in connection.execute(select(tokens).order_by(tokens.c.name)).mappings()]

    def revoke(self, name: str) -> Token:
        """It counts no more, from now on. NotFound where there is none; nothing happens to one that is revoked."""
        with self._database.write() as connection:
            token = _find(connection, name)
            if token is None:
                raise NotFound(f"there is no token {name[:80]}")
            if token.revoked_at is None:
                connection.execute(
                    update(tokens).where(tokens.c.name == name).values(revoked_at=timestamp(self._clock()))
                )
                token = _find(connection, name)
                assert token is not None
        return token

    def admin_file(self, home: Path) -> Path:
        """The file with the secret of the home's own admin token, which is as good as new: made now if there is none
        that counts. Its reader is the owner only (0600)."""
        file = home / _ADMIN_FILE
        if not self._counts(file):
            secret = _secret()
            with self._database.write() as connection:
                connection.execute(delete(tokens).where(tokens.c.name == ADMIN))
                token = Token(ADMIN, Role.ADMIN, None, self._clock(), "service")
                connection.execute(insert(tokens).values(_row(token, secret)))
                _write_private(file, secret + "\n")
        return file

    def _counts(self, file: Path) -> bool:
        try:
            token = self.authenticate(file.read_text().strip())
        except (OSError, UnicodeDecodeError, Unauthorized):
            return False
        file.chmod(0o600)
        return token.role is Role.ADMIN


def _secret() -> str:
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()


def _find(connection: Connection, name: str) -> Token | None:
    row = connection.execute(select(tokens).where(tokens.c.name == name)).mappings().first()
    return None if row is None else _token(row)


def _row(token: Token, secret: str) -> dict[str, str | None]:
    return {
        "name": token.name,
        "digest": _digest(secret),
        "role": token.role.value,
        "team": token.team,
        "created_at": timestamp(token.created_at),
        "created_by": token.created_by,
        "expires_at": None if token.expires_at is None else timestamp(token.expires_at),
    }


def _token(row: RowMapping) -> Token:
    return Token(
        name=row["name"],
        role=Role(row["role"]),
        team=row["team"],
        created_at=datetime.fromisoformat(row["created_at"]),
        created_by=row["created_by"],
        expires_at=_moment(row["expires_at"]),
        revoked_at=_moment(row["revoked_at"]),
    )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)

"""The tables of the one database file of a home: jobs, tokens, remembered answers, audit records.

Invariant: `jobs.open` is computed by SQLite from the columns beside it, so that it can never disagree with them. Small
columns stand before the documents, so that looking for jobs reads none of those. A change of any table here needs a new
`VERSION` and a step that leads there.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Computed, Index, Integer, MetaData, Table, Text, UniqueConstraint, text

from orchestrator.status import Phase

VERSION = 3
"""Of these tables, kept in the file's `user_version`."""

STEPS = {
    1: ("ALTER TABLE jobs ADD COLUMN force BOOLEAN NOT NULL DEFAULT 0",),
    2: tuple(f"ALTER TABLE audit ADD COLUMN {name} TEXT NOT NULL DEFAULT ''" for name in ("teams", "job", "digest")),
}
"""From each version to the next."""
metadata = MetaData()

_OVER = ", ".join(f"'{phase.value}'" for phase in Phase if phase.terminal)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("namespace", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("observed_generation", Integer, nullable=False),
    Column("version", Integer, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("folder", Text, nullable=False, unique=True),
    Column("cancelled_at", Text),
    Column("deleted_at", Text),
    Column("keep_files", Boolean, nullable=False),
    Column("force", Boolean, nullable=False, server_default=text("0")),
    Column("granted_after", Integer, nullable=False),
    Column("resumed", Integer, nullable=False),
    Column(
        "open",
        Integer,
        Computed(f"phase NOT IN ({_OVER}) OR deleted_at IS NOT NULL OR observed_generation < generation"),
    ),
    Column("job", Text, nullable=False),
    Column("status", Text, nullable=False),
    UniqueConstraint("namespace", "name"),
    sqlite_autoincrement=True,  # a number is never used again: cursors stay right when jobs are forgotten
)
Index("jobs_by_namespace", jobs.c.namespace, jobs.c.seq)
Index("jobs_by_phase", jobs.c.phase, jobs.c.seq)
Index("jobs_open", jobs.c.seq, sqlite_where=text("open"))

tokens = Table(
    "tokens",
    metadata,
    Column("name", Text, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("team", Text),
    Column("created_at", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_at", Text),
    Column("revoked_at", Text),
)

answers = Table(
    "answers",
    metadata,
    Column("key", Text, primary_key=True),
    Column("principal", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("request", Text, nullable=False),
    Column("at", Text, nullable=False),
    Column("status", Integer),
    Column("headers", Text),
    Column("body", Text),
)
Index("answers_by_age", answers.c.at)

audit = Table(
    "audit",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("at", Text, nullable=False),
    Column("principal", Text, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("status", Integer),
    Column("teams", Text, nullable=False, server_default=text("''")),
    Column("job", Text, nullable=False, server_default=text("''")),
    Column("digest", Text, nullable=False, server_default=text("''")),
    sqlite_autoincrement=True,
)

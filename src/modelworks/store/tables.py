"""The tables, in SQLAlchemy Core; the same for SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
)

# The newest revision in migrations/versions; a test holds the two together.
HEAD = "0003"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class UtcTime(TypeDecorator[datetime]):
    """Aware UTC as microseconds since 1970: exact, sortable and the same in every database."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:  # noqa: ARG002 - SQLAlchemy's signature
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - as above
        return None if value is None else _EPOCH + timedelta(microseconds=value)


metadata = MetaData()
# Alembic's own: which revision the tables are of.
versions = Table("alembic_version", metadata, Column("version_num", String(32), primary_key=True))

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("spec", JSON, nullable=False),
    # What the names in the spec meant when the job was accepted.
    Column("inputs", JSON, nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("needs", JSON, nullable=False),
    Column("labels", JSON, nullable=False, server_default="{}"),
    # The number of the newest run: also the fence that a late run cannot pass.
    Column("runs", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("pause_requested", Boolean, nullable=False, server_default=false()),
    Column("idempotency_key", String(256), unique=True),
    # What was asked for with that key, before names were chosen: the same key must ask the same.
    Column("request_digest", String(64), nullable=False),
    Column("not_before", UtcTime, nullable=False),
    Column("last_seq", Integer, nullable=False),
    # How far events.jsonl of the job's folder has been taken over.
    Column("events_offset", BigInteger, nullable=False),
    Column("result", JSON),
    Column("error", JSON),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
)
Index("jobs_by_state", jobs.c.state, jobs.c.priority, jobs.c.id)

job_aliases = Table(
    "job_aliases",
    metadata,
    Column("alias", String(128), primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
)

runs = Table(
    "runs",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("outcome", String(16)),
    Column("reason", Text),
    Column("started_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
)

events = Table(
    "events",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("at", UtcTime, nullable=False),
    Column("type", String(16), nullable=False),
    Column("body", JSON, nullable=False),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", String(36), primary_key=True),
    # 1, 2, 3 ... in order of publication, for those who want a short handle.
    Column("number", Integer, nullable=False, server_default="0"),
    Column("kind", String(16), nullable=False),
    Column("name", String(257), nullable=False),
    Column("digest", String(64), nullable=False, index=True),
    # Relative to the workspace, so that it can be moved.
    Column("path", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("files", JSON, nullable=False),
    Column("job_id", ForeignKey("jobs.id")),
    Column("recipe", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    # A removed artifact keeps its row: its children still name it as a parent.
    Column("removed_at", UtcTime),
)
Index("artifacts_by_number", artifacts.c.number, unique=True)

parents = Table(
    "parents",
    metadata,
    Column("child_id", ForeignKey("artifacts.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("role", String(32), nullable=False),
    Column("kind", String(16), nullable=False),
    # No foreign key: a parent may be a folder that was never registered.
    Column("parent_id", String(64), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)

names = Table(
    "names",
    metadata,
    # Models and adapters share one shelf: both can be asked for in a chat.
    Column("shelf", String(16), primary_key=True),
    Column("name", String(257), primary_key=True),
    Column("artifact_id", ForeignKey("artifacts.id"), nullable=False, index=True),
)

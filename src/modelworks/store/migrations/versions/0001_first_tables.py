"""The first tables."""

from __future__ import annotations

from alembic import op

from modelworks.store.tables import metadata

revision = "0001"
down_revision = None


def upgrade() -> None:
    # Nothing was released before this: the first schema is the one in tables.py.
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    metadata.drop_all(op.get_bind())

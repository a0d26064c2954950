"""A short number for every artifact, and jobs that may be asked to pause."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Plain additions: SQLite would have to make a table anew for anything else, and others refer to these.
    op.add_column("jobs", sa.Column("pause_requested", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("artifacts", sa.Column("number", sa.Integer(), nullable=False, server_default="0"))
    # Ids sort by time.
    ids = op.get_bind().execute(sa.text("SELECT id FROM artifacts ORDER BY id")).scalars().all()
    for number, artifact_id in enumerate(ids, 1):
        values = {"number": number, "id": artifact_id}
        op.get_bind().execute(sa.text("UPDATE artifacts SET number = :number WHERE id = :id"), values)
    op.create_index("artifacts_by_number", "artifacts", ["number"], unique=True)

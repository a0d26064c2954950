"""What a door was told beside a job's spec."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("labels", sa.JSON(), nullable=False, server_default="{}"))

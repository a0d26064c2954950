"""The first tables. A new workspace gets the newest ones at once, from `tables.py`, so nobody makes these any more."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing to do: whatever bears this number has them."""

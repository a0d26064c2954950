"""What a name may mean to the gateway: a model, an entry of the operator's own, a merge in memory."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from modelworks.core.nouns import Model
from modelworks.serve.entries import Entry
from modelworks.serve.live import Live

MAX_REPLICAS = 64
Servable: TypeAlias = Model | Entry | Live


def key_of(target: Servable) -> str:
    """Under which the gateway keeps it."""
    if isinstance(target, Live):
        return live_key(target.name)
    return f"entry:{target.name}" if isinstance(target, Entry) else target.id


def live_key(name: str) -> str:
    return f"live:{name}"


def folder_of(target: Servable) -> Path:
    if isinstance(target, Live):
        return target.frame.path
    return target.folder if isinstance(target, Entry) else target.path


def most_replicas(target: Servable) -> int:
    """Of one that changes there is one, so that no two answers disagree."""
    return 1 if isinstance(target, Live) else MAX_REPLICAS

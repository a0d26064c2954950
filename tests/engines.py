"""Gateways over folders, for tests of serving."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelworks.core.errors import NotFound
from modelworks.core.generation import Finished, GenerateRequest, Token
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Model
from modelworks.serve.entries import Entry
from modelworks.serve.fleet import GatewaySettings
from modelworks.serve.gateway import Gateway


@asynccontextmanager
async def gateway_over(
    artifacts: list[Model | Adapter], logs: Path, entries: Mapping[str, Entry] | None = None, **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway that knows `artifacts` and `entries` by name."""

    def resolve(name: str) -> Model | Adapter:
        for found in artifacts:
            if found.name == name:
                return found
        raise NotFound(f"there is no model {name!r}")

    def base_of(adapter: Adapter) -> Model:
        return next(found for found in artifacts if isinstance(found, Model) and found.id == adapter.base)

    environment = {key: os.environ[key] for key in ("PATH", "HOME", "LD_LIBRARY_PATH") if key in os.environ}
    how: dict[str, Any] = {"device": "cpu", "dtype": "float32", "threads": 2, **settings}
    made = GatewaySettings(folder=logs, environment=environment, **how)
    gateway = Gateway(resolve=resolve, base_of=base_of, settings=made, entries=entries)
    try:
        yield gateway
    finally:
        await gateway.close()


def ask(model: str, prompt: str = "Once upon a time", **settings: Any) -> GenerateRequest:
    return GenerateRequest(id=new_id(), model=model, prompt=prompt, **{"temperature": 0, "max_tokens": 16, **settings})


async def answer_to(gateway: Gateway, request: GenerateRequest) -> tuple[str, Finished]:
    """The text and its end, which does not tell what was reused: that depends on who asked before."""
    text, end = "", None
    async for event in gateway.generate(request):
        if isinstance(event, Token):
            text += event.text
        elif isinstance(event, Finished):
            end = replace(event, cached_tokens=0)
    assert end is not None
    return text, end

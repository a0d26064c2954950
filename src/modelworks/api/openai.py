"""The OpenAI-compatible door for using models: lists of them, chat, completions and embeddings."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from modelworks.api import openai_asked as asked
from modelworks.api import openai_wire as wire
from modelworks.app.live import live_merges
from modelworks.app.services import Services
from modelworks.core import caller
from modelworks.core.errors import Conflict, NotFound
from modelworks.core.generation import Embedding, EngineEvent, Finished, GenerateRequest, Started, Token, ToolCall
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.core.registry import nearest
from modelworks.web.answering import while_there
from modelworks.web.dependencies import App
from modelworks.web.streaming import data, stream

router = APIRouter(prefix="/v1", tags=["openai"])

# Texts embedded at once, so that a long list leaves room in the queue for others.
_TOGETHER = 32


@router.get("/models")
def list_models(app: App) -> JsonObject:
    """Everything that can be named as `model`: base models, merged models and adapters."""
    return {"object": "list", "data": list(_cards(app).values())}


@router.get("/models/{name:path}")
def show_model(name: str, app: App) -> JsonObject:
    """Show one of them."""
    known = _cards(app)
    if name not in known:
        raise wire.ModelNotFound(f"there is no model {name!r}; {nearest(name, known)}")
    return known[name]


@router.delete("/models/{name:path}")
async def delete_model(name: str, app: App) -> JsonObject:
    """Forget a model or adapter and free its space, unless it is used: by an answer, a job, or an adapter on it."""
    if name in {deployment.model_name for deployment in live_merges(app)}:
        await app.gateway.unload(name)
        return {"id": name, "object": "model", "deleted": True}
    try:
        found = await run_in_threadpool(app.catalog.model, name)
    except NotFound as error:
        raise wire.ModelNotFound(error.message) from None
    for status in app.gateway.deployments():
        if status.outstanding and (status.deployment.model == found.id or found.name in status.adapters):
            raise Conflict(f"{name} answers requests now; delete it when they have ended")
    await app.gateway.unload(name)
    await run_in_threadpool(app.remove, "models", name)
    return {"id": name, "object": "model", "deleted": True}


@router.post("/chat/completions", response_model=None)
async def chat(body: asked.ChatAsked, request: Request, app: App) -> Response:
    """Answer a conversation, whole or as a stream of server-sent events."""
    return await _answer(request, app, wire.CHAT, body, asked.chat_requests(body))


@router.post("/completions", response_model=None)
async def complete(body: asked.CompletionAsked, request: Request, app: App) -> Response:
    """Go on from a text, whole or as a stream of server-sent events."""
    return await _answer(request, app, wire.PLAIN, body, asked.completion_requests(body))


@router.post("/embeddings")
async def embed(body: asked.EmbeddingsAsked, request: Request, app: App) -> JsonObject:
    """Turn texts to vectors: the mean of the model's last hidden states, of length 1."""
    return await while_there(request, _embed(app, body, asked.embedding_requests(body)))


def _cards(app: Services) -> dict[str, JsonObject]:
    cards = {found.name: wire.model_card(found) for found in app.servable()}
    cards |= {deployment.model_name: wire.live_card(deployment) for deployment in live_merges(app)}
    return cards | {name: wire.entry_card(name) for name in app.entries}


async def _answer(
    request: Request, app: Services, dialect: wire.Dialect, body: asked.Asked, requests: Sequence[GenerateRequest]
) -> Response:
    reply = wire.Reply(
        dialect=dialect, id=dialect.id_prefix + new_id(), created=int(time.time()), model=body.model,
        choices=body.n or 1, with_usage=body.with_usage,
    )  # fmt: skip
    caller.current().timeout_seconds = body.timeout
    if not body.stream:
        return JSONResponse(await while_there(request, _whole(app, reply, requests)))
    events = _stream(wire.Pieces(reply), _together(app, requests), len(requests))
    # It then ends without [DONE]: the status is long out.
    return await stream(request, events, lambda error: wire.openai_error_body(error, 500))


async def _whole(app: Services, reply: wire.Reply, requests: Sequence[GenerateRequest]) -> JsonObject:
    choices = [wire.Choice() for _ in requests]
    async with aclosing(_together(app, requests)) as events:
        async for index, event in events:
            choices[index].take(event)
    return wire.whole_answer(reply, choices)


async def _embed(app: Services, body: asked.EmbeddingsAsked, requests: Sequence[GenerateRequest]) -> JsonObject:
    vectors: dict[int, Sequence[float]] = {}
    read = 0
    for first in range(0, len(requests), _TOGETHER):
        async with aclosing(_together(app, requests[first : first + _TOGETHER])) as events:
            async for index, event in events:
                if isinstance(event, Embedding):
                    vectors[first + index] = event.values
                elif isinstance(event, Finished):
                    read += event.prompt_tokens
    ordered = [vectors[index] for index in range(len(requests))]
    return wire.embeddings(body.model, ordered, body.encoding_format == "base64", read)


async def _stream(
    pieces: wire.Pieces, events: AsyncGenerator[_Numbered, None], count: int
) -> AsyncGenerator[bytes, None]:
    ends: dict[int, Finished] = {}
    async with aclosing(events):
        async for index, event in events:
            if isinstance(event, Started):
                # Nothing is said yet, but the request is understood: the answer has begun.
                yield data(opening) if (opening := pieces.first(index)) else b""
            elif isinstance(event, Token):
                yield data(pieces.text(index, event))
            elif isinstance(event, ToolCall):
                yield data(pieces.call(index, event))
            elif isinstance(event, Finished):
                ends[index] = event
                yield data(pieces.last(index, event.reason))
    if pieces.with_usage:
        yield data(pieces.usage([ends[index] for index in range(count)]))
    yield b"data: [DONE]\n\n"


async def _together(app: Services, requests: Sequence[GenerateRequest]) -> AsyncGenerator[_Numbered, None]:
    """Run all requests at once; yield (number, event) as they come. Closing early cancels all of them."""
    try:
        if len(requests) == 1:  # as most are: its tokens need no queue
            async with aclosing(app.gateway.generate(requests[0])) as events:
                async for event in events:
                    yield 0, event
        else:
            async with aclosing(_side_by_side(app, requests)) as numbered:
                async for each in numbered:
                    yield each
    except NotFound as error:
        raise wire.ModelNotFound(error.message) from None


async def _side_by_side(app: Services, requests: Sequence[GenerateRequest]) -> AsyncGenerator[_Numbered, None]:
    arrived: asyncio.Queue[_Numbered | Exception | None] = asyncio.Queue(maxsize=len(requests))

    async def run(index: int, request: GenerateRequest) -> None:
        try:
            async with aclosing(app.gateway.generate(request)) as events:
                async for event in events:
                    await arrived.put((index, event))
            await arrived.put(None)
        except Exception as error:  # noqa: BLE001 - carried to the reader, who raises it
            await arrived.put(error)

    tasks = [asyncio.create_task(run(index, request)) for index, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await arrived.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_Numbered = tuple[int, EngineEvent]

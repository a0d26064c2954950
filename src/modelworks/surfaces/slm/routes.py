"""The routes of the SLM API, and its chat page."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from modelworks.app import slm
from modelworks.app.services import Services
from modelworks.core.config import count_gpus
from modelworks.core.errors import ModelworksError, NotFound
from modelworks.core.generation import GenerateRequest, Started, Token
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.surfaces.slm import translate, wire
from modelworks.web.answering import collect, while_there
from modelworks.web.dependencies import App
from modelworks.web.streaming import data, stream

router = APIRouter(prefix="/slm", tags=["SLM API"])
# OpenAPI 3.1 has no word for the parts of a stream; 3.2 calls it itemSchema.
STREAMED = {"schema": {"type": "string"}, "x-itemSchema": wire.EventOut.model_json_schema()}
CHAT_PAGE = files("modelworks") / "pages" / "static" / "chat.html"


@router.get("/info")
async def info(app: App) -> wire.InfoOut:
    """Say which model is meant, and whether it is loaded."""
    found = None
    try:
        found = await slm.choose(app)
    except NotFound:
        base, lora = app.settings.slm_base, app.settings.slm_adapter
    else:
        base, lora = found.base.name, found.adapter.name if found.adapter else None
    return wire.InfoOut(
        model_loaded=found is not None and slm.is_loaded(app, found),
        device=slm.device_of(app, found),
        base_model=base,
        lora_path=lora,
        cuda_available=count_gpus() > 0,
    )


@router.post("/load")
async def load(app: App) -> wire.LoadOut:
    """Load the model; answers when it can speak."""
    chosen = await slm.choose(app)
    await app.gateway.load(chosen.meant.id)
    device = slm.device_of(app, chosen)
    return wire.LoadOut(message=f"Model loaded successfully on {device}", device=device, model_path=chosen.meant.name)


@router.post("/unload")
async def unload(app: App) -> wire.UnloadOut:
    """Give the model's memory back."""
    was_loaded = await slm.unload(app)
    return wire.UnloadOut(message="Model unloaded successfully" if was_loaded else "No model was loaded")


@router.post("/generate")
async def generate(asked: wire.GenerateIn, request: Request, app: App) -> wire.GenerateOut:
    """Answer at once, whole; loads the model if need be."""
    chosen = await slm.choose(app)
    answer = await while_there(request, collect(app, translate.to_request(asked, new_id(), chosen.meant.id)))
    return translate.to_answer(asked, answer.text, slm.device_of(app, chosen))


@router.post(
    "/stream",
    response_class=Response,
    responses={200: {"description": "one JSON object an event", "content": {"text/event-stream": STREAMED}}},
)
async def generate_stream(asked: wire.GenerateIn, request: Request, app: App) -> Response:
    """Answer word by word, as server-sent events; loads the model if need be."""
    chosen = await slm.choose(app)
    return await stream(request, _events(app, chosen, translate.to_request(asked, new_id(), chosen.meant.id)), _told)


@router.get("/chat", include_in_schema=False)
async def chat() -> FileResponse:
    return FileResponse(str(CHAT_PAGE), headers={"Cache-Control": "no-cache"})


async def _events(app: Services, chosen: slm.Chosen, asked: GenerateRequest) -> AsyncGenerator[bytes, None]:
    if not slm.is_loaded(app, chosen):
        yield data({"status": "Loading SLM model..."})
        await app.gateway.load(asked.model)
        yield data({"status": f"Model loaded on {slm.device_of(app, chosen)}"})
    pieces = translate.Pieces()
    async with aclosing(app.gateway.generate(asked)) as events:
        async for event in events:
            if isinstance(event, Started):
                yield data({"status": "Generating response..."})
            elif isinstance(event, Token):
                for piece in pieces.add(event.text):
                    yield data(piece)
    yield data(pieces.last())
    yield data({"status": "Response complete!", "device_used": slm.device_of(app, chosen)})


def _told(error: ModelworksError) -> JsonObject:
    return wire.ErrorOut(error=error.message).model_dump()

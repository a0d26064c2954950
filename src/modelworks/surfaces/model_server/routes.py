"""The routes of the Model Server; a name is that of a model, an adapter or an entry of one's own."""

from __future__ import annotations

from fastapi import APIRouter, Request

from modelworks.app.serving import standings
from modelworks.surfaces.model_server import translate, wire
from modelworks.web.answering import collect, while_there
from modelworks.web.dependencies import App

router = APIRouter(prefix="/api/v1", tags=["Model Server"])


@router.post("")
@router.post("/", include_in_schema=False)
async def status(app: App) -> wire.InfoOut:
    """Say how every model is served, those too that are not."""
    return translate.to_info(await standings(app))


@router.post("/{name:path}/call")
async def call(name: str, body: wire.CallIn, request: Request, app: App) -> wire.CallOut:
    """Answer a conversation. A model without an entity gets one, so what was trained answers at once."""
    asked = translate.to_request(name, body, as_sent=name in app.entries)
    answer = await while_there(request, collect(app, asked))
    return wire.CallOut(result=answer.text)


@router.post("/{name:path}/add")
async def add(name: str, app: App, body: wire.AddIn | None = None) -> wire.DoneOut:
    """Start one more entity of a model; answers when it is ready."""
    await app.gateway.add(name, body.device if body else None)
    return wire.DoneOut()


@router.post("/{name:path}/remove")
async def remove(name: str, app: App) -> wire.DoneOut:
    """Let an entity's answers end, then end it; of an adapter's last entity, the base stays."""
    await app.gateway.remove(name)
    return wire.DoneOut()


@router.post("/{name:path}/activate")
async def activate(name: str, app: App, body: wire.AddIn | None = None) -> wire.DoneOut:
    """Have at least one entity of a model; answers when it is ready."""
    await app.gateway.load(name, device=body.device if body else None)
    return wire.DoneOut()

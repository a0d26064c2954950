"""The ASGI application: every router behind the same guards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

import modelworks
from modelworks.api import artifacts, files, finetuning, jobs, metrics, openai, system
from modelworks.app.wiring import App
from modelworks.core.config import Settings
from modelworks.pages import routes as pages
from modelworks.server import errors, openapi
from modelworks.server.access import AccessLog
from modelworks.server.auth import KeyGuard
from modelworks.server.limits import BodyGuard
from modelworks.server.origin import HostGuard, OriginGuard, SecurityHeaders
from modelworks.surfaces import collisions
from modelworks.surfaces.finetuning_api import routes as finetuning_api
from modelworks.surfaces.merging_api import routes as merging_api
from modelworks.surfaces.model_server import routes as model_server
from modelworks.surfaces.modelforge import routes as modelforge
from modelworks.surfaces.slm import routes as slm
from modelworks.web.persona import Persona

# Our own and OpenAI's addresses, the five documents', and the pages; no two claim one address.
ROUTERS = (
    system.router, metrics.router, jobs.router, artifacts.router, openai.router, files.router, finetuning.router,
    collisions.router, merging_api.router, modelforge.router, finetuning_api.router, slm.router, model_server.router,
    pages.router,
)  # fmt: skip


def create_asgi(app: App, personas: Mapping[int, Persona] | None = None) -> FastAPI:
    """Build the application on an open workspace; its engines live as long as its lifespan.

    `state.stopping` is set when the process is about to end: streams then say goodbye. `personas` says what each port
    plays; a port that is not named plays none of the five documents' servers.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with app.engines():
            yield

    settings = app.services.settings
    asgi = FastAPI(
        title="Modelworks",
        version=modelworks.__version__,
        description=modelworks.__doc__ or "",
        lifespan=lifespan,
        middleware=guards(settings),
        # Both pages load scripts from elsewhere, which works neither offline nor with our content policy.
        docs_url=None,
        redoc_url=None,
    )
    asgi.state.services = app.services
    asgi.state.stopping = asyncio.Event()
    asgi.state.personas = dict(personas or {})
    for router in ROUTERS:
        asgi.include_router(router)
    errors.install(asgi)
    openapi.complete(asgi)
    return asgi


def guards(settings: Settings) -> list[Middleware]:
    """What stands before every route of every port, outermost first."""
    return [
        Middleware(AccessLog, settings),
        Middleware(SecurityHeaders),
        Middleware(errors.LastResort),
        Middleware(HostGuard, settings),
        Middleware(OriginGuard, settings),
        Middleware(KeyGuard, settings),
        Middleware(BodyGuard),
    ]

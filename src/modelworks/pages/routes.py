"""The pages and what they load: plain HTML files under templates/, scripts and styles under static/.

`router` is all there is to mount: it serves the static files too, at /modelworks/static/. `app.state.personas` decides
what stands at `/`; the OpenAPI document that /docs and /redoc show is the application's own, at /openapi.json.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from modelworks.web.persona import Persona, persona_of

HERE = Path(__file__).parent
STATIC = StaticFiles(directory=HERE / "static")
# Asked again each time, and answered by "not modified": a new version of the server shows at once.
FRESH = {"Cache-Control": "no-cache"}
# Swagger UI and ReDoc write style elements while they run and keep icons in data: URLs. Scripts stay our own.
READER_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
READER = FRESH | {"Content-Security-Policy": READER_POLICY}
# What a page is called in its address, and its file. `dashboard?job=ID` shows a job, else the newest training.
PAGES = {"home": "start", **{name: name for name in ("dashboard", "new", "data", "model", "chat")}}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def root(request: Request) -> FileResponse:
    """The live dashboard where the fine-tuning clients look for it, else the start page."""
    return _page("dashboard" if persona_of(request) is Persona.MERGING_API else "start")


@router.get("/docs")
@router.get("/redoc")
async def reader(request: Request) -> FileResponse:
    return _page(request.url.path.strip("/"), READER)


@router.api_route("/modelworks/static/{path:path}", methods=["GET", "HEAD"])
async def static(path: str, request: Request) -> Response:
    response = await STATIC.get_response(path, request.scope)
    response.headers.update(FRESH)
    return response


def _page(name: str, headers: dict[str, str] = FRESH) -> FileResponse:
    return FileResponse(HERE / "templates" / f"{name}.html", media_type="text/html; charset=utf-8", headers=headers)


async def _own(request: Request) -> FileResponse:
    return _page(PAGES[request.url.path.rpartition("/")[2]])


for _path in PAGES:
    router.add_api_route(f"/modelworks/{_path}", _own)

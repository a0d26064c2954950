"""Errors to HTTP: the only place that knows status codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelworks.api.openai_wire import openai_error_body
from modelworks.core.errors import (
    Conflict,
    DeadlinePassed,
    Denied,
    Invalid,
    ModelworksError,
    NotFound,
    OutOfMemory,
    OutOfSpace,
    Problem,
    TooLarge,
    Unavailable,
    Unsupported,
)
from modelworks.core.generation import QueueFull
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.surfaces.envelopes import envelope

logger = logging.getLogger(__name__)


class MissingKey(Denied):
    """The request carries no API key, or a wrong one."""

    code = "missing_key"


class ForeignHost(Denied):
    """The Host header names somebody else: a misled browser, or a name that has to be allowed first."""

    code = "foreign_host"


class ForeignOrigin(Denied):
    """A web page from elsewhere tries to change something."""

    code = "foreign_origin"


class Bug(ModelworksError):
    """Our mistake; its id is in the log."""

    code = "bug"


STATUS: Mapping[type[ModelworksError], int] = {
    Invalid: 400,
    MissingKey: 401,
    Denied: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    ForeignHost: 421,
    QueueFull: 429,
    Bug: 500,
    Unsupported: 501,
    Unavailable: 503,
    DeadlinePassed: 504,
    OutOfMemory: 507,
    OutOfSpace: 507,
}


def status_of(error: ModelworksError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_response(error: ModelworksError, path: str, status: int | None = None) -> Response:
    """Answer with `error` in the words of the door at `path`: OpenAI's, a foreign document's, else RFC 9457."""
    status = status or status_of(error)
    headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, Unavailable) else {}
    if isinstance(error, MissingKey):
        headers["WWW-Authenticate"] = "Bearer"
    if path == "/v1" or path.startswith("/v1/"):
        return JSONResponse(openai_error_body(error, status), status, headers)
    foreign = envelope(error, path, status)
    if foreign is not None:
        return JSONResponse(foreign, status, headers)
    return JSONResponse(problem_body(error, status), status, headers, media_type="application/problem+json")


def category_of(error: ModelworksError) -> str:
    """The code of the nearest error that every client knows: those of the core."""
    kinds = (kind for kind in type(error).__mro__ if issubclass(kind, ModelworksError))
    return next(kind.code for kind in kinds if kind.__module__ == ModelworksError.__module__)


def problem_body(error: ModelworksError, status: int) -> JsonObject:
    return {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": error.code,
        "category": category_of(error),
        "detail": error.message,
        "problems": [{**item.body} for item in error.problems],
    }


def install(app: FastAPI) -> None:
    """Have every error of a route answered by `error_response`."""

    # FastAPI's type for a handler promises any Exception; these are only called with their own.
    def ours(request: Request, error: Exception) -> Response:
        if not isinstance(error, ModelworksError):
            raise error
        return error_response(error, request.url.path)

    def unreadable(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        return error_response(_invalid(error.errors()), request.url.path)

    def of_the_framework(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            raise error
        response = error_response(_named(error, request), request.url.path, error.status_code)
        response.headers.update(error.headers or {})
        return response

    app.add_exception_handler(ModelworksError, ours)
    app.add_exception_handler(RequestValidationError, unreadable)
    app.add_exception_handler(HTTPException, of_the_framework)


class LastResort:
    """Answers a bug with an opaque 500 whose id is in the log, together with the traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except ClientDisconnect:
            # Nobody is left to be told anything.
            return
        except Exception:
            if scope["type"] != "http":
                raise
            error_id = new_id()
            facts = {"error_id": error_id, "method": scope["method"], "path": scope["path"]}
            logger.exception("a request failed because of a bug", extra=facts)
            if started:
                # Half an answer is out: all that is left is to break the connection.
                raise
            bug = Bug(f"something went wrong here; the server's log says more under {error_id}")
            await error_response(bug, scope["path"])(scope, receive, send)


def _invalid(details: Sequence[Mapping[str, object]]) -> Invalid:
    problems = tuple(
        # Its place is an offset, which says nothing next to the names of fields.
        Problem("the body", f"not JSON: {cast('Mapping[str, object]', detail['ctx'])['error']}")
        if detail["type"] == "json_invalid"
        else Problem(_where(detail["loc"]), str(detail["msg"]))
        for detail in details
    )
    return Invalid("; ".join(str(problem) for problem in problems), problems=problems)


def _where(location: object) -> str:
    parts = [str(part) for part in location] if isinstance(location, Sequence) else [str(location)]
    # FastAPI puts "body" or "query" first; the reader knows where the key is.
    return ".".join(parts[1:] or parts)


def _named(error: HTTPException, request: Request) -> ModelworksError:
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"there is nothing at {where}; /openapi.json lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return Unsupported(f"{where}: this address does not take {request.method}")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(str(error.detail))
    return Invalid(f"{where}: {error.detail}")

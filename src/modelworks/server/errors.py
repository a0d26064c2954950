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
from modelworks.core import errors
from modelworks.core.errors import ModelworksError, Problem
from modelworks.core.generation import QueueFull
from modelworks.core.ids import new_id
from modelworks.core.nouns import JsonObject
from modelworks.surfaces.envelopes import envelope

logger = logging.getLogger(__name__)


class MissingKey(errors.Denied):
    """The request carries no API key, or a wrong one."""

    code = "missing_key"


class ForeignHost(errors.Denied):
    """The Host header names somebody else: a misled browser, or a name that has to be allowed first."""

    code = "foreign_host"


class ForeignOrigin(errors.Denied):
    """A web page from elsewhere tries to change something."""

    code = "foreign_origin"


class Bug(ModelworksError):
    """Our mistake; its id is in the log."""

    code = "bug"


STATUS: Mapping[type[ModelworksError], int] = {
    errors.Invalid: 400,
    MissingKey: 401,
    errors.Denied: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    ForeignHost: 421,
    QueueFull: 429,
    Bug: 500,
    errors.Unsupported: 501,
    errors.Unavailable: 503,
    errors.DeadlinePassed: 504,
    errors.OutOfMemory: 507,
    errors.OutOfSpace: 507,
}


def status_of(error: ModelworksError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def error_response(error: ModelworksError, path: str, status: int | None = None) -> Response:
    """Answer with `error` in the words of the door at `path`: OpenAI's, a foreign document's, else RFC 9457."""
    status = status or status_of(error)
    headers = {"Retry-After": str(error.retry_after_seconds)} if isinstance(error, errors.Unavailable) else {}
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
    for kind in (ModelworksError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer)


def _answer(request: Request, error: Exception) -> Response:
    # FastAPI's type for a handler promises any Exception; this one is only called with these three.
    match error:
        case ModelworksError():
            return error_response(error, request.url.path)
        case RequestValidationError():
            return error_response(_invalid(error.errors()), request.url.path)
        case HTTPException():
            response = error_response(_named(error, request), request.url.path, error.status_code)
            response.headers.update(error.headers or {})
            return response
        case _:
            raise error


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


def _invalid(details: Sequence[Mapping[str, object]]) -> errors.Invalid:
    problems = tuple(
        # Its place is an offset, which says nothing next to the names of fields.
        Problem("the body", f"not JSON: {cast('Mapping[str, object]', detail['ctx'])['error']}")
        if detail["type"] == "json_invalid"
        else Problem(_where(detail["loc"]), str(detail["msg"]))
        for detail in details
    )
    return errors.Invalid("; ".join(str(problem) for problem in problems), problems=problems)


def _where(location: object) -> str:
    parts = [str(part) for part in location] if isinstance(location, Sequence) else [str(location)]
    # FastAPI puts "body" or "query" first; the reader knows where the key is.
    return ".".join(parts[1:] or parts)


def _named(error: HTTPException, request: Request) -> ModelworksError:
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        return errors.NotFound(f"there is nothing at {where}; /openapi.json lists what there is")
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return errors.Unsupported(f"{where}: this address does not take {request.method}")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return errors.Unavailable(str(error.detail))
    return errors.Invalid(f"{where}: {error.detail}")

"""How much a request may send: a cap on the body, and on how deep its JSON goes."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelworks.core.errors import Invalid, ModelworksError, TooLarge
from modelworks.server.refusal import refuse

BODY_BYTES = 1 << 20
CHAT_BYTES = 4 << 20
CHAT_PATHS = ("/v1/chat/", "/v1/completions", "/api/v1/", "/api/playground/", "/slm/")
# As large as the merging API's document's own server takes.
MERGE_PATH, MERGE_BYTES = "/api/merge", 16 << 20
# The routes that take files: streamed to the disk, where the free space is the limit.
UPLOAD_PATHS = ("/modelworks/datasets", "/v1/files", "/api/upload_dataset")
# It takes a file or, as JSON, only the name of one.
FINETUNE_PATH = "/finetune"
DEEPEST_JSON = 64
# The optional end quote keeps this linear on a string that never ends.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
# A text whose surrogates, as JSON writes them, come in pairs.
_PAIRED = re.compile(rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)*+", re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class BodyGuard:
    """Reads a small body whole before any route sees it; refuses a large or a bottomless one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = limit_bytes(scope)
        if limit is None:
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            body = await _read(headers, receive, limit)
            if body is None:
                return
            if "json" in _content_type(scope):
                check_depth(body)
                check_characters(body)
        except ModelworksError as error:
            await refuse(error, scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)


def limit_bytes(scope: Scope) -> int | None:
    """The most that this request may send, or None where the route itself watches over it."""
    if scope["type"] != "http":
        return None
    if scope["path"].startswith(UPLOAD_PATHS) and scope["method"] in {"POST", "PUT"}:
        return None
    if scope["path"].startswith(FINETUNE_PATH) and _content_type(scope).startswith("multipart/"):
        return None
    if scope["path"] == MERGE_PATH:
        return MERGE_BYTES
    return CHAT_BYTES if scope["path"].startswith(CHAT_PATHS) else BODY_BYTES


def _content_type(scope: Scope) -> str:
    return Headers(scope=scope).get("content-type", "").lower()


def check_depth(body: bytes) -> None:
    """Raises Invalid when brackets are nested deeper than any request of ours: parsers recurse."""
    depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _NO_BRACKET):
        depth += 1 if bracket in b"[{" else -1
        if depth > DEEPEST_JSON:
            raise Invalid(f"the body is nested deeper than {DEEPEST_JSON} levels")


def check_characters(body: bytes) -> None:
    """Raises Invalid for half a surrogate pair: JSON may write it, but it is no text to be stored or sent on."""
    if (rb"\ud" in body or rb"\uD" in body) and not _PAIRED.fullmatch(body):
        raise Invalid(r"the body has half a surrogate pair, which is no character: \ud800 to \udfff come in twos")


async def _read(headers: Headers, receive: Receive, limit: int) -> bytes | None:
    """The whole body, or None if the client went away before its end."""
    most = f"the body is larger than {limit >> 20} MiB, which is the most this address takes"
    too_large = TooLarge("File too large" if limit == MERGE_BYTES else most)  # the merging API's own words
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Hand the body over once, then whatever the connection says."""
    first = True

    async def replayed() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed

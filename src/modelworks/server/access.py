"""The access log: a line for each request that says who asked for what and how it went, without a word of it."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelworks.core import caller
from modelworks.core.config import Settings

logger = logging.getLogger(__name__)

# What is asked for again and again by programs that watch.
_WATCHED = frozenset({"/metrics", "/modelworks/health", "/health"})


class AccessLog:
    """Begins a caller for each request, and logs what became known of it when the answer is out."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.on = app, settings.access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        who, begun, status = caller.begin(), time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            if self.on:
                facts = {
                    "method": scope["method"], "path": scope["path"], "status": status,
                    "ms": round(1000 * (time.monotonic() - begun), 1), "key": who.key, "model": who.model,
                    "prompt_tokens": who.prompt_tokens or None, "output_tokens": who.output_tokens or None,
                    "ttft_ms": who.first_token_ms,
                }  # fmt: skip
                level = logging.DEBUG if scope["path"] in _WATCHED else logging.INFO
                logger.log(level, "request", extra={name: fact for name, fact in facts.items() if fact is not None})

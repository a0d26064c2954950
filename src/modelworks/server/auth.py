"""The API keys: one place that takes one out of a request, one comparison with each."""

from __future__ import annotations

import hmac
from base64 import b64decode

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modelworks.core import caller
from modelworks.core.config import Settings
from modelworks.server.errors import MissingKey
from modelworks.server.refusal import refuse


class KeyGuard:
    """Lets nobody through without a key, if there are any."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.keys = {name: key.encode() for name, key in settings.keys.items()}
        self.open = {"/metrics"} if settings.open_metrics else set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.keys and scope["type"] != "lifespan" and scope["path"] not in self.open:
            given = key_of(Headers(scope=scope))
            fitting = [name for name, key in self.keys.items() if hmac.compare_digest(given.encode(), key)]
            if fitting:
                caller.current().key = fitting[0]
            else:
                what = "a wrong API key" if given else "no API key"
                error = MissingKey(f"{what}; send `Authorization: Bearer KEY` or `x-api-key: KEY`")
                await refuse(error, scope, receive, send)
                return
        await self.app(scope, receive, send)


def key_of(headers: Headers) -> str:
    """The key a request carries, or an empty string. A browser asks for it as a password, for any name."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return b64decode(value).decode(errors="replace").partition(":")[2]
        except ValueError:
            return ""
    return value.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()

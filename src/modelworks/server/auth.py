"""The API key: one place that takes it out of a request, one comparison."""

from __future__ import annotations

import hmac
from base64 import b64decode

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from modelworks.core.config import Settings
from modelworks.server.errors import MissingKey
from modelworks.server.refusal import refuse


class KeyGuard:
    """Lets nobody through without the key, if there is one."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.key = settings.api_key.get_secret_value().encode() if settings.api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.key is not None and scope["type"] != "lifespan":
            given = key_of(Headers(scope=scope))
            if not hmac.compare_digest(given.encode(), self.key):
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

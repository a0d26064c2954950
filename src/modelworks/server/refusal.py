"""Turning a request or a WebSocket away before it reaches a route."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from modelworks.core.errors import ModelworksError
from modelworks.server.errors import error_response

POLICY_VIOLATION = 1008


async def refuse(error: ModelworksError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with `error`; a WebSocket is refused before it is accepted."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        # The server answers the handshake with 403.
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    await error_response(error, scope["path"])(scope, receive, send)

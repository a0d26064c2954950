"""Turning a request or a WebSocket away before it reaches a route."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from modelworks.core.errors import ModelworksError
from modelworks.server.errors import MissingKey, error_response

POLICY_VIOLATION = 1008
# Programs send the key as Bearer; a browser that opens a page asks for it as a password, and sends it from then on.
BROWSER_CHALLENGE = 'Basic realm="Modelworks: any name, and the API key as password", charset="UTF-8"'


async def refuse(error: ModelworksError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with `error`; a WebSocket is refused before it is accepted."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        # The server answers the handshake with 403.
        await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        return
    response = error_response(error, scope["path"])
    if isinstance(error, MissingKey):
        # A line of its own: browsers do not look for it behind another in the same line.
        response.headers.append("WWW-Authenticate", BROWSER_CHALLENGE)
    await response(scope, receive, send)

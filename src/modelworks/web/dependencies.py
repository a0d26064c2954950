"""What a route may ask for."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.requests import HTTPConnection

from modelworks.app.services import Services


async def services(connection: HTTPConnection) -> Services:
    """The services of the server that this request, or WebSocket, came to. Async, or it would cost each a thread."""
    found: Services = connection.app.state.services
    return found


App = Annotated[Services, Depends(services)]

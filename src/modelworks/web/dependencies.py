"""What a route may ask for."""

from __future__ import annotations

from fastapi import Request

from modelworks.app.services import Services


def services(request: Request) -> Services:
    """The services of the server that this request came to."""
    found = request.app.state.services
    if not isinstance(found, Services):
        raise TypeError("the server was built without its services")
    return found

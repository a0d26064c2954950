"""Which of the five documents' servers a port plays: it decides only what two documents say differently."""

from __future__ import annotations

from enum import StrEnum

from starlette.requests import HTTPConnection


class Persona(StrEnum):
    NATIVE = "native"
    MERGING_API = "merging_api"
    MODELFORGE = "modelforge"
    FINETUNING_API = "finetuning_api"
    MODEL_SERVER = "model_server"
    SLM = "slm"


def persona_of(connection: HTTPConnection) -> Persona:
    """The persona of the port that a request came to."""
    port = (connection.scope.get("server") or ("", 0))[1]
    personas: dict[int, Persona] = connection.app.state.personas
    return personas.get(port, Persona.NATIVE)


def dashboard_url(connection: HTTPConnection) -> str:
    """Where the live dashboard of this server is: at the root of the merging port if one is open."""
    personas: dict[int, Persona] = connection.app.state.personas
    port = next((port for port, persona in personas.items() if persona is Persona.MERGING_API), None)
    host = (connection.url.hostname or "localhost").replace("127.0.0.1", "localhost")
    if port is None:
        return f"{connection.url.scheme}://{host}:{connection.url.port or 80}/modelworks/dashboard"
    return f"{connection.url.scheme}://{host}:{port}"

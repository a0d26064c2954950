"""The ports a server opens: its own, and those where the clients of the five documents look for theirs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from modelworks.core.config import Settings
from modelworks.core.errors import Unavailable
from modelworks.server.sockets import listen
from modelworks.web.persona import Persona

PORTS: Mapping[int, Persona] = {
    8000: Persona.MODELFORGE,
    5000: Persona.MERGING_API,
    9999: Persona.MODEL_SERVER,
}
MISSED: Mapping[Persona, str] = {
    Persona.MERGING_API: "the Model Merging API, the SLM API and the fine-tuning dashboard",
    Persona.MODELFORGE: "ModelForge's REST API and the Model Finetuning API",
    Persona.MODEL_SERVER: "the Model Server",
    Persona.FINETUNING_API: "the Model Finetuning API",
    Persona.SLM: "the SLM API",
}


@dataclass(frozen=True)
class Opened:
    """What a server listens on; the first port is the one it announces."""

    sockets: tuple[socket.socket, ...]
    personas: Mapping[int, Persona]


def wished(settings: Settings) -> dict[int, Persona]:
    """The ports to open and what each plays; the first is a must."""
    ports = {settings.port: PORTS.get(settings.port, Persona.NATIVE)}
    return ports | ({port: each for port, each in PORTS.items() if port != settings.port} if settings.personas else {})


def open_ports(settings: Settings, ports: Mapping[int, Persona], say: Callable[[str], None]) -> Opened:
    """Take every port; one that is taken is named with what is missing because of it.

    Raises:
        Unavailable: the first cannot be had or, with `strict_ports`, any.
    """
    sockets: list[socket.socket] = []
    personas: dict[int, Persona] = {}
    for port, persona in ports.items():
        try:
            taken = listen(settings.host, port)
        except Unavailable as error:
            if not personas or settings.strict_ports:
                for each in sockets:
                    each.close()
                raise
            airplay = " (on macOS: AirPlay Receiver, in System Settings)" if port == 5000 else ""
            say(
                f"modelworks: {error.message}{airplay}; clients of {MISSED[persona]} will not find it there. "
                "--strict-ports makes this an error"
            )
            continue
        sockets += taken
        personas[taken[0].getsockname()[1]] = persona
    return Opened(tuple(sockets), personas)

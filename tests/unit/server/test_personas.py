from __future__ import annotations

import socket
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from doors import open_door
from modelworks.core.config import Settings
from modelworks.core.errors import Unavailable
from modelworks.server.personas import open_ports, wished
from modelworks.web.persona import Persona

FORGE = {"status", "version", "message"}
MERGING = {"status", "timestamp", "merging_available", "version"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_without_personas_there_is_one_port() -> None:
    assert wished(Settings()) == {8000: Persona.MODELFORGE}
    assert wished(Settings(port=8123)) == {8123: Persona.NATIVE}


def test_with_personas_there_are_the_ports_of_the_documents_and_its_own_comes_first() -> None:
    assert list(wished(Settings(personas=True, port=8123))) == [8123, 8000, 5000, 9999]
    assert list(wished(Settings(personas=True))) == [8000, 5000, 9999]


def test_a_taken_port_is_named_with_what_is_missing_because_of_it() -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken, free = holder.getsockname()[1], free_port()
        opened = open_ports(
            Settings(), {free: Persona.MODELFORGE, taken: Persona.MODEL_SERVER}, said.append
        )  # fmt: skip
    for each in opened.sockets:
        each.close()

    assert opened.personas == {free: Persona.MODELFORGE}
    assert f"port {taken}" in said[0]
    assert "clients of the Model Server will not find it there" in said[0]


@pytest.mark.parametrize("strict", [True, False])
def test_a_taken_port_ends_the_server_when_it_is_its_own_or_ports_are_strict(strict: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = {holder.getsockname()[1]: Persona.MODEL_SERVER}
        ports = {free_port(): Persona.MODELFORGE} | taken if strict else taken
        with pytest.raises(Unavailable, match="cannot listen"):
            open_ports(Settings(strict_ports=strict), ports, lambda _line: None)


@pytest.mark.parametrize(
    ("port", "keys", "version"),
    [(5000, MERGING, "1.0.0"), (8000, FORGE, "v2"), (9999, MERGING | FORGE, "v2"), (1234, MERGING | FORGE, "v2")],
)
def test_the_port_decides_what_two_documents_say_differently(
    tmp_path: Path, port: int, keys: set[str], version: str
) -> None:
    with open_door(tmp_path) as door:
        body = TestClient(door.asgi, base_url=f"http://127.0.0.1:{port}").get("/api/health").json()

    assert set(body) == keys
    assert (body["status"], body["version"]) == ("healthy", version)


def test_an_address_of_a_document_answers_errors_in_its_words_and_others_in_ours(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        bodies = {path: door.client.get(path).json() for path in ("/slm/x", "/api/v1/m/x", "/api/x", "/jobs/x/y", "/x")}

    assert set(bodies["/slm/x"]) == {"success", "error"}
    assert set(bodies["/api/v1/m/x"]) == {"status", "message"}
    assert set(bodies["/api/x"]) == set(bodies["/jobs/x/y"]) == {"error", "detail", "status_code", "message"}
    assert bodies["/x"]["title"] == "Not Found"

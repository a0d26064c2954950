from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocket  # noqa: TC002  # as the routes do

from doors import open_door
from modelworks.core.config import Settings
from modelworks.core.errors import Invalid
from modelworks.server.origin import HostGuard, OriginGuard, SecurityHeaders, host_of

EVERY_METHOD = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"]
CHANGING = ["POST", "PUT", "PATCH", "DELETE"]


async def _talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


def client(**settings: object) -> TestClient:
    chosen = Settings.model_validate(settings)
    guards = [Middleware(SecurityHeaders), Middleware(HostGuard, chosen), Middleware(OriginGuard, chosen)]
    routes = [
        Route("/", lambda _request: PlainTextResponse("in"), methods=EVERY_METHOD),
        WebSocketRoute("/socket", _talk),
    ]
    return TestClient(Starlette(routes=routes, middleware=guards), base_url="http://127.0.0.1:8000")


@pytest.mark.parametrize("method", EVERY_METHOD)
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.", "127.0.0.2", "", "[::2]:8000"]
)
def test_a_foreign_host_is_turned_away_whatever_the_method(method: str, host: str) -> None:
    assert client().request(method, "/", headers={"Host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "box.lan:8000", "10.0.0.7"]
)
def test_the_own_names_are_answered(host: str) -> None:
    chosen = client(host="10.0.0.7", allowed_hosts=("Box.lan",))

    assert chosen.get("/", headers={"Host": host}).text == "in"


def test_a_server_on_every_address_answers_to_the_address_that_was_reached_but_not_to_a_name() -> None:
    chosen = client(host="0.0.0.0")

    # The test client's "server address" is what its URL says.
    assert chosen.get("http://192.168.1.9:8000/").status_code == 200
    assert chosen.get("http://192.168.1.9:8000/", headers={"Host": "192.168.1.10:8000"}).status_code == 421
    assert chosen.get("http://rebound.example:8000/").status_code == 421


@pytest.mark.parametrize(
    ("foreign", "status"),
    [({"Host": "evil.example"}, 421), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403)],
)
def test_a_foreign_websocket_is_refused_before_it_is_accepted(foreign: dict[str, str], status: int) -> None:
    headers = {"Host": "127.0.0.1:8000"} | foreign
    with pytest.raises(WebSocketDenialResponse) as refused, client().websocket_connect("/socket", headers=headers):
        pass

    assert refused.value.status_code == status


def test_a_websocket_of_the_same_origin_is_accepted() -> None:
    headers = {"Origin": "http://127.0.0.1:8000", "Host": "127.0.0.1:8000"}
    with client().websocket_connect("/socket", headers=headers) as socket:
        assert socket.receive_text() == "hello"


@pytest.mark.parametrize("method", CHANGING)
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000", "file://", "x"]
)
@pytest.mark.parametrize("body", [b"", b"{}"])
def test_a_foreign_page_changes_nothing_with_or_without_a_body(method: str, origin: str, body: bytes) -> None:
    assert client().request(method, "/", headers={"Origin": origin}, content=body).status_code == 403


@pytest.mark.parametrize("method", CHANGING)
@pytest.mark.parametrize("origin", [None, "http://127.0.0.1:8000", "https://app.example"])
def test_no_origin_the_same_origin_and_an_allowed_origin_may_change_things(method: str, origin: str | None) -> None:
    headers = {"Origin": origin} if origin else {}

    assert client(allowed_origins=("https://app.example/",)).request(method, "/", headers=headers).status_code == 200


def test_a_foreign_page_may_ask_but_its_browser_is_not_told_that_it_may_read() -> None:
    reply = client().get("/", headers={"Origin": "https://evil.example"})

    assert reply.status_code == 200
    assert "access-control-allow-origin" not in reply.headers
    assert "Origin" in reply.headers["vary"]


def test_an_allowed_origin_is_echoed_without_credentials() -> None:
    reply = client(allowed_origins=("https://app.example",)).get("/", headers={"Origin": "https://app.example"})

    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-credentials" not in reply.headers
    assert "Origin" in reply.headers["vary"]


def test_a_preflight_is_answered_for_allowed_origins_only() -> None:
    chosen = client(allowed_origins=("https://app.example",))
    ask = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "content-type"}

    allowed = chosen.options("/", headers=ask | {"Origin": "https://app.example"})
    foreign = chosen.options("/", headers=ask | {"Origin": "https://evil.example"})

    assert "DELETE" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert [name for name in foreign.headers if name.startswith("access-control")] == []


def test_a_star_among_the_allowed_origins_is_refused() -> None:
    with pytest.raises(Invalid, match="name each"):
        client(allowed_origins=("*",)).get("/")


def test_every_answer_carries_the_security_headers_refusals_too() -> None:
    for headers in ({}, {"Host": "evil.example"}):
        reply = client().get("/", headers=headers)

        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["content-security-policy"].startswith("default-src 'self'")


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("A.b:80", "a.b"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("::1", "::1"),
        ("", ""),
        ("a", "a"),
        ("a:b:c", "a:b:c"),
    ],
)
def test_the_host_is_read_without_port_and_brackets(header: str, host: str) -> None:
    assert host_of(header) == host


def test_the_five_documents_addresses_are_open_to_pages_of_this_machine(tmp_path: Path) -> None:
    with open_door(tmp_path) as door:
        for origin in ("http://localhost:3000", "http://127.0.0.1:1", "http://[::1]:80"):
            answer = door.client.options(
                "/api/merge", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
            )
            assert answer.headers["Access-Control-Allow-Origin"] == origin
        for origin in ("http://localhost.evil.example", "https://evil.example", "null"):
            answer = door.client.post("/api/merge", headers={"Origin": origin}, json={})
            assert answer.status_code == 403


def test_a_page_opened_as_a_file_may_infer_and_nothing_else_once_it_is_allowed(tmp_path: Path) -> None:
    asks = {"Origin": "null", "Access-Control-Request-Method": "POST"}
    with open_door(tmp_path / "closed") as door:
        assert "Access-Control-Allow-Origin" not in door.client.options("/slm/generate", headers=asks).headers
    with open_door(tmp_path / "open", cors_origin="null") as door:
        for path in ("/slm/generate", "/slm/stream", "/slm/info"):
            assert door.client.options(path, headers=asks).headers["Access-Control-Allow-Origin"] == "null"
        for path in ("/slm/load", "/slm/unload", "/api/merge", "/v1/chat/completions"):
            refused = door.client.post(path, headers={"Origin": "null"}, json={})
            assert refused.status_code == 403
            assert "--cors-origin null" in refused.text

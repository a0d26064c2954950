from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from modelworks.core.config import Settings
from modelworks.server.auth import KeyGuard

KEY = "sk-0123456789abcdef"


def client(key: str | None = KEY) -> TestClient:
    route = Route("/", lambda _request: PlainTextResponse("in"))
    guard = Middleware(KeyGuard, Settings.model_validate({"api_key": key}))
    return TestClient(Starlette(routes=[route], middleware=[guard]))


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"authorization": f"bearer  {KEY} "}, {"X-Api-Key": KEY}]
)
def test_the_key_opens_in_either_header(headers: dict[str, str]) -> None:
    assert client().get("/", headers=headers).text == "in"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong", "X-Api-Key": KEY},
        {"X-Api-Key": "Bearer " + KEY},
        {"X-Api-Key": "schlüssel".encode().decode("latin-1")},
    ],
)
def test_anything_else_is_turned_away_and_told_how(headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    reply = client().get("/", headers=raw)

    assert reply.status_code == 401
    assert [line.split()[0] for line in reply.headers.get_list("www-authenticate")] == ["Bearer", "Basic"]
    assert "x-api-key" in reply.json()["detail"]


def test_a_browser_sends_the_key_as_a_password() -> None:
    assert client().get("/", auth=("anybody", KEY)).text == "in"


@pytest.mark.parametrize("value", ["", "x", "schlüssel", "YTpi", "OnNr", "/////w=="])
def test_a_wrong_password_does_not_open(value: str) -> None:
    raw = [(b"authorization", f"Basic {value}".encode("latin-1"))]

    assert client().get("/", headers=raw).status_code == 401


def test_a_key_in_the_query_does_not_open() -> None:
    assert client().get(f"/?api_key={KEY}").status_code == 401


def test_without_a_key_everybody_is_let_in() -> None:
    assert client(None).get("/").text == "in"

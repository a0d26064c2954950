from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request  # noqa: TC002  # starlette looks at it
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from modelworks.core.errors import Invalid
from modelworks.server.limits import BODY_BYTES, CHAT_BYTES, BodyGuard, check_characters, check_depth

JSON = {"Content-Type": "application/json"}


async def _measure(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def client() -> TestClient:
    route = Route("/{path:path}", _measure, methods=["POST", "PUT", "GET"])
    return TestClient(Starlette(routes=[route], middleware=[Middleware(BodyGuard)]))


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/modelworks/train", BODY_BYTES), ("/v1/chat/completions", CHAT_BYTES), ("/v1/completions", CHAT_BYTES)],
)
def test_a_body_up_to_the_limit_comes_through_and_one_byte_more_does_not(path: str, limit: int) -> None:
    assert client().post(path, content=bytes(limit)).text == str(limit)
    assert client().post(path, content=bytes(limit + 1)).status_code == 413


def test_a_body_that_does_not_say_its_length_is_counted() -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(17):
            yield bytes(1 << 16)

    assert client().post("/modelworks/train", content=pieces()).status_code == 413


def test_uploads_are_left_to_their_route() -> None:
    assert client().put("/modelworks/datasets/x", content=bytes(BODY_BYTES + 1)).text == str(BODY_BYTES + 1)


def test_json_without_a_bottom_is_refused() -> None:
    assert client().post("/", content=b"[" * 500_000, headers=JSON).status_code == 400
    assert client().post("/", content=b'{"a":' * 65, headers=JSON).status_code == 400


def test_json_of_64_levels_and_brackets_in_strings_come_through() -> None:
    check_depth(b"[" * 64 + b"]" * 64)
    check_depth(b'["' + b"[" * 1000 + b'\\"[[{{' * 100 + b'"]')
    check_depth(b"[[]]" * 1000)


@pytest.mark.parametrize(
    "body", [b'"' + b'\\"' * 500_000, b'"' * 1_000_000, b"\\" * 1_000_000, b"[]" * 500_000], ids=["a", "b", "c", "d"]
)
def test_hostile_bodies_are_judged_quickly(body: bytes) -> None:
    started = time.perf_counter()
    check_depth(body)

    assert time.perf_counter() - started < 1


def test_a_string_that_never_ends_hides_nothing_in_front_of_it() -> None:
    with pytest.raises(Invalid, match="nested deeper"):
        check_depth(b"[" * 65 + b'"' + b"]" * 65)


@pytest.mark.parametrize(
    "text", [rb"\ud800", rb"\udc00", rb"\uD83d x", rb"\ud800\ud800", rb"\udc00\ud800", rb"\\\ud800"]
)
def test_half_a_surrogate_pair_is_refused(text: bytes) -> None:
    refused = client().post("/", content=b'{"a": "' + text + b'"}', headers=JSON)

    assert (refused.status_code, "half a surrogate pair" in refused.text) == (400, True)


@pytest.mark.parametrize(
    "text", [rb"\ud83d\ude00", rb"\\ud800", rb"\u00e4\n", rb"\ud7ff", rb"\ue000", rb"\uD83D\uDE00" * 300_000]
)
def test_whole_characters_come_through_and_quickly(text: bytes) -> None:
    started = time.perf_counter()
    check_characters(b'{"a": "' + text + b'"}')

    assert time.perf_counter() - started < 1

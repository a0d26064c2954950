from __future__ import annotations

import json
import logging

import pytest
from fastapi import FastAPI, Query
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from modelworks.core.errors import (
    Conflict,
    Denied,
    Invalid,
    ModelworksError,
    NotFound,
    OutOfSpace,
    Problem,
    TooLarge,
    Unavailable,
    UnsafeFormat,
    Unsupported,
)
from modelworks.core.generation import EngineFailed, QueueFull
from modelworks.server.errors import LastResort, install, status_of


def client() -> TestClient:
    app = FastAPI(middleware=[Middleware(LastResort)])

    @app.get("/raise/{prefix}")
    @app.get("/v1/raise/{prefix}")
    def fail(prefix: str) -> None:
        if prefix == "bug":
            raise RuntimeError("the secret inside")
        raise Invalid("two things are wrong", problems=(Problem("rank", "is 0", "give 1"), Problem("name", "taken")))

    @app.get("/busy")
    def busy() -> None:
        raise Unavailable("later", retry_after_seconds=7)

    @app.get("/number")
    def number(count: int = Query()) -> int:
        return count

    install(app)
    return TestClient(app)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (Invalid, 400), (UnsafeFormat, 400), (Denied, 403), (NotFound, 404), (Conflict, 409), (TooLarge, 413),
        (Unsupported, 501), (Unavailable, 503), (EngineFailed, 503), (OutOfSpace, 507), (QueueFull, 429),
        (ModelworksError, 500),
    ],
)  # fmt: skip
def test_every_kind_of_error_has_its_status(kind: type[ModelworksError], status: int) -> None:
    assert status_of(kind("x")) == status


def test_an_error_of_ours_is_a_problem_document() -> None:
    reply = client().get("/raise/x")

    assert reply.status_code == 400
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "code": "invalid",
        "category": "invalid",
        "detail": "two things are wrong",
        "problems": [
            {"where": "rank", "what": "is 0", "remedy": "give 1"},
            {"where": "name", "what": "taken", "remedy": ""},
        ],
    }


def test_under_v1_the_same_error_speaks_as_openai_does() -> None:
    reply = client().get("/v1/raise/x")

    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("two things are wrong")


def test_being_busy_says_when_to_come_again() -> None:
    reply = client().get("/busy")

    assert (reply.status_code, reply.headers["retry-after"]) == (503, "7")


def test_what_the_framework_refuses_has_the_same_form() -> None:
    unreadable = client().get("/number?count=many").json()
    lost = client().get("/nowhere").json()
    wrong = client().post("/busy")

    assert unreadable["status"] == 400
    assert [problem["where"] for problem in unreadable["problems"]] == ["count"]
    assert (lost["status"], lost["code"]) == (404, "not_found")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("path", ["/raise/bug", "/v1/raise/bug"])
def test_a_bug_is_answered_with_nothing_but_an_id_that_is_in_the_log(
    path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        reply = client().get(path)

    [record] = caplog.records
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert vars(record)["error_id"] in reply.text
    assert record.exc_info is not None
    assert json.loads(reply.text)

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from doors import KEY, open_door
from modelworks.core import caller
from modelworks.server.logs import JsonLines

if TYPE_CHECKING:
    import pytest


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.name == "modelworks.server.access"]
    return [json.loads(JsonLines().format(record)) for record in records]


def test_a_request_is_one_line_with_the_name_of_its_key_and_without_its_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="modelworks")
    with open_door(tmp_path, api_key=KEY, api_keys={"anna": "sk-of-anna"}) as door:
        body = {"model": "none", "messages": [{"role": "user", "content": "my secret"}]}
        headers = {"authorization": "Bearer sk-of-anna", "content-type": "application/json"}
        assert door.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 503
        assert door.client.get("/v1/models", headers={"x-api-key": KEY}).status_code == 200
        assert door.client.get("/v1/models?q=secret").status_code == 401
        assert door.client.get("/modelworks/health", headers={"x-api-key": KEY}).status_code == 200

    told = lines(caplog)
    assert [(line["method"], line["path"], line["status"], line.get("key")) for line in told] == [
        ("POST", "/v1/chat/completions", 503, "anna"),
        ("GET", "/v1/models", 200, "default"),
        ("GET", "/v1/models", 401, None),
    ]
    assert all(line["ms"] >= 0 for line in told)
    assert "secret" not in caplog.text
    assert "sk-of-anna" not in caplog.text


def test_what_the_gateway_tells_of_an_answer_is_in_the_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modelworks")
    with open_door(tmp_path) as door:

        @door.asgi.get("/answered")
        async def answered() -> None:
            who = caller.current()
            who.model, who.prompt_tokens, who.output_tokens, who.first_token_ms = "me/first", 7, 9, 12.5

        door.client.get("/answered")

    [line] = lines(caplog)
    assert {"model": "me/first", "prompt_tokens": 7, "output_tokens": 9, "ttft_ms": 12.5}.items() <= line.items()


def test_the_log_can_be_without_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modelworks")
    with open_door(tmp_path, access_log=False) as door:
        door.client.get("/v1/models")
    assert lines(caplog) == []

"""The SLM API over a real engine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from doors import listening, open_door
from modelworks.app.services import Services
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from modelworks.core.nouns import JsonObject
from tiny import tiny_adapter, tiny_llama


@dataclass(frozen=True)
class Served:
    client: httpx2.Client
    services: Services

    def post(self, path: str, body: JsonObject | None = None) -> Any:
        return self.client.post(path, json=body) if body is not None else self.client.post(path)

    def stream(self, body: JsonObject) -> list[JsonObject]:
        """The events, whose content type is that of server-sent events."""
        with self.client.stream("POST", "/slm/stream", json=body) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            return [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]

    def outstanding(self) -> int:
        return sum(status.outstanding for status in self.services.gateway.deployments())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slm")
    base = tiny_llama(folder / "base", max_position_embeddings=20_000, dtype="float32")
    adapter = tiny_adapter(folder / "adapter", base)
    app = open_app(Settings(home=folder / "home", hub_offline=True, allow_paths=(folder,), slm_base="tiny"))
    app.services.catalog.add_model(base, "tiny")
    app.services.catalog.add_model(adapter, "me/skill", base="tiny")
    with listening(app) as url, httpx2.Client(base_url=url, timeout=60) as client:
        yield Served(client, app.services)
    app.close()


@pytest.fixture(autouse=True)
def unloaded(request: pytest.FixtureRequest) -> None:
    if "served" in request.fixturenames:
        request.getfixturevalue("served").post("/slm/unload")


def test_info_says_what_is_meant_before_it_is_loaded(served: Served) -> None:
    info = served.client.get("/slm/info").json()

    assert info.pop("cuda_available") == (info["device"] == "cuda")
    assert info.pop("device") in {"cpu", "cuda"}
    assert info == {"model_loaded": False, "base_model": "tiny", "lora_path": "me/skill", "mps_available": False}


def test_a_model_is_loaded_and_unloaded_without_a_body(served: Served) -> None:
    loaded = served.post("/slm/load").json()
    while_loaded = served.client.get("/slm/info").json()["model_loaded"]
    unloaded = served.post("/slm/unload").json()
    again = served.post("/slm/unload")

    device = loaded["device"]
    assert loaded == {
        "success": True,
        "message": f"Model loaded successfully on {device}",
        "device": device,
        "model_path": "me/skill",
    }
    assert while_loaded
    assert unloaded == {"success": True, "message": "Model unloaded successfully"}
    assert (again.status_code, again.json()) == (200, {"success": True, "message": "No model was loaded"})
    assert not served.client.get("/slm/info").json()["model_loaded"]


def test_a_whole_answer_loads_the_model_by_itself(served: Served) -> None:
    body = served.post("/slm/generate", {"prompt": "Hi", "max_new_tokens": 12, "temperature": 0.0}).json()

    assert body["success"] is True
    assert body["prompt"] == "Hi"
    assert body["full_response"] == f"### Instruction:\nHi\n\n### Response:\n{body['response']}"
    assert body["settings"] == {"max_new_tokens": 12, "temperature": 0.0, "do_sample": True}
    assert served.client.get("/slm/info").json()["model_loaded"]


def test_a_stream_tells_of_the_loading_only_when_it_loads(served: Served) -> None:
    asked: JsonObject = {"prompt": "Hi", "max_new_tokens": 40, "do_sample": False}
    whole = served.post("/slm/generate", asked).json()
    served.post("/slm/unload")

    cold, warm = served.stream(asked), served.stream(asked)

    device = whole["device"]
    statuses = [event["status"] for event in cold if "status" in event]
    assert statuses[:2] == ["Loading SLM model...", f"Model loaded on {device}"]
    assert cold[2:] == warm
    assert warm[0] == {"status": "Generating response..."}
    assert warm[-1] == {"status": "Response complete!", "device_used": device}
    assert "".join(str(event["text"]) for event in warm[1:-1]) == whole["response"] == warm[-2]["full_text"]
    assert [event["is_complete"] for event in warm[1:-1]].count(True) == 1


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": "x", "temperature": -1}, {"prompt": "\ud800"}])
@pytest.mark.parametrize("path", ["/slm/generate", "/slm/stream"])
def test_a_request_that_cannot_be_meant_is_answered_with_400(served: Served, path: str, body: JsonObject) -> None:
    answer = served.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})

    assert answer.status_code == 400
    assert answer.json()["success"] is False
    wanted = (next(iter(body), "prompt"), "temperature", "surrogate")
    assert any(word in answer.json()["error"] for word in wanted)


def test_an_answer_that_does_not_fit_is_refused_before_the_stream_begins(served: Served) -> None:
    served.post("/slm/load")

    answer = served.post("/slm/stream", {"prompt": "Hi", "max_new_tokens": 50_000})

    assert answer.status_code == 400
    assert "20000" in answer.json()["error"]


def test_an_error_after_the_first_event_is_the_last_event(served: Served) -> None:
    events = served.stream({"prompt": "Hi", "max_new_tokens": 50_000})

    assert events[0] == {"status": "Loading SLM model..."}
    assert events[-1]["success"] is False
    assert "20000" in str(events[-1]["error"])


def test_a_client_that_leaves_a_stream_frees_its_place(served: Served) -> None:
    with served.client.stream(
        "POST", "/slm/stream", json={"prompt": "Hi", "max_new_tokens": 15_000, "do_sample": False}
    ) as answer:
        lines = answer.iter_lines()
        assert any('"text"' in line for line in lines)
        assert served.outstanding() == 1

    # answered only when what runs has ended or was cut: at once, for nothing runs any more
    assert served.post("/slm/unload").elapsed.total_seconds() < 20
    assert served.outstanding() == 0


def test_a_client_that_does_not_wait_for_a_whole_answer_frees_its_place(served: Served) -> None:
    served.post("/slm/load")
    with pytest.raises(httpx2.TimeoutException):
        served.client.post(
            "/slm/generate", json={"prompt": "Hi", "max_new_tokens": 15_000, "do_sample": False}, timeout=1
        )

    assert served.post("/slm/unload").elapsed.total_seconds() < 20
    assert served.outstanding() == 0


def test_the_chat_page_loads_what_it_needs_from_here(served: Served) -> None:
    page = served.client.get("/slm/chat")
    loaded = re.findall(r'(?:href|src)="([^"]+)"', page.text)
    kinds = [served.client.get(address).headers["content-type"] for address in loaded]

    assert page.headers["content-type"].startswith("text/html")
    assert [kind.partition(";")[0] for kind in kinds] == ["image/svg+xml", "text/css", "text/javascript"]


def test_where_no_model_is_everything_but_info_and_unload_says_what_to_do(tmp_path: Path) -> None:
    with open_door(tmp_path / "home") as door:
        info = door.client.get("/slm/info").json()
        answers = [door.client.post("/slm/load")]
        answers += [door.client.post(f"/slm/{path}", json={"prompt": "Hi"}) for path in ("generate", "stream")]
        unloaded = door.client.post("/slm/unload").json()

    assert (info["base_model"], info["lora_path"], info["model_loaded"]) == ("gpt2", None, False)
    assert [answer.status_code for answer in answers] == [404] * 3
    assert all(answer.json()["success"] is False for answer in answers)
    assert all(answer.json()["error"].startswith("LoRA model not found") for answer in answers)
    assert unloaded == {"success": True, "message": "No model was loaded"}

"""The Model Server's paths against a listening server with a real tiny model, its adapter, and entries."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from doors import listening
from entries import entries_folder, inferences
from modelworks.app.wiring import open_app
from modelworks.core.config import Settings
from tiny import tiny_adapter, tiny_llama

CALL = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return entries_folder(tmp_path_factory.mktemp("entries") / "own")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory, own: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    base = tiny_llama(folder / "base", max_position_embeddings=20_000, dtype="float32")
    tuned = tiny_adapter(folder / "tuned", base, rank=4, lora_alpha=64)
    settings = {"home": folder / "home", "hub_offline": True, "entries": own, "allow_paths": (folder,)}
    app = open_app(Settings.model_validate(settings))
    app.services.catalog.add_model(base, "org/tiny")
    app.services.catalog.add_model(tuned, "tuned", base="org/tiny")
    with listening(app) as url:
        yield url
    app.close()


def post(url: str, path: str, body: object = None) -> Any:
    return requests.post(url + path, json={} if body is None else body, timeout=60).json()


@pytest.fixture(autouse=True)
def empty(url: str) -> Iterator[None]:
    """Every test leaves the server without an entity."""
    yield
    for name in ("org/tiny", "scripted", "sick", "narrow"):
        requests.post(f"{url}/modelworks/deployments/unload", json={"model": name}, timeout=60).raise_for_status()


def test_entities_come_and_go_as_the_document_says(url: str) -> None:
    assert post(url, "/api/v1/org/tiny/activate") == {"status": 0}
    assert post(url, "/api/v1/org/tiny/activate") == {"status": 0}
    assert post(url, "/api/v1/org/tiny/add", {"device": "cpu"}) == {"status": 0}
    info = post(url, "/api/v1/")["info"]["org/tiny"]
    assert (info["kind"], info["state"], info["replicas"], info["device"]) == ("model", "ready", 2, ["cpu", "cpu"])
    assert len({entity["pid"] for entity in info["entities"]}) == 2

    assert post(url, "/api/v1/org/tiny/remove") == {"status": 0}
    assert post(url, "/api/v1/org/tiny/remove") == {"status": 0}
    answer = requests.post(f"{url}/api/v1/org/tiny/remove", json={}, timeout=60)
    assert answer.status_code == 404
    assert answer.json() == {"status": -1, "message": "org/tiny is not loaded; there is no replica to remove"}


def test_every_name_is_told_loaded_or_not(url: str) -> None:
    post(url, "/api/v1/tuned/add")

    answer = post(url, "/api/v1")

    assert answer["status"] == 0
    told = {name: (info["kind"], info["state"], info["replicas"]) for name, info in answer["info"].items()}
    assert told == {
        "scripted": ("entry", "unloaded", 0),
        "sick": ("entry", "unloaded", 0),
        "slow": ("entry", "unloaded", 0),
        "lost": ("entry", "unloaded", 0),
        "narrow": ("entry", "unloaded", 0),
        "patient": ("entry", "unloaded", 0),
        "org/tiny": ("model", "ready", 1),
        "tuned": ("adapter", "ready", 1),
    }


def test_a_call_is_answered_by_models_adapters_and_entries_loaded_or_not(url: str) -> None:
    answers = {name: post(url, f"/api/v1/{name}/call", CALL) for name in ("org/tiny", "tuned", "scripted")}

    assert {answer["status"] for answer in answers.values()} == {0}
    assert len({answer["result"] for answer in answers.values()}) == 3
    assert answers["scripted"]["result"] == "http://hello: user=hello"
    assert post(url, "/api/v1/")["info"]["scripted"]["state"] == "ready"
    assert "models" not in sys.modules, "the server imported an entry's code"


def test_an_entry_gets_the_roles_its_caller_sent_and_answers_over_the_openai_api_too(url: str) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "agent", "content": "b"}, {"role": "user", "content": "c"}]

    assert post(url, "/api/v1/scripted/call", {"messages": messages})["result"].endswith("user=a agent=b user=c")
    messages[1]["role"] = "assistant"
    answer = post(url, "/v1/chat/completions", {"model": "scripted", "messages": messages})
    assert answer["choices"][0]["message"]["content"] == "http://hello: user=a assistant=b user=c"
    assert answer["usage"] == {
        "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 0}
    }  # fmt: skip
    listed = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert {"scripted", "narrow", "org/tiny", "tuned"} <= {card["id"] for card in listed}


def test_eight_concurrent_calls_are_few_inferences(url: str, own: Path) -> None:
    post(url, "/api/v1/scripted/add")
    before = len(inferences(own))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(url, "/api/v1/scripted/call", CALL), range(8)))

    assert [answer["status"] for answer in answers] == [0] * 8
    after = inferences(own)[before:]
    assert sum(size for size, _ in after) == 8
    assert len(after) < 8


@pytest.mark.parametrize(
    ("path", "body", "code", "said"),
    [
        ("org/tiny/add", {"device": "cuda:99"}, 501, "device 'cuda:99': this machine has "),
        ("org/tiny/activate", {"device": "tpu"}, 400, "'tpu' is not a device; use cpu, cuda, cuda:N or auto"),
        ("nobody/call", CALL, 404, "no model is called 'nobody'"),
        ("nobody/add", {}, 404, "no model is called 'nobody'"),
        ("lost/activate", {}, 400, "which the package `models` lacks; it has Scripted"),
        ("sick/call", CALL, 400, "Scripted.activate('cpu') raised RuntimeError: no weights there"),
        ("org/tiny/call", {"messages": []}, 400, "messages"),
        ("org/tiny/call", {}, 400, "messages"),
        ("scripted/call", {"messages": [{"role": "user", "content": "raise it"}]}, 503, "raised ValueError: boom"),
        ("org/tiny/deactivate", {}, 404, ""),
    ],
)
def test_a_failure_is_told_in_the_documents_form(url: str, path: str, body: object, code: int, said: str) -> None:
    answer = requests.post(f"{url}/api/v1/{path}", json=body, timeout=60)

    assert (answer.status_code, answer.json()["status"]) == (code, -1)
    assert said in answer.json()["message"]


def test_only_post_is_answered(url: str) -> None:
    answer = requests.get(f"{url}/api/v1/", timeout=60)

    assert (answer.status_code, answer.json()["status"]) == (405, -1)


def test_a_caller_that_goes_away_frees_its_place(url: str) -> None:
    post(url, "/api/v1/org/tiny/add")
    with pytest.raises(requests.Timeout):
        requests.post(f"{url}/api/v1/org/tiny/call", json=CALL | {"max_tokens": 15_000}, timeout=(60, 0.5))

    deadline = time.monotonic() + 10
    while any(entity["outstanding"] for entity in post(url, "/api/v1/")["info"]["org/tiny"]["entities"]):
        assert time.monotonic() < deadline


def test_a_killed_entity_leaves_the_other_answering(url: str) -> None:
    for _ in range(2):
        post(url, "/api/v1/org/tiny/add")
    before = post(url, "/api/v1/org/tiny/call", CALL)
    victim = post(url, "/api/v1/")["info"]["org/tiny"]["entities"][0]["pid"]

    os.kill(victim, signal.SIGKILL)

    while (state := post(url, "/api/v1/")["info"]["org/tiny"])["entities"][0]["pid"] == victim:
        assert state["state"] == "ready"
    assert state["entities"][1]["state"] == "ready"
    assert post(url, "/api/v1/org/tiny/call", CALL) == before


def test_our_own_api_loads_replicas_and_removes_one(url: str) -> None:
    def load(**wish: object) -> requests.Response:
        return requests.post(f"{url}/modelworks/deployments/load", json={"model": "org/tiny", **wish}, timeout=60)

    assert [each["device"] for each in load(replicas=2, device="cpu").json()["replicas"]] == ["cpu", "cpu"]
    assert len(load().json()["replicas"]) == 2
    assert load(replicas=65).status_code == 400
    requests.post(f"{url}/modelworks/deployments/remove", json={"model": "org/tiny"}, timeout=60).raise_for_status()
    assert len(load().json()["replicas"]) == 1

"""The OpenAI door, as the official client sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
import orjson
import pytest
import uvicorn
from fastapi import FastAPI

from artifacts import as_adapter, as_model
from engines import gateway_over
from modelworks.api import openai as door
from modelworks.core.nouns import Adapter, Model
from modelworks.serve.engine import EngineStats
from modelworks.serve.gateway import Gateway
from modelworks.server import errors
from modelworks.web.dependencies import services
from tiny import tiny_adapter, tiny_llama

LONG = 15_000  # tokens: minutes of work, so that only a cancel ends it


@dataclass
class Served:
    """A server on a port of its own; `gateway` lives in its event loop."""

    artifacts: list[Model | Adapter]
    gateway: Gateway | None = None
    loop: asyncio.AbstractEventLoop | None = None
    url: str = ""

    def servable(self) -> list[Model | Adapter]:
        return self.artifacts

    def servable_entries(self) -> list[Any]:
        return []

    @property
    def running_gateway(self) -> Gateway | None:
        return self.gateway

    def stats(self) -> EngineStats:
        assert self.gateway is not None
        assert self.loop is not None
        (status,) = asyncio.run_coroutine_threadsafe(self.gateway.stats(), self.loop).result(30)
        return status.stats[0]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("openai")
    base = as_model(tiny_llama(folder / "base", max_position_embeddings=20_000, dtype="float32"), "base")
    adapters = [
        as_adapter(tiny_adapter(folder / name, base.path, seed=seed, rank=4, lora_alpha=64), name, base)
        for seed, name in enumerate(("left", "org/right"))
    ]
    with serve(Served([base, *adapters]), folder / "logs") as running:
        yield running


class serve:  # noqa: N801 - used as a `with` word
    """Run uvicorn in a thread for as long as the block lasts."""

    def __init__(self, served: Served, logs: Path) -> None:
        self._served = served
        app = FastAPI(lifespan=self._lifespan)
        app.include_router(door.router)
        app.dependency_overrides[services] = lambda: served
        errors.install(app)
        self._logs = logs
        self._ready = threading.Event()
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
        self._thread = threading.Thread(target=self._server.run)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        async with gateway_over(self._served.artifacts, self._logs) as gateway:
            self._served.gateway, self._served.loop = gateway, asyncio.get_running_loop()
            yield

    def __enter__(self) -> Served:
        startup = self._server.startup

        async def told(*args: Any, **kwargs: Any) -> None:
            await startup(*args, **kwargs)
            self._ready.set()

        self._server.startup = told  # type: ignore[method-assign] # the only word that it listens
        self._thread.start()
        assert self._ready.wait(30)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._served.url = f"http://127.0.0.1:{port}/v1"
        return self._served

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
        yield client


def hello(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": "base", "messages": messages, "temperature": 0, "max_tokens": 12, **fields}


def test_models_are_listed_with_adapters_and_their_parents(client: openai.OpenAI) -> None:
    listed = client.models.list().data

    assert [(model.id, model.model_extra) for model in listed] == [
        ("base", {"root": "base", "parent": None}),
        ("left", {"root": "base", "parent": "base"}),
        ("org/right", {"root": "base", "parent": "base"}),
    ]
    assert client.models.retrieve("org/right").id == "org/right"
    with pytest.raises(openai.NotFoundError, match="did you mean left"):
        client.models.retrieve("leeft")


def test_a_plain_answer_carries_usage_and_a_reason(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**hello())

    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    # <|im_start|> u s e r \n H e l l o <|im_end|> \n <|im_start|> a s s i s t a n t \n: 1+5+5+1+1+1+10
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (24, 12, 36)


def test_a_stream_says_the_same_as_a_plain_answer(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**hello())
    chunks = list(client.chat.completions.create(**hello(), stream=True, stream_options={"include_usage": True}))

    *body, last = chunks
    assert (body[0].choices[0].delta.role, body[0].choices[0].delta.content) == ("assistant", "")
    text = "".join(chunk.choices[0].delta.content or "" for chunk in body)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in body] == [None] * (len(body) - 1) + ["length"]
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in body)


def test_the_stream_on_the_wire_is_as_openai_writes_it(served: Served) -> None:
    with httpx2.stream("POST", f"{served.url}/chat/completions", json=hello(stream=True, max_tokens=2)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]

    assert lines[-1] == "data: [DONE]"
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}]


def test_a_stop_string_ends_the_answer_and_is_not_in_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**hello(max_tokens=30)).choices[0].message.content
    assert whole
    stop = whole[6:9]

    answer = client.chat.completions.create(**hello(max_tokens=30, stop=[stop, "never said"]))

    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == whole[: whole.index(stop)]


def test_a_seed_is_kept_and_choices_differ(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(**hello(temperature=1, top_p=0.95, seed=4, n=3), stream=False) for _ in range(2)
    ]

    texts = [[choice.message.content for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 3
    assert answers[0].usage is not None
    assert (answers[0].usage.prompt_tokens, answers[0].usage.completion_tokens <= 36) == (24, True)


def test_several_choices_can_be_streamed_at_once(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**hello(temperature=1, seed=4, n=2), stream=True))

    ends = {chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason}
    assert ends == {0, 1}


def test_completions_go_on_from_a_text_or_several(client: openai.OpenAI) -> None:
    one = client.completions.create(model="base", prompt="Once", temperature=0, max_tokens=5)
    two = client.completions.create(model="base", prompt=["Once", "Twice"], temperature=0, max_tokens=5)
    streamed = list(client.completions.create(model="base", prompt="Once", temperature=0, max_tokens=5, stream=True))

    assert one.object == "text_completion"
    assert two.choices[0].text == one.choices[0].text
    assert [choice.index for choice in two.choices] == [0, 1]
    assert one.usage is not None
    assert one.usage.prompt_tokens == 4
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_base_and_adapters_answer_side_by_side(served: Served) -> None:
    async def play() -> None:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as client:
            names = ["base", "left", "org/right"]

            async def text(name: str) -> str | None:
                answer = await client.chat.completions.create(**hello(model=name))
                content: str | None = answer.choices[0].message.content
                return content

            alone = [await text(name) for name in names]
            together = await asyncio.gather(*(text(name) for name in names * 4))
            assert together == alone * 4
            assert len(set(alone)) == 3

    asyncio.run(play())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stop": list("abcde")}, "stop"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_would_change_the_answer_and_is_not_done_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**hello(**fields))

    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_unknown_fields_and_those_that_ask_for_nothing_are_accepted(client: openai.OpenAI) -> None:
    neutral = {"logprobs": False, "response_format": {"type": "text"}, "user": "me", "store": False, "tools": []}

    client.chat.completions.create(**hello(**neutral), extra_body={"brand_new": 1})


def test_errors_have_openais_form(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(**hello(model="nobody"))
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(**hello(max_tokens=30_000), stream=True)

    assert unknown.value.code == "model_not_found"
    assert too_long.value.code == "context_length_exceeded"
    assert "20000" in too_long.value.message
    assert "30000" in too_long.value.message


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot_within_a_second(served: Served, stream: bool) -> None:
    async def play() -> float:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none") as client:
            asked = client.chat.completions.create(**hello(max_tokens=LONG, stream=stream))
            task = asyncio.create_task(asked)
            if stream:
                events = await task
                await anext(aiter(events))
            while (await asyncio.to_thread(served.stats)).running == 0:
                pass
            if stream:
                await events.close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gone = asyncio.get_running_loop().time()
        while (await asyncio.to_thread(served.stats)).running:
            pass
        return asyncio.get_running_loop().time() - gone

    assert asyncio.run(play()) < 1

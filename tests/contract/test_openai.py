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

FORECAST = {
    "type": "function",
    "function": {
        "name": "forecast",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
# With a place for functions, as the models of Hermes' kind have it.
TEMPLATE = (
    "{% for tool in tools %}<tool>{{ tool | tojson }}</tool><tool_call>{% endfor %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
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

    @property
    def entries(self) -> dict[str, Any]:
        return {}

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
    (base.path / "chat_template.jinja").write_text(TEMPLATE)
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
    client.chat.completions.create(**hello())  # so that both of the following find as much in the cache
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
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [FORECAST], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
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


def test_an_answer_keeps_to_a_schema_streamed_or_not(client: openai.OpenAI) -> None:
    schema = {"name": "size", "schema": {"enum": [{"size": "small"}, {"size": "large"}]}}
    asked = hello(response_format={"type": "json_schema", "json_schema": schema}, max_tokens=300)

    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))

    assert whole.finish_reason == "stop"
    assert orjson.loads(whole.message.content or "")["size"] in ("small", "large")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="cannot be turned into a grammar"):
        client.chat.completions.create(**hello(response_format=bad))


def test_log_probabilities_come_with_their_tokens_streamed_or_not(client: openai.OpenAI) -> None:
    asked = hello(logprobs=True, top_logprobs=2)

    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))

    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert b"".join(bytes(each.bytes or []) for each in whole.logprobs.content).decode("utf-8", "replace") == (
        whole.message.content
    )
    for each in whole.logprobs.content:
        assert len(each.top_logprobs) == 2
        assert each.logprob == each.top_logprobs[0].logprob  # it is greedy
    told = [each for chunk in chunks if (found := chunk.choices[0].logprobs) for each in found.content or []]
    assert [each.bytes for each in told] == [each.bytes for each in whole.logprobs.content]
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in whole.logprobs.content], abs=1e-4)


def test_completions_echo_their_prompt_with_log_probabilities(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "base", "prompt": "Once", "temperature": 0, "max_tokens": 3, "logprobs": 2}

    plain = client.completions.create(**asked).choices[0]
    echoed = client.completions.create(**asked, echo=True).choices[0]
    scored = client.completions.create(**asked | {"max_tokens": 0}, echo=True).choices[0]

    assert echoed.text == "Once" + plain.text
    assert scored.text == "Once"
    assert echoed.logprobs is not None
    assert plain.logprobs is not None
    assert echoed.logprobs.tokens is not None
    assert echoed.logprobs.tokens[:4] == list("Once")
    assert echoed.logprobs.token_logprobs is not None
    assert echoed.logprobs.token_logprobs[0] is None
    assert echoed.logprobs.token_logprobs[4:] == pytest.approx(plain.logprobs.token_logprobs, abs=1e-4)
    assert echoed.logprobs.text_offset is not None
    assert echoed.logprobs.text_offset[:5] == [0, 1, 2, 3, 4]


def test_completions_go_on_from_tokens(client: openai.OpenAI) -> None:
    by_text = client.completions.create(model="base", prompt="Once", temperature=0, max_tokens=5)
    once = [ord(letter) - ord("!") + 3 for letter in "Once"]

    by_tokens = client.completions.create(model="base", prompt=[once, once], temperature=0, max_tokens=5)

    assert [choice.text for choice in by_tokens.choices] == [by_text.choices[0].text] * 2


def test_a_function_is_called_and_its_result_read(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "forecast"}}
    asked = hello(tools=[FORECAST], tool_choice=choice, max_tokens=300)

    whole = client.chat.completions.create(**asked).choices[0]
    chunks = list(client.chat.completions.create(**asked, stream=True))

    assert whole.finish_reason == "tool_calls"
    assert whole.message.content is None
    assert whole.message.tool_calls is not None
    (call,) = whole.message.tool_calls
    assert (call.type, call.function.name) == ("function", "forecast")
    assert orjson.loads(call.function.arguments)["days"] in range(1, 10)
    (delta,) = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or []]
    assert delta.function is not None
    assert (delta.index, delta.function.name, delta.function.arguments) == (0, "forecast", call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    turns = [
        *asked["messages"], whole.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sun"},
    ]  # fmt: skip
    after = client.chat.completions.create(**hello(messages=turns, tools=[FORECAST], tool_choice="none"))
    assert after.choices[0].message.content
    assert after.choices[0].finish_reason == "length"
    free = client.chat.completions.create(**hello(tools=[FORECAST]))
    assert free.choices[0].message.content


def test_penalties_and_biases_change_the_answer(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**hello()).choices[0].message.content
    forced = client.chat.completions.create(**hello(logit_bias={"74": 100})).choices[0].message.content
    varied = client.chat.completions.create(**hello(frequency_penalty=2, presence_penalty=2, max_tokens=60))
    single = client.chat.completions.create(**hello(max_tokens=60), extra_body={"repetition_penalty": 10, "min_p": 0.1})

    assert forced == "h" * 12
    assert plain != forced
    assert varied.choices[0].message.content != single.choices[0].message.content


def test_usage_tells_how_much_of_the_prompt_had_been_read_before(client: openai.OpenAI) -> None:
    asked = hello(messages=[{"role": "user", "content": "The same long question. " * 20}])

    first, second = (client.chat.completions.create(**asked) for _ in range(2))

    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert second.choices[0].message.content == first.choices[0].message.content


def test_embeddings_are_vectors_of_length_one(client: openai.OpenAI, served: Served) -> None:
    both = client.embeddings.create(model="base", input=["Once upon a time", "Twice"])
    plain = client.embeddings.create(model="base", input="Twice", encoding_format="float")
    adapted = client.embeddings.create(model="left", input="Twice")

    assert [each.index for each in both.data] == [0, 1]
    assert both.data[1].embedding == pytest.approx(plain.data[0].embedding, abs=1e-5)
    assert sum(value * value for value in plain.data[0].embedding) == pytest.approx(1)
    assert adapted.data[0].embedding != pytest.approx(plain.data[0].embedding, abs=1e-3)
    assert (both.usage.prompt_tokens, both.usage.total_tokens) == (21, 21)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model="base", input="x", dimensions=5)
    assert refused.value.param == "dimensions"


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

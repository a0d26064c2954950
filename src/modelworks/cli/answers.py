"""Where answers come from: a server that runs already, or an engine for as long as the command lasts."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import httpx2

from modelworks.api.openai_asked import ChatAsked, CompletionAsked, chat_requests, completion_requests
from modelworks.app.live import LiveMerge, merge_live
from modelworks.app.presence import running_server
from modelworks.app.wiring import App
from modelworks.cli.options import Session
from modelworks.client import CONNECT_SECONDS, SILENCE_SECONDS, Client, error_in, error_of
from modelworks.core.errors import Invalid, ModelworksError, Unavailable, Unsupported
from modelworks.core.generation import EngineEvent, Finished, GenerateRequest, Token, ToolCall
from modelworks.core.nouns import Job
from modelworks.core.spec import parse_spec

# An answer that waits behind many others says nothing until it is whole.
WHOLE_SECONDS = 3600.0
# A dying engine is started again meanwhile.
ATTEMPTS = 4
Tell: TypeAlias = Callable[[str], None]
# A request in OpenAI's words: with `messages` one for chat, with `prompt` a plain completion.
Body: TypeAlias = Mapping[str, Any]
Generate: TypeAlias = Callable[[GenerateRequest], AsyncGenerator[EngineEvent, None]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text, and what the engine says of it. `tool_calls` are in OpenAI's words."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()


class Source(Protocol):
    async def names(self) -> set[str]:
        """Every model that can be asked."""

    async def answer(self, body: Body, tell: Tell | None) -> Answer:
        """Answer, telling the text as it comes. A cancelled call frees the place in the engine."""

    def merge(self, body: Mapping[str, object]) -> LiveMerge: ...

    def queue(self, body: Mapping[str, object]) -> Job: ...


@dataclass(frozen=True)
class Answerer:
    """Asks a source; `together` are open at once, so that the engine never waits for the next one."""

    runner: asyncio.Runner
    source: Source
    together: int

    def names(self) -> set[str]:
        return self.runner.run(self.source.names())

    def ask(self, body: Body, tell: Tell) -> Answer:
        """Answer one. Ctrl-C cancels the task, and so frees the engine's place."""
        return self.runner.run(self.source.answer(body, tell))

    def ask_beside(self, bodies: Sequence[Body], tell: Callable[[int, str], None]) -> list[Answer | BaseException]:
        """Answer all at once; one that fails leaves the others."""

        async def both() -> list[Answer | BaseException]:
            asked = (self.source.answer(body, lambda text, n=n: tell(n, text)) for n, body in enumerate(bodies))  # type: ignore[misc]  # mypy takes a lambda's default for no argument
            return await asyncio.gather(*asked, return_exceptions=True)

        return self.runner.run(both())

    def ask_all(self, bodies: Iterable[Body | Invalid]) -> Iterator[Answer | Invalid | Unsupported]:
        """Answer in the order asked. What is wrong with one is its answer.

        Raises:
            ModelworksError: nobody can be asked any more.
        """
        line = _Line(self.source, iter(bodies), self.together)
        try:
            while (answer := self.runner.run(line.next())) is not None:
                yield answer
        finally:
            self.runner.run(line.close())


@dataclass
class _Line:
    source: Source
    bodies: Iterator[Body | Invalid]
    together: int
    tasks: deque[asyncio.Task[Answer | Invalid | Unsupported]] = field(default_factory=deque)
    open: int = 0

    async def next(self) -> Answer | Invalid | Unsupported | None:
        if not self.tasks:
            self._fill()
        if not self.tasks:
            return None
        answer = await asyncio.shield(self.tasks[0])
        self.tasks.popleft()
        return answer

    async def close(self) -> None:
        self.bodies = iter(())
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _fill(self) -> None:
        while self.open < self.together and (body := next(self.bodies, None)) is not None:
            self.tasks.append(asyncio.create_task(self._answer(body)))
            self.tasks[-1].add_done_callback(self._done)
            self.open += 1

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.open -= 1
        if task.cancelled() or task.exception():
            self.bodies = iter(())
        self._fill()

    async def _answer(self, body: Body | Invalid) -> Answer | Invalid | Unsupported:
        if isinstance(body, Invalid):
            return body
        failed = 0
        while True:
            try:
                return await self.source.answer(body, None)
            except (Invalid, Unsupported) as error:
                return error
            except Unavailable as error:
                failed += error.code != "queue_full"
                if failed == ATTEMPTS or (failed and isinstance(error.__cause__, httpx2.ConnectError)):
                    raise
                await asyncio.sleep(min(error.retry_after_seconds, 2))


@contextmanager
def open_answerer(session: Session, models: Iterable[str]) -> Iterator[Answerer]:
    """Speak through --server, else through this workspace's server, else through an engine of our own.

    Args:
        models: who will be asked; an unknown name must not cost the seconds of a start.
    """
    settings = session.settings
    own = running_server(settings)
    url = settings.server or (own.url if own else None)
    if url is not None and (ours := [f"--{flag}" for flag in ("engine", "quantization") if flag in session.flags]):
        raise Unsupported(f"the server at {url} answers, with its own engine; leave {ours[0]} out, or stop the server")
    with asyncio.Runner() as runner, ExitStack() as stack:
        source = _engine(session, models, runner, stack) if url is None else _remote(session, url, runner, stack)
        yield Answerer(runner, source, 2 * settings.max_sequences)


@contextmanager
def open_live(session: Session, name: str) -> Iterator[Answerer]:
    """As `open_answerer`, for a merge in memory that is made next, and that ends with this."""
    with open_answerer(session, ()) as answerer:
        try:
            yield answerer
        finally:
            if isinstance(answerer.source, _Remote):
                answerer.source.unload(name)


def _remote(session: Session, url: str, runner: asyncio.Runner, stack: ExitStack) -> _Remote:
    key = session.settings.api_key.get_secret_value() if session.settings.api_key else None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx2.Limits(max_connections=None)
    http = httpx2.AsyncClient(base_url=url.rstrip("/"), headers=headers, limits=limits, trust_env=False)
    stack.callback(lambda: runner.run(http.aclose()))
    return _Remote(stack.enter_context(Client(url, key)), http)


@dataclass(frozen=True)
class _Remote:
    client: Client
    http: httpx2.AsyncClient

    async def names(self) -> set[str]:
        with self.client.reaching():
            reply = await self.http.get("/v1/models")
        if reply.is_error:
            raise error_of(reply)
        return {card["id"] for card in json.loads(reply.content)["data"]}

    def merge(self, body: Mapping[str, object]) -> LiveMerge:
        return self.client.merge_live(body)

    def queue(self, body: Mapping[str, object]) -> Job:
        return self.client.submit("merge", body)

    def unload(self, name: str) -> None:
        if any(item.deployment.model_name == name for item in self.client.deployments()):
            self.client.unload(name)

    async def answer(self, body: Body, tell: Tell | None) -> Answer:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        with self.client.reaching():
            if tell is not None:
                return await self._stream(path, body, tell)
            timeout = httpx2.Timeout(WHOLE_SECONDS, connect=CONNECT_SECONDS)
            reply = await self.http.post(path, json=dict(body), timeout=timeout)
        if reply.is_error:
            raise error_of(reply)
        whole = json.loads(reply.content)
        (choice,) = whole["choices"]
        message = choice.get("message") or {"content": choice.get("text")}
        calls = tuple(message.get("tool_calls") or ())
        return _answer(message["content"] or "", choice["finish_reason"], whole.get("usage"), calls)

    async def _stream(self, path: str, body: Body, tell: Tell) -> Answer:
        asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        pieces: list[str] = []
        reason = usage = None
        async with self.http.stream("POST", path, json=asked, timeout=timeout) as reply:
            if reply.is_error:
                await reply.aread()
                raise error_of(reply)
            async for line in reply.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    return _answer("".join(pieces), reason, usage, ())
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise error_in(chunk)
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    reason = choice["finish_reason"] or reason
                    if text := choice.get("delta", choice).get("content" if "delta" in choice else "text"):
                        pieces.append(text)
                        tell(text)
        raise Unavailable(f"{self.client.url} ended in the middle of an answer")


def _answer(text: str, reason: str | None, usage: Mapping[str, int] | None, calls: tuple[Any, ...]) -> Answer:
    counted = usage or {}
    return Answer(
        text=text, finish_reason=reason, prompt_tokens=counted.get("prompt_tokens"),
        completion_tokens=counted.get("completion_tokens"), tool_calls=calls,
    )  # fmt: skip


def _engine(session: Session, models: Iterable[str], runner: asyncio.Runner, stack: ExitStack) -> _Embedded:
    app = session.app
    for model in models:
        if model not in app.services.entries:
            app.services.catalog.model(model)
        session.say(f"loading {model} ...")
    running = AsyncExitStack()
    gateway = runner.run(running.enter_async_context(app.engines()))
    stack.callback(lambda: runner.run(running.aclose()))
    return _Embedded(runner, gateway.generate, app)


@dataclass(frozen=True)
class _Embedded:
    runner: asyncio.Runner
    generate: Generate
    app: App

    async def names(self) -> set[str]:
        return {model.name for model in self.app.services.servable()} | set(self.app.services.entries)

    def merge(self, body: Mapping[str, object]) -> LiveMerge:
        return self.runner.run(merge_live(self.app.services, body))

    def queue(self, body: Mapping[str, object]) -> Job:
        """Queue a merge, and look after the workspace's jobs for as long as this command lasts."""
        job = self.app.services.submit("merge", body)
        self.app.start_worker()
        return job

    async def answer(self, body: Body, tell: Tell | None) -> Answer:
        pieces: list[str] = []
        calls: list[Mapping[str, Any]] = []
        async with aclosing(self.generate(request_of(body))) as events:
            async for event in events:
                if isinstance(event, Token):
                    pieces.append(event.text)
                    if tell is not None:
                        tell(event.text)
                elif isinstance(event, ToolCall):
                    function = {"name": event.name, "arguments": event.arguments}
                    calls.append({"id": event.id, "type": "function", "function": function})
                elif isinstance(event, Finished):
                    return Answer(
                        text="".join(pieces), finish_reason=event.reason, prompt_tokens=event.prompt_tokens,
                        completion_tokens=event.completion_tokens, tool_calls=tuple(calls),
                    )  # fmt: skip
        raise ModelworksError(f"{body.get('model')} stopped in the middle of an answer")


def request_of(body: Body) -> GenerateRequest:
    """What an engine is asked.

    Raises:
        Invalid: naming the field that is wrong.
    """
    if "messages" in body:
        requests = chat_requests(parse_spec(ChatAsked, body))
    else:
        requests = completion_requests(parse_spec(CompletionAsked, body))
    if len(requests) != 1:
        raise Invalid(f"{len(requests)} answers to one line; leave n out and write a line for each")
    return requests[0]

"""Where answers come from: a server that runs already, or an engine for as long as the command lasts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from modelworks.app.live import LiveMerge, merge_live
from modelworks.app.presence import running_server
from modelworks.app.wiring import App
from modelworks.cli.options import Session
from modelworks.client import Client
from modelworks.core.errors import ModelworksError, Unsupported
from modelworks.core.generation import ChatMessage, EngineEvent, Finished, GenerateRequest, Token
from modelworks.core.ids import new_id
from modelworks.core.nouns import Job

# As many as an engine decodes together by default.
TOGETHER = 32
Tell: TypeAlias = Callable[[str], None]
Generate: TypeAlias = Callable[[GenerateRequest], AsyncGenerator[EngineEvent, None]]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Messages for the model's chat template or, where there are none, a bare prompt to go on from."""

    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The text, and what the engine says of it; a server tells only the text."""

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Answerer(Protocol):
    def ask(self, question: Question, tell: Tell) -> Answer:
        """Answer one question, telling the text as it comes. Ctrl-C frees the place in the engine."""

    def ask_all(self, questions: Sequence[Question]) -> Iterator[Answer]:
        """Answer in the order asked; questions are decoded together."""


@contextmanager
def open_answerer(session: Session, model: str, sampling: Mapping[str, Any], *, bare: bool) -> Iterator[Answerer]:
    """Speak through --server, else through this workspace's server, else through an engine of our own."""
    with _open(session, model, sampling, bare=bare) as answerer:
        yield answerer


@contextmanager
def open_live(session: Session, name: str, sampling: Mapping[str, Any]) -> Iterator[_Remote | _Embedded]:
    """As `open_answerer`, for a merge in memory that is made next, and that ends with this."""
    with _open(session, name, sampling, live=True) as answerer:
        yield answerer


@contextmanager
def _open(
    session: Session, model: str, sampling: Mapping[str, Any], *, bare: bool = False, live: bool = False
) -> Iterator[_Remote | _Embedded]:
    settings = session.settings
    if settings.server and bare:
        raise Unsupported("a bare prompt is answered by an engine of this workspace; leave --raw or --server out")
    own = running_server(settings)
    url = settings.server or (own.url if own and not bare else None)
    if url is None:
        with _engine(session, model, sampling, live=live) as engine:
            yield engine
        return
    key = settings.api_key.get_secret_value() if settings.api_key else None
    with Client(url, key) as client:
        try:
            yield _Remote(client, model, sampling)
        finally:
            if live and any(item.deployment.model_name == model for item in client.deployments()):
                client.unload(model)


@dataclass(frozen=True)
class _Remote:
    client: Client
    model: str
    sampling: Mapping[str, Any]

    def merge(self, body: Mapping[str, object]) -> LiveMerge:
        return self.client.merge_live(body)

    def queue(self, body: Mapping[str, object]) -> Job:
        return self.client.submit("merge", body)

    def ask(self, question: Question, tell: Tell) -> Answer:
        pieces = []
        for piece in self.client.chat(self.model, question.messages, **self.sampling):
            pieces.append(piece)
            tell(piece)
        return Answer(text="".join(pieces))

    def ask_all(self, questions: Sequence[Question]) -> Iterator[Answer]:
        with ThreadPoolExecutor(TOGETHER) as pool:
            yield from pool.map(lambda question: self.ask(question, _nobody), questions)


@contextmanager
def _engine(session: Session, model: str, sampling: Mapping[str, Any], *, live: bool) -> Iterator[_Embedded]:
    app = session.app
    # Before anything is started: an unknown name must not cost the seconds of a start.
    if not live and model not in app.services.entries:
        app.services.catalog.model(model)
    with ExitStack() as stack:
        runner = stack.enter_context(asyncio.Runner())
        running = AsyncExitStack()
        gateway = runner.run(running.enter_async_context(app.engines()))
        stack.callback(lambda: runner.run(running.aclose()))
        session.say(f"loading {model} ...")
        yield _Embedded(runner, gateway.generate, model, sampling, app)


@dataclass(frozen=True)
class _Embedded:
    runner: asyncio.Runner
    generate: Generate
    model: str
    sampling: Mapping[str, Any]
    app: App

    def merge(self, body: Mapping[str, object]) -> LiveMerge:
        return self.runner.run(merge_live(self.app.services, body))

    def queue(self, body: Mapping[str, object]) -> Job:
        """Queue a merge, and look after the workspace's jobs for as long as this command lasts."""
        job = self.app.services.submit("merge", body)
        self.app.start_worker()
        return job

    def ask(self, question: Question, tell: Tell) -> Answer:
        # Ctrl-C cancels the task, which closes the generator and so frees the engine's place.
        return self.runner.run(self._ask(question, tell))

    def ask_all(self, questions: Sequence[Question]) -> Iterator[Answer]:
        batch = _Batch(self, questions)
        try:
            for number in range(len(questions)):
                yield self.runner.run(batch.answer(number))
        finally:
            self.runner.run(batch.close())

    async def _ask(self, question: Question, tell: Tell) -> Answer:
        messages = tuple(ChatMessage(each["role"], each["content"]) for each in question.messages)
        request = GenerateRequest(
            id=new_id(), model=self.model, messages=messages or None, prompt=question.prompt, **self.sampling
        )
        pieces: list[str] = []
        async with aclosing(self.generate(request)) as events:
            async for event in events:
                if isinstance(event, Token):
                    pieces.append(event.text)
                    tell(event.text)
                elif isinstance(event, Finished):
                    return Answer(
                        text="".join(pieces), finish_reason=event.reason, prompt_tokens=event.prompt_tokens,
                        completion_tokens=event.completion_tokens,
                    )  # fmt: skip
        raise ModelworksError(f"{self.model} stopped in the middle of an answer")


@dataclass
class _Batch:
    """Questions asked together, at most so many at once, whose answers are fetched one by one."""

    engine: _Embedded
    questions: Sequence[Question]
    tasks: list[asyncio.Task[Answer]] = field(default_factory=list)

    async def answer(self, number: int) -> Answer:
        if not self.tasks:
            room = asyncio.Semaphore(TOGETHER)
            self.tasks = [asyncio.create_task(self._ask(question, room)) for question in self.questions]
        return await self.tasks[number]

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _ask(self, question: Question, room: asyncio.Semaphore) -> Answer:
        async with room:
            return await self.engine._ask(question, _nobody)


def _nobody(_text: str) -> None:
    pass

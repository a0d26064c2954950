"""What the gateway promises under pressure, over an engine that answers when it is told to."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import generate_latest

from artifacts import as_model
from engines import answer_to, ask, gateway_over
from modelworks.core import caller
from modelworks.core.cores import CoreBudget
from modelworks.core.errors import DeadlinePassed, OutOfMemory
from modelworks.core.generation import EngineEvent, EngineFailed, Failed, Finished, GenerateRequest, QueueFull, Started
from modelworks.core.generation import Token as Text
from modelworks.core.nouns import Adapter, JsonObject
from modelworks.core.states import DeploymentState
from modelworks.serve import fleet as module
from modelworks.serve.engine import EngineKind, EngineSpec, EngineStats, Place
from modelworks.serve.gateway import Gateway
from modelworks.serve.supervisor import MAX_FAILURES, Replica, delay_after
from tiny import tiny_llama


@dataclass
class TestEngine:
    """Writes a first token at once, and ends the answer when `go` is set."""

    __test__ = False
    go: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    threads: list[int] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    closed: int = 0
    pid: int | None = None

    async def generate(self, request: GenerateRequest, adapter: str | None) -> AsyncGenerator[EngineEvent, None]:
        try:
            yield Started(3)
            yield Text("a", 1)
            waits = [asyncio.ensure_future(event.wait()) for event in (self.go, self.over)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if self.over.is_set():
                yield Failed("engine_failed", "it died")
            else:
                yield Text("b", 1)
                yield Finished("stop", 3, 2)
        finally:
            self.closed += 1

    async def add_adapter(self, name: str, folder: Path) -> None:
        await asyncio.sleep(0.01)
        self.adapters.append(name)

    async def remove_adapter(self, name: str) -> None: ...

    async def stats(self) -> EngineStats:
        raise EngineFailed("it says nothing")

    async def remake(self, recipe: JsonObject) -> JsonObject:
        return recipe

    def use_threads(self, count: int) -> None:
        self.threads.append(count)

    async def ended(self) -> str:
        await self.over.wait()
        return "it died"

    async def stop(self) -> None:
        self.over.set()


@dataclass
class Stage:
    gateway: Gateway
    engines: list[TestEngine]


Play = Callable[[Stage], Awaitable[None]]


@asynccontextmanager
async def stage(folder: Path, names: tuple[str, ...], patch: pytest.MonkeyPatch, **how: Any) -> AsyncIterator[Stage]:
    engines: list[TestEngine] = []

    async def start(_spec: EngineSpec, _place: Place) -> TestEngine:
        engines.append(TestEngine())
        return engines[-1]

    patch.setattr(module, "find_plugins", lambda *_: {"native": EngineKind("native", start)})
    models = [as_model(tiny_llama(folder / name), name) for name in names]
    async with gateway_over([*models], folder / "logs", **how) as gateway:
        yield Stage(gateway, engines)


def play(folder: Path, patch: pytest.MonkeyPatch, scene: Play, *names: str, **how: Any) -> None:
    async def run() -> None:
        async with stage(folder, names or ("base",), patch, **how) as made:
            await scene(made)

    asyncio.run(run())


async def talking(gateway: Gateway, model: str = "base", key: str | None = None) -> asyncio.Task[tuple[str, Finished]]:
    """An answer that has begun and does not end."""

    async def run() -> tuple[str, Finished]:
        caller.begin().key = key
        return await answer_to(gateway, ask(model))

    task = asyncio.create_task(run())
    before = written(gateway)
    while written(gateway) == before and not task.done():
        await asyncio.sleep(0)
    return task


def written(gateway: Gateway) -> float:
    return sum(
        sample.value
        for metric in gateway.metrics.generation_tokens.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    )


async def silence(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_key_has_at_most_so_many_requests_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Stage) -> None:
        anna = [await talking(made.gateway, key="anna") for _ in range(2)]
        third = await talking(made.gateway, key="anna")
        with pytest.raises(QueueFull, match="2 requests of this key are open"):
            await third
        bert = await talking(made.gateway, key="bert")
        assert not bert.done()
        await silence(anna[0])
        again = await talking(made.gateway, key="anna")
        assert not again.done()
        await silence(*anna, bert, again)

    play(tmp_path, monkeypatch, scene, max_open_per_key=2)


def test_an_adapter_is_given_to_an_engine_once_and_again_when_it_has_gone(tmp_path: Path) -> None:
    async def scene() -> None:
        engines: list[TestEngine] = []

        async def start() -> TestEngine:
            engines.append(TestEngine())
            return engines[-1]

        replica, adapter = (
            Replica("cpu", start, asyncio.Condition()),
            cast("Adapter", SimpleNamespace(id="a", path=tmp_path)),
        )
        await asyncio.gather(*[replica.engine_with(adapter) for _ in range(5)])
        assert engines[0].adapters == ["a"]
        await replica.remove_adapter(adapter)
        await replica.engine_with(adapter)
        assert engines[0].adapters == ["a", "a"]
        engines[0].over.set()
        while len(engines) < 2:
            await asyncio.sleep(0.01)
        assert await replica.engine_with(adapter) is engines[1]
        assert engines[1].adapters == ["a"]
        await replica.stop()

    asyncio.run(scene())


def test_a_full_queue_says_when_to_come_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Stage) -> None:
        tasks = [await talking(made.gateway) for _ in range(3)]
        refused = await talking(made.gateway)
        with pytest.raises(QueueFull) as first:
            await refused
        assert first.value.retry_after_seconds == 1  # nobody knows yet how long one takes
        deployed = next(iter(made.gateway._fleet.deployed.values()))
        deployed.note_answer(12.0)
        with pytest.raises(QueueFull) as second:
            await answer_to(made.gateway, ask("base"))
        assert second.value.retry_after_seconds == 24  # two wait behind one place
        await silence(*tasks)

    play(tmp_path, monkeypatch, scene, max_sequences=1, max_queued=2)


def test_an_answer_that_is_not_whole_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Stage) -> None:
        caller.begin().timeout_seconds = 0.02
        with pytest.raises(DeadlinePassed, match=r"after 0\.02 s"):
            await answer_to(made.gateway, ask("base"))
        assert made.engines[0].closed == 1
        assert made.gateway.deployments()[0].outstanding == 0
        text = generate_latest(made.gateway.metrics.registry).decode()
        assert 'requests_total{model_name="base",outcome="deadline_passed"} 1.0' in text
        assert 'modelworks_time_to_first_token_seconds_count{model_name="base"} 1.0' in text

    play(tmp_path, monkeypatch, scene, timeout_seconds=60.0)


def test_a_model_goes_when_nobody_has_asked_for_as_long_as_it_was_to_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene(made: Stage) -> None:
        status = await made.gateway.load("base", keep_alive=3600)
        assert status.until is not None
        task = await talking(made.gateway)
        assert made.gateway.deployments()[0].until is None  # in use
        await made.gateway.load("base", keep_alive=0)
        assert made.gateway.deployments()[0].state is DeploymentState.READY
        made.engines[0].go.set()
        text, end = await task
        assert (text, end.completion_tokens) == ("ab", 2)
        while made.gateway.deployments():
            await asyncio.sleep(0)
        assert made.engines[0].over.is_set()
        await made.gateway.load("base")
        assert made.gateway.deployments()[0].until is None  # for good, as is set

    play(tmp_path, monkeypatch, scene)


def test_an_answer_that_unloading_cuts_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Stage) -> None:
        task = await talking(made.gateway)
        await made.gateway.unload("base", drain_seconds=0)
        with pytest.raises(EngineFailed, match="base was unloaded before this answer was whole"):
            await task

    play(tmp_path, monkeypatch, scene)


def test_what_does_not_fit_into_memory_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(made: Stage) -> None:
        monkeypatch.setattr("modelworks.serve.memory.available_bytes", lambda: 1000)
        for asking in (made.gateway.load("base"), answer_to(made.gateway, ask("base")), made.gateway.add("base")):
            with pytest.raises(OutOfMemory, match="base needs about"):
                await asking
        assert (made.engines, made.gateway.deployments()) == ([], ())

    play(tmp_path, monkeypatch, scene)


def test_engines_that_answer_share_the_cores_that_jobs_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = CoreBudget(8)

    async def scene(made: Stage) -> None:
        gateway = Gateway(
            resolve=made.gateway._resolve, base_of=made.gateway._base_of, cores=budget,
            settings=dataclasses.replace(made.gateway._settings, threads=None),
        )  # fmt: skip
        tasks = [await talking(gateway, "left")]
        left = made.engines[0]
        assert left.threads == [8]
        tasks.append(await talking(gateway, "right"))
        assert (left.threads, made.engines[1].threads) == ([8, 4], [4])
        budget.note_jobs(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (left.threads[-1], made.engines[1].threads[-1], budget.job_threads()) == (2, 2, 4)
        await silence(tasks[1])
        assert left.threads[-1] == 4
        await silence(*tasks)
        await gateway.close()
        assert budget.job_threads() == 8

    play(tmp_path, monkeypatch, scene, "left", "right")


def test_an_engine_that_ends_is_started_later_each_time() -> None:
    assert [delay_after(failures) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert MAX_FAILURES == 5


def test_an_error_that_nobody_thought_of_is_an_end_like_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelworks.serve.supervisor.FIRST_DELAY_SECONDS", 0)

    async def surprise(_engine: TestEngine) -> str:
        raise ValueError("a surprise")

    monkeypatch.setattr(TestEngine, "ended", surprise)

    async def scene(made: Stage) -> None:
        with suppress(EngineFailed):
            await made.gateway.load("base")
        while made.gateway.deployments()[0].state is not DeploymentState.FAILED:
            await asyncio.sleep(0)
        assert "given up after 5 attempts" in str(made.gateway.deployments()[0].error)
        assert "a surprise" in str(made.gateway.deployments()[0].error)

    play(tmp_path, monkeypatch, scene)


def test_one_that_always_ends_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelworks.serve.supervisor.FIRST_DELAY_SECONDS", 0)

    async def scene(made: Stage) -> None:
        with suppress(EngineFailed):
            await made.gateway.load("base")
        while made.gateway.deployments()[0].state is not DeploymentState.FAILED:
            for engine in made.engines:
                engine.over.set()
            await asyncio.sleep(0)
        [status] = made.gateway.deployments()
        assert (len(made.engines), status.error) == (5, "given up after 5 attempts: it died")

    play(tmp_path, monkeypatch, scene)

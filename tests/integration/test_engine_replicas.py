"""Several replicas of one model: all get work, one that dies takes nobody along, one that goes drains first."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from artifacts import as_adapter, as_model
from engines import answer_to, ask, gateway_over
from modelworks.core.errors import Invalid, NotFound, Unsupported
from modelworks.core.generation import EngineFailed, Token
from modelworks.core.nouns import Adapter, Model
from modelworks.core.states import DeploymentState
from modelworks.serve.gateway import Gateway
from tiny import tiny_adapter, tiny_llama

Play = Callable[[Gateway], Awaitable[None]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> list[Model | Adapter]:
    folder = tmp_path_factory.mktemp("shelf")
    base = as_model(tiny_llama(folder / "base", max_position_embeddings=20_000, dtype="float32"), "base")
    tuned = as_adapter(tiny_adapter(folder / "left", base.path, rank=4, lora_alpha=64), "left", base)
    return [base, tuned]


def with_gateway(shelf: list[Model | Adapter], logs: Path, play: Play) -> None:
    async def run() -> None:
        async with gateway_over(shelf, logs, threads=1) as gateway:
            await play(gateway)

    asyncio.run(run())


async def until_it_speaks(gateway: Gateway, name: str, spoken: asyncio.Event) -> None:
    async for event in gateway.generate(ask(name, max_tokens=15_000)):
        if isinstance(event, Token):
            spoken.set()


async def talking(gateway: Gateway, name: str, count: int) -> list[asyncio.Task[None]]:
    """Answers that go on and on, each of which has begun."""
    begun = [asyncio.Event() for _ in range(count)]
    tasks = []
    for event in begun:
        tasks.append(asyncio.create_task(until_it_speaks(gateway, name, event)))
        await event.wait()
    return tasks


async def silence(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_two_replicas_both_get_work_and_an_adapter_goes_where_it_is_asked_for(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        await gateway.load("base")
        status = await gateway.add("base", "cpu")
        assert [(each.device, each.state) for each in status.replicas] == [("cpu", DeploymentState.READY)] * 2
        assert len(set(status.pids)) == status.deployment.replicas == 2

        alone = await answer_to(gateway, ask("left"))
        together = await asyncio.gather(*(answer_to(gateway, ask("left")) for _ in range(6)))

        assert together == [alone] * 6
        (status,) = await gateway.stats()
        assert [stats.adapters for stats in status.stats] == [status.stats[0].adapters] * 2
        assert sorted(stats.finished for stats in status.stats) == [3, 4]

    with_gateway(shelf, tmp_path, play)


def test_a_killed_replica_leaves_the_others_answers_alone_and_comes_back(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        await gateway.load("base", replicas=2)
        tasks = await talking(gateway, "base", 4)
        (status,) = gateway.deployments()
        assert [each.outstanding for each in status.replicas] == [2, 2]

        os.kill(status.pids[0], signal.SIGKILL)

        going = set(tasks)
        while len(going) > 2:
            _, going = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
        done = set(tasks) - going
        assert all(isinstance(task.exception(), EngineFailed) for task in done)
        # While one comes back, the other answers at once.
        (status,) = gateway.deployments()
        assert status.state is DeploymentState.READY
        assert len(status.pids) == 1
        _, end = await answer_to(gateway, ask("base"))
        assert end.completion_tokens == 16
        status = await gateway.load("base", replicas=2)
        assert [each.restarts for each in status.replicas] == [1, 0]
        await silence(tasks)

    with_gateway(shelf, tmp_path, play)


def test_a_removed_replica_ends_its_answers_first_and_the_last_gives_everything_back(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        await gateway.load("base", replicas=2)
        processes = [psutil.Process(pid) for pid in gateway.deployments()[0].pids]
        answers = [asyncio.create_task(answer_to(gateway, ask("base", max_tokens=300))) for _ in range(2)]
        while gateway.deployments()[0].outstanding < 2:
            await asyncio.sleep(0)

        await gateway.remove("base")

        (status,) = gateway.deployments()
        assert (len(status.replicas), [process.is_running() for process in processes].count(True)) == (1, 1)
        assert [end.completion_tokens for _, end in await asyncio.gather(*answers)] == [300, 300]
        await gateway.remove("base")
        assert gateway.deployments() == ()
        with pytest.raises(NotFound, match="base is not loaded"):
            await gateway.remove("base")

    with_gateway(shelf, tmp_path, play)


def test_removing_an_adapter_takes_a_replica_while_there_are_several_and_then_only_itself(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        await gateway.add("left")
        await gateway.add("left")

        await gateway.remove("left")
        (status,) = gateway.deployments()
        assert (len(status.replicas), status.adapters) == (1, ("left",))
        await gateway.remove("left")
        (status,) = await gateway.stats()
        assert (len(status.replicas), status.adapters, status.stats[0].adapters) == (1, (), ())
        with pytest.raises(NotFound, match="left is not loaded"):
            await gateway.remove("left")

    with_gateway(shelf, tmp_path, play)


def test_a_device_that_is_not_there_is_refused_before_anything_starts(
    shelf: list[Model | Adapter], tmp_path: Path
) -> None:
    async def play(gateway: Gateway) -> None:
        for device, kind in {"cuda:0": Unsupported, "cuda": Unsupported, "tpu": Invalid}.items():
            with pytest.raises(kind):
                await gateway.add("base", device)
        assert gateway.deployments() == ()
        for count in (0, 65):
            with pytest.raises(Invalid, match="from 1 to 64"):
                await gateway.load("base", replicas=count)

    with_gateway(shelf, tmp_path / "logs", play)
    assert not (tmp_path / "logs").exists()


def test_a_replica_that_cannot_be_added_leaves_those_that_answer(shelf: list[Model | Adapter], tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "soon-gone", dtype="float32")
    model = as_model(folder, "model")

    async def play(gateway: Gateway) -> None:
        await gateway.load("model")
        (folder / "model.safetensors").rename(folder / "kept")

        with pytest.raises((Invalid, Unsupported, NotFound, EngineFailed)):
            await gateway.add("model")

        (status,) = gateway.deployments()
        assert (len(status.replicas), status.state, status.error) == (1, DeploymentState.READY, None)
        await answer_to(gateway, ask("model"))

    with_gateway([model], tmp_path / "logs", play)

"""When the gateway's side of an engine process takes it for dead, and when not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines import ask
from modelworks.core.generation import EngineFailed, Failed, Started
from modelworks.serve.child import ChildEngine
from modelworks.serve.engine import EngineSpec, Place

HANG_SECONDS = 0.2
TESTS = Path(__file__).parents[2]


@asynccontextmanager
async def obedient(folder: Path) -> AsyncIterator[ChildEngine]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(TESTS)}
    place = Place(folder / "engine.log", environment, HANG_SECONDS)
    engine = await ChildEngine.start(EngineSpec(model_folder="", model_name="m"), place, "obedient_engine")
    try:
        yield engine
    finally:
        await engine.stop()


def play(folder: Path, scene: Callable[[ChildEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with obedient(folder) as engine:
            await scene(engine)

    asyncio.run(run())


def test_an_engine_that_owes_an_answer_and_takes_no_step_is_ended_an_idle_one_is_left_alone(tmp_path: Path) -> None:
    async def scene(engine: ChildEngine) -> None:
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.ended(), 2 * HANG_SECONDS)

        events = [event async for event in engine.generate(ask("m"), None)]

        (failed,) = events
        assert isinstance(failed, Failed)
        assert "took no step for 0.2 s; raise hang_seconds" in failed.message
        assert await engine.ended() == failed.message

    play(tmp_path, scene)


def test_a_line_that_comes_in_pieces_is_read_whole(tmp_path: Path) -> None:
    async def scene(engine: ChildEngine) -> None:
        await asyncio.wait_for(engine.remove_adapter("any"), 10)
        await asyncio.wait_for(engine.remove_adapter("another"), 10)

    play(tmp_path, scene)


def test_an_answer_may_take_any_time_and_so_may_making_weights(tmp_path: Path) -> None:
    async def scene(engine: ChildEngine) -> None:
        events = engine.generate(ask("m"), None)
        assert isinstance(await anext(events), Started)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.ended(), 2 * HANG_SECONDS)

        assert await engine.remake({"seconds": 3 * HANG_SECONDS}) == {}

        assert (await engine.stats()).running == 1
        await events.aclose()

    play(tmp_path, scene)


def test_an_engine_that_says_what_nobody_can_read_is_ended(tmp_path: Path) -> None:
    async def scene(engine: ChildEngine) -> None:
        with pytest.raises(EngineFailed, match="the engine process ended"):
            await engine.add_adapter("left", tmp_path)

    play(tmp_path, scene)
